"""``python -m tests.chaos [--minutes 10 | --runs 20] [--seed 1] [--only WORD] [--keep FOLDER]``: hurt runs, print the
table, and write it to build/chaos.md. Status 1 where a run told another outcome than it had."""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.chaos.faults import FAULTS
from tests.chaos.trial import ROOT, Fault, Trial
from tests.conftest import BUILD, Cli
from vmjob.core.units import format_duration


def main() -> int:
    args = argparse.ArgumentParser(prog="python -m tests.chaos", description="Does every run tell the outcome it had?")
    args.add_argument("--minutes", type=float, help="go on so long, each fault in its turn (default: each fault once)")
    args.add_argument("--runs", type=int, default=1, help="of each fault, where no time is given (default: 1)")
    args.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the first run")
    args.add_argument("--only", default="", help="faults with this word in their names")
    args.add_argument("--keep", type=Path, help="leave there what runs with a wrong outcome left")
    given = args.parse_args()
    faults = [one for one in FAULTS if given.only in one.name]
    if not faults:
        args.error(f"no fault has {given.only!r} in its name: " + ", ".join(one.name for one in FAULTS))
    place = Path(tempfile.mkdtemp(prefix="vmjob-chaos-", dir="/var/tmp")).resolve()
    try:
        return _campaign(faults, place, given)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _campaign(faults: list[Fault], place: Path, given: argparse.Namespace) -> int:
    home, begun = _home(), time.monotonic()
    payloads = {wall: _payload(home, place, wall) for wall in {one.walltime for one in faults}}
    outcomes: dict[str, Counter[str]] = {one.name: Counter() for one in faults}
    wrong: list[str] = []
    number = 0
    # a long campaign begins each round anew in an order of its own, so that a short one is no prefix of all
    while (time.monotonic() - begun < given.minutes * 60) if given.minutes else number < given.runs * len(faults):
        seed = given.seed + number
        if number % len(faults) == 0:
            order = Random(seed).sample(faults, len(faults))
        fault = order[number % len(faults)]
        number += 1
        trial = Trial(fault, place / str(number), payloads[fault.walltime], home, Random(seed))
        outcome, faults_found = _run(trial)
        outcomes[fault.name][outcome] += 1
        text = "; ".join(faults_found)
        print(f"{seed} {fault.name}: {outcome}{'   WRONG: ' + text if text else ''}", file=sys.stderr, flush=True)
        if text:
            wrong.append(f"seed {seed}, {fault.name}: {outcome}: {text}")
            if given.keep:
                shutil.copytree(trial.folder, given.keep / str(seed), dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(trial.folder, ignore_errors=True)
    table = _table(outcomes, wrong, given.seed, number, time.monotonic() - begun)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "chaos.md").write_text(table)
    print(table)
    return 1 if wrong else 0


def _run(trial: Trial) -> tuple[str, list[str]]:
    trial.start()
    try:
        trial.fault.act(trial)
    finally:
        trial.end()
    return trial.verdict()


def _home() -> Path:
    """A store with the micro image, and the nodes' cache of it."""
    home = BUILD / "chaos-home"
    home.mkdir(parents=True, exist_ok=True)
    cli = Cli(home, home)
    if cli("image", "inspect", "micro").status:
        built = cli("image", "micro")
        assert built.status == 0, built.err
    return home


def _payload(home: Path, place: Path, walltime: str) -> Path:
    folder = place / f"payload-{walltime}"
    words = ["pack", "--image", "micro", "--output", "out.txt", "-o", folder, "--carry-image", "--memory", "512MiB"]
    words += ["--walltime", walltime] if walltime else []
    done = Cli(place, home)(*words, "--", "sh", "-c", 'eval "$PROGRAM"')
    assert done.status == 0, done.err
    return folder


def _table(outcomes: dict[str, Counter[str]], wrong: list[str], seed: int, runs: int, seconds: float) -> str:
    version = (ROOT / "vmjob/core/version.py").read_text().partition('__version__ = "')[2].partition('"')[0]
    lines = [f"vmjob {version}, Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}, seed "
             f"{seed}: {runs} runs under {len(outcomes)} faults in {format_duration(seconds)}; {len(wrong)} wrong.", "",
             "| fault | runs | outcomes |", "|---|---|---|"]
    for name, found in outcomes.items():
        told = ", ".join(f"{outcome} {count}" for outcome, count in sorted(found.items()))
        lines.append(f"| {name} | {sum(found.values())} | {told} |")
    return "\n".join([*lines, "", *(f"- {one}" for one in wrong)]).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
