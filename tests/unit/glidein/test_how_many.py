"""The policy of the factory: cases one by one, and days of a pool and a site that are made up, minute by minute."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import classad2
import pytest

from vmjob.batch.jobs import JobId, JobInfo, State, clusters_of
from vmjob.batch.targets import Place
from vmjob.core.errors import OutputRefused
from vmjob.core.glideins import reserved_memory
from vmjob.core.pool_errors import PoolUnreachable
from vmjob.core.progress import Reporter
from vmjob.glidein.demand import Demand, Wants, pool_at, schedds_of, size_of, workers
from vmjob.glidein.history import STEADY, STOPPED, Ended, Logbook
from vmjob.glidein.how_many import (
    LONGEST_PAUSE,
    Counts,
    Limits,
    Plan,
    bad_tries,
    count,
    decide,
    ended_of,
    failed_tries,
    judged,
    missing,
    pause,
    report,
)
from vmjob.submit.results import _unpack

pytestmark = pytest.mark.unit
NOW = 1_800_000_000.0


def job(cluster: int, state: State = State.IDLE, name: str = "w-g000001", proc: int = 0, submitted: float = NOW - 300,
        **more: Any) -> JobInfo:
    return JobInfo(JobId(cluster, proc), name, state, submitted=submitted, **more)


def running(cluster: int, name: str = "w-g000001", stage: str = "payload", proc: int = 0, **more: Any) -> JobInfo:
    return job(cluster, State.RUNNING, name, proc, stage=stage, **more)


def failed(number: int, ago: float = 10, kind: str = "BootFailed", status: int = 240, **more: Any) -> Ended:
    return Ended(f"{number}.0", f"w-g{number:06d}", "ce", NOW - 1000 + number, NOW - ago, "failed", kind, status,
                 **{"message": "why", "hint": "what", **more})


def good(number: int, ago: float = 10) -> Ended:
    return replace(failed(number, ago), outcome="ok", kind="", status=0, message="", jobs=3)


def vain(number: int, ago: float = 10, **more: Any) -> Ended:
    return replace(good(number, ago), jobs=0, seconds=700.0, vain=True, **more)


def asks(*requests: tuple[int, int], **more: Any) -> Demand:
    return Demand(requests, **more)


# ---------------------------------------------------------------- how many


@pytest.mark.parametrize("cpus, requests, free, coming, new", [
    (1, [], (), 0, 0),
    (1, [(1, 5)], (), 0, 5),
    (2, [(1, 5)], (), 0, 3),
    (2, [(1, 5)], (2, 1), 0, 1),
    (2, [(1, 5)], (), 2, 1),
    (2, [(1, 4)], (), 2, 0),
    (2, [(1, 1)], (), 5, 0),
    (2, [(2, 1)], (1, 1), 0, 1),  # two halves of two guests are no use to it
    (3, [(2, 3)], (), 0, 3),  # nor are three times the third CPU
    (4, [(3, 2), (1, 2)], (), 0, 2),  # the small ones go beside the large ones
    (4, [(3, 1), (1, 1)], (3,), 0, 1),
    (2, [(8, 3)], (), 0, 0),  # none of ours could ever take it
    (2, [(8, 3), (1, 1)], (), 0, 1),
    (1, [(1, 10_000)], (), 0, 10_000)])
def test_new_glideins_for_the_jobs(cpus: int, requests: list[tuple[int, int]], free: tuple[int, ...], coming: int,
                                   new: int) -> None:
    assert missing(cpus, Demand(tuple(requests), free=free), coming) == new


@pytest.mark.parametrize("live, least, most, jobs, new", [
    (0, 0, 5, 0, 0), (0, 2, 5, 0, 2), (1, 2, 5, 0, 1), (2, 2, 5, 0, 0), (3, 2, 5, 0, 0),
    (0, 0, 5, 3, 3), (0, 0, 5, 30, 5), (3, 0, 5, 30, 2), (5, 0, 5, 30, 0), (7, 0, 5, 30, 0),
    (0, 0, 50, 30, 10), (0, 20, 50, 0, 10), (0, 0, 0, 30, 0)])
def test_never_above_max_and_at_once_at_least_min(live: int, least: int, most: int, jobs: int, new: int) -> None:
    there = [running(n + 1) for n in range(live)]  # all in the pool, and busy
    demand = Demand(((1, jobs),) if jobs else (), joined=(("w-g000001", live),))
    assert decide(Limits(most, least), demand, there, [], NOW).new == new


def test_what_keeps_from_more_is_said() -> None:
    full = decide(Limits(2), asks((1, 3), joined=(("w-g000001", 2),)), [running(1), running(2)], [], NOW)
    assert full == Plan(why="the jobs would need 3 more, --max is 2")
    assert "1 idle job one glide-in is too small" in decide(Limits(2), asks(large=1), [], [], NOW).why
    assert decide(Limits(9), asks((1, 5)), [], [], NOW).why == ""


def test_one_that_boots_is_counted_once_and_one_that_leaves_is_none_that_comes() -> None:
    there = [job(1), running(2, "w-g000002", "boot"), running(3, "w-g000003"), running(4, "w-g000004", "collect"),
             job(5, State.TRANSFERRING, "w-g000005"), job(6, State.WAITING, "w-g000006"),
             job(7, State.SUSPENDED, "w-g000007"), job(8, State.HELD, "w-g000008"), job(9, State.DONE, "w-g000009")]
    demand = Demand(((1, 4),), joined=(("w-g000003", 1), ("of-another-target", 7)))
    counts = count(there, demand)
    assert counts == Counts(waiting=2, starting=1, working=2, leaving=2) and counts.live == 7 and counts.coming == 3
    assert decide(Limits(20), demand, there, [], NOW).new == 1  # 4 jobs, 3 on their way


def test_of_one_submission_those_in_the_pool_are_told_by_their_number() -> None:
    there = [running(1, proc=n) for n in range(4)]
    assert count(there, Demand(joined=(("w-g000001", 3),))) == Counts(starting=1, working=3)
    # the pool may still show one that has just left
    assert count(there[:2], Demand(joined=(("w-g000001", 3),))) == Counts(working=2)


def test_a_collector_that_has_forgotten_all_gets_no_second_fleet() -> None:
    there = [running(1, proc=n) for n in range(10)]
    assert decide(Limits(20), asks((1, 10)), there, [], NOW).new == 0


def test_a_submission_of_which_a_full_schedd_has_made_no_job_yet_is_there() -> None:
    head = {"ClusterId": 5, "VmjobName": "w-g000001", "JobMaterializeNextProcId": 0, "JobMaterializeLimit": 4}
    cluster, = clusters_of([head])
    assert (cluster.total, cluster.waiting) == (4, 4)


# ---------------------------------------------------------------- those nobody needs


def test_those_that_wait_for_nothing_are_removed_after_two_cycles_newest_first_but_not_below_min() -> None:
    there = [job(n, submitted=NOW - 1000 + n) for n in range(1, 5)] + [running(5, "w-g000002")]
    limits = Limits(9, least=2)
    assert decide(limits, Demand(), there, [], NOW, quiet=1).remove == ()
    assert decide(limits, Demand(), there, [], NOW, quiet=2).remove == (JobId(4, 0), JobId(3, 0), JobId(2, 0))
    assert decide(replace(limits, least=5), Demand(), there, [], NOW, quiet=9).remove == ()


def test_those_just_submitted_or_running_or_asked_for_perhaps_stay() -> None:
    assert decide(Limits(9), Demand(), [job(1, submitted=NOW - 5), running(2)], [], NOW, quiet=5).remove == ()
    assert decide(Limits(9), Demand(silent=("s",)), [job(1)], [], NOW, quiet=5).remove == ()


# ---------------------------------------------------------------- failures


def test_the_pauses_double_up_to_half_an_hour() -> None:
    assert [pause(n, 60) for n in range(9)] == [0, 60, 120, 240, 480, 960, 1800, 1800, 1800]
    assert pause(10_000, 60) == LONGEST_PAUSE and pause(1, 7200) == pause(5, 7200) == 7200


@pytest.mark.parametrize("tries, ago, new", [
    (1, 59, 0), (1, 61, 1), (2, 61, 0), (2, 121, 1), (6, 1799, 0), (6, 1801, 1)])
def test_after_failures_nothing_then_one(tries: int, ago: float, new: int) -> None:
    past = [failed(n, ago) for n in range(tries)]
    plan = decide(Limits(20), asks((1, 8)), [], past, NOW)
    assert plan.new == new
    assert ("nothing is submitted for" in plan.why) == (new == 0) and ("one at a time" in plan.why) == (new == 1)


def test_after_failures_the_next_waits_for_what_became_of_the_one_before() -> None:
    past, boots = [failed(1, 100)], [running(2, "w-g000002", "boot")]
    assert decide(Limits(20), asks((1, 8)), boots, past, NOW).new == 0
    here = Demand(((1, 8),), joined=(("w-g000002", 1),))
    assert decide(Limits(20), here, [running(2, "w-g000002")], past, NOW).new == 1
    assert decide(Limits(20), asks((1, 8)), [running(2, "w-g000002", "collect")], past, NOW).new == 0


def test_nothing_is_said_of_a_pause_in_which_nothing_is_asked() -> None:
    assert decide(Limits(20), Demand(), [], [failed(1)], NOW) == Plan()


def test_what_was_submitted_together_is_one_try() -> None:
    together = [replace(failed(1), id=f"1.{n}") for n in range(10)]
    assert len(failed_tries(together, [], None, NOW)) == 1
    assert len(failed_tries([*together, failed(2)], [], None, NOW)) == 2


def test_one_that_worked_excuses_those_submitted_before_it() -> None:
    assert failed_tries([failed(1), failed(2), good(3)], [], None, NOW) == []
    assert failed_tries([failed(1), good(2), failed(3)], [], None, NOW) == [failed(3)]
    # it began when all was well, and says nothing of now
    assert failed_tries([failed(5), good(2)], [], None, NOW) == [failed(5)]


@pytest.mark.parametrize("minutes, joined, excused", [(11, 1, True), (9, 1, False), (11, 0, False)])
def test_one_that_has_been_in_the_pool_for_long_excuses_too(minutes: int, joined: int, excused: bool) -> None:
    assert STEADY == 600
    there = [running(9, "w-g000009", submitted=NOW - 700, started=NOW - minutes * 60)]
    past = [failed(1)]
    tries = failed_tries(past, there, Demand(joined=(("w-g000009", joined),)), NOW)
    assert (tries == []) is excused


def test_one_that_ran_no_job_is_neither_a_success_nor_a_failure() -> None:
    past = [failed(1), vain(2)]
    assert failed_tries(past, [], None, NOW) == [failed(1)]
    assert failed_tries([failed(1), replace(good(2), jobs=0, seconds=5.0)], [], None, NOW) == [failed(1)]
    # ten minutes in the pool without any job to run show that the site can
    assert failed_tries([failed(1), replace(good(2), jobs=0, seconds=700.0)], [], None, NOW) == []
    assert failed_tries([failed(1), replace(good(2), jobs=0, busy_seconds=7.0)], [], None, NOW) == []  # evicted


def test_while_they_run_nothing_although_the_pool_asks_one_at_a_time_is_tried() -> None:
    asked = asks((1, 8))
    assert decide(Limits(20), asked, [], [vain(1, 59)], NOW).new == 0
    plan = decide(Limits(20), asked, [], [vain(1, 61)], NOW)
    assert plan.new == 1 and "one at a time" in plan.why
    assert decide(Limits(20), asked, [], [vain(1, 59)], NOW).why == (
        "nothing is submitted for 1 s more: the last try failed (no job ran)")
    assert decide(Limits(20), asked, [job(3)], [vain(1, 61)], NOW).new == 0
    assert decide(Limits(20), asked, [], [vain(1, 99), vain(2, 61)], NOW).new == 0  # twice as long
    assert decide(Limits(20), asked, [], [vain(1, 1), good(2, 1)], NOW).new == 8
    assert decide(Limits(20), replace(asked, busy=True), [], [vain(1, 1)], NOW).new == 8  # its like runs one now
    assert decide(Limits(20, least=2), Demand(), [], [vain(1, 1)], NOW).new == 2  # nobody asks
    many = [vain(n) for n in range(50)]
    assert failed_tries(many, [], asked, NOW) == [] and len(bad_tries(many, [], asked, NOW)) == 50


def test_after_it_gave_up_a_person_starts_it_anew_and_cron_does_not() -> None:
    past = [*(failed(n) for n in range(10)), Ended("", "", "ce", NOW - 900, NOW - 5, STOPPED),
            failed(10, 1)]  # submitted before it gave up, and noticed after
    assert decide(Limits(20), asks((1, 8)), [], past, NOW).new == 8
    cron = Limits(20, cron=True)
    assert decide(cron, asks((1, 8)), [], past, NOW) == Plan(why="nothing is submitted for 29m55s more: it gave up")
    assert decide(cron, asks((1, 8)), [], past, NOW + 1800).new == 8


def test_the_report_counts_by_kind_and_names_nodes_and_logs() -> None:
    past = [failed(1, node="n1"), failed(2, kind="KernelPanic", status=241),
            failed(3, node="n2", logs="w.glideins/3.0")]
    assert report(failed_tries(past, [], None, NOW), past) == [
        "2 × BootFailed on n1, n2: why (logs: w.glideins/3.0)", "1 × KernelPanic: why"]


@pytest.mark.parametrize("one, status, fixable", [
    (failed(1), 240, False),
    (failed(1, kind="TokenRefused", status=203, stage="collect"), 203, True),
    (failed(1, kind="TokenRefused", status=203, stage="stage"), 203, False),  # by the clock of its node
    (failed(1, kind="TokenRefused", status=203), 203, False),
    (failed(1, kind="CondorMissing", status=215), 215, True),
    (failed(1, kind="CondorTooOld", status=216), 216, True),
    (failed(1, kind="WalltimeTooShort", status=202), 202, False),
    (failed(1, kind="JobError", status=200), 200, False),
    (failed(1, kind="ImageCorrupt", status=212), 212, False),
    (failed(1, kind="PoolOutOfReach", status=239), 239, False),
    (failed(1, kind="Removed", status=190), 190, False),
    (failed(1, kind="NobodyKnowsThis", status=231), 250, False),
    (failed(1, kind="annotations", status=231), 250, False)])
def test_an_error_of_the_same_kind(one: Ended, status: int, fixable: bool) -> None:
    assert one.error("m", "h").status == status and one.fixable is fixable


# ---------------------------------------------------------------- what became of one


def document(**more: Any) -> dict[str, Any]:
    return {"outcome": "ok", "status": 0, "failure": None, "host": "n1", "ended": NOW - 20,
            "glidein": {"name": "g", "jobs": 0, "evicted": 0, "busy_seconds": 0.0, "seconds": 700.0}, **more}


BLANK = replace(failed(1), kind="", status=0, message="", hint="")


@pytest.mark.parametrize("asked, work, nothing", [
    (True, {}, True), (False, {}, False), (True, {"jobs": 1}, False), (True, {"evicted": 1}, False),
    (True, {"busy_seconds": 3.0}, False)])
def test_one_that_ran_nothing_while_jobs_were_idle(asked: bool, work: dict[str, Any], nothing: bool) -> None:
    body = document()
    body["glidein"].update(work)
    one = judged(BLANK, body, asked)
    assert one.vain is nothing and one.kind == "" and one.node == "n1" and one.outcome == "ok"


GOOD_RESULT: dict[str, Any] = {
    **document(), "vmjob": "1", "schema": 1, "job": "w", "exit_status": 0, "signal": None, "stages": [],
    "accelerator": None, "qemu_version": "", "image": "micro", "image_digest": "", "boot": "", "boot_attempts": 1,
    "network": "nat", "cpus": 1, "memory": 1, "slot": "machine", "bytes_in": 0, "bytes_image": 0, "bytes_out": 0,
    "cpu_seconds": 0, "peak_memory": 0, "outputs": [], "console_tail": [], "stop": "", "started": NOW,
    "glidein": {"name": "g", "jobs": 3, "evicted": 0, "busy_seconds": 0.0, "seconds": 700.0}}


@pytest.mark.parametrize("number", ["1e400", "Infinity", "NaN", "-1", "9" * 400, "9" * 5000])
def test_results_made_up_by_a_guest_or_its_node_are_refused_not_a_crash(tmp_path: Path, number: str) -> None:
    text = json.dumps(GOOD_RESULT).replace('"jobs": 3', f'"jobs": {number}')
    for name, body in (("bad", text), ("deep", "[" * 200_000), ("good", json.dumps(GOOD_RESULT))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            member = tarfile.TarInfo("result.json")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body.encode()))
        (tmp_path / name).mkdir()
        if name == "good":
            assert _unpack(tmp_path / "good.tar", tmp_path / name, Reporter())["glidein"]["jobs"] == 3
            continue
        with pytest.raises(OutputRefused):
            _unpack(tmp_path / f"{name}.tar", tmp_path / name, Reporter())


def test_what_the_result_says() -> None:
    failure = {"kind": "PoolOutOfReach", "message": "m", "hint": "h", "stage": "payload", "status": 239}
    one = judged(BLANK, document(outcome="failed", status=239, failure=failure), False)
    assert (one.kind, one.status, one.message, one.hint) == ("PoolOutOfReach", 239, "m", "h")
    assert one.stage == "payload"
    worked = judged(BLANK, document(glidein={"jobs": 7, "busy_seconds": 61.5, "seconds": 70}), True)
    assert (worked.kind, worked.jobs, worked.busy_seconds, worked.seconds) == ("", 7, 61.5, 70.0)
    assert judged(BLANK, document(status=3, outcome="program-failed", glidein=None), False).kind == "ProgramFailed"


def test_what_the_queue_says() -> None:
    held = ended_of(job(1, State.HELD, reason="over the site's memory"), "ce", NOW)
    assert (held.kind, held.status) == ("JobHeld", 198) and "over the site's memory" in held.message
    told = ended_of(job(1, State.HELD, failure="TokenRefused", status=203, reason="expired"), "ce", NOW)
    assert (told.kind, told.status, told.message, told.fixable) == ("TokenRefused", 203, "expired", False)
    assert ended_of(job(1, State.REMOVED), "ce", NOW).kind == "Removed"
    assert ended_of(job(1, State.DONE, status=0), "ce", NOW).kind == ""


def test_machine_ads_become_free_cpus_and_guests() -> None:
    def ad(name: str, cpus: int, state: str = "Unclaimed", whole: bool = True, submission: str = "w-g1",
           **more: Any) -> dict[str, Any]:
        return {"Name": name, "Cpus": cpus, "State": state, "PartitionableSlot": whole, "VmjobGlidein": submission,
                **more}

    free, joined, busy = workers([
        ad("slot1@a", 3), ad("slot1_1@a", 1, "Claimed", False, Activity="Busy"),
        ad("slot1@b", 0), ad("slot1_1@b", 2, "Claimed", False, Activity="Idle"),
        ad("slot1@c", 4, GLIDEIN_ToRetire=NOW - 1), ad("slot1@d", 4, "Drained", submission="w-g2"),
        ad("slot1@e", 2, GLIDEIN_ToRetire=NOW + 99, submission="w-g2")], NOW)
    assert free == (3, 2, 2) and dict(joined) == {"w-g1": 3, "w-g2": 2} and busy
    assert workers([ad("slot1@a", 3), ad("slot1_1@a", 1, "Claimed", False, Activity="Idle")], NOW)[2] is False


@pytest.mark.parametrize("cpus, memory, free", [
    (2, 1901, 2), (1, 951, 1), (1, 950, 0), (2, 100, 0), (3, 1901, 2)])
def test_cpus_without_memory_are_not_free(cpus: int, memory: int, free: int) -> None:
    found, _, _ = workers([{"Name": "slot1@a", "State": "Unclaimed", "PartitionableSlot": True, "Cpus": cpus,
                            "Memory": memory, "TotalSlotCpus": 2, "TotalSlotMemory": 1901}], NOW)
    assert sum(found) == free


@pytest.mark.parametrize("cpus, free", [(float("inf"), 10_000), (-float("inf"), 0), (float("nan"), 0), (-5, 0),
                                        (10**18, 10_000), ("8", 0), (True, 0)])
def test_strange_numbers_in_a_strangers_ad(cpus: Any, free: int) -> None:
    found, _, _ = workers([{"Name": "slot1@a", "State": "Unclaimed", "PartitionableSlot": True, "Cpus": cpus}], NOW)
    assert sum(found) == free
    assert size_of({"RequestCpus": cpus}, WANTS) == max(1, free)


WANTS = Wants("w", 4, (400 + reserved_memory(4)) * 2**20, 2**30)


@pytest.mark.parametrize("ad, size", [
    ("", 1), ("RequestCpus = 3", 3), ("RequestCpus = 1; RequestMemory = 100", 1), ("RequestMemory = 101", 2),
    ("RequestCpus = 3; RequestMemory = 101", 3), ("RequestMemory = 400", 4),
    ("RequestMemory = real(\"INF\")", 21474837),
    ("RequestMemory = ifThenElse(MemoryUsage =!= undefined, MemoryUsage, (ImageSize + 1023) / 1024); "
     "ImageSize = 250000", 3), ("RequestMemory = Other; RequestCpus = 1 / 0", 1)])
def test_a_job_takes_the_cpus_that_have_its_memory(ad: str, size: int) -> None:
    assert WANTS.jobs_memory == 400
    assert size_of(classad2.ClassAd(f"[{ad}]"), WANTS) == size


def test_a_collector_that_knows_no_schedd_does_not_say_that_there_are_no_jobs() -> None:
    place = Place("cm.org:9618")
    with pytest.raises(PoolUnreachable, match="no schedd at all"):
        schedds_of(place, [], "")
    with pytest.raises(PoolUnreachable, match="no schedd 's'"):
        schedds_of(place, [{"Name": "t"}], "s")
    assert [found.schedd for found, _ in schedds_of(place, [{"Name": "s"}, {"Name": "t"}], "")] == ["s", "t"]


@pytest.mark.parametrize("text, place", [("cm.org", "cm.org:9618"), ("cm.org:9620", "cm.org:9620"),
                                         ("[fd00::1]", "[fd00::1]:9618"), ("[fd00::1]:9620", "[fd00::1]:9620")])
def test_a_pool_has_a_port(text: str, place: str) -> None:
    assert pool_at(text).place.collector == place


# ---------------------------------------------------------------- the logbook


def test_the_logbook_outlives_a_kill_and_other_targets_do_not_count(tmp_path: Path) -> None:
    book = Logbook(tmp_path / "w.glideins", "ce")
    assert book.read() == []
    book.add(failed(1))
    Logbook(tmp_path / "w.glideins", "other").add(replace(failed(2), target="other"))
    with (tmp_path / "w.glideins/glideins.jsonl").open("a") as file:
        file.write('{"id": "3.0", "submi')
    book.add(good(4))
    (tmp_path / "w.glideins/glideins.jsonl").open("a").write('7\n{"id": 5}\n')
    assert book.read() == [failed(1), good(4)]


def test_the_logbook_stays_small(tmp_path: Path) -> None:
    book = Logbook(tmp_path, "ce")
    for number in range(30):
        for _ in range(100):
            book.add(failed(number, message="x" * 1000))
    assert (tmp_path / "glideins.jsonl").stat().st_size < 3 * 2**20 and book.read()[-1].id == "29.0"
    for number in range(30):
        (book.folder_of(f"{number}.0") / "glidein").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    book.tidy([tmp_path / "29.0"])
    kept = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len(kept) == 21 and "mine" in kept and "29.0" not in kept


# ---------------------------------------------------------------- days of a pool and a site


@dataclass
class Guest:
    cluster: int
    submitted: float
    starts: float  # on a node
    joins: float
    idle_since: float
    tasks: list[tuple[float, int]] = field(default_factory=list)  # end, CPUs
    left: Optional[float] = None
    ran: int = 0

    @property
    def name(self) -> str:
        return f"w-g{self.cluster:06d}"


class Day:
    """A pool and a site, made up. Jobs start as soon as a guest has room; a guest ends after ten minutes without."""

    def __init__(self, seed: int, limits: Limits, works: float = 1.0) -> None:
        self.dice, self.limits, self.works = random.Random(seed), limits, works
        self.now, self.clusters, self.quiet = NOW, 0, 0
        self.queue: list[tuple[int, float]] = []  # CPUs, seconds
        self.guests: list[Guest] = []
        self.past: list[Ended] = []
        self.plans: list[tuple[float, int, int]] = []  # when, new, removed
        self.done = 0

    def live(self) -> list[Guest]:
        return [one for one in self.guests if one.left is None or self.now < one.left + 20]

    def state(self, one: Guest) -> JobInfo:
        if self.now < one.starts:
            return job(one.cluster, State.IDLE, one.name, submitted=one.submitted)
        stage = "collect" if one.left is not None else "payload" if self.now >= one.joins else "boot"
        return running(one.cluster, one.name, stage, submitted=one.submitted, started=one.starts)

    def demand(self) -> Demand:
        here = [one for one in self.guests if one.left is None and self.now >= one.joins]
        return Demand(tuple(sorted(Counter(cpus for cpus, _ in self.queue).items(), reverse=True)),
                      free=tuple(self.limits.cpus - sum(cpus for _, cpus in one.tasks) for one in here),
                      joined=tuple((one.name, 1) for one in here), busy=any(one.tasks for one in here))

    def pool(self) -> None:
        for one in self.guests:
            if one.left is not None or self.now < one.joins:
                continue
            ended = sum(end <= self.now for end, _ in one.tasks)
            self.done += ended
            one.ran += ended
            one.tasks = [task for task in one.tasks if task[0] > self.now]
            for cpus, seconds in list(self.queue):
                if cpus + sum(task[1] for task in one.tasks) <= self.limits.cpus:
                    self.queue.remove((cpus, seconds))
                    one.tasks.append((self.now + seconds, cpus))
            if one.tasks:
                one.idle_since = self.now
            if self.now - one.idle_since > 600:
                self.end(one, "")

    def end(self, one: Guest, kind: str) -> None:
        one.left = self.now
        self.past.append(Ended(f"{one.cluster}.0", one.name, "ce", one.submitted, self.now, "ok", kind, 240,
                               jobs=one.ran, seconds=max(0.0, self.now - one.joins),
                               vain=not (kind or one.ran) and bool(self.queue)))

    def cycle(self) -> Plan:
        self.now += self.limits.every
        for one in [one for one in self.guests if one.joins == float("inf") and one.left is None]:
            if self.now > one.starts + 60:
                self.end(one, "BootFailed")
        self.pool()
        demand = self.demand()
        self.quiet = 0 if demand.requests else self.quiet + 1
        plan = decide(self.limits, demand, [self.state(one) for one in self.live()], self.past, self.now, self.quiet)
        assert all(self.now < one.starts for one in self.guests if JobId(one.cluster, 0) in plan.remove)
        self.guests = [one for one in self.guests if JobId(one.cluster, 0) not in plan.remove]
        for _ in range(plan.new):
            self.clusters += 1
            starts = self.now + self.dice.uniform(5, 400)
            joins = starts + self.dice.uniform(20, 120) if self.dice.random() < self.works else float("inf")
            self.guests.append(Guest(self.clusters, self.now, starts, joins, joins))
        self.plans.append((self.now, plan.new, len(plan.remove)))
        assert len(self.live()) <= self.limits.most
        return plan


@pytest.mark.parametrize("seed", range(8))
def test_a_day_with_bursts_of_jobs(seed: int) -> None:
    dice = random.Random(seed)
    limits = Limits(most=dice.randint(3, 30), least=dice.randint(0, 3), cpus=dice.randint(1, 4))
    day, short, came = Day(seed, limits), 0, 0
    for number in range(2880):
        if number < 2400 and dice.random() < 0.01:
            for _ in range(dice.randint(1, 40)):
                day.queue.append((dice.randint(1, limits.cpus), dice.uniform(5, 1500)))
                came += 1
        day.cycle()
        short = short + 1 if len(day.live()) < limits.least else 0
        assert short <= 1, "fewer than min for more than a cycle"
    assert day.queue == [] and day.done == came  # every job has run
    assert len(day.live()) == max(limits.least, len([one for one in day.live() if one.tasks]))
    assert day.clusters <= came + limits.least * 144, "more than one for a job, and one in ten minutes for min"


@pytest.mark.parametrize("seed", range(4))
def test_where_the_demand_is_steady_nothing_swings(seed: int) -> None:
    """As many long jobs as there were are always idle or running: after the first half hour none comes or goes."""
    limits = Limits(most=20, cpus=2)
    day = Day(seed, limits)
    day.queue = [(1, 1e9)] * (8 + seed)
    for _ in range(960):
        day.cycle()
    assert day.queue == [] and sum(new for _, new, _ in day.plans) == -(-(8 + seed) // 2)
    assert all(new == removed == 0 for when, new, removed in day.plans if when > NOW + 1800)


@pytest.mark.parametrize("seed", range(3))
def test_demand_that_comes_and_goes_within_a_cycle_removes_nothing(seed: int) -> None:
    day = Day(seed, Limits(most=20))
    for number in range(600):
        day.queue = [(1, 50.0)] * 5 if number % 2 else []
        day.cycle()
    assert sum(removed for _, _, removed in day.plans) == 0


def test_jobs_that_were_withdrawn_leave_nothing_that_waits() -> None:
    day = Day(1, Limits(most=20, every=30))
    day.queue = [(1, 100.0)] * 8
    assert day.cycle().new == 8
    for one in day.guests:
        one.starts = one.joins = NOW + 1e6  # a full site
    day.queue = []
    removed = [len(day.cycle().remove) for _ in range(6)]
    assert removed == [0, 8, 0, 0, 0, 0] and day.live() == []


def test_a_site_that_fails_every_glidein_is_asked_ever_less() -> None:
    day = Day(3, Limits(most=20), works=0.0)
    day.queue = [(1, 100.0)] * 50
    for _ in range(960):  # eight hours; nobody ends the factory here
        day.cycle()
    whens = [when for when, new, _ in day.plans if new]
    assert [new for _, new, _ in day.plans if new] == [10, 10] + [1] * (len(whens) - 2)  # none had failed yet
    gaps = [after - before for before, after in zip(whens, whens[1:])]
    assert len(whens) < 25 and all(gap >= LONGEST_PAUSE for gap in gaps[8:])


@pytest.mark.parametrize("seed", range(3))
def test_a_site_that_fails_now_and_then_still_serves_all(seed: int) -> None:
    day = Day(seed, Limits(most=20), works=0.7)
    for number in range(2880):
        if number % 40 == 0 and number < 2000:
            day.queue += [(1, 200.0)] * 5
        day.cycle()
    assert day.queue == []


def test_one_that_is_started_again_does_what_the_first_would_have_done() -> None:
    """It has nothing but the queues and the logbook, and the count of quiet cycles, which delays a removal."""
    day = Day(5, Limits(most=20, cpus=2))
    day.queue = [(1, 300.0)] * 25
    for _ in range(40):
        day.quiet = 0  # killed after each cycle
        day.cycle()
    steady = Day(5, Limits(most=20, cpus=2))
    steady.queue = [(1, 300.0)] * 25
    for _ in range(40):
        steady.cycle()
    assert [new for _, new, _ in day.plans] == [new for _, new, _ in steady.plans]
