"""``python -m bench [--only run,outputs] [--rounds 5]``: measure, print the table, write build/bench.json and .png."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from bench import report
from bench.common import ROUNDS, Bench, Row

# in the order of the issue; each module has ``measure(bench) -> list[Row]``
PARTS = ("pack", "verify", "cache", "lists", "fetch", "run", "debian", "outputs", "start", "many", "layers",
         "staging", "pool", "publish", "glidein")


def main() -> int:
    args = argparse.ArgumentParser(prog="python -m bench", description="How fast is vmjob, beside its peers?")
    args.add_argument("--only", metavar="PART,...", help=f"some of: {','.join(PARTS)}")
    args.add_argument("--rounds", type=int, default=ROUNDS, help="measurements of each (default: %(default)s)")
    given = args.parse_args()
    wanted = given.only.split(",") if given.only else list(PARTS)
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        args.error(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    bench = Bench(given.rounds)
    bench.prepare()
    machine = report.machine(bench)
    rows: list[Row] = []
    broken = []
    for part in wanted:
        print(f"bench: {part} …", file=sys.stderr, flush=True)
        try:
            rows += import_module(f"bench.{part}").measure(bench)
        except RuntimeError as failed:  # the other figures are worth having; this one is no success
            print(f"bench: {part}: {failed}", file=sys.stderr)
            broken.append(part)
    print(machine)
    print(report.table(rows))
    report.write(rows, partial=given.only is not None)
    if broken:
        print(f"could not be measured: {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
