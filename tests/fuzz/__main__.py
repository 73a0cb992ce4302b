"""``python -m tests.fuzz [--target NAME …] [--minutes N] [--seed S] [--list]``: fuzz the parsers, one process each, on
all processors. One line for each; status 1 where a fault was found."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import BUILD, ROOT
from tests.fuzz.keep import keep
from tests.fuzz.target import Target, run
from tests.fuzz.targets import TARGETS

_GRACE = 120  # seconds after which a process that should have ended is taken for one that hangs


@dataclass(frozen=True)
class Done:
    executions: int
    new: int
    faults: tuple[str, ...]
    seconds: float


def main() -> int:
    args = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers of strangers' bytes.")
    args.add_argument("--target", action="append", default=[], metavar="NAME", help="this one (default: all)")
    args.add_argument("--minutes", type=float, default=1, help="for each target (default: 1)")
    args.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the mutations")
    args.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="targets at once")
    args.add_argument("--list", action="store_true", help="show the targets, and what each parses")
    args.add_argument("--keep", action="store_true", help="add the best of what runs before found to the corpus")
    args.add_argument("--repeat", type=Path, metavar="FILE", help="give one input to --target, without atheris")
    given = args.parse_args()
    if unknown := [name for name in given.target if name not in TARGETS]:
        args.error(f"no target is called {unknown[0]}: --list shows them")
    logging.getLogger("vmjob").addHandler(logging.NullHandler())  # what parsers warn of is not asked for here
    chosen = [TARGETS[name] for name in given.target or TARGETS]
    if given.list:
        for one in chosen:
            print(f"{one.name:16} {one.what}")
        return 0
    if given.repeat:
        return _repeat(chosen, given.repeat)
    if given.keep:
        for one in chosen:
            print(f"{one.name:16} {keep(one, sorted((BUILD / 'fuzz' / one.name / 'inputs').glob('*'))):3} kept")
        return 0
    if not importlib.util.find_spec("atheris"):
        args.error("the package atheris is not installed here: .ci/setup fuzz")
    return _campaign(chosen, given.minutes, given.seed, given.jobs)


def _repeat(chosen: Sequence[Target], file: Path) -> int:
    one = TARGETS[file.resolve().parent.name] if len(chosen) > 1 else chosen[0]
    with tempfile.TemporaryDirectory() as place:
        accepted = run(one, file.read_bytes(), Path(place))  # a fault is a traceback, which is what is wanted here
    print(f"{one.name}: {'accepted' if accepted else 'refused by name'}")
    return 0


def _campaign(chosen: Sequence[Target], minutes: float, seed: int, jobs: int) -> int:
    print(f"{len(chosen)} targets, {minutes:g} min each, {jobs} at once, seed {seed}")
    print(f"{'target':16} {'executions':>12} {'new':>6} {'faults':>7} {'seconds':>8}", flush=True)
    faults: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        for one, done in zip(chosen, pool.map(lambda one: _fuzz(one, minutes, seed), chosen)):
            print(f"{one.name:16} {done.executions:12} {done.new:6} {len(done.faults):7} {done.seconds:8.0f}",
                  flush=True)
            faults += done.faults
    for one_fault in faults:
        print(one_fault)
    return 1 if faults else 0


def _fuzz(one: Target, minutes: float, seed: int) -> Done:
    folder = BUILD / "fuzz" / one.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults").unlink(missing_ok=True)
    before, begun, seconds = _inputs(folder), time.monotonic(), max(1, round(minutes * 60))
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen([sys.executable, "-m", "tests.fuzz.child", one.name, str(seconds), str(seed),
                                  str(folder)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            status = child.wait(seconds + _GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
    return Done(_executions(folder), _inputs(folder) - before, (*_faults(one, folder), *_lost(one, folder, status)),
                time.monotonic() - begun)


def _inputs(folder: Path) -> int:
    return len(list((folder / "inputs").glob("*")))


def _executions(folder: Path) -> int:
    said = (folder / "log").read_text(errors="replace")
    found = re.search(r"stat::number_of_executed_units: *(\d+)", said)
    counts = re.findall(r"^#(\d+)\t", said, re.M)  # where it did not come to its end
    return int(found.group(1) if found else counts[-1] if counts else 0)


def _faults(one: Target, folder: Path) -> list[str]:
    said = (folder / "faults").read_text() if (folder / "faults").exists() else ""
    return [f"{one.name}: {text}\n  {_again(Path(file))}" for text, _, file in
            (line.partition("\t") for line in said.splitlines())]


def _lost(one: Target, folder: Path, status: int) -> list[str]:
    """What ended the process itself: a crash of an extension, an input that hangs."""
    found = []
    for path in folder.glob("lost-*"):
        if path.name.startswith("lost-slow"):  # libFuzzer's word for more than ten seconds
            path.unlink()
            continue
        one.corpus.mkdir(parents=True, exist_ok=True)
        kept = Path(shutil.move(path, one.corpus / path.name[5:17 + path.name.index("-", 5)]))
        found.append(f"{one.name}: the process ended with status {status}\n  {_again(kept)}")
    return found or ([f"{one.name}: the process ended with status {status}\n  see {folder / 'log'}"] if status else [])


def _again(file: Path) -> str:
    return f".venv/bin/python -m tests.fuzz --repeat {file.relative_to(ROOT)}"


if __name__ == "__main__":
    sys.exit(main())
