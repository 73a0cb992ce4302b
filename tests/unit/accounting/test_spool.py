"""Usage records: what APEL, Gratia and programs get to read, whatever strangers are called, and what they add up to."""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT
from vmjob.accounting import spool
from vmjob.accounting.ledger import names, read, sums, value
from vmjob.accounting.payer import Payer, payer
from vmjob.accounting.record import FORMATS, UR, UsageRecord, apel_cloud, from_json, render, to_json, usage_record_xml
from vmjob.core.errors import JobError

pytestmark = pytest.mark.unit

UUID = "4c8502e3-52d9-4012-8047-c127dff8f4a7"
DN = "/DC=org/DC=example/CN=Alice Liddell"
ALICE = UsageRecord(
    UUID, "EXAMPLE-T2", "n1.example.org", "alice", 1001, "atlas", 1795204684.4, wall=93784.5, suspended=3600.2,
    cpu=180000.6, cpus=2, memory=2 * 2**30, disk=12 * 2**30 + 1, network="nat", bytes_in=3 * 2**30, bytes_out=2**20,
    counted_by="QEMU and vmjob, on the node", image="star-sl5", image_digest="sha256:" + "ab" * 32, accelerator="kvm",
    job="pythia", job_id="12.0", batch="htcondor", ce_job="ce.example.org#12.0#1795204600", global_user=DN,
    fqan="/atlas/Role=production", vo="atlas", said_by="HTCondor's token", vouched=True, account="group_atlas",
    service="ce.example.org", benchmark="HEPscore23", benchmark_value=17.25, outcome="ok", status=0, version="1.2")
EVIL = "a%%%b\n%%\nVMUUID: x\r<Status>&\x1b[31m\ud800\u2028é\0" + "x" * 300

APEL = """\
APEL-cloud-message: v0.4
RecordCreateTime: 1795298469
VMUUID: 4c8502e3-52d9-4012-8047-c127dff8f4a7
SiteName: EXAMPLE-T2
CloudComputeService: ce.example.org
MachineName: vmjob-4c8502e3-52d9-4012-8047-c127dff8f4a7
LocalUserId: alice
LocalGroupId: atlas
GlobalUserName: /DC=org/DC=example/CN=Alice Liddell
FQAN: /atlas/Role=production
Status: completed
StartTime: 1795204684
EndTime: 1795298469
SuspendDuration: 3600
WallDuration: 90185
CpuDuration: 180001
CpuCount: 2
NetworkType: nat
NetworkInbound: 3
NetworkOutbound: 0
PublicIPCount: 0
Memory: 2048
Disk: 13
BenchmarkType: HEPscore23
Benchmark: 17.25
ImageId: sha256:abababababababababababababababababababababababababababababababab
CloudType: vmjob/1.2 (QEMU, kvm)
%%
"""
ORDER = re.findall(r"\w+", """
    RecordCreateTime VMUUID SiteName CloudComputeService MachineName LocalUserId LocalGroupId GlobalUserName FQAN
    Status StartTime EndTime SuspendDuration WallDuration CpuDuration CpuCount NetworkType NetworkInbound
    NetworkOutbound PublicIPCount Memory Disk BenchmarkType Benchmark StorageRecordId ImageId CloudType""")
WHOLE = re.findall(r"\w+", """
    SuspendDuration WallDuration CpuDuration CpuCount NetworkInbound NetworkOutbound PublicIPCount Memory Disk
    RecordCreateTime StartTime EndTime""")
FIRST = ["RecordIdentity", "JobIdentity", "UserIdentity", "JobName", "Status"]


def apel_loads(message: str) -> list[dict[str, str]]:
    """As APEL's loader (apel.db.loader.record_factory, apel.db.records.cloud) takes a message apart and checks it."""
    header, *lines = message.strip().splitlines()
    assert header == "APEL-cloud-message: v0.4"
    found = []
    for text in "\n".join(lines).split("%%"):
        if not text.strip():
            continue
        body = dict((part.strip() for part in line.split(":", 1)) for line in text.strip().splitlines())
        assert set(body) <= set(ORDER) and list(body) == [key for key in ORDER if key in body]
        assert body["VMUUID"] and body["SiteName"] and body["StartTime"]
        assert all(len(text) <= 255 for text in body.values())
        assert all(int(body[key]) >= 0 for key in WHOLE if key in body)
        found.append(body)
    return found


def test_apel_gets_its_fields_in_its_units_and_order() -> None:
    assert apel_cloud(ALICE) == APEL
    assert len(apel_loads(apel_cloud(ALICE, replace(ALICE, uuid=UUID[::-1])))) == 2


def test_apel_learns_nothing_of_what_is_not_known() -> None:
    body, = apel_loads(apel_cloud(UsageRecord(UUID, "X", "n1", "u", 1, "g", 1795204684.0, outcome="failed")))
    assert not {"NetworkInbound", "NetworkOutbound", "GlobalUserName", "FQAN", "Benchmark", "BenchmarkType"} & set(body)


def test_a_vo_without_a_group_is_an_fqan_to_apel() -> None:
    assert apel_loads(apel_cloud(replace(ALICE, fqan="")))[0]["FQAN"] == "/atlas"


def elements(xml: str) -> ElementTree.Element:
    """The record as a namespace-aware reader sees it, checked for what GFD.98 demands of its structure."""
    root = ElementTree.fromstring(xml)
    assert all(one.tag.startswith(f"{{{UR}}}") for one in root.iter())
    assert all(key.startswith(f"{{{UR}}}") for one in root.iter() for key in one.attrib)
    children = [one.tag.partition("}")[2] for one in root]
    assert children[:len(FIRST)] == [name for name in children if name in FIRST] == FIRST
    assert root[0].get(f"{{{UR}}}recordId")
    return root


def texts(root: ElementTree.Element) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in root.iter():
        words = sorted(value for key, value in one.attrib.items() if key.endswith(("}description", "}type")))
        found.setdefault(" ".join([one.tag.partition("}")[2], *words]), []).append(one.text or "")
    return found


def test_gratia_gets_a_usage_record() -> None:
    found = texts(elements(usage_record_xml(ALICE)))
    for name, text in {
            "GlobalJobId": "ce.example.org#12.0#1795204600", "LocalJobId": "12.0", "LocalUserId": "alice", "DN": DN,
            "VOName": "/atlas/Role=production", "ReportableVOName": "atlas", "JobName": "pythia", "Status ok": "0",
            "WallDuration": "P1DT2H3M4.5S", "TimeDuration suspended": "PT1H0.2S", "StartTime": "2026-11-20T19:58:04Z",
            "CpuDuration QEMU, user and system": "P2DT2H0.6S", "EndTime": "2026-11-21T22:01:09Z",
            "Processors": "2", "Memory": "2097152", "Network in": str(3 * 2**30), "Network out": str(2**20),
            "ProbeName": "ce.example.org", "SiteName": "EXAMPLE-T2", "Grid": "OSG", "Njobs": "1",
            "Resource ResourceType": "Batch", "Resource ImageId": ALICE.image_digest,
            "ProjectName": "group_atlas"}.items():
        assert found[name] == [text], name


def hostile() -> UsageRecord:
    """One whose every text is a stranger's."""
    words: dict[str, Any] = {one.name: EVIL for one in fields(UsageRecord)
                             if isinstance(getattr(ALICE, one.name), str) and one.name not in ("uuid", "outcome")}
    return replace(ALICE, **words)


def test_no_name_breaks_a_format() -> None:
    evil = hostile()
    body, = apel_loads(apel_cloud(evil))
    assert body["VMUUID"] == UUID and body["GlobalUserName"].startswith("a% %")
    root = elements(usage_record_xml(evil))
    assert [one.text for one in root.iter(f"{{{UR}}}Status")] == ["0"]
    assert from_json(json.loads(render(evil, "json")), "here", JobError).user == to_json(evil)["user"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("letter", ["&", '"', "\U0001f600", "%", "\\"])
def test_the_room_that_is_kept_is_enough_for_any_record(kind: str, letter: str) -> None:
    words: dict[str, Any] = {one.name: letter * 1000 for one in fields(UsageRecord)
                             if isinstance(getattr(ALICE, one.name), str) and one.name != "uuid"}
    assert len(render(replace(ALICE, **words), kind)) < spool.ROOM


def test_json_comes_back_as_it_went() -> None:
    import jsonschema

    document = to_json(ALICE)
    assert from_json(document, "here", JobError) == ALICE
    jsonschema.validate(document, json.loads((ROOT / "vmjob/schemas/usage.schema.json").read_text()))
    assert {one.name for one in fields(UsageRecord)} | {"schema", "ended"} == set(document)
    with pytest.raises(JobError, match=r"here: wall"):
        from_json({**document, "wall": -1}, "here", JobError)


# ---------------------------------------------------------------- for whom


def test_nothing_is_known_without_a_compute_element() -> None:
    assert payer({}) == Payer()


def test_a_token_that_the_schedd_checked_counts_for_more_than_a_proxy(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    from vmjob.policy import identity

    ad = tmp_path / ".job.ad"
    ad.write_text('AuthTokenSubject = "alice"\nAuthTokenIssuer = "https://atlas.example.org/"\n'
                  'AuthTokenGroups = "/atlas/production,/atlas"\nx509userproxysubject = "/CN=Bob"\n'
                  'x509UserProxyVOName = "cms"\nx509UserProxyFirstFQAN = "/cms/Role=NULL"\n'
                  'AcctGroup = "group_atlas"\nGlobalJobId = "ce#1.0#5"\n')
    environ = {"_CONDOR_JOB_AD": str(ad)}
    monkeypatch.setattr(identity, "_by_htcondor", lambda found: True)
    assert payer(environ) == Payer("https://atlas.example.org/ alice", "/atlas/production", "atlas", "HTCondor's token",
                                   True, "group_atlas", "ce#1.0#5")
    monkeypatch.setattr(identity, "_by_htcondor", lambda found: False)
    assert payer(environ) == Payer("/CN=Bob", "/cms/Role=NULL", "cms", "the job's X.509 proxy", False, "group_atlas",
                                   "ce#1.0#5")


def test_arc_and_slurm_say_job_and_account() -> None:
    found = payer({"GRID_GLOBAL_JOBID": "x", "GRID_GLOBAL_JOBURL": "https://arc.example.org/arex/x",
                   "SLURM_JOB_ACCOUNT": "atlas", "X509_USER_PROXY": "/nowhere"})
    assert found == Payer(account="atlas", ce_job="https://arc.example.org/arex/x")


# ---------------------------------------------------------------- sums


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for folder in spool.FOLDERS:
        (tmp_path / folder).mkdir()
    return tmp_path


def put(place: Path, record: UsageRecord, name: str = "") -> Path:
    path = place / spool.LEDGER / (name or f"{record.uuid}.json")
    path.write_bytes(render(record, "json"))
    return path


def test_records_add_up_by_vo_image_user_and_day() -> None:
    later = replace(ALICE, started=ALICE.started + 86400, outcome="killed", status=None, bytes_in=None)
    bob = replace(ALICE, global_user="", user="bob", vo="", wall=10.0, cpus=1)
    found = sums([ALICE, later, bob], ("vo", "user"))
    assert [(one.by, one.runs, one.failed) for one in found] == [(("", "bob"), 1, 0), (("atlas", DN), 2, 1)]
    assert found[1].occupied == 2 * 2 * ALICE.wall and found[1].bytes_in == ALICE.bytes_in
    assert [one.by for one in sums([ALICE, later], ("day",))] == [("2026-11-21",), ("2026-11-22",)]
    assert value(ALICE, "image") == "star-sl5 abababab"


def test_hostile_pages_do_not_count(place: Path, tmp_path: Path) -> None:
    mine = replace(ALICE, uid=os.geteuid())
    put(place, mine)
    put(place, mine, "twice.json")
    (place / "ledger/link.json").symlink_to(put(place, replace(mine, uuid=UUID[::-1]), "../page"))
    (place / "ledger/folder.json").mkdir()
    os.mkfifo(place / "ledger/pipe.json")
    (place / "ledger/huge.json").write_bytes(render(mine, "json") + b" " * spool.ROOM)
    (place / "ledger/nan.json").write_bytes(render(mine, "json").replace(b'"cpu": 180000.6', b'"cpu": NaN'))
    (place / "ledger/deep.json").write_bytes(b"[" * 20000)
    (place / "ledger/empty.json").write_bytes(b"")
    found = {path.name: (record, why) for path, record, why in read(names(place))}
    assert [name for name, (record, _) in found.items() if record] == [f"{UUID}.json"]
    assert len(found) == 9 and all(why for record, why in found.values() if not record)


def test_nobody_makes_usage_of_somebody_else(place: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to make another's file")
    path = put(place, ALICE)
    os.chown(path, 65533, 65533)
    (_, record, why), = read([path])
    assert record is None and "belongs to uid 65533" in why
    os.chown(path, ALICE.uid, -1)
    assert next(read([path]))[1] == ALICE


@pytest.mark.parametrize("state", [
    '{"format": {}}', '{"format": []}', '{"format": "json", "record": null}', "[" * 3000, ""])
def test_a_strangers_state_keeps_nobody_elses_record_in(tmp_path: Path, state: str) -> None:
    for folder in spool.FOLDERS:
        (tmp_path / folder).mkdir()
    odd, dead = (tmp_path / spool.OPEN / f"{n * 8}-0000-0000-0000-000000000000" for n in "0a")
    odd.mkdir()
    (odd / "state").write_text(state)
    entry = spool.begin(tmp_path, replace(ALICE, uuid=dead.name, uid=os.getuid()), "json")
    entry.close()
    swept = spool.sweep(tmp_path)
    assert swept.delivered == (dead.name,) and len(swept.stuck) == 1 and odd.name in swept.stuck[0]
