"""Runs of vmjob on the fake QEMU, each with a guest of its own."""

from __future__ import annotations

import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import Cli, Done

QEMU = Path(__file__).with_name("fakeqemu.py")
# What most of them begin with: an archive of (name, bytes, mode) that replaces the output disk's beginning.
TAR = """
import io, tarfile, time

def tar(machine, *members):
    with machine.disk.open("r+b") as disk, tarfile.open(fileobj=disk, mode="w") as archive:
        for name, data, mode in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(data))
"""


@dataclass
class Hostile:
    """``run(GUEST, WORDS…)``: ``vmjob run --image micro WORDS… -- true``; ``start``: the same, not waited for."""

    cli: Cli

    def env(self, guest: str) -> dict[str, str]:
        script = self.cli.cwd / "guest.py"
        script.write_text(TAR + textwrap.dedent(guest))
        return {"VMJOB_QEMU": str(QEMU), "VMJOB_HOSTILE_GUEST": str(script)}

    def _words(self, words: tuple[Any, ...]) -> tuple[Any, ...]:
        return ("run", "--image", "micro", "--accel", "tcg", "--network", "none", "--results", "r", *words, "--",
                "true")

    def run(self, guest: str, *words: Any) -> Done:
        return self.cli(*self._words(words), env=self.env(guest))

    def start(self, guest: str, *words: Any) -> subprocess.Popen[bytes]:
        return self.cli.start(*self._words(words), env=self.env(guest))

    @property
    def results(self) -> Path:
        return self.cli.cwd / "r"
