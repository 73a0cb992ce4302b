"""Submitting to batch systems: everything that needs none."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Any, Optional
from urllib.parse import parse_qsl

import pytest

from tests.conftest import ROOT
from vmjob.batch import carrier, targets
from vmjob.batch.description import Request, Submission, carrier_description, jobs_description, token_names
from vmjob.batch.jobs import ATTRIBUTES, JobId, State, clusters_of, job_of, parse_id
from vmjob.batch.nodes import Needs, Said
from vmjob.batch.pool import Pool, named
from vmjob.batch.targets import Place, Target
from vmjob.cli import tables
from vmjob.core.errors import JobError, VmjobError
from vmjob.core.model import Accel, Boot, ImageFile, Job, Manifest, Resources
from vmjob.core.pool_errors import NoSlotFits, PoolError, PoolFull, PoolRefused, PoolUnreachable
from vmjob.job.parameters import Parameters, parameters
from vmjob.submit.request import request_of

pytestmark = pytest.mark.unit
MIB = 2**20


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "vmjob").mkdir()
    return tmp_path / "vmjob/targets.yaml"


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize("url, kind, place", [
    ("local", "local", Place()), ("condor", "condor", Place()),
    ("condor://cm.example.org", "condor", Place("cm.example.org:9618")),
    ("condor://cm.example.org:9999/ap7@x", "condor", Place("cm.example.org:9999", "ap7@x")),
    ("condor-ce://ce.example.org", "condor-ce", Place("ce.example.org:9619")),
    ("condor-ce://10.0.0.1:1234/", "condor-ce", Place("10.0.0.1:1234")),
    ("condor-ce://[2001:db8::1]:9620", "condor-ce", Place("[2001:db8::1]:9620"))])
def test_urls(url: str, kind: str, place: Place) -> None:
    found = targets.choose(url)
    assert (found.kind, found.place, found.element) == (kind, place, None)


@pytest.mark.parametrize("url", ["clemson", "slurm", "condor-ce", "condor-ce://", "local://here", "condor://h:0",
                                 "condor://h:99999", "condor://a b", "http://x", "condor://x/a/b", "condor://x;rm"])
def test_what_is_no_target_says_what_would_be(url: str) -> None:
    with pytest.raises(JobError) as told:
        targets.choose(url)
    assert told.value.hint


def test_the_file_names_targets_and_a_default(settings: Path) -> None:
    settings.write_text("""
default: ce
targets:
  ce:
    url: condor-ce://ce.x
    through: condor://ap.x/s1
    retries: 7
    avoid: 1m
    image: job
    templates: ~/t
    submit: {+A: true, b: 3}
""")
    found = targets.choose(None)
    assert found.place == Place("ap.x:9618", "s1") and found.element == Place("ce.x:9619")
    assert found.grid_resource == "condor ce.x ce.x:9619"
    assert found.retries == 7 and found.avoid == 60 and found.image_with_job
    assert found.lines == (("+A", "true"), ("b", "3"))
    assert found.templates == Path("~/t").expanduser()


@pytest.mark.parametrize("text, tells", [
    ("targets: {a: {}}", "targets.a: the key 'url' is missing"), ("targets: {a: {url: nope}}", "targets.a.url"),
    ("default: b", "there is no target 'b'"), ("targets: {a: {url: condor, through: condor}}", "targets.a.through"),
    ("targets: {a: {url: 'condor-ce://10.0.0.1', through: condor}}", "by its name"),
    ("targets: {a: {url: 'condor-ce://h', image: never}}", "not one of node, job"),
    ("target: {}", "did you mean 'targets'")])
def test_a_wrong_file_is_told_with_its_key(settings: Path, text: str, tells: str) -> None:
    settings.write_text(text)
    with pytest.raises(JobError) as told:
        targets.choose("a" if "a:" in text else None)
    assert str(settings) in told.value.message and tells in f"{told.value.message} {told.value.hint}"


# ---------------------------------------------------------------- submit files


def submission(**more: Any) -> Submission:
    more = {"needs": Needs(1084 * MIB, "nat"), **more}
    return Submission(name="pythia", image="pythia", digest="sha256:" + "a" * 64,
                      parameters=Parameters(2, "SEED=$(Process)"),
                      request=Request(2, 1500 * MIB + 1, 3 * 2**30, 3600),
                      files=("input.tar", "payload.json", "vmjob-wrapper.sh", "vmjob.pyz"),
                      image_files={"b" * 64: Path("/store/b"), "a" * 64: Path("/store/a")}, **more)


@pytest.mark.parametrize("name, target", [
    ("condor", Target("pool", "condor", lines=(("accounting_group", "group_star"),))),
    ("condor-image-with-job", Target("pool", "condor", image_with_job=True)),
    ("condor-ce", Target("ce", "condor-ce", Place("ap.x:9618"), Place("ce.x:9619")))])
def test_submit_files_are_the_golden_ones(name: str, target: Target) -> None:
    at = "16.0" if target.element else "/spool/16/0/cluster16.proc0.subproc0"
    said = Said(True, ("nat",)) if target.element else Said()
    text = jobs_description(target, submission(), "/spool/17/0/cluster17.proc0.subproc0", at, said=said)
    text = "".join(line for line in text.splitlines(True) if not line.startswith("vmjob_version"))
    assert text == (ROOT / f"tests/golden/submit-{name}.sub").read_text()


def test_a_token_stays_at_the_schedd_unless_the_site_has_no_way_to_it() -> None:
    some = submission(tokens=token_names(2))
    assert some.tokens == ("token-0", "token-1")
    for target, at in ((Target("p", "condor"), "/p"), (Target("c", "condor-ce", Place("ap.x"), Place("ce.x")), "12.0")):
        text = jobs_description(target, some, "/p", "/i", at)
        assert f" --token-at {at}/token-$(Process) " in text and "/token" not in re.findall("vmjob_inputs.*", text)[0]
    text = jobs_description(Target("p", "condor", image_with_job=True), some, "/p", "/i", "/p")
    assert " --token-at token-$(Process) " in text and re.search(r"vmjob_inputs.*,/p/token-\$\(Process\)\n", text)
    with pytest.raises(JobError, match="1000"):
        token_names(1001)


def test_a_carrier_never_runs_and_names_what_it_holds() -> None:
    text = carrier_description(Target("p", "condor"), "image", "sha256:1", "micro", [Path("/s/x"), Path("/s/y")], 60)
    assert "vmjob_files = /s/x,/s/y\n" in text and "requirements          = false" in text
    for path in ("/s/x,y", "/s/$(HOME)/y"):
        with pytest.raises(JobError, match="comma"):
            carrier_description(Target("p", "condor"), "image", "d", "m", [Path(path)], 60)


def test_requirements_of_a_target_are_joined_with_ours() -> None:
    text = jobs_description(Target("p", "condor", lines=(("requirements", "HasVmjob"),)), submission(), "/p", "/i")
    assert "vmjob_requirements = HasVmjob\n" in text and len(re.findall("^requirements ", text, re.M)) == 1


def test_a_site_replaces_a_template_and_is_told_when_its_folder_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "condor.sub").write_text("universe = vanilla\n# mine\n")
    text = jobs_description(Target("p", "condor", templates=tmp_path), submission(), "/p", "/i")
    assert text.endswith("# mine\n") and "vmjob_memory = 1501\n" in text
    with pytest.raises(JobError, match="no such folder"):
        jobs_description(Target("p", "condor", templates=tmp_path / "none"), submission(), "/p", "/i")


def test_bindings_understand_the_submit_files() -> None:
    htcondor2 = pytest.importorskip("htcondor2")
    text = jobs_description(Target("p", "condor"), submission(), "/p", "/i")
    submit = htcondor2.Submit(text)
    assert submit.expand("output").startswith("/p/out-") and submit["transfer_output_files"] == "vmjob-results.tar"
    assert submit.expand("executable") == "/p/vmjob-wrapper.sh" and submit.expand("request_memory") == "1501"


# ---------------------------------------------------------------- requests and parameters


def manifest(disk: bool = False, size: int = 10 * MIB, memory: int = 256 * MIB) -> Manifest:
    file = ImageFile("disk" if disk else "kernel", "f", "qcow2" if disk else "elf", size, "a" * 64)
    return Manifest("m", (file,), (Boot.JOB,), needs_memory=memory)


def test_qemus_own_need_is_asked_for_with_the_guests() -> None:
    job = Job("j", "m", ("true",), resources=Resources(memory=1024 * MIB))
    either, kvm = request_of(job, manifest()), request_of(Job("j", "m", ("true",), accel=Accel.KVM), manifest())
    assert either.memory == 1024 * MIB + 4 * MIB + 416 * MIB and kvm.memory == 1024 * MIB + 4 * MIB + 160 * MIB
    assert either.cpus == 1 and either.walltime is None
    assert request_of(job, manifest(memory=4096 * MIB)).memory > 4096 * MIB


def test_disk_is_for_outputs_on_their_three_ways_and_walltime_leaves_time_to_boot() -> None:
    plain = request_of(Job("j", "m", ("true",)), manifest())
    # a slot with less than the job names is refused there
    assert request_of(Job("j", "m", ("true",), resources=Resources(disk=2**31)), manifest()).disk >= 2**31
    job = Job("j", "m", ("true",), outputs=("o",), resources=Resources(disk=100 * MIB, walltime=600))
    outputs = request_of(job, manifest())
    assert outputs.disk - plain.disk == 300 * MIB and outputs.walltime == 1500
    assert request_of(Job("j", "m", ("true",)), manifest(disk=True)).disk > plain.disk


def each(found: Parameters) -> list[str]:
    return [found.of(process) for process in range(found.count)]


def test_parameters_of_each_job() -> None:
    assert each(parameters(None, [], None)) == [""] and each(parameters(3, [], None)) == ["", "", ""]
    found = parameters(2, ["SEED=1$(Process)", "A=x y&z$HOME"], None)
    assert found.shared == "SEED=1$(Process)&A=x+y%26z%24HOME" and not found.rows
    assert each(found) == ["SEED=10&A=x+y%26z%24HOME", "SEED=11&A=x+y%26z%24HOME"]


def test_parameters_from_a_table_come_last_and_so_win(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('SEED, EVENTS\n1, 100\n\n2,"2,00"\n')
    found = parameters(None, ["SEED=9", "N=$(Process)"], table)
    assert each(found) == ["SEED=9&N=0&SEED=1&EVENTS=100", "SEED=9&N=1&SEED=2&EVENTS=2%2C00"]
    assert parse_qsl(found.of(1))[-2:] == [("SEED", "2"), ("EVENTS", "2,00")]
    with pytest.raises(JobError, match="2 rows"):
        parameters(3, [], table)


@pytest.mark.parametrize("count, settings, text", [
    (0, [], None), (-1, [], None), (2_000_000, [], None), (1, ["SEED"], None), (1, ["1A=2"], None), (1, ["=2"], None),
    (1, ["A=$(Proces)"], None), (None, [], ""), (None, [], "A\n"), (None, [], "A,A\n1,2\n"), (None, [], "A,B\n1\n"),
    (None, [], "A B\n1\n")])
def test_wrong_parameters_are_refused(tmp_path: Path, count: Any, settings: list[str], text: Any) -> None:
    table = None
    if text is not None:
        table = tmp_path / "t.csv"
        table.write_text(text)
    with pytest.raises(JobError) as told:
        parameters(count, settings, table)
    assert told.value.hint


# ---------------------------------------------------------------- ads


def ad(**more: Any) -> dict[str, Any]:
    return {"ClusterId": 7, "ProcId": 1, "JobStatus": 2, "VmjobName": "n",
            "VmjobPayload": "/s/8/0/cluster8.proc0.subproc0", **more}


def test_a_running_job() -> None:
    job = job_of(ad(RemoteHost="slot1_1@n1.x", VmjobStage="boot", VmjobBootSeconds=1.5,
                    Args="--pack r.tar --parameters=SEED=1&A=x+y"))
    assert job.id == JobId(7, 1) and job.state is State.RUNNING and job.node == "n1.x" and job.stage == "boot"
    assert job.parameters == "SEED=1 A=x y" and job.status is None and job.boot_seconds == 1.5


def test_a_job_that_ended_a_killed_one_and_a_held_one() -> None:
    assert job_of(ad(JobStatus=4, ExitCode=3)).status == 3
    # what an earlier try told is not of this one
    stale = job_of(ad(JobStatus=4, ExitCode=3, VmjobStatus=225, VmjobFailure="Interrupted", VmjobMessage="m"))
    assert (stale.status, stale.failure, stale.reason) == (3, "", "") and stale.results
    assert job_of(ad(JobStatus=4, ExitCode=512)).status == 1
    assert job_of(ad(JobStatus=4, ExitBySignal=True, ExitSignal=9)).status == 137
    held = job_of(ad(JobStatus=5, HoldReasonCode=3, HoldReason="a\x1b[31mb", VmjobFailure="ImageCorrupt", ExitCode=212,
                     VmjobStatus=212))
    assert held.state is State.HELD and held.reason == "a [31mb" and held.failure == "ImageCorrupt" and held.results
    # somebody held it while it ran: nothing came back
    assert not job_of(ad(JobStatus=5, HoldReasonCode=1, ExitCode=225, VmjobStatus=225)).results


def test_names_are_names_of_folders() -> None:
    assert job_of(ad(VmjobName="../../etc/x")).name == "job" and job_of(ad(VmjobName="a.b-c_1")).name == "a.b-c_1"


def test_undefined_values_are_nothing() -> None:
    classad2 = pytest.importorskip("classad2")
    job = job_of(classad2.ClassAd("[ClusterId = 7; ProcId = 0; JobStatus=1; ExitCode = undefined; VmjobName = error]"))
    assert job.id == JobId(7, 0) and job.status is None and job.reason == ""


def test_a_factory_tells_how_many_wait() -> None:
    head = {"ClusterId": 7, "TotalSubmitProcs": 10000, "JobMaterializeNextProcId": 1000, "VmjobName": "n"}
    cluster, = clusters_of([head, ad(ProcId=5), ad(ProcId=2)])
    assert (cluster.total, cluster.waiting, [job.id.proc for job in cluster.jobs]) == (10000, 9000, [2, 5])
    assert clusters_of([ad(), ad(ClusterId=3)])[0].id == 3


def test_what_is_asked_for_is_what_is_read() -> None:
    text = (ROOT / "vmjob/batch/jobs.py").read_text().partition("class State")[2]
    assert [name for name in ATTRIBUTES if f'"{name}"' not in text] == []


def test_the_clusters_ad_is_believed_where_a_node_could_have_changed_the_jobs() -> None:
    head = {"ClusterId": 7, "TotalSubmitProcs": 2, "VmjobName": "n", "VmjobPayload": "/s/8/0/cluster8.proc0.subproc0"}
    cluster, = clusters_of([head, ad(VmjobPayload="/s/9/0/cluster9.proc0.subproc0")])
    assert cluster.total == 2 and cluster.jobs[0].payload == cluster.payload == head["VmjobPayload"]


def test_numbers_of_jobs() -> None:
    assert parse_id("42") == JobId(42) and parse_id("42.3") == JobId(42, 3) and JobId(42).covers(JobId(42, 3))
    assert not JobId(42, 1).covers(JobId(42, 3))
    for text in ("", "x", "1.2.3", "-1", "42.", "42 || true"):
        with pytest.raises(JobError):
            parse_id(text)


def test_the_carrier_of_a_payload() -> None:
    assert carrier.of_payload("/var/spool/condor/8/0/cluster8.proc0.subproc0") == 8
    assert carrier.of_payload("/home/x") is None


# ---------------------------------------------------------------- what HTCondor says


@pytest.mark.parametrize("complaint, kind", [
    ("Failed communication with collector.", PoolUnreachable), ("", PoolUnreachable),
    ("Failed to connect to schedd, errmsg=AUTHENTICATE:1003:Failed to authenticate with any method|"
     "AUTHENTICATE:1004:Failed to authenticate using IDTOKENS", PoolRefused),
    ("SECMAN:2010:Received \"DENIED\" from server for user x using method IDTOKENS.", PoolRefused),
    ("Number of submitted jobs would exceed MAX_JOBS_PER_OWNER", PoolFull),
    ("expected next ProcId to be 2, but Schedd says -3", PoolFull),
    ("Failed to create job ad, errmsg=Submit:-1:Parse error in expression: request_memory = a b", JobError),
    ("Failed to do something strange", PoolError)])
def test_complaints_become_named_errors(complaint: str, kind: type[VmjobError]) -> None:
    error = named(complaint, Place("ce.x:9619"))
    assert type(error) is kind and error.hint and ":1004:" not in error.message
    assert kind is JobError or "ce.x:9619" in error.message


class _Slots(Pool):
    def __init__(self, ads: list[dict[str, Any]]) -> None:
        super().__init__(Place("ce.x:9619"))
        self.collector = type("Collector", (), {"query": lambda *a, **k: ads})()


def slot(cpus: int = 4, memory: int = 4096, **more: Any) -> dict[str, Any]:
    return {"TotalSlotCpus": cpus, "TotalSlotMemory": memory, "TotalSlotDisk": 10_000_000.0, **more}


def test_what_no_slot_can_hold_is_told() -> None:
    pytest.importorskip("htcondor2")
    _Slots([]).check_fits(Request(999, 2**50, 2**50))  # a CE that shows no nodes: nobody knows
    _Slots([slot()]).check_fits(Request(4, 4096 * MIB, MIB))
    for request, word in ((Request(5, MIB, MIB), "--cpus"), (Request(1, 4097 * MIB, MIB), "--memory"),
                          (Request(1, MIB, 2**50), "--disk")):
        with pytest.raises(NoSlotFits) as told:
            _Slots([slot(), slot(cpus=2)]).check_fits(request)
        assert word in told.value.hint and "largest of 2 slots" in told.value.message
    with pytest.raises(NoSlotFits, match="together"):
        _Slots([slot(cpus=8, memory=1024), slot()]).check_fits(Request(8, 4096 * MIB, MIB))


# ---------------------------------------------------------------- tables


def test_tables_leave_empty_columns_out_and_tell_why_jobs_are_held() -> None:
    text = tables.table(["A", "B", "C"], [["1", "", "3"], ["10", "", ""]])
    assert text == "A   C\n1   3\n10"
    held = {"JobStatus": 5, "HoldReason": "ImageCorrupt: x"}
    clusters = clusters_of([ad(**held), ad(ProcId=2, **held), ad(ProcId=3)])
    text = tables.clusters(clusters)
    assert "1 running, 2 held" in text and "7.1 and 1 more: held: ImageCorrupt: x" in text
    assert "7.1: ImageCorrupt: x" in tables.jobs(list(clusters[0].jobs), 5) and "5 more" in tables.jobs([], 5)


@pytest.mark.parametrize("left, life", [(3600, 3600), (-5, 0), (90 * 86400, 30 * 86400), (None, 30 * 86400)])
def test_a_token_lies_at_a_schedd_no_longer_than_it_is_good_for(tmp_path: Path, left: Optional[int], life: int) -> None:
    body = {"iss": "vo", "sub": "glidein@vo", **({} if left is None else {"exp": time.time() + left})}
    claims = base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=")
    (tmp_path / "token-0").write_text(f"e30.{claims}.c2ln\n")
    assert life - 5 <= carrier.token_life(tmp_path / "token-0") <= life


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_are_none_in_a_jobs_ad(value: float) -> None:
    job = job_of({"ClusterId": 1, "ProcId": 0, "JobStatus": 4, "ExitCode": 0, "VmjobStatus": value,
                  "VmjobBootSeconds": value, "VmjobImageBytes": value, "QDate": value})
    assert (job.status, job.boot_seconds, job.image_bytes, job.submitted) == (0, None, None, None)
