"""Tasks of two seconds from the VO's own queue: how busy they keep a guest of two CPUs, and how soon after its slot has
begun it runs the first; beside the same on the node itself, with a condor_startd as HTCondor's package has it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from bench.common import ROOT, Bench, Goal, Row
from tests.site import config, hosts, tokens
from tests.site import site as whole
from tests.site.layout import HOSTS, VO, Host
from tests.site.vo import Queue

_CPUS = 2
_TASKS = 40
_SECONDS = 2
_ROUNDS = 2  # at most: each takes minutes
_MORE = 4  # jobs at once on two CPUs: one starts while another runs
_NODE = HOSTS["n1"]
# its own clock, read without starting a process, which costs 3 ms in an emulated guest
_TASK = f"read began _ </proc/uptime; sleep {_SECONDS}; read ended _ </proc/uptime; echo $began $ended"
_FIRST = "echo here"
_NAMED = {"transfer_output_files": '""'}
# as another machine, in the network of the node that it is on
_PLAIN = """\
NUM_CPUS = {cpus}
USE_SHARED_PORT = False
GLIDEIN_Site = "{tag}"
STARTD_ATTRS = $(STARTD_ATTRS) GLIDEIN_Site
START = {start}
"""


@dataclass
class _Found:
    """What the rounds of one way gave, in seconds and shares."""

    first: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    span: list[float] = field(default_factory=list)
    boot: list[float] = field(default_factory=list)


def measure(bench: Bench) -> list[Row]:
    reason = whole.why_not()
    if reason:
        raise RuntimeError(reason)
    _image(bench)
    ours = not whole.running()
    site = whole.up()
    try:
        with bench.folder() as work:
            return _measure(bench, site, work)
    finally:
        if ours:
            whole.down()


def _measure(bench: Bench, site: whole.Site, work: Path) -> list[Row]:
    queue = Queue(site, f"bench-{secrets.token_hex(4)}")
    guest, more, bare = _Found(), _Found(), _Found()
    try:
        payload, larger = (_payload(bench, site, work, queue, jobs) for jobs in (_CPUS, _MORE))
        for _ in range(min(bench.rounds, _ROUNDS)):
            for found, worker in ((guest, _in_guest(bench, payload, work, guest)),
                                  (more, _in_guest(bench, larger, work, more)), (bare, _on_node(site, queue))):
                _round(queue, worker, found)
    finally:
        _forget(queue)
    middle = statistics.median
    return [
        Row(f"{_TASKS} tasks of {_SECONDS} s keep {_CPUS} CPUs of a guest busy", middle(guest.busy), middle(bare.busy),
            "of the time", Goal("ours", ">=", 0.95), "condor_startd on the node"),
        Row(f"the same with glidein.jobs: {_MORE}", middle(more.busy), middle(bare.busy), "of the time",
            Goal("ours", ">=", 0.95), "condor_startd on the node"),
        Row(f"the {_TASKS} tasks with glidein.jobs: {_MORE}, from the first one's start to the last one's end",
            middle(more.span), middle(bare.span), peer="condor_startd on the node"),
        Row("slot's start to the first pulled task", middle(guest.first), middle(bare.first),
            peer="condor_startd on the node"),
        Row("of that: boot", middle(guest.boot)),
    ]


def _round(queue: Queue, worker: Iterator[float], found: _Found) -> None:
    """One worker: the time until its first task, and then how busy many keep it."""
    first = queue.submit(1, _FIRST, stream_output="true", **_NAMED)
    with contextmanager(lambda: worker)() as began:
        found.first.append(_streamed(queue) - began)
        _wait(queue, first)
        busy, span = _busy(queue, _TASKS, **_NAMED)
        found.busy.append(busy)
        found.span.append(span)


def _streamed(queue: Queue) -> float:
    """When the newest job of one task wrote its first line, by the clock of the machine that all this is on. (A
    guest's clock is set to whole seconds.)"""
    name = max(queue.folder.glob("job-*.submit"), key=lambda path: int(path.stem.partition("-")[2])).stem
    output = queue.folder / f"{name}.0.out"
    _until(lambda: output.exists() and output.stat().st_size > 0, 120, "no task began")
    return output.stat().st_mtime


def _busy(queue: Queue, count: int, **lines: str) -> tuple[float, float]:
    """The share of CPUs × time, from the first task's start to the last one's end, in which a task ran: at each moment
    as many CPUs are busy as tasks run between the first and the last line of their script, at most all. And that time
    in seconds."""
    known = set(queue.folder.glob("*.out"))
    cluster = queue.submit(count, _TASK, **lines)
    _wait(queue, cluster)
    changes = []
    for output in set(queue.folder.glob("*.out")) - known:
        began, ended = map(float, output.read_text().split())
        changes += [(began, 1), (ended, -1)]
    if len(changes) != 2 * count:
        raise RuntimeError(f"{len(changes) // 2} of {count} tasks gave their times")
    changes.sort()
    start = before = changes[0][0]
    running, busy = 0, 0.0
    for when, change in changes:
        busy += min(running, _CPUS) * (when - before)
        running, before = running + change, when
    return busy / (_CPUS * (before - start)), before - start


def _wait(queue: Queue, cluster: str) -> None:
    def ended() -> bool:
        states = queue.states(cluster)
        if states["held"]:
            raise RuntimeError(f"tasks are held: {queue.ads(cluster)[0]['HoldReason']}")
        return set(states) == {"done"}

    _until(ended, 400, f"the tasks of {cluster} did not end")


def _forget(queue: Queue) -> None:
    """No job of ours in the queue, and no file; those of jobs that are just being removed come late."""
    def gone() -> bool:
        shutil.rmtree(queue.folder, ignore_errors=True)
        return not queue.folder.exists()

    queue.end()
    _until(gone, 30, f"{queue.folder} cannot be removed")


def _until(what: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.5)


# ---------------------------------------------------------------- the two ways


def _image(bench: Bench) -> None:
    """The image of the site's tests in the store of the measurements, built when recipe or agent changed."""
    recipe, folder = ROOT / "tests/site/worker.yaml", bench.home / "worker"
    made = folder / "manifest.yaml"
    parts = [recipe, *(ROOT / "vmjob/image").glob("*.sh"), *(ROOT / "vmjob/guest").glob("*.sh")]
    if not made.exists() or made.stat().st_mtime < max(part.stat().st_mtime for part in parts):
        shutil.rmtree(folder, ignore_errors=True)
        bench.vmjob("image", "build", recipe, "-o", folder)


def _payload(bench: Bench, site: whole.Site, work: Path, queue: Queue, jobs: int) -> Path:
    """What a batch system would hand to the slot."""
    job = {"name": "bench", "image": "worker",
           "glidein": {"pool": site.vo, "token": str(tokens.GLIDEIN_TOKEN), "site": queue.tag, "start": queue.start,
                       "jobs": jobs},
           "resources": {"cpus": _CPUS, "memory": "1GiB", "walltime": "30m"}}
    (work / "job.yaml").write_text(json.dumps(job))
    bench.vmjob("pack", work / "job.yaml", "-o", work / f"payload-{jobs}")
    return work / f"payload-{jobs}"


def _in_guest(bench: Bench, payload: Path, work: Path, found: _Found) -> Iterator[float]:
    """A glide-in, as a slot runs it: when its wrapper began. Told to end afterwards."""
    slot = work / f"slot-{secrets.token_hex(2)}"
    shutil.copytree(payload, slot, copy_function=_link)  # the token of its copy is blanked
    with (slot / "said").open("wb") as said:
        began = time.time()
        process = subprocess.Popen(["sh", "vmjob-wrapper.sh"], cwd=slot, stdin=subprocess.DEVNULL, stdout=said,
                                   stderr=said, env=bench.environment({"PYTHONPATH": ""}))
        try:
            yield began
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
    stages = json.loads(next(slot.rglob("result.json")).read_text())["stages"]
    found.boot.append(next(stage["seconds"] for stage in stages if stage["name"] == "boot"))
    shutil.rmtree(slot)


def _link(source: str, target: str) -> None:
    if Path(source).name == "token":
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def _on_node(site: whole.Site, queue: Queue) -> Iterator[float]:
    """A worker node of the VO's pool with the site's HTCondor, configured as the site's own: when it began."""
    host = Host(f"{_NODE.name}-bench", _NODE.number, VO, "vo", ("STARTD",), ("ada",), homes=False)
    try:
        hosts.prepare(host, site.root)
        plain = config.of_host(host) + _PLAIN.format(cpus=_CPUS, tag=queue.tag, start=queue.start)
        (host.folder / "config.d/50-site.config").write_text(plain)
        with (host.folder / "etc/hosts").open("a") as names:  # else it waits for a name server that is not there
            names.write(f"{host.address} {host.full_name}\n")
        token = host.folder / "tokens.d/daemons"
        token.touch(0o600)
        token.write_text(tokens.GLIDEIN_TOKEN.read_text())
        began = time.time()
        command = ["ip", "netns", "exec", _NODE.namespace, *hosts.bubblewrap(host, site.root, "condor_master", "-f")]
        with (host.folder / "console").open("wb") as console:
            process = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            yield began
        finally:
            _end_in_order(process)
    finally:
        shutil.rmtree(host.folder, ignore_errors=True)


def _end_in_order(bubblewrap: subprocess.Popen[bytes]) -> None:
    """The pool must hear of it: for as long as it keeps the ad of one that was killed, it sends tasks there."""
    for pid in _below(bubblewrap.pid):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "condor_master":
                os.kill(pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        bubblewrap.wait(30)
    bubblewrap.kill()
    bubblewrap.wait()


def _below(pid: int) -> Iterator[int]:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from _below(int(child))
