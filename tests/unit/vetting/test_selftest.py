"""What vmjob image test makes of what a guest tells: each check fails for its own reason, and for no other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import ROOT
from vmjob.core.model import AccelChoice, Boot
from vmjob.core.result import Failure, Result, StageTime
from vmjob.core.units import MIB
from vmjob.vetting import selftest
from vmjob.vetting.image_test import Booted, Outcome
from vmjob.vetting.selftest import Check, Tried, read_facts

pytestmark = pytest.mark.unit

DATA = os.urandom(1000)
FACTS = {
    "test.begin": "full", "user.name": "ada", "user.id": "1000", "user.home": "/home/ada", "user.known": "yes",
    "entropy.urandom": "aB3", "entropy.kernel": "u-u-i-d", "entropy.ready": "yes",
    "network.cards": "eth0", "network.addresses": "10.0.2.15 10.0.2.15", "network.gateway": "0202000A",
    "network.dns": "10.0.2.3", "network.answer": "yes",
    "work.here": "/w", "work.wanted": "/w", "work.writable": "yes", "work.temporary": "yes", "tools.missing": "",
    "features.total_cpu": "2", "features.allocated_cpu": "2", "features.jobstart_secs": "1000",
    "features.max_rss_bytes": str(512 * MIB), "features.job_id": "1", "cpus.count": "2",
    "memory.total": f"{469 * 1024} kB", "time.now": "1003", "time.ran": "1",
    "inputs.text": "text with é", "inputs.size": "1000", "inputs.empty": "yes", "inputs.program": "runs",
    "inputs.owner": "yes", "test.end": "42"}
RESULT = Result("test", "program-failed", 42, exit_status=42, stages=(StageTime("boot", 2.0),), boot_attempts=1,
                accelerator=AccelChoice("tcg", "no kvm"), network="NAT by passt", cpus=2, memory=512 * MIB, stop="quit",
                started=998.0, ended=1010.0)
FAILURE = Failure("payload", "GuestHung", 242, "no sign of life", "", False)


def outputs(folder: Path) -> Path:
    top = folder / selftest.OUTPUTS
    (top / "empty").mkdir(parents=True)
    (top / "data copy").write_bytes(DATA + b"end\n")
    (top / "É Ü.txt").write_text("TEXT WITH é\n", encoding="utf-8")
    (top / "nothing").touch()
    (top / "link").symlink_to("data copy")
    return top


def tried(folder: Path, result: Result = RESULT, stderr: bytes = selftest.STDERR, **facts: str) -> Tried:
    known = {**FACTS, **{name.replace("__", "."): value for name, value in facts.items()}}
    stdout = "".join(f"1.5\t{name}\t{value}\n" for name, value in known.items()).encode()
    return Tried(result, stdout, stderr, folder, *read_facts(stdout))


def bare(folder: Path, result: Result = RESULT, **facts: str) -> Tried:
    return tried(folder, result, **{"user__name": "root", "user__id": "0", "network__cards": "", "network__gateway": "",
                                    "entropy__urandom": "Zz9", "entropy__kernel": "o-t-h-e-r", **facts})


def failing(checks: tuple[Check, ...]) -> dict[str, str]:
    return {one.name: one.text for one in checks if one.outcome == "failed"}


def test_all_passes(tmp_path: Path) -> None:
    outputs(tmp_path)
    checks = selftest.check(tried(tmp_path), bare(tmp_path), "ada", DATA)
    assert {one.outcome for one in checks} == {"passed"} and len(checks) == 16
    assert {one.name: one.text for one in checks}["network"] == "10.0.2.15, name server 10.0.2.3"


FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("agent", {"result": replace(RESULT, exit_status=0)}),
    ("streams", {"stderr": selftest.STDERR + b"\n"}), ("streams", {"stderr": b""}),
    ("inputs", {"inputs__text": "text with ?"}), ("inputs", {"inputs__size": "999"}), ("inputs", {"inputs__empty": ""}),
    ("inputs", {"inputs__program": ""}), ("inputs", {"inputs__owner": ""}),
    ("user", {"user__name": "vmjob"}), ("user", {"user__id": "0"}), ("user", {"user__home": ""}),
    ("work", {"work__here": "/"}), ("work", {"work__writable": "no"}), ("work", {"work__temporary": "no"}),
    ("tools", {"tools__missing": "xargs"}),
    ("features", {"features__total_cpu": "1"}), ("features", {"features__job_id": ""}),
    ("cpus", {"cpus__count": "1"}), ("memory", {"memory__total": "300000 kB"}),
    ("memory", {"memory__total": "600000 kB"}), ("memory", {"memory__total": "lots"}),
    ("time", {"time__now": "990"}), ("time", {"time__now": "1020"}), ("time", {"time__now": ""}),
    ("time", {"time__ran": "0"}),
    ("entropy", {"entropy__urandom": ""}), ("entropy", {"entropy__urandom": "Zz9"}),
    ("entropy", {"entropy__ready": "no"}),
    ("network", {"network__cards": ""}), ("network", {"network__addresses": ""}), ("network", {"network__gateway": ""}),
    ("network", {"network__dns": ""}), ("network", {"network__answer": "no"}),
    ("shutdown", {"result": replace(RESULT, stop="kill")}),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_each_fault_fails_its_own_check(tmp_path: Path, name: str, fault: dict[str, Any]) -> None:
    outputs(tmp_path)
    assert list(failing(selftest.check(tried(tmp_path, **fault), bare(tmp_path), "ada", DATA))) == [name]


@pytest.mark.parametrize(("name", "fault"), [
    ("user", {"user__known": "no"}), ("isolation", {"network__cards": "eth0"}),
    ("isolation", {"network__gateway": "01"})])
def test_faults_that_the_bare_run_shows(tmp_path: Path, name: str, fault: dict[str, str]) -> None:
    outputs(tmp_path)
    assert list(failing(selftest.check(tried(tmp_path), bare(tmp_path, **fault), "ada", DATA))) == [name]


def spoil(how: str) -> Callable[[Path], None]:
    def do(top: Path) -> None:
        if how == "bytes":
            (top / "data copy").write_bytes(DATA)
        elif how == "name":
            (top / "É Ü.txt").rename(top / "E U.txt")
        elif how == "fifo":
            (top / "data copy").unlink()
            os.mkfifo(top / "data copy")
        elif how == "link":
            (top / "nothing").unlink()
            (top / "nothing").symlink_to("/dev/null")
        else:
            (top / how).rmdir()

    return do


@pytest.mark.parametrize("how", ["bytes", "name", "fifo", "link", "empty"])
def test_outputs_that_are_not_as_made(tmp_path: Path, how: str) -> None:
    spoil(how)(outputs(tmp_path))
    assert list(failing(selftest.check(tried(tmp_path), bare(tmp_path), "ada", DATA))) == ["outputs"]


def test_root_where_the_manifest_says_so(tmp_path: Path) -> None:
    outputs(tmp_path)
    root = tried(tmp_path, user__name="root", user__id="0", user__home="/root")
    assert not failing(selftest.check(root, bare(tmp_path), "root", DATA))


def test_slow_emulation_fails_no_clock(tmp_path: Path) -> None:
    outputs(tmp_path)
    slow = tried(tmp_path, replace(RESULT, ended=5000.0), time__now="4990")
    assert not failing(selftest.check(slow, bare(tmp_path), "ada", DATA))


def test_a_node_without_a_network_is_not_the_images_fault(tmp_path: Path) -> None:
    outputs(tmp_path)
    alone = tried(tmp_path, replace(RESULT, network="this node has no IPv4 route out"), network__gateway="")
    assert {c.name: c.outcome for c in selftest.check(alone, bare(tmp_path), "ada", DATA)}["network"] == "skipped"


def test_what_does_not_boot_is_told_once(tmp_path: Path) -> None:
    dead = Tried(replace(RESULT, failure=replace(FAILURE, stage="boot"), exit_status=None), b"", b"", tmp_path)
    first, *others = selftest.check(dead, None, "ada", DATA)
    assert (first.name, first.outcome, first.text) == ("boot", "failed", "GuestHung: no sign of life")
    assert {other.outcome for other in others} == {"skipped"}


def test_a_guest_that_dies_at_work(tmp_path: Path) -> None:
    dead = Tried(replace(RESULT, failure=FAILURE, exit_status=None), b"", b"", tmp_path)
    assert list(failing(selftest.check(dead, bare(tmp_path), "ada", DATA))) == ["agent"]
    text = "the agent in the guest gave up (inputs): tar cannot unpack the inputs in the guest: sh: tar: not found"
    lacking = Tried(replace(RESULT, failure=replace(FAILURE, kind="AgentFailed", message=text), exit_status=None),
                    b"", b"", tmp_path)
    assert failing(selftest.check(lacking, bare(tmp_path), "ada", DATA)) == {"inputs": text}
    lost = tried(tmp_path, replace(RESULT, failure=replace(FAILURE, stage="collect", kind="OutputMissing")))
    assert list(failing(selftest.check(lost, bare(tmp_path), "ada", DATA))) == ["outputs"]


def test_facts_of_a_hostile_guest() -> None:
    lines = b"1\ta.b\t\x1b[2Jx\n\n1\tno value\n1e999\te.f\tx\n1.50\tc.d\t" + b"y" * 10_000 + b"\n2\ta.b\tagain\n"
    lines += b"".join(b"3\tn.%d\tv\n" % n for n in range(1000)) + b"\xff\xfe\tq\tr\n1\tlast"
    facts, seconds = read_facts(lines)
    assert facts["a.b"] == "\ufffd[2Jx" and len(facts["c.d"]) == 500 and len(facts) == 100 and "e.f" not in facts
    assert all(spent >= 0 for spent in seconds.values())
    json.dumps(seconds, allow_nan=False)


def test_the_outcome_as_a_document_and_a_status() -> None:
    good, bad = Check("boot", "passed", "says hello", 1.5), Check("time", "failed", "é", 0.0)

    def outcome(*boots: Booted) -> Outcome:
        return Outcome("m", "sha256:" + "0" * 64, 1_700_000_000, "7.2.22", "tcg", boots)

    passed = outcome(Booted(Boot.JOB, (good, replace(good, outcome="skipped"))))
    failed = outcome(Booted(Boot.JOB, (good,)), Booted(Boot.DISK, (good, bad)))
    dead = outcome(Booted(Boot.JOB, (bad,)), Booted(Boot.DISK, (bad,), replace(FAILURE, status=241)))
    schema = json.loads((ROOT / "vmjob/schemas/test.schema.json").read_text())
    for one, status in ((passed, 0), (failed, 244), (dead, 241)):
        body = one.to_json()
        jsonschema.validate(body, schema)
        assert (one.status, body["passed"]) == (status, not status)


def test_a_guest_that_powers_off_before_it_is_asked_ends_in_order(tmp_path: Path) -> None:
    outputs(tmp_path)
    assert not failing(selftest.check(tried(tmp_path, replace(RESULT, stop="itself")), bare(tmp_path), "ada", DATA))
