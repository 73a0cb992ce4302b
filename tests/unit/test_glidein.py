"""Glide-ins: the job file, the token, the times, HTCondor's configuration, and what came of one."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from vmjob import tokens
from vmjob.batch.targets import Target
from vmjob.errors import (
    ClockWrong,
    CondorFailed,
    CondorMissing,
    JobError,
    PoolOutOfReach,
    TokenRefused,
    VmjobError,
    WalltimeTooShort,
)
from vmjob.glideins import BOOT, DRAIN, Glidein, Times, Worked, times
from vmjob.guest import glidein as guest
from vmjob.job import job_from
from vmjob.model import Boot, ImageFile, Job, Manifest, Payload, Slot
from vmjob.payload import payload_document, read_payload, write_payload
from vmjob.schema import check
from vmjob.submission import at_target
from vmjob.submit import token_of

pytestmark = pytest.mark.unit

POOL = {"pool": "vo.example.org:9618", "token": "vo.token"}
SLOT = Slot("htcondor", Path("/scratch"), 2, 2**30, 2**30, job_id="ce#1.0")


def job(glidein: Any = None, **more: Any) -> Job:
    document = {"image": "worker", "glidein": {**POOL, **(glidein or {})}, **more}
    return job_from(check(document, "job", "job.yaml"), "job.yaml")


def test_a_glidein_is_a_job_of_roots_that_returns_logs() -> None:
    made = job({"idle": "2m", "site": "CE-1", "attributes": {"HasPythia": True, "Kind": "vm"}, "start": "TARGET.X > 1",
                "longest_job": "1h", "condor": "down/condor.tar.gz"}, resources={"walltime": "8h", "cpus": 2})
    assert made.user == "root" and made.outputs == ("glidein",) and made.glidein
    assert made.glidein == Glidein("vo.example.org:9618", "vo.token", "CE-1", idle=120, longest_job=3600,
                                   start="TARGET.X > 1", condor="condor.tar.gz",
                                   attributes=(("HasPythia", True), ("Kind", "vm")))
    assert [(one.source, one.target) for one in made.inputs] == [("down/condor.tar.gz", "condor.tar.gz")]


def test_a_lifetime_is_a_walltime_with_room_for_start_and_end() -> None:
    assert job({"lifetime": "2h"}).resources.walltime == 7200 + BOOT + DRAIN
    assert job({"lifetime": "2h"}, resources={"walltime": "1h"}).resources.walltime == 3600


@pytest.mark.parametrize("glidein, more, wrong", [
    ({}, {"command": ["true"]}, "not both command and glidein"),
    ({}, {"network": "none"}, "network: none"),
    ({}, {"user": "vmjob"}, "user"),
    ({}, {"outputs": ["x"]}, "outputs"),
    ({"pool": "a b"}, {}, "pool"),
    ({"pool": "x.org/y"}, {}, "pool"),
    ({"start": "a\nSTART = True"}, {}, "start"),
    ({"attributes": {"A": "x\ny"}}, {}, "A: holds a line break"),
    ({"attributes": {"A": "x\\y"}}, {}, "A: holds a line break"),
    ({"lifetime": "10m", "longest_job": "20m"}, {"resources": {"walltime": "8h"}}, "glidein.lifetime is 10m00s"),
    ({"pool": "[::1]:9618"}, {}, "pool"),
    ({"attributes": {"A B": 1}}, {}, "glidein.attributes"),
    ({"idle": "soon"}, {}, "glidein.idle"),
    ({"tokens": "x"}, {}, "unknown key 'tokens'"),
])
def test_what_is_no_glidein(glidein: dict[str, Any], more: dict[str, Any], wrong: str) -> None:
    with pytest.raises(JobError, match=wrong) as caught:
        job(glidein, **more)
    assert caught.value.hint


@pytest.mark.parametrize("walltime, longest, fits", [
    ("3m", None, True), ("2m", None, False), ("20m", "18m", True), ("19m", "18m", False), ("10m", "1m", True)])
def test_a_walltime_without_time_for_a_job_is_refused(walltime: str, longest: Optional[str], fits: bool) -> None:
    glidein = {"longest_job": longest} if longest else {}
    if fits:
        job(glidein, resources={"walltime": walltime})
    else:
        with pytest.raises(WalltimeTooShort, match="too short for a glide-in") as caught:
            job(glidein, resources={"walltime": walltime})
        assert "ask for" in caught.value.hint


@pytest.mark.parametrize("left, lifetime, longest, wanted", [
    (None, None, None, Times()), (3660, None, None, Times(2400, 3600)), (3660, None, 600, Times(3000, 3600)),
    (3660, 1800, 600, Times(1200, 1800)), (None, 1800, 0, Times(1800, 1800)), (1000, 7200, 500, Times(440, 940))])
def test_retire_and_die(left: Optional[float], lifetime: Optional[int], longest: Optional[int], wanted: Times) -> None:
    assert times(Glidein("p", lifetime=lifetime, longest_job=longest), left) == wanted


@pytest.mark.parametrize("left", [50.0, 660.0, 0.0, -5.0])
def test_a_slot_without_time_for_a_job(left: float) -> None:
    with pytest.raises(WalltimeTooShort, match="left when the guest is up"):
        times(Glidein("p", longest_job=600), left)


# ---------------------------------------------------------------- the token


def token(**claims: Any) -> str:
    def part(body: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=")

    body = {"iss": "vo.example.org", "sub": "glidein@vo.example.org", "iat": int(time.time()) - 60, **claims}
    return f"{part({'alg': 'HS256'})}.{part(body)}.c2lnbmF0dXJl"


def test_a_token_is_read_beside_the_job_and_is_no_part_of_the_payload(tmp_path: Path) -> None:
    text = token(exp=int(time.time()) + 600)
    (tmp_path / "vo.token").write_text(text + "\n")
    (tmp_path / "vo.token").chmod(0o600)
    assert token_of(job(), tmp_path) == text
    payload = a_payload(text)
    assert text not in repr(payload) and text not in json.dumps(payload_document(payload))
    assert "vo.token" not in json.dumps(payload_document(payload))


@pytest.mark.parametrize("text, kind, wrong", [
    (token(exp=1000), TokenRefused, "expired .* ago"), (token(iat=int(time.time()) + 9999), ClockWrong, "clock"),
    ("hello", JobError, "no IDTOKEN"), ("a.b.c", JobError, "no IDTOKEN"), ("", JobError, "no IDTOKEN"),
    (token().replace(".", "\n"), JobError, "no IDTOKEN"), ("a.bnVsbA.c", JobError, "no IDTOKEN"),
    (token(exp=10**400), JobError, "no IDTOKEN"),
    ("a." + base64.urlsafe_b64encode(b"[" * 30_000).decode() + ".c", JobError, "no IDTOKEN")])
def test_bad_tokens(tmp_path: Path, text: str, kind: type[VmjobError], wrong: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(kind, match=wrong) as caught:
        tokens.read_token(path)
    assert caught.value.hint and (len(text) < 20 or text not in str(caught.value))


def test_token_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read"):
        tokens.read_token(tmp_path / "none")
    (tmp_path / "open").write_text(token())
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(JobError, match="everybody") as caught:
        tokens.read_token(tmp_path / "open")
    assert caught.value.hint.startswith("chmod 600")


# ---------------------------------------------------------------- payload and guest


def a_payload(text: str = "") -> Any:
    manifest = Manifest("worker", (ImageFile("disk", "d", "qcow2", 1, "0" * 64, 1),), (Boot.DISK,))
    return Payload(job({"attributes": {"A": 1, "B": True}, "site": "S"}), manifest, {}, None, text)


def test_a_glidein_travels_in_the_payload(tmp_path: Path) -> None:
    payload = a_payload("x.y.z")
    write_payload(tmp_path, payload)
    found = read_payload(tmp_path, fetchable=True)
    assert found.job.glidein == replace(payload.job.glidein, token="") and found.token == ""


def config(**more: Any) -> dict[str, str]:
    text = guest.configuration(replace(Glidein("vo:9618"), **more), 2, SLOT, "vmjob-1", Times(100, 200), 1000)
    return dict(line.split(" = ", 1) for line in text.split("\n\n")[0].splitlines())


def test_configuration() -> None:
    found = config(site="CE", attributes=(("HasX", True), ("N", 3)), start="TARGET.A =?= 1", idle=60)
    assert (found["NUM_CPUS"], config(jobs=5)["NUM_CPUS"], config(jobs=5)["RESERVED_MEMORY"]) == ("2", "5", "216")
    assert found["RESERVED_MEMORY"] == "144" and found["GLIDEIN_Site"] == '"CE"' == found["GLIDEIN_ResourceName"]
    assert (found["GLIDEIN_ToRetire"], found["GLIDEIN_ToDie"], found["VMJOB_IDLE"]) == ("1100", "1200", "60")
    assert (found["HasX"], found["N"], found["VMJOB_START"]) == ("true", "3", "(TARGET.A =?= 1)")
    assert {"HasX", "N", "GLIDEIN_Site", "GLIDEIN_ToDie"} <= set(found["STARTD_ATTRS"].split())


@pytest.mark.parametrize("name, site", [
    ("CE-1", "CE-1"), ("condor-ce://ce.example.org:9619", "ce.example.org"), ("condor://c.org:9618/schedd@x", "c.org")])
def test_the_site_is_the_targets_where_none_is_named(name: str, site: str) -> None:
    target = Target(name, "condor-ce")
    found, named = at_target(job(), target).glidein, at_target(job({"site": "S"}), target).glidein
    assert found and found.site == site and named and named.site == "S"


@pytest.mark.parametrize("name", ["GLIDEIN_ToDie", "glidein_toretire", "START", "Vmjob_Start", "STARTD_ATTRS", "if",
                                  "Memory", "SEC_TOKEN_DIRECTORY", "ALLOW_READ", "MachineMaxVacateTime", "VmjobGuest"])
def test_an_attribute_cannot_be_a_setting(name: str) -> None:
    with pytest.raises(JobError, match=f"{name} is a setting"):
        guest.check_attributes(Glidein("p", attributes=((name, 1),)))
    guest.check_attributes(Glidein("p", attributes=(("HasPythia", 1), ("GLIDEIN_Country", "x"))))


def test_a_start_expression_is_read_before_anything_is_sent(tmp_path: Path) -> None:
    pytest.importorskip("classad2")
    with pytest.raises(JobError, match=r"glidein\.start"):
        token_of(job({"start": "TARGET.A =="}), tmp_path)


@pytest.mark.parametrize("value", ["a\\", 'x" y', "$(X)", "a\nSTART = False"])
def test_an_attribute_cannot_leave_its_line(value: str) -> None:
    found = config(attributes=(("A", value),))
    assert found["A"].startswith('"') and found["A"].endswith('"') and "$(X)" not in found["A"]
    assert set(found) == set(config(attributes=(("A", "x"),)))


AD = """\
ClusterId = {n}
CompletionDate = 1795179689
CpusProvisioned = {cpus}
JobDuration = 2.5
{more}
*** Offset = 0 ClusterId = {n} ProcId = 0 Owner = "ada" CompletionDate = 1795179689
"""
ENDED = 'ToE = [ How = "OF_ITS_OWN_ACCORD"; Who = "itself"; When = 1795179688; HowCode = 0; ExitCode = 0 ]'
VACATED = 'ToE = [ How = "DEACTIVATE_CLAIM"; Who = "SHADOW"; When = 1795179688; HowCode = 1 ]'
CUT = "STARTER_DISCONNECTED_FROM_SUBMIT_NODE = true\n"


@pytest.mark.parametrize("more, ended", [(ENDED, 1), (VACATED, 0), ("", 0), (CUT + ENDED, 0)])
def test_what_a_glidein_has_done(tmp_path: Path, more: str, ended: int) -> None:
    (tmp_path / "startd_history").write_text(AD.format(n=1, more=ENDED, cpus=1) + AD.format(n=2, more=more, cpus=2))
    (tmp_path / "times").write_text("1000 1300\n")
    assert guest.worked("g", tmp_path) == Worked("g", 1 + ended, 1 - ended, 7.5, 300)


@pytest.mark.parametrize("history, when", [
    ("", ""), ("***\n" * 3, "x y"), ("JobDuration = 1e999\n***\n", "5 1"), ("CompletionDate = -1\n", "1"),
    ("JobDuration = -9\n***\n\x00\xff", "1 2 3"), ("", "² ²"), ("", "1 " + "9" * 400)])
def test_logs_of_a_hostile_guest(tmp_path: Path, history: str, when: str) -> None:
    (tmp_path / "startd_history").write_text(history)
    (tmp_path / "times").write_text(when)
    found = guest.worked("g", tmp_path)
    assert found.busy_seconds == 0 and found.seconds == 0 and found.jobs == 0


def test_a_link_among_the_logs_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(AD.format(n=1, more=ENDED, cpus=1))
    (tmp_path / "startd_history").symlink_to(tmp_path / "real")
    assert guest.worked("g", tmp_path).jobs == 0


@pytest.mark.parametrize("status, kind", [
    (11, CondorMissing), (14, PoolOutOfReach), (15, TokenRefused), (1, CondorFailed)])
def test_failures_have_names(tmp_path: Path, status: int, kind: type[VmjobError]) -> None:
    (tmp_path / "why").write_text("something \x1b[31m happened\nmore\n")
    found = guest.failure(status, tmp_path)
    assert type(found) is kind and "something" in found.message and "\x1b" not in found.message and found.hint
    assert "more" not in found.message
    assert str(status) in guest.failure(status, tmp_path / "none").message
