"""make fresh: README.md's first ten minutes, word for word, in bare Debian systems; as root, and as an ordinary user.

    python -m tests.fresh [--suite bookworm|trixie] [--user root|ada]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.bare import bare, why_not
from tests.fresh import clone, readme, session

FOLDER = Path(__file__).resolve().parents[2] / "build/fresh"
SUITES = {"bookworm": "Debian 12", "trixie": "Debian 13"}
PACKAGES = ("make", "git", "ca-certificates")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fresh", description="README.md's first ten minutes, done")
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this Debian (may be repeated)")
    parser.add_argument("--user", action="append", choices=("root", "ada"), help="only as root, or an ordinary user")
    args = parser.parse_args()
    if cannot := why_not():
        print(f"fresh: {cannot}", file=sys.stderr)
        return 1
    if clone.uncommitted():
        print("fresh: what is not committed here is not in the clones", flush=True)
    failed = []
    began = time.monotonic()
    for suite in args.suite or SUITES:
        for user in args.user or ("root", "ada"):
            name = f"{SUITES[suite]} as {'root' if user == 'root' else 'an ordinary user'}"
            log = FOLDER / f"{suite}-{user}.log"
            try:
                one(name, suite, user, log)
            except (AssertionError, readme.Unreadable) as wrong:
                failed.append(name)
                print(f"fresh: {name}: FAILED: {wrong}\nfresh: all that was printed: {log}", flush=True)
    print(f"fresh: {'FAILED: ' + ', '.join(failed) if failed else 'all of it holds'}; {_minutes(began)}")
    return 1 if failed else 0


def one(name: str, suite: str, user: str, log: Path) -> None:
    """The README's session in a new root. Raises AssertionError where something is not as it says."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("w") as file, bare(suite, PACKAGES, folder=FOLDER) as made:
        def say(what: str) -> None:
            print(f"fresh: {name}, {_minutes(began)}: {what}", flush=True)

        checkout = clone.new(made, user)
        text = (made.path / checkout.lstrip("/") / "README.md").read_text()
        steps = readme.steps(text)
        session.same_job_file(made, checkout, text)
        if user != "root":
            say(f"$ {steps[0].command}, which must say what to install")
            command = clone.install_what_it_lists(made, checkout, steps[0].command, user, file)
            say(f"root did: {command}")
        session.run(made, checkout, steps, user, file, say)
        say("done")


def _minutes(began: float) -> str:
    seconds = round(time.monotonic() - began)
    return f"{seconds // 60}m{seconds % 60:02}s"


if __name__ == "__main__":
    sys.exit(main())
