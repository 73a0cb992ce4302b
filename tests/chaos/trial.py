"""One run under one fault: started as a compute element does it, hurt, and looked at when it is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Optional
from urllib.parse import quote

import jsonschema

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "vmjob/schemas/result.schema.json").read_text())
LATE = 240.0  # seconds after which a run hangs
PROGRAM = "echo up; sleep {seconds}; echo data >out.txt; exit {status}"


@dataclass(frozen=True)
class Fault:
    """``act`` hurts a trial that was started; it ends when all is done. ``expect``: failures by name that the run may
    tell then ('' stands for what its program did by itself); ``killed``: vmjob itself is killed with a signal that
    nobody hears. ``program``: the guest's, and ``exits``: what it ends with (None: as the seed says)."""

    name: str
    act: Callable[[Trial], None]
    expect: tuple[str, ...] = ("",)
    killed: bool = False
    program: str = PROGRAM
    exits: Optional[int] = None
    walltime: str = ""
    env: tuple[tuple[str, str], ...] = ()
    limits: tuple[tuple[int, int], ...] = ()
    redirect: str = ""


@dataclass
class Trial:
    """``folder`` is its own; ``payload`` is shared, and nothing there changes."""

    fault: Fault
    folder: Path
    payload: Path
    home: Path
    random: Random
    child: Optional[subprocess.Popen[bytes]] = None
    helpers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    status: int = 0
    exits: int = 0  # what the program ends with

    def __post_init__(self) -> None:
        self.exits = self.random.choice([0, 0, 3]) if self.fault.exits is None else self.fault.exits

    # ------------------------------------------------------------ what faults use

    @property
    def pid(self) -> int:
        assert self.child
        return self.child.pid

    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def pause(self, most: float) -> None:
        """A moment chosen by the seed."""
        time.sleep(self.random.uniform(0, most))

    def up(self) -> bool:
        """Wait until the program runs; False: the run is over before."""
        return self.until(lambda: b"up\n" in (self.folder / "stdout.txt").read_bytes())

    def until(self, there: Callable[[], Any]) -> bool:
        end = time.monotonic() + LATE
        while not there():
            if not self.alive() or time.monotonic() > end:
                return bool(there())
            time.sleep(0.01)
        return True

    def send(self, *names: str, to: Optional[int] = None) -> None:
        for name in names:
            if self.alive():
                try:
                    os.kill(self.pid if to is None else to, signal.Signals[f"SIG{name}"])
                except ProcessLookupError:
                    return

    def process(self, name: str) -> Optional[int]:
        """A child of the run by its program's name; waits for it to come."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for pid in processes(self.folder) if name in command(pid)]
            return bool(found)

        self.until(look)
        return found[0] if found else None

    def hog(self, count: int) -> None:
        """So many processes that want every CPU."""
        self.helpers += [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]

    # ------------------------------------------------------------ begin and end

    def start(self) -> None:
        for name in ("scratch", "res"):
            (self.folder / name).mkdir(parents=True)
        env = {**os.environ, "VMJOB_CACHE": str(self.home / "cache"), "VMJOB_PYTHON": sys.executable,
               "VMJOB_RUNS": str(self.folder / "no-runs"), **dict(self.fault.env)}
        env.pop("PYTHONPATH", None)

        def limit() -> None:
            import resource

            for what, most in self.fault.limits:
                resource.setrlimit(what, (most, most))

        program = self.fault.program.format(seconds=self.random.choice([0, 0.5, 2]), status=self.exits)
        words = ["sh", self.payload / "vmjob-wrapper.sh", "--results", "res", "--scratch", "scratch", "-q",
                 f"--parameters=PROGRAM={quote(program)}"]
        with (self.folder / "stdout.txt").open("wb") as out, (self.folder / "stderr.txt").open("wb") as err:
            argv = ["sh", "-c", f'exec "$@" {self.fault.redirect}', "sh", *map(str, words)]
            self.child = subprocess.Popen(argv, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=out,
                                          stderr=err, start_new_session=True, preexec_fn=limit)

    def end(self) -> None:
        assert self.child
        try:
            self.status = self.child.wait(LATE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.status = self.child.wait()
            (self.folder / "stderr.txt").open("ab").write(b"chaos: it hung\n")
        finally:
            for one in self.helpers:
                one.kill()
                one.wait()

    # ------------------------------------------------------------ what became of it

    def verdict(self) -> tuple[str, list[str]]:
        """The outcome in one word, and what is wrong with it."""
        wrong = self._leftovers()
        result = self.result(wrong)
        if result is None:
            if self.status < 0 and (self.fault.killed or not (self.folder / "res/result.json").exists()):
                return "killed before it began", wrong  # the shell had not yet read its first line
            return "none", [*wrong, f"no result.json, exit status {self.status}"]
        if result["outcome"] == "begun":
            # only where it was killed, by a signal that nobody hears or before there was anybody to hear it
            return "Killed", wrong + [f"begun, but the exit status is {self.status}"] * (self.status >= 0)
        if self.status != result["status"] and not (self.fault.killed and self.status < 0):
            wrong.append(f"exit status {self.status}, result.json {result['status']}")
        kind = (result["failure"] or {}).get("kind", "")
        if result["outcome"] in ("ok", "program-failed"):
            return result["outcome"], wrong + self._unlike_the_program(result, kind)
        return kind, wrong + [f"{kind}: {result['failure']['message']}"] * (kind not in self.fault.expect)

    def _leftovers(self) -> list[str]:
        said = (self.folder / "stderr.txt").read_text(errors="replace")
        wrong = [f"stderr has: {word}" for word in ("Traceback", "bug in vmjob", "chaos: it hung", "Exception ignored")
                 if word in said]
        wrong += self.orphans()
        if not self.fault.killed:
            wrong += [f"left: {path.name}" for path in sorted((self.folder / "scratch").glob("*"))]
        return wrong

    def _unlike_the_program(self, result: dict[str, Any], kind: str) -> list[str]:
        if result["exit_status"] != self.exits or "" not in self.fault.expect:
            return [f"the program's: {result['exit_status']} {kind}"]
        if not self.exits and (self.folder / "res/out.txt").read_text() != "data\n":
            return ["ok, without its output"]
        return []

    def result(self, wrong: list[str]) -> Optional[dict[str, Any]]:
        try:
            body: dict[str, Any] = json.loads((self.folder / "res/result.json").read_text())
            jsonschema.validate(body, SCHEMA)
            return body
        except FileNotFoundError:
            return None
        except (ValueError, jsonschema.ValidationError) as broken:
            wrong.append(f"result.json: {str(broken)[:100]}")
            return None

    def orphans(self) -> list[str]:
        end = time.monotonic() + 10
        while (left := processes(self.folder)) and time.monotonic() < end:
            time.sleep(0.05)
        found = [f"orphan: {command(pid)}" for pid in left]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return found


def processes(folder: Path) -> list[int]:
    """Those whose working folder is in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                place = (entry / "cwd").readlink()
                if folder in (place, *place.parents) and state(int(entry.name)) != "Z":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""
