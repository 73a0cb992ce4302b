"""What a node says of its VMs: as lines, and back; when it goes offline; and what jobs ask of it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmjob.ads import node_ad
from vmjob.ads.site_ad import NodeAd
from vmjob.batch import nodes
from vmjob.core.errors import BootFailed, JobError, QemuFailed
from vmjob.core.model import Network
from vmjob.core.pool_errors import NoSlotFits
from vmjob.core.site_errors import SiteBroken
from vmjob.node import advertise, health
from vmjob.node.health import FIRST, FORGOTTEN, LONGEST, Away, Health
from vmjob.policy.file import Limits, Policy, Rule
from vmjob.slot import register
from vmjob.slot.register import Failed, registered, survey

pytestmark = pytest.mark.unit
GIB = 2**30
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
NODE = NodeAd("n1.example.org", True, "kvm", "a test guest ran on /dev/kvm", (A, B), ("nat", "isolated", "none"),
              max_memory=7 * GIB, max_cpus=8, version="0.1", running=3, checked=1000, problems=("one", "two"),
              failing=("alice", "bob"), expires=2_000_000_000)
SLOT = {"Machine": "n1.example.org", "TotalCpus": 8, "TotalMemory": 16384, "Arch": "X86_64", "OpSysName": "Debian",
        "OpSysMajorVer": 13, "TotalSlotCpus": 8, "TotalSlotMemory": 16384, "Cpus": 5, "Memory": 10000,
        "State": "Unclaimed", "PartitionableSlot": True}


def machine(ad: NodeAd, **slot: Any) -> Any:
    """A slot's ad with the lines of ``ad`` in it, as a collector has it."""
    classad2 = pytest.importorskip("classad2")
    lines = node_ad.node_ad_lines(ad, 416 * 2**20, 1444 * 2**20)
    assert lines[-1] == "-" and not any("\n" in line for line in lines)
    text = "\n".join([*lines[:-1], *(f"{key} = {json.dumps(value)}" for key, value in {**SLOT, **slot}.items())])
    return classad2.parseOne(text)


# ---------------------------------------------------------------- lines, and back


def test_a_node_comes_back_from_the_collector_as_it_was_with_what_its_slots_know() -> None:
    [found] = node_ad.nodes_of([machine(NODE)])
    assert found == replace(NODE, free=5, occupied=3, cpus=8, memory=16 * GIB, os="debian", os_version="13")
    [found] = node_ad.nodes_of([machine(NODE, TotalSlotMemory=2048)])
    assert found.max_memory // 2**20 == (2048 - 416) * 256 // 257  # what the largest slot leaves to a guest


def test_the_slots_of_a_node_are_one_node_and_none_counts_twice() -> None:
    partitionable = [machine(NODE), *(machine(NODE, DynamicSlot=True, PartitionableSlot=False, Cpus=1, Memory=2000,
                                              State="Claimed") for _ in range(3))]
    static = [machine(NODE, PartitionableSlot=False, Cpus=1, Memory=2048, TotalSlotCpus=1, State=state)
              for state in ("Claimed", "Claimed", "Unclaimed", "Owner")]
    for slots, free, occupied in ((partitionable, 5, 3), (static, 1, 2)):
        [found] = node_ad.nodes_of(slots)
        assert (found.free, found.occupied, found.running) == (free, occupied, 3)


def test_what_nobody_renews_is_no_longer_true_and_offline_stays_so() -> None:
    [old] = node_ad.nodes_of([machine(replace(NODE, expires=1000))])
    assert not old.has and old.free == 0 and "for too long" in old.offline
    [off] = node_ad.nodes_of([machine(replace(NODE, has=False, offline='the "disk"\nis\\full'))])
    assert not off.has and off.free == 0 and off.offline == 'the "disk" is/full'


@pytest.mark.parametrize("hostile", ['x"\nHasVmjob = true', "x\\", '\\" && true', "a\x00b\x1b[31m", "é ✓", "-\n-",
                                     "x" * 9999])
def test_no_value_becomes_another_line(hostile: str) -> None:
    ad = replace(NODE, has=False, offline=hostile, reason=hostile, version=hostile, failing=(hostile,),
                 problems=(hostile,), images=(hostile,), networks=(hostile,))
    lines = node_ad.node_ad_lines(ad, 1, 1)
    assert len(lines) == len(node_ad.node_ad_lines(NODE, 1, 1)) and all(map(str.isprintable, lines))
    [found] = node_ad.nodes_of([machine(ad)])
    assert found.machine == NODE.machine and not found.has and found.images == ()


@pytest.mark.parametrize("nonsense", [
    {"HasVmjob": "yes"}, {"HasVmjob": 1}, {}, {"HasVmjob": True, "Machine": 7}])
def test_a_machine_that_says_nothing_is_no_node(nonsense: dict[str, Any]) -> None:
    assert node_ad.nodes_of([{"Machine": "m", **nonsense}]) == ()


def test_what_a_machine_ad_says_is_bounded() -> None:
    [found] = node_ad.nodes_of([{"Machine": "m", "HasVmjob": True, "VmjobFree": -3, "VmjobRunning": 1e300,
                                "VmjobImages": ["no list"], "VmjobNetworks": ",".join(map(str, range(10**5))),
                                "VmjobMaxMemory": float("nan"), "VmjobAccel": 3, "VmjobVersion": "v" * 10**6}])
    assert (found.free, found.running, found.images, found.max_memory) == (0, 2**53, (), 0)
    assert len(found.networks) == 10 and found.accel == "tcg" and len(found.version) == 1000


def test_json_there_and_back() -> None:
    document = json.loads(json.dumps(node_ad.to_json(NODE)))
    assert node_ad.from_json({**document, "later": 1}, "f") == NODE
    for key, wrong in (("has", "yes"), ("images", ["x"]), ("free", -1), ("machine", "a\nb"), ("accel", "xen")):
        with pytest.raises(SiteBroken, match=f"f: {key}"):
            node_ad.from_json({**document, key: wrong}, "f")


# ---------------------------------------------------------------- offline, and back


def failed(user: str, ended: float, kind: str = "QemuFailed", image: str = A) -> Failed:
    return Failed(user, kind, "it broke", image, ended)


def probed(before: Health, *found: Failed, now: float, broken: str = "") -> Health:
    assert health.must_test(before, found, "k", now)
    return health.after_test(before, found, "k", now, no_kvm=broken, broken=broken)


WELL = Health("k", tested=1000.0, heard=1000.0)


@pytest.mark.parametrize("change, now, must", [
    ({}, 1100, False), ({"key": "other"}, 1100, True), ({"broken": "x"}, 1001, True), ({}, 1000 + 3600, True),
    ({}, 900, True), ({"doubtful": True}, 1500, False), ({"doubtful": True}, 1600, True)])
def test_when_a_test_guest_runs(change: dict[str, Any], now: float, must: bool) -> None:
    assert health.must_test(replace(WELL, **change), (), "k", now) is must


def test_a_failure_is_a_reason_to_test_once_and_what_counts_is_the_test() -> None:
    one = failed("alice", 1050)
    well = probed(WELL, one, now=1060)
    assert health.offline(well, 1060) == "" and not health.must_test(well, [one], "k", 1070)
    sick = probed(WELL, one, now=1060, broken="QEMU gave up")
    assert "QEMU gave up" in health.offline(sick, 1060)
    back = probed(sick, one, failed("bob", 1065), failed("bob", 1066), failed("alice", 1067), now=1070)
    assert health.offline(back, 1070) == "" and not health.failing(back, 1070)  # the old failures are forgotten
    later = probed(back, one, failed("bob", 1066), failed("bob", 1080), now=1090)
    assert not health.failing(later, 1090)


def test_a_user_whose_vms_fail_keeps_nobody_else_away() -> None:
    many = [failed("mallory", 1000 + n) for n in range(1, 500)]
    after = probed(WELL, *many, now=1600)
    assert health.offline(after, 1600) == "" and health.failing(after, 1600) == ("mallory",)
    # nor with one accident of another's
    after = probed(after, *many, failed("bob", 1610), now=1620)
    assert health.offline(after, 1620) == "" and health.failing(after, 1620) == ("mallory",)


def test_vms_of_two_users_take_the_node_offline_and_each_time_for_longer() -> None:
    now, known, waits = 1000.0, WELL, []
    for _ in range(9):
        found = [failed(user, now + n) for user in ("alice", "bob") for n in (1, 2)]
        known = probed(known, *found, now=now + 5)
        assert "2 users (alice, bob)" in health.offline(known, now + 5)
        waits.append(known.away["bob"].until - (now + 5))
        now = known.away["bob"].until
        assert health.offline(known, now - 1) and not health.offline(known, now + 1)
    assert waits == [min(LONGEST, FIRST * 2**n) for n in range(9)]
    now += FORGOTTEN + 1
    known = probed(known, *(failed("bob", now + n) for n in (1, 2)), now=now + 5)
    assert known.away == {"bob": Away(now + 5 + FIRST, 1, "QemuFailed: it broke")}


def test_an_image_that_does_not_boot_and_a_closed_kvm_are_not_the_nodes_fault() -> None:
    known = probed(WELL, *(failed("a", 1001 + n, "BootFailed") for n in range(9)),
                   *(failed("b", 1001 + n, "KvmUnavailable") for n in range(9)), now=1100)
    assert not known.away
    known = probed(WELL, failed("a", 1001, "BootFailed"), failed("a", 1002, "BootFailed", B), now=1100)
    assert health.failing(known, 1100) == ("a",)
    assert health.offline(known, 1100, users=1)  # where all jobs run as one user


def test_what_was_remembered_is_read_again_or_is_nothing() -> None:
    known = probed(WELL, *(failed("a", 1001 + n) for n in range(2)), now=1100)
    assert health.from_json(json.loads(json.dumps(health.to_json(known)))) == known
    for nonsense in (None, [], {}, {"away": 3}, {**health.to_json(known), "tested": "soon"},
                     {**health.to_json(known), "away": {"a": {"until": None}}}):
        assert health.from_json(nonsense) == Health()


def test_a_clock_that_is_set_back_keeps_nobody_away_for_ever() -> None:
    known = probed(replace(WELL, away={"a": Away(10**9, 5, "r")}), failed("a", 1001), now=1100)
    assert not health.failing(known, 1100)


# ---------------------------------------------------------------- the folder of runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "runs"
    place.mkdir()
    monkeypatch.setenv("VMJOB_RUNS", str(place))
    monkeypatch.setenv("VMJOB_NODE_CACHE", str(tmp_path / "cache"))
    return place


def test_a_run_is_there_while_it_lives(folder: Path, tmp_path: Path) -> None:
    with registered(A, tmp_path / "cache/uid-1"), registered(B, tmp_path):
        seen = survey(folder, time.time())
        assert (seen.running, seen.failed, seen.images, seen.problem) == (2, (), (A,), "")
        assert {path.stat().st_mode & 0o777 for path in folder.glob("run-*")} == {0o644}
    assert survey(folder, time.time()) == register.Seen(images=(A,)) and not list(folder.glob("run-*"))


@pytest.mark.parametrize("error, told", [(QemuFailed, "QemuFailed"), (BootFailed, "BootFailed"), (JobError, "")])
def test_what_is_the_nodes_fault_stays_for_an_hour(folder: Path, error: Any, told: str) -> None:
    with pytest.raises(error), registered(A, Path("/x")):
        raise error("no\nway " + "x" * 9999)
    seen = survey(folder, time.time())
    assert [(one.kind, one.image, one.message[:6]) for one in seen.failed] == ([(told, A, "no way")] if told else [])
    assert survey(folder, time.time() + 3601).failed == () and not list(folder.iterdir())


def test_a_folder_that_is_missing_or_shut_costs_no_job(folder: Path) -> None:
    folder.rmdir()
    with registered(A, Path("/x")):
        assert "runs and failures are not counted" in survey(folder, time.time()).problem
    folder.write_text("a file")
    with registered(A, Path("/x")):
        assert survey(folder, time.time()).problem


def test_hostile_neighbours_are_data(folder: Path, tmp_path: Path) -> None:
    uid, now = os.getuid(), time.time()
    outcome = json.dumps({"failure": "QemuFailed", "message": "m", "image": A})
    (tmp_path / "victim").write_text(outcome)
    (folder / f"run-{uid}-{1:016x}").symlink_to(tmp_path / "victim")
    os.link(tmp_path / "victim", folder / f"run-{uid}-{2:016x}")
    os.mkfifo(folder / f"run-{uid}-{3:016x}")
    (folder / f"run-{uid}-{4:016x}").mkdir()
    (folder / f"run-{uid + 1}-{5:016x}").write_text(outcome)  # in another's name
    for number, text in enumerate(("", "[" * 4000, '{"failure": ["x"]}', '{"failure": "Bug"}', "\x00" * 9999), 16):
        (folder / f"run-{uid}-{number:016x}").write_text(text)
    ahead = folder / f"run-{uid}-{32:016x}"
    ahead.write_text(outcome)
    os.utime(ahead, (now + 999, now + 999))
    (folder / f"image-{uid}-xyz").touch()
    # who can only read a file cannot make it look alive
    dead = folder / f"run-{uid}-{48:016x}"
    dead.write_text(outcome)
    with dead.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        fcntl.lockf(reader, fcntl.LOCK_SH)
        seen = survey(folder, now + 1)
    assert (seen.running, len(seen.failed), seen.images) == (0, 1, ())


def test_a_user_leaves_no_more_than_so_many_files(folder: Path) -> None:
    for _ in range(60):
        with pytest.raises(QemuFailed), registered(A, Path("/x")):
            raise QemuFailed("x")
    assert len(list(folder.iterdir())) <= 51


# ---------------------------------------------------------------- what a policy leaves


def test_the_most_that_a_policy_gives_to_somebody() -> None:
    few, many = Limits(1 * GIB, 2, None, (Network.NONE,)), Limits(4 * GIB, None, 60, (Network.NAT,))
    rules = (Rule(1, "few", True, limits=few), Rule(2, "many", True, limits=many), Rule(3, "no", False))
    found = advertise.allowed(Policy(Path("p"), rules, limits=Limits(memory=3 * GIB)))
    assert (found.memory, found.cpus, found.networks) == (3 * GIB, None, (Network.NAT, Network.NONE))
    assert advertise.allowed(Policy(Path("p"), None, limits=few)) == few
    assert advertise.allowed(Policy(Path("p"), (Rule(1, "no", False),))).memory == 0


# ---------------------------------------------------------------- what jobs ask


def fits(needs: nodes.Needs, said: nodes.Said, ad: Any, owner: str = "carol") -> bool:
    import classad2

    job = classad2.ClassAd({"Owner": owner, "Requirements": classad2.ExprTree(nodes.requirements(needs, said))})
    return classad2.ExprTree("MY.Requirements").eval(job, ad) is True


def test_which_nodes_a_job_takes() -> None:
    classad2 = pytest.importorskip("classad2")
    mute, spoken = classad2.ClassAd({"Cpus": 1}), nodes.said_by([NODE])
    needs = nodes.Needs(2 * GIB, "nat", kvm=True)
    assert fits(needs, nodes.Said(), mute) and not fits(needs, spoken, mute)
    for said in (nodes.Said(), spoken):
        assert fits(needs, said, machine(NODE))
        for wrong in (replace(NODE, has=False), replace(NODE, expires=1), replace(NODE, max_memory=GIB),
                      replace(NODE, accel="tcg"), replace(NODE, failing=("x", "carol"))):
            assert not fits(needs, said, machine(wrong)), wrong
    here = replace(NODE, networks=("isolated", "none"))
    assert fits(needs, nodes.said_by([here]), machine(here))  # nobody there has one
    assert not fits(needs, spoken, machine(here))
    assert not fits(replace(needs, network_must=True), nodes.said_by([here]), machine(here))


def test_which_nodes_come_first() -> None:
    classad2 = pytest.importorskip("classad2")

    def rank(ad: Any, emulated: bool = False) -> Any:
        needs = nodes.Needs(network="nat", emulated=emulated)
        return classad2.ExprTree(nodes.rank(needs, A)).eval(classad2.ClassAd(), ad)

    bare = replace(NODE, accel="tcg", images=(), networks=())
    ranks = [rank(machine(ad)) for ad in (NODE, replace(NODE, images=(B,)), replace(NODE, accel="tcg"), bare)]
    assert ranks == sorted(set(ranks), reverse=True) and rank(classad2.ClassAd()) == ranks[-1] == 0
    assert rank(machine(NODE), True) == rank(machine(replace(NODE, accel="tcg")), True)


@pytest.mark.parametrize("needs, tells", [
    (nodes.Needs(8 * GIB), "8.0 GiB"), (nodes.Needs(kvm=True), "no KVM here"),
    (nodes.Needs(network="nat", network_must=True), "network nat")])
def test_what_no_node_will_ever_do_is_told_before_it_waits(needs: nodes.Needs, tells: str) -> None:
    poor = replace(NODE, accel="tcg", reason="no KVM here", networks=("none",))
    with pytest.raises(NoSlotFits, match=tells):
        nodes.check(needs, [poor], "p")
    nodes.check(needs, [], "p")  # nobody says anything
    for mute in (replace(poor, has=False), replace(NODE, has=False, checked=0, max_memory=0)):  # they come back
        nodes.check(nodes.Needs(GIB, "nat", kvm=True), [poor, mute], "p")
