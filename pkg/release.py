"""What is being released: the checkout, its version, and the one time that everything in it has."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent
_VERSION = "vmjob/core/version.py"


class DistError(Exception):
    """Says what is wrong, and the next action."""


@dataclass(frozen=True)
class Release:
    """``pyz``: the file that all of it is about. ``epoch``: seconds since 1970, of the commit. ``maintainer``: NAME
    <ADDRESS>."""

    version: str
    epoch: int
    pyz: Path
    maintainer: str


def release(pyz: Path) -> Release:
    """The release of this checkout around ``pyz``, whose version it has. Raises DistError."""
    name = os.environ.get("DEBFULLNAME", "vmjob maintainers")
    address = os.environ.get("DEBEMAIL", "maintainers@vmjob.example")
    return Release(version_of(pyz), _epoch(), pyz, f"{name} <{address}>")


def version_of(pyz: Path) -> str:
    """``__version__`` of the vmjob in it. Raises DistError."""
    try:
        with zipfile.ZipFile(pyz) as archive:
            here = _VERSION if _VERSION in archive.namelist() else "vmjob/__init__.py"  # until 0.2.1
            tree = ast.parse(archive.read(here))
    except (OSError, zipfile.BadZipFile, KeyError) as broken:
        raise DistError(f"{pyz}: {broken}; it must be a vmjob.pyz") from broken
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            version = str(ast.literal_eval(node.value))
            if re.fullmatch(r"[0-9]+(\.[0-9]+)*", version):
                return version
            raise DistError(f"the version {version} is none that Debian and RPM order alike; use numbers and dots")
    raise DistError(f"{pyz}: no __version__ in {here}")


def _epoch() -> int:
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdigit():
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip().isdigit():
        raise DistError("the time of the release is not known: this is no git checkout; set SOURCE_DATE_EPOCH to "
                        "seconds since 1970")
    return int(done.stdout)


def run(*argv: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """What the command prints. Raises DistError with what it complained about."""
    try:
        done = subprocess.run([str(word) for word in argv], cwd=cwd, capture_output=True, text=True,
                              env={**os.environ, **(env or {})})
    except FileNotFoundError as missing:
        raise DistError(f"{argv[0]} is not installed; .ci/setup dist installs it") from missing
    if done.returncode:
        raise DistError(f"{argv[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
