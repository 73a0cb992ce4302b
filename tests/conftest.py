"""What the tests share: the real command in a process of its own, and a store with the micro image."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


@dataclass
class Cli:
    """Runs vmjob as a person does; ``home`` holds store and cache, ``cwd`` is an empty folder of the test's own."""

    cwd: Path
    home: Path
    env: dict[str, str] = field(default_factory=dict)

    def environment(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        return {**os.environ, "VMJOB_HOME": str(self.home / "store"), "VMJOB_CACHE": str(self.home / "cache"),
                "TMPDIR": str(self.cwd / "scratch"), "PYTHONPATH": f"{ROOT}:{ROOT / 'ceMon-publisher'}",
                **self.env, **(extra or {})}

    def start(self, *args: Any, env: Optional[dict[str, str]] = None, **more: Any) -> subprocess.Popen[bytes]:
        (self.cwd / "scratch").mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-m", "vmjob", *map(str, args)], cwd=self.cwd,
                                env=self.environment(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, **more)

    def __call__(self, *args: Any, env: Optional[dict[str, str]] = None, timeout: float = 120) -> Done:
        process = self.start(*args, env=env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"vmjob {args} took more than {timeout} s:\n{err.decode(errors='replace')}") from None
        return Done(process.returncode, out, err.decode(errors="replace"))

    def micro(self, *args: Any, env: Optional[dict[str, str]] = None, timeout: float = 120) -> Done:
        """``vmjob run --image micro ARGS``."""
        return self("run", "--image", "micro", *args, env=env, timeout=timeout)

    def left_over(self) -> list[str]:
        """What a run left in the scratch folder."""
        return sorted(p.name for p in (self.cwd / "scratch").iterdir())


@dataclass(frozen=True)
class Done:
    status: int
    out: bytes
    err: str

    @property
    def json(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.out)
        return body

    @property
    def rows(self) -> list[dict[str, Any]]:
        body: list[dict[str, Any]] = json.loads(self.out)
        return body


@pytest.fixture(scope="session")
def home() -> Path:
    """Store and cache of the tests, with the micro image; kept in build/ so that a second run is quick."""
    made_of = [ROOT / "vmjob/guest/agent.sh", *sorted((ROOT / "vmjob/image").rglob("*.*"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest()[:12]
    place = BUILD / f"test-home-{digest}"  # an older agent must not be tested
    place.mkdir(parents=True, exist_ok=True)
    cli = Cli(place, place)
    with (place / "lock").open("w") as lock:  # sessions may run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if cli("image", "inspect", "micro").status:
            built = cli("image", "micro")
            assert built.status == 0, built.err
    return place


@pytest.fixture
def cli(home: Path, tmp_path: Path) -> Iterator[Cli]:
    yield Cli(tmp_path, home)


_OURS: list[str] = []  # the folder below which all of this session's tests are


@pytest.fixture(scope="session", autouse=True)
def _ours(tmp_path_factory: pytest.TempPathFactory) -> None:
    _OURS.append(f"{tmp_path_factory.getbasetemp().resolve()}/")


def qemus() -> list[int]:
    """Process numbers of every QEMU that runs for this session's tests; other sessions may run beside it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid != os.getuid():
                    continue
                words = (entry / "cmdline").read_bytes().split(b"\0")
                # the private folder of its run, in the test's scratch
                place = str((entry / "cwd").readlink())
            except OSError:
                continue
            if b"qemu-system" in words[0] and place.startswith(tuple(_OURS)):
                found.append(int(entry.name))
    return found


def result_of(folder: Path) -> dict[str, Any]:
    """result.json of ``folder``, checked against the shipped schema by a second implementation."""
    import jsonschema

    body: dict[str, Any] = json.loads((folder / "result.json").read_text())
    jsonschema.validate(body, json.loads((ROOT / "vmjob/schemas/result.schema.json").read_text()))
    return body
