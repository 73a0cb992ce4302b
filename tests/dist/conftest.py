"""Packages for the tests: of this checkout, and of 0.1.0, by the same command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

OLD = ROOT / "tests/data/vmjob-0.1.0.pyz"  # as it was released
Dist = Callable[..., Path]


def make(out: Path, *words: str, checkout: Path = ROOT, env: dict[str, str] | None = None) -> Path:
    """``python -m pkg`` into the folder ``out``."""
    for tool in ("dpkg-deb", "rpmbuild"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}: apt-get install dpkg rpm")
    done = subprocess.run([sys.executable, "-m", "pkg", "--out", str(out), *words], cwd=checkout, capture_output=True,
                          text=True, timeout=300, env={**os.environ, "PYTHONPATH": f"{checkout}:{checkout / 'ceMon-publisher'}",
                                                       **(env or {})})
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of this checkout."""
    return make(tmp_path_factory.mktemp("built") / "dist", "--only", "deb,rpm")


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of 0.1.0."""
    return make(tmp_path_factory.mktemp("old") / "dist", "--only", "deb", "--pyz", str(OLD))


def version(folder: Path) -> str:
    """Of the packages in it."""
    [name] = [path.name for path in folder.glob("vmjob_*.deb")]
    return re.fullmatch(r"vmjob_(.+)_all\.deb", name)[1]  # type: ignore[index]
