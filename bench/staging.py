"""Cold and warm starts of images of 2 GB and 10 GB that come over HTTP at 100 Mbit/s, beside curl, sha256sum and a bare
QEMU; how often the bytes move when jobs start at once; and how much disk sixteen guests of one image take.

VMJOB_BENCH_LARGE=1 has the 10 GB too: a quarter of an hour and 30 GB of disk more.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

from bench.common import Bench, Goal, Row, alternate
from bench.node import DIRECT, Image, Server, Way, Work, blocks, make, serving, stages_of, together
from bench.run import bare

_GB = 10**9
_LARGE = "VMJOB_BENCH_LARGE"
_RATE = "100mbit"
_AT_ONCE = 4
_GUESTS = 16
_HOUR = 3600
# what a careful user would do by hand; the times tell the parts
_BY_HAND = """\
set -e
for file in vmlinuz initrd.img disk.qcow2; do curl -sSf -o $file {url}/$file; done
date +%s.%N >fetched
sha256sum vmlinuz initrd.img disk.qcow2 >sums
date +%s.%N >hashed
exec "$@"
"""


def measure(bench: Bench) -> list[Row]:
    if os.getuid():
        raise RuntimeError("a network namespace with a limited rate needs root")
    sizes = {"2 GB": 2 * _GB, **({"10 GB": 10 * _GB} if os.environ.get(_LARGE) else {})}
    rows: list[Row] = []
    with _folder(bench) as folder:
        _check_room(bench, list(sizes.values()))
        work = Work(bench, folder)
        small = make(work, "small", 0)
        made = {name: make(work, name.replace(" ", ""), size) for name, size in sizes.items()}
        rows += _at_once(work, made["2 GB"])
        for name, one in made.items():
            rows += _cold(work, name, one)
        rows += _warm(work, small, made)
        rows += _disk(work, *list(made.items())[-1])
    if len(sizes) == 1:
        rows.append(Row("cold and warm start of 10 GB", 0, unit="measurements", peer=f"not run: set {_LARGE}=1"))
    return rows


# ---------------------------------------------------------------- the figures


def _cold(work: Work, name: str, one: Image) -> list[Row]:
    """Both at the same time, each with a link of its own: whatever else loads the machine loads both."""
    with serving(work, _RATE) as a, serving(work, _RATE) as b:
        ours, other = work.job(one, a.within), _by_hand(work, one, b)
        began = time.time()
        took, hand = together([ours, other], timeout=_HOUR)
        moved = (a.moved, b.moved)
    stages = stages_of(ours)
    fetched, hashed = (float((other.folder / stamp).read_text()) for stamp in ("fetched", "hashed"))
    shutil.rmtree(other.folder)
    print(f"bench: staging: {name}: cold {took:.1f} s {stages}; by hand {hand:.1f} s: curl {fetched - began:.1f}, "
          f"sha256sum {hashed - fetched:.1f}, boot {began + hand - hashed:.1f}", file=sys.stderr, flush=True)
    return [Row(f"cold start of {name} over 100 Mbit/s: fetch, verify, boot, `true`, off", took, hand,
                goal=Goal("ratio", "<=", 1.05), peer="curl, then sha256sum, then a bare QEMU to poweroff"),
            Row(f"of that ({name}): fetched and verified", stages["verify"], hashed - began,
                peer="curl, then sha256sum"),
            Row(f"of that ({name}): all else", took - stages["verify"], began + hand - hashed, peer="the bare QEMU"),
            Row(f"{name} over 100 Mbit/s: rate of fetching and verifying", moved[0] / stages["verify"] / 1e6,
                moved[1] / (fetched - began) / 1e6, "MB/s", Goal("ratio", ">=", 0.9), "curl alone"),
            Row(f"{name}: bytes that moved", moved[0] / one.size, moved[1] / one.size, "images", peer="curl")]


def _at_once(work: Work, one: Image) -> list[Row]:
    """Jobs that start together on a node that has nothing."""
    cache = work.folder / "four"
    with serving(work, _RATE) as server:
        ways = [work.job(one, server.within, cache) for _ in range(_AT_ONCE)]
        took = together(ways, timeout=_HOUR)
        moved = server.moved
    shutil.rmtree(cache)
    booted = [sum(stages_of(way)[name] for name in ("stage", "verify", "probe", "boot")) for way in ways]
    return [Row(f"{_AT_ONCE} jobs at once on a node without their image of 2 GB: bytes that moved", moved / one.size,
                unit="images", goal=Goal("ours", "<=", 1)),
            Row(f"until the first of the {_AT_ONCE} was up, and the last", min(booted), max(booted), peer="the last"),
            Row(f"until the last of the {_AT_ONCE} had ended", max(took), one.size / 12.5e6,
                peer="the image's bytes at 100 Mbit/s")]


def _warm(work: Work, small: Image, made: Mapping[str, Image]) -> list[Row]:
    """On a node that has them all. The guests are the same but for the size of their disk; micro has none."""
    micro = work.folder / "micro"
    work.bench.vmjob("pack", "--image", "micro", "--network", "none", "-o", micro, "--", "true")
    images = {"micro": Image("micro", 0, micro, work.folder / "cache-micro"), "0.1 GB": small, **made}
    verify: dict[str, list[float]] = {name: [] for name in images}
    with serving(work, "") as server:
        for one in images.values():
            together([work.job(one, server.within)])
        before = server.moved

        def start(name: str) -> Callable[[], float]:
            def way() -> float:
                this = work.job(images[name], server.within)
                took, = together([this])
                verify[name].append(stages_of(this)["verify"])
                return took

            return way

        times = dict(zip(images, alternate(max(work.bench.rounds, 11), *(start(name) for name in images))))
        moved = server.moved - before
    rows = [Row(f"warm start of {name}", times[name], times["0.1 GB"], goal=Goal("ratio", "<=", 1.05),
                peer="the same guest, 0.1 GB") for name in made]
    return [*rows, Row("warm start of micro, another guest", times["micro"]),
            *(Row(f"of the warm start of {name}: verify", statistics.median(verify[name])) for name in images),
            Row("bytes that moved for all warm starts", moved / 1e6, unit="MB", goal=Goal("ours", "<=", 1))]


def _disk(work: Work, name: str, one: Image) -> list[Row]:
    """Blocks of all files of the cache and of the slots while the guests run."""
    ways = [work.job(one) for _ in range(_GUESTS)]
    most = running = 0

    def watch() -> None:
        nonlocal most, running
        most = max(most, blocks([one.cache, *(way.folder for way in ways)]))
        running = max(running, sum(any(way.folder.glob("*/overlay.qcow2")) for way in ways))

    took = together(ways, watch)
    return [Row(f"{_GUESTS} guests at once of one image of {name}: disk of cache and slots", most / one.size,
                unit="images", goal=Goal("ours", "<=", 1.05)),
            Row(f"of the {_GUESTS}, how many there were at the same moment", running, unit="guests"),
            Row(f"until the last of the {_GUESTS} had ended", max(took))]


# ---------------------------------------------------------------- details


def _by_hand(work: Work, one: Image, server: Server) -> Way:
    boot = bare(work.bench, work.folder, str(work.www / one.name))
    script = _BY_HAND.format(url=f"{server.url}/{one.name}")
    return Way([*server.within, "sh", "-c", script, "by-hand", *boot], work.slot(), {**os.environ, **DIRECT})


def _check_room(bench: Bench, sizes: Sequence[int]) -> None:
    """Server and node have each image; by hand comes one more of the largest."""
    need, free = 2 * sum(sizes) + max(sizes) + _GB, shutil.disk_usage(bench.home).free
    if free < need:
        raise RuntimeError(f"{bench.home} has {free / _GB:.0f} GB free, and {need / _GB:.0f} GB are needed")


@contextmanager
def _folder(bench: Bench) -> Iterator[Path]:
    """So many GB are not to stay behind: SIGTERM cleans up too, and what kill -9 left the next run removes."""
    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    for old in (bench.home / "scratch").glob("staging-*"):
        if not Path("/proc", old.name.partition("-")[2]).exists():
            shutil.rmtree(old)
    folder = bench.home / f"scratch/staging-{os.getpid()}"
    folder.mkdir()
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield folder
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder)
