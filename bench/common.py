"""What all measurements share: the places, the command in a process of its own, medians of alternating runs."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
ROUNDS = 5
Argument = Union[str, Path]


@dataclass(frozen=True)
class Goal:
    """``of``: what is held against the limit, "ratio" (ours / other) or "ours" itself; ``sense``: "<=" or ">="."""

    of: str
    sense: str
    limit: float

    def __str__(self) -> str:
        return f"{self.of} {self.sense} {self.limit:g}"


@dataclass(frozen=True)
class Row:
    """One figure. ``other`` is the ``peer``'s, measured in the same run; without a goal it only informs."""

    name: str
    ours: float
    other: Optional[float] = None
    unit: str = "s"
    goal: Optional[Goal] = None
    peer: str = ""

    @property
    def ratio(self) -> Optional[float]:
        return self.ours / self.other if self.other else None

    @property
    def reached(self) -> Optional[float]:
        """What the goal speaks of."""
        return self.ratio if self.goal and self.goal.of == "ratio" else self.ours

    @property
    def holds(self) -> Optional[bool]:
        if self.goal is None or self.reached is None:
            return None
        return self.reached <= self.goal.limit if self.goal.sense == "<=" else self.reached >= self.goal.limit


@dataclass(frozen=True)
class Bench:
    """``rounds`` of everything. Store, cache and what is made once live in build/bench/."""

    rounds: int = ROUNDS
    home: Path = BUILD / "bench"

    def prepare(self) -> None:
        for name in ("cache", "scratch"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        self.vmjob("image", "micro")  # of the present code
        self.vmjob("run", "--image", "micro", "--", "true")  # fills the caches that a node fills once per boot

    def environment(self, extra: Optional[Mapping[str, str]] = None) -> dict[str, str]:
        # a user's Python keeps the bytecode of what is installed
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, "VMJOB_HOME": str(self.home / "store"), "VMJOB_CACHE": str(self.home / "cache"),
                "TMPDIR": str(self.home / "scratch"), "PYTHONPATH": str(ROOT), **(extra or {})}

    def words(self, *args: Argument) -> list[str]:
        """vmjob's command line, as installed beside this Python, else from the checkout."""
        installed = Path(sys.executable).with_name("vmjob")
        command = [str(installed)] if installed.exists() else [sys.executable, "-m", "vmjob"]
        return [*command, *map(str, args)]

    def vmjob(self, *args: Argument, check: bool = True, env: Optional[Mapping[str, str]] = None,
              cwd: Optional[Path] = None) -> subprocess.CompletedProcess[bytes]:
        return execute(self.words(*args), env=self.environment(env), check=check, cwd=cwd)

    def plan(self, image: str) -> dict[str, Any]:
        """What ``vmjob run`` would start for this image."""
        told: dict[str, Any] = json.loads(self.vmjob("plan", "--json", "--image", image, "--", "true").stdout)
        return told

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder on the disk that the store is on; removed afterwards."""
        with tempfile.TemporaryDirectory(dir=self.home / "scratch") as name:
            yield Path(name)


def execute(argv: Sequence[Argument], *, env: Optional[Mapping[str, str]] = None, cwd: Optional[Path] = None,
            check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[bytes]:
    """Run to the end. A failure is a RuntimeError with what it said: a run that failed must not count as quick."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=timeout)
    except FileNotFoundError as missing:
        raise RuntimeError(f"{words[0]} is not installed: run .ci/setup bench") from missing
    except subprocess.TimeoutExpired as slow:
        raise RuntimeError(f"{words[0]} took more than {timeout:.0f} s") from slow
    if check and done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-4:]
        raise RuntimeError(f"{' '.join(words[:4])} … ended with {done.returncode}: " + " | ".join(said))
    return done


def seconds(argv: Sequence[Argument], **more: Any) -> float:
    """Wall-clock time of one command in a process of its own."""
    start = time.perf_counter()
    execute(argv, **more)
    return time.perf_counter() - start


def alternate(rounds: int, *ways: Callable[[], float]) -> list[float]:
    """The median of each way; they take turns, so that whatever loads the machine loads them all alike."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, times in zip(ways, found):
            times.append(way())
    return [statistics.median(times) for times in found]


def tool(name: str) -> str:
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not path:
        raise RuntimeError(f"{name} is not installed: run .ci/setup bench")
    return path


def value_after(argv: Sequence[str], option: str) -> str:
    return argv[list(argv).index(option) + 1]
