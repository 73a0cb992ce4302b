"""What machines of a site write, other users of a node among them: ads, limits, runs, usage records, accounts."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.target import target
from vmjob import classads, ledger, nodead, payer, runs, spool
from vmjob.batch import jobs
from vmjob.cli import tables
from vmjob.errors import JobError
from vmjob.node import groupfile, udev, usermap
from vmjob.site_errors import SiteBroken
from vmjob.sitead import NodeAd
from vmjob.slot.limits import detect
from vmjob.stage import commands, plugins
from vmjob.usage import FORMATS, UsageRecord, from_json, render, to_json

_UUID = "00000000-0000-0000-0000-000000000000"


def _ads() -> list[bytes]:
    return [b'Cpus = 4\nMemory = 1000\nDisk = 100000\nMachine = "x"\nJobCurrentStartDate = 1700000000\n'
            b'AllowedJobDuration = 100\nClusterId = 1\n',
            b'AuthTokenIssuer = "https://issuer.example"\nNote = "a \\"b\\" c"\nRequirements = (Arch == "X86_64") && '
            b"member(1, { 1, 2 })\n'odd name' = [ a = 1; ]\n"]


@target(_ads, ValueError)
def classad(data: bytes, place: Path) -> None:
    """An ad as HTCondor writes it: no value becomes an attribute, and what is read can be written and read again."""
    text = data.decode(errors="replace")
    found = classads.read(text)
    assert len(found) == sum(bool(one.strip(" \t\r")) for one in text.split("\n"))
    for name, value in found.items():
        if name.startswith("'"):
            continue
        again = classads.read(f"{name} = {classads.literal(value)}\n")
        assert again == {name: classads.line(value)}, f"{value!r} came back as {again}"


_PARTS = ("machine.ad", "job.ad", "proc/self/cgroup", "sys/fs/cgroup/a/memory.max", "sys/fs/cgroup/a/cpu.max",
          "features/allocated_cpu", "features/wall_limit_secs", "features/jobstart_secs", "features/max_rss_bytes",
          "features/job_id")


def _slots() -> list[bytes]:
    both = [b"4", b"3600", b"1700000000", b"2000000000", b"7\nx"]
    return [b"\0".join([b"_CONDOR_SCRATCH_DIR=/tmp\nSLURM_JOB_ID=1", *_ads(), b"0::/a/b\n", b"1073741824\n",
                        b"200000 100000\n", *both]),
            b"\0".join([b"SLURM_JOB_ID=12\nSLURM_CPUS_ON_NODE=4\nSLURM_MEM_PER_CPU=2000\nSLURM_JOB_END_TIME=1800000000\n"
                        b"TMPDIR=/tmp\nPBS_JOBID=3.x\nNCPUS=2\nPBS_RESC_MEM=1073741824\nPBS_WALLTIME=3600", b"", b"",
                        b"4:memory,cpu:/a\n", b"max", b"max 100000", *both])]


@target(_slots)
def slot(data: bytes, place: Path) -> None:
    """What a batch system says of a slot (HTCondor, Slurm, PBS, cgroups, machine and job features)."""
    variables, *files = data.split(b"\0")
    (place / "tmp").mkdir()
    for name, text in zip(_PARTS, files):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(text)
    environ = {"MACHINEFEATURES": "/features", "JOBFEATURES": "/features"}
    for line in variables.decode(errors="surrogateescape").split("\n"):
        name, equals, value = line.partition("=")
        if equals and name:
            environ[name] = value
    if "_CONDOR_SCRATCH_DIR" in environ:
        environ.update(_CONDOR_MACHINE_AD="/machine.ad", _CONDOR_JOB_AD="/job.ad")
    found = detect(environ, place, place, 1.75e9)
    assert 1 <= found.cpus <= 2**20 and 0 <= found.memory < 2**63 and 0 <= found.disk < 2**63
    assert found.time_left is None or 0 <= found.time_left < 2**40
    assert len(found.job_id) <= 100


def _registered() -> list[bytes]:
    return [json.dumps({"user": "u", "image": f"sha256:{'a' * 64}", "failure": "QemuFailed", "message": "m"}).encode()]


@target(_registered)
def run_of_a_neighbour(data: bytes, place: Path) -> None:
    """A file in the folder where all users' runs register."""
    (place / f"run-{os.getuid()}-{'a' * 16}").write_bytes(data)
    (place / f"image-{os.getuid()}-{'b' * 64}").write_bytes(data[:64])
    seen = runs.survey(place, time.time())
    assert len(seen.failed) <= 1 and seen.running == 0
    for one in seen.failed:
        assert one.message.isprintable() and one.user.isprintable(), one


def _queued() -> list[bytes]:
    return [json.dumps({"ClusterId": 42, "ProcId": 3, "JobStatus": 4, "ExitCode": 0, "VmjobStatus": 0, "VmjobName": "j",
                        "VmjobOutcome": "ok", "QDate": 1.7e9, "CompletionDate": 1700000100, "NumJobStarts": 1,
                        "RemoteHost": "slot1@n1", "Args": "x --parameters SEED=3&A=%41 y"}).encode()]


@target(_queued, ValueError)
def queue_ad(data: bytes, place: Path) -> None:
    """A job's ad in a queue, of which a node, and so a guest, wrote a part: all its words are fit for a terminal."""
    try:
        ad = json.loads(data)
    except RecursionError:
        raise ValueError("too deep for an ad") from None
    if not isinstance(ad, dict):
        raise ValueError("no ad")
    one = jobs.job_of(ad)
    assert all(value.isprintable() for value in asdict(one).values() if isinstance(value, str))
    assert one.status is None or 0 <= one.status <= 255
    json.dumps(one.to_json(), allow_nan=False)
    jobs.ended_at(one)
    tables._when(one.submitted)
    tables._lasted(one)
    assert sum(len(cluster.jobs) for cluster in jobs.clusters_of([ad, {**ad, "ProcId": None}])) <= 1


def _proxies() -> list[bytes]:
    from base64 import encodebytes

    from tests.fuzz.target import CORPUS

    der = (CORPUS / "certificate/valid-1").read_bytes()
    voms = bytes.fromhex("060a2b06010401be456464 04".replace(" ", "")) + b"\x20\x04\x10/star/Role=a/x=yz"
    return [b"".join(b"-----BEGIN CERTIFICATE-----\n" + encodebytes(one) + b"-----END CERTIFICATE-----\n"
                     for one in (der, der + voms))]


@target(_proxies)
def proxy(data: bytes, place: Path) -> None:
    """The user's X.509 proxy, for whom its usage is counted: one line of ASCII, or nothing."""
    (place / "x509up").write_bytes(data)
    owner, fqan = payer._of_proxy(str(place / "x509up"))
    assert (owner + fqan).isascii() and (owner + fqan).isprintable(), (owner, fqan)
    assert payer.vo_of(fqan).isascii()


# ---------------------------------------------------------------- accounting


def _record() -> UsageRecord:
    return UsageRecord(_UUID, "s", "m", "u", os.getuid(), "g", 1.7e9, wall=5.0, cpu=3.0, bytes_in=3, status=0)


def _pages() -> list[bytes]:
    return [json.dumps(to_json(_record())).encode()]


@target(_pages, JobError)
def usage_record(data: bytes, place: Path) -> None:
    """A page of the ledger: each rendering is one record, and as JSON the same one."""
    (place / "page").write_bytes(data)
    record = ledger.page(place / "page")
    ledger.sums([record], ledger.KEYS)
    for kind in FORMATS:
        text = render(record, kind)
        if kind == "apel-cloud":
            assert text.isascii() and text.count(b"%%") == text.count(b"\n%%\n") == 1, text
        elif kind == "gratia":
            from xml.etree import ElementTree

            ElementTree.fromstring(text)
        else:
            assert to_json(from_json(json.loads(text), "again", JobError)) == to_json(record)


def _left() -> list[bytes]:
    return [json.dumps({"format": kind, "record": to_json(_record())}).encode() + b'\0{"wall": 9.0, "cpu": 4.5}'
            for kind in FORMATS]


@target(_left)
def usage_spool(data: bytes, place: Path) -> None:
    """What a killed run left in the spool: it goes out once, whole, or is stuck for a reason."""
    for name in spool.FOLDERS:
        (place / name).mkdir()
    entry, (state, _, beat) = place / spool.OPEN / _UUID, data.partition(b"\0")
    entry.mkdir()
    (entry / "state").write_bytes(state)
    (entry / "beat").write_bytes(beat)
    swept = spool.sweep(place)
    assert len(swept.delivered) + len(swept.stuck) == 1 and not swept.alive, swept
    out = list((place / spool.OUTGOING).iterdir())
    assert len(out) == len(swept.delivered)
    if swept.delivered:
        pages = list((place / spool.LEDGER).iterdir())
        assert [record and record.uuid for _, record, _ in ledger.read(pages)] == [_UUID]
    else:
        assert "its state" in swept.stuck[0], f"no refusal by name: {swept.stuck}"


# ---------------------------------------------------------------- a node


def _node_ads() -> list[bytes]:
    return [json.dumps(nodead.to_json(NodeAd("n1.example.org", True, networks=("nat",), images=(f"sha256:{'a' * 64}",),
                                             problems=("p",)))).encode()]


@target(_node_ads, SiteBroken)
def node_ad(data: bytes, place: Path) -> None:
    """A node's ad as JSON, and its lines for HTCondor, of which each is one attribute."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as broken:  # as vmjob-publish does
        raise SiteBroken("no JSON") from broken
    ad = nodead.from_json(document, "x")
    for line in nodead.node_ad_lines(ad, 2**28, 2**30)[:-1]:
        assert "\n" not in line and len(classads.read(f"{line}\n")) == 1, line


def _groups() -> list[bytes]:
    return [b"kvm:x:108:alice,bob\nroot:x:0:\n+:::\n", b"adm:*:4\nkvm:!:ada:alice"]


@target(_groups, ValueError)
def group_file(data: bytes, place: Path) -> None:
    """/etc/group: with a member added and taken away again, every other line is as it was."""
    text = data.decode(errors="surrogateescape")
    groupfile.masked(text)
    groupfile.numbers(text)
    one = groupfile.entry(text, "kvm")
    if one is None:
        return
    more = groupfile.with_members(one, ["carol"])
    changed = groupfile.replaced(text, "kvm", more)
    assert groupfile.entry(changed, "kvm") == more
    others = [line for line in text.split("\n") if line.split(":", 1)[0] != "kvm"]
    assert [line for line in changed.split("\n") if line.split(":", 1)[0] != "kvm"] == others


def _maps() -> list[bytes]:
    return [b'SCITOKENS /^https:\\/\\/x,(.*)$/ alice@users.htcondor.org\n"/DC=org/CN=Ada" bob,.atlas\n# c\nalice\n',
            b"FS (.*) \\1\n@include x\n* * nobody\n"]


@target(_maps)
def user_map(data: bytes, place: Path) -> None:
    """A map of a compute element: only accounts of the node come out of it, and never root."""
    known = ("alice", "bob", "atlas001", "root")
    found = usermap.accounts(data.decode(errors="surrogateescape"), "map", known)
    assert set(found.users) <= set(known) - {"root"}


def _rules() -> list[bytes]:
    return [b'# c\nKERNEL=="kvm", GROUP="kvm", MODE="0660", \\\n TAG+="uaccess"\n']


@target(_rules)
def udev_rule(data: bytes, place: Path) -> None:
    """udev's rules of /dev/kvm."""
    rule = udev.for_kvm({"50-x.rules": ("/x", data.decode(errors="replace"))})
    assert rule is None or 0 <= rule.mode <= 0o7777


def _answers() -> list[bytes]:
    return [b'TransferSuccess = true\nTransferError = "a\\"b"\nSupportedMethods = "http,https"\n'
            b"MultipleFileSupport = true\n", b'[ TransferSuccess = false; TransferError = "404"; ]']


@target(_answers)
def plugin(data: bytes, place: Path) -> None:
    """What a plug-in of HTCondor for file transfer prints."""
    text = data.decode(errors="replace")
    why = plugins.plugin_failure(text)
    assert why is None or (why.isprintable() and len(why) <= 300)
    plugins.plugin_methods(text)
    commands.is_final(text)


