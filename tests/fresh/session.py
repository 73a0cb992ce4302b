"""The README's commands as one shell session in a bare root, each held against what the README says of it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import TextIO

from tests.bare import Bare
from tests.fresh import readme
from tests.fresh.readme import Step

MARK = "@@ step"
LONGEST = 3600  # seconds for all of it


def script(steps: Sequence[Step]) -> str:
    """A line with number and status after each command, which the next one's ``$?`` does not notice."""
    return "\n".join(f"{step.command}\n_status=$?; printf '\\n{MARK} {number} %s\\n' $_status; (exit $_status)"
                     for number, step in enumerate(steps))


def run(made: Bare, checkout: str, steps: Sequence[Step], user: str, log: TextIO, say: Callable[[str], None]) -> None:
    """Raises AssertionError at the first command that does not end, or print, as is shown."""
    made.write("/srv/session", script(steps))
    command = made.command("bash", "/srv/session", user=user, cwd=checkout)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace") as shell:
        assert shell.stdout
        late = threading.Timer(LONGEST, shell.kill)
        late.start()
        try:
            printed: list[str] = []
            done = 0
            say(f"$ {steps[0].command}")
            log.write(f"$ {steps[0].command}\n")
            for line in shell.stdout:
                log.write(line)
                log.flush()
                if not line.startswith(f"{MARK} {done} "):
                    printed.append(line)
                    continue
                check(steps[done], int(line.split()[-1]), "".join(printed))
                printed, done = [], done + 1
                if done < len(steps):
                    say(f"$ {steps[done].command}")
                    log.write(f"$ {steps[done].command}\n")
            assert done == len(steps), (f"'{steps[done].command}' ended the session or took too long "
                                        f"(more than {LONGEST} s for all):\n{''.join(printed)[-3000:]}")
        finally:
            late.cancel()
            shell.kill()


def check(step: Step, status: int, output: str) -> None:
    assert status == step.status, f"'{step.command}' ended with {status}, not {step.status}:\n{output[-3000:]}"
    missing = step.missing(output)
    assert not missing, f"'{step.command}' does not print what README.md shows, {missing}, but:\n{output[-5000:]}"


def same_job_file(made: Bare, checkout: str, text: str) -> None:
    """The job file that the README shows must be the one in the clone."""
    name, shown = readme.job_file(text)
    there = (made.path / checkout.lstrip("/") / name).read_text()
    assert readme.bare_yaml(there) == readme.bare_yaml(shown), f"README.md shows {name} as\n{shown}\nit is\n{there}"
