"""What HTCondor is told of a run, and when it cannot be told."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Optional

import pytest

from vmjob.core import errors
from vmjob.core.classads import Value
from vmjob.core.errors import ChirpFailed, VmjobError
from vmjob.core.model import AccelChoice
from vmjob.core.progress import Reporter
from vmjob.core.result import Result, StageTime
from vmjob.run.outcome import failure_of
from vmjob.slot import announce, submit_side
from vmjob.slot.announce import Announcer, decision, is_over, summary

pytestmark = pytest.mark.unit


def failed(error: VmjobError, outcome: str = "failed") -> Result:
    return Result("j", outcome, error.status, failure=failure_of(error))


OK = Result("j", "ok", 0, 0, stages=(StageTime("stage", 0.011), StageTime("boot", 1.75)), image="micro",
            image_digest="sha256:0", accelerator=AccelChoice("tcg", "no /dev/kvm"), bytes_image=5)


def leaves(kind: type[VmjobError]) -> list[type[VmjobError]]:
    return [kind, *(leaf for one in kind.__subclasses__() for leaf in leaves(one))]


RETRIED = {errors.ScratchFull, errors.QemuMissing, errors.KvmUnavailable, errors.NetworkRefused, errors.QemuFailed,
           errors.CommandMissing, errors.ChirpFailed, errors.ClockWrong, errors.PoolOutOfReach,
           errors.ImageOutOfReach, errors.PolicyBroken}
HELD = {errors.JobError, errors.InputMissing, errors.ImageError, errors.ImageMissing, errors.ImageCorrupt,
        errors.ImageRefused, errors.BuildFailed, errors.SlotError, errors.SlotTooSmall, errors.FolderBusy,
        errors.HostError, errors.CommandFailed, errors.WalltimeTooShort, errors.TokenRefused, errors.CondorMissing,
        errors.CondorTooOld, errors.EndorsementRefused, errors.PolicyRefused}


@pytest.mark.parametrize("kind", [kind for kind in leaves(VmjobError) if kind.__module__ == errors.__name__
                                  and kind.status >= 200], ids=lambda kind: kind.__name__)
def test_every_failure_is_retried_held_or_returned(kind: type[VmjobError]) -> None:
    told = decision(failed(kind("what happened", "what to do")), "n1", "")
    assert (told["VmjobRetry"], told["VmjobHold"]) == (kind in RETRIED, kind in HELD)
    reason = f"{kind.__name__}: what happened → what to do" if kind in RETRIED | HELD else ""
    assert told["VmjobHoldReason"] == reason
    assert told["VmjobAvoid"] == ("n1" if kind in RETRIED else "")
    assert is_over(failed(kind("what happened"))) is (kind not in (RETRIED | HELD | {errors.Interrupted})
                                                      or kind is errors.TokenRefused)


def test_the_programs_own_failure_is_returned() -> None:
    for result in (OK, Result("j", "program-failed", 3, 3),
                   failed(errors.QemuFailed("after the program had failed"), "program-failed")):
        told = decision(result, "n1", "n2")
        assert told == {"VmjobRetry": False, "VmjobHold": False, "VmjobHoldReason": "", "VmjobAvoid": "n2"}
        assert is_over(result)


@pytest.mark.parametrize("before, after", [("", "n1"), ("n2", "n2,n1"), ("n1, n2", "n2,n1"),
                                           (",".join(f"w{n}" for n in range(99)), None)])
def test_nodes_that_failed_are_remembered_once(before: str, after: Optional[str]) -> None:
    found = str(decision(failed(errors.QemuMissing("x")), "n1", before)["VmjobAvoid"])
    assert found == after if after else found.endswith("w98,n1") and found.count(",") == 19


def test_summary() -> None:
    told = summary(OK)
    assert told["VmjobStageSeconds"] == "stage=0.01 boot=1.75" and told["VmjobBootSeconds"] == 1.75
    assert told["VmjobImageBytes"] == 5 and told["VmjobAccel"] == "tcg" and told["VmjobFailure"] == ""
    assert summary(failed(errors.BootFailed("m", "h")))["VmjobFailure"] == "BootFailed"


class Ear:
    """In the place of the Chirp: hears, is deaf for a while, or refuses."""

    def __init__(self, lost: int = 0, refuses: bool = False) -> None:
        self.heard: dict[str, Value] = {}
        self.lost, self.refuses, self.open = lost, refuses, threading.Event()
        self.open.set()

    def set(self, name: str, value: Value) -> None:
        self.open.wait(30)
        if self.refuses:
            raise ChirpFailed("no")
        if self.lost:
            self.lost -= 1
            raise ConnectionError("cut")
        self.heard[name] = value


def announcer(ear: Any, ad: Optional[dict[str, str]] = None, inner: Optional[Reporter] = None) -> Announcer:
    return Announcer(inner or Reporter(), ear, ad or {}, "n1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "_PAUSE", 0.01)
    monkeypatch.setattr(announce, "FLUSH", 30.0)
    monkeypatch.setattr(announce, "HURRY", 0.1)


def test_all_of_it_arrives_and_nothing_that_is_known() -> None:
    ear = Ear(lost=3)
    one = announcer(ear, {"vmjobretry": "true", "vmjoboutcome": "failed", "vmjobimage": "micro"})
    one.stage_started("boot")
    one.finish(OK)
    assert ear.heard["VmjobStage"] == "boot" and ear.heard["VmjobRetry"] is False
    assert ear.heard["VmjobOutcome"] == "ok" and ear.heard["VmjobStatus"] == 0
    assert not {"VmjobHold", "VmjobImage", "VmjobFailure", "VmjobHoldReason"} & set(ear.heard)


def test_a_cut_network_delays_nothing_but_the_end() -> None:
    ear = Ear()
    ear.open.clear()
    one = announcer(ear)
    for stage in ("verify", "probe", "boot"):
        one.stage_started(stage)
    threading.Timer(0.3, ear.open.set).start()
    one.finish(OK)
    assert ear.heard["VmjobOutcome"] == "ok" and ear.heard["VmjobStage"] == "boot"


def test_who_is_being_stopped_does_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    for result, hurried in ((failed(errors.Interrupted("SIGTERM")), False), (OK, True)):
        ear = Ear()
        ear.open.clear()
        one = announcer(ear)
        if hurried:
            one.hurry()
        one.finish(result)  # would take 30 s, and the test with it
        assert "could not be told" in caplog.text and not ear.heard
        ear.open.set()
        caplog.clear()


def test_a_refusal_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    announcer(Ear(refuses=True)).finish(OK)
    assert "not told" in caplog.text


def test_without_chirp_it_only_passes_on() -> None:
    class Inner(Reporter):
        said: list[str] = []

        def stage_started(self, name: str) -> None:
            self.said.append(name)

        def note(self, text: str) -> None:
            self.said.append(text)

    inner = Inner()
    one = announcer(None, inner=inner)
    one.stage_started("boot")
    one.note("hello")
    one.finish(OK)
    assert inner.said == ["boot", "hello"]


def test_begin_reads_the_ads(tmp_path: Path) -> None:
    (tmp_path / "machine").write_text('Machine = "n7.example"\n')
    (tmp_path / "job").write_text('VmjobAvoid = "n3"\n')
    ear: Any = Ear()
    one = Announcer.begin({"_CONDOR_MACHINE_AD": "/machine", "_CONDOR_JOB_AD": "/job"}, Reporter(), ear, tmp_path)
    one.finish(failed(errors.QemuMissing("none")))
    assert ear.heard["VmjobAvoid"] == "n3,n7.example" and ear.heard["VmjobRetry"] is True


IWD = "/var/spool/condor/1234/0/cluster41234.proc0.subproc0"


@pytest.mark.parametrize("place, iwd, found", [
    ("/some/where/", "", "/some/where"), ("12.0", IWD, "/var/spool/condor/12/0/cluster12.proc0.subproc0"),
    ("20012.10003", IWD + "/", "/var/spool/condor/12/3/cluster20012.proc10003.subproc0")])
def test_the_carriers_folder(place: str, iwd: str, found: str) -> None:
    assert submit_side.folder(place, iwd) == found


@pytest.mark.parametrize("place, iwd", [("12.0", "/home/ada"), ("12.0", ""), ("12", IWD), ("a/b", IWD), ("", IWD)])
def test_no_carriers_folder(place: str, iwd: str) -> None:
    with pytest.raises(errors.JobError, match="at the submit side"):
        submit_side.folder(place, iwd)
