"""ARC's own scripts that hand a job to a batch system, for one job with the fork back end. They come with the package
nordugrid-arc-arex; .ci/setup unpacks it into build/arc, as nothing of it needs to be installed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from tests.conftest import BUILD

ID = "abcdefghijkl"
_CONFIG = """\
[common]
hostname = ce.example.org
[lrms]
lrms = fork
benchmark = HEPSPEC 1.0
[arex]
controldir = {control}
sessiondir = {session}
shared_filesystem = yes
[queue:fork]
"""


def location() -> Optional[Path]:
    """What ARC calls ARC_LOCATION; None where it is not here."""
    for place in (Path("/usr"), BUILD / "arc/usr"):
        if all((place / name).exists() for name in ("share/arc/submit-fork-job", "lib/arc/arcconfig-parser")):
            return place
    return None


@dataclass
class Arex:
    """Control and session directories in ``folder``, made here. ``wait``: seconds for a job."""

    place: Path
    folder: Path
    wait: float = 60
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.control, self.session = self.folder / "control", self.folder / "session" / ID
        for name in ("rte/enabled", "rte/params", "jobs/abc/def/ghi/jkl"):
            (self.control / name).mkdir(parents=True)
        self.session.mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        (self.folder / "arc.conf").write_text(_CONFIG.format(control=self.control, session=self.session.parent))
        self._run([str(self.place / "lib/arc/arcconfig-parser"), "-c", str(self.folder / "arc.conf"), "-d",
                   str(self.place / "share/arc/arc.parser.defaults"), "--save", "-r", str(self.folder / "arc.run")])

    def enable(self, name: str, text: str, **parameters: str) -> None:
        """As ``arcctl rte enable`` and ``arcctl rte params-set`` do."""
        for kind, body in (("enabled", text), ("params", "".join(f'{key}="{value}"\n'
                                                                 for key, value in parameters.items()))):
            path = self.control / "rte" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body)

    def submit(self, options: Mapping[str, str], vo: str = "") -> subprocess.CompletedProcess[str]:
        """Hand a job over and wait for its end: ``options`` are the joboption_… of its grami file."""
        mine = {"directory": str(self.session), "controldir": str(self.control), "gridid": ID, "queue": "fork",
                "stdin": "/dev/null", "stdout": f"{self.session}/stdout", "stderr": f"{self.session}/stderr",
                "count": "1", "countpernode": "-1", "jobname": "test", "priority": ""}
        text = "".join(f"joboption_{key}={shlex.quote(value)}\n" for key, value in {**mine, **options}.items())
        local = f"voms=/{vo}\nvoms=/{vo}/Role=production\n" if vo else ""
        # of ARC 7 and of ARC 6
        for folder, prefix in ((self.control / "jobs/abc/def/ghi/jkl", ""), (self.control, f"job.{ID}.")):
            (folder / f"{prefix}grami").write_text(text)
            (folder / f"{prefix}local").write_text(local)
        done = self._run(["bash", str(self.place / "share/arc/submit-fork-job"), "--config",
                          str(self.folder / "arc.run"), str(self.control / "jobs/abc/def/ghi/jkl/grami")])
        deadline = time.monotonic() + (self.wait if done.returncode == 0 else 0)
        while self.status() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return done

    def status(self) -> Optional[int]:
        """Of the job, None before its end."""
        try:
            lines = self.session.with_name(f"{ID}.diag").read_text().splitlines()
        except FileNotFoundError:
            return None
        return next((int(line[len("exitcode="):]) for line in lines if line.startswith("exitcode=")), None)

    def _run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        python = ":".join(str(path) for path in (self.place / "lib").glob("python3*/dist-packages"))
        return subprocess.run(argv, cwd=self.folder, text=True, capture_output=True, stdin=subprocess.DEVNULL, env={
            **os.environ, "ARC_LOCATION": str(self.place), "PYTHONPATH": python, "TMPDIR": str(self.folder / "tmp"),
            **self.environment}, timeout=120)


def command(path: Path, environment: Mapping[str, str]) -> Path:
    """A program at ``path`` that is vmjob as a node has it."""
    words = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
    path.write_text(f'#!/bin/sh\n{words} exec {sys.executable} -m vmjob "$@"\n')
    path.chmod(0o755)
    return path
