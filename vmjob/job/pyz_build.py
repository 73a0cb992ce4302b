"""How vmjob.pyz is made: this package and the worker's set, as one file for bare nodes.

The worker's set is chosen and locked for the oldest Python that a node may have (locks/worker.txt, with hashes), and
comes from the wheels that the lock names, never from what the running Python has installed. Runs where a package is
built and in a checkout, and is not in vmjob.pyz itself; the standard library is enough, and pip to fetch the wheels.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vmjob.core import config, process
from vmjob.core.errors import CommandMissing, HostError

OLDEST = "3.9"
LOCK = Path("locks/worker.txt")
BUILT = "vmjob/built.json"  # commit and worker's set, for --version
# What pip is asked for: the wheels for that Python on the commonest machine; of compiled ones the Python part is taken.
_WHEELS = ("--only-binary", ":all:", "--platform", "manylinux2014_x86_64", "--implementation", "cp",
           "--python-version", OLDEST, "--abi", "cp" + OLDEST.replace(".", ""))
# What no worker runs: interactive tools, notebooks, other event loops, test data.
_LEFT_OUT = re.compile(r"/(__pycache__|tests?|docs?|contrib/emscripten)/|\.(pyc|pyi|so|typed|1|sh\.in|pyz)$"
                       r"|\.(data|libs)/|^_yaml/|^yaml/cyaml\.py$|^qemu/qmp/(qmp_shell|qmp_tui)\.py$|^charset_normalizer/cli/"
                       r"|^htchirp/(cli|__main__)\.py$|^vmjob/pyz_build\.py$"
                       r"|^tqdm/(contrib/|completion\.sh$|(keras|dask|tk|rich|(auto|_tqdm_)?notebook)\.py$)")
_LICENCE = re.compile(r"(?P<name>[^/]+?)-[^/-]+\.dist-info/(licenses/)?"
                      r"(?P<file>(LICEN[CS]E|COPYING|NOTICE|AUTHORS)[^/]*)$", re.I)
# A file that lost its end is no archive, and Python takes it for a program's text: the second line is its complaint.
_HEAD = b"#!/usr/bin/env python3\n# coding: vmjob.pyz-is-cut-short.Copy-it-again\n"
_MAIN = """import sys
if sys.version_info < (3, 9):
    sys.exit("vmjob needs Python 3.9 or newer, this is " + sys.version.split()[0])
from vmjob.__main__ import start
start()
"""


def write(target: Path, root: Path, built: Mapping[str, Any]) -> None:
    """Write vmjob.pyz of the checkout (or unpacked source) ``root``; the same bytes from the same files; about 1.3 MB.

    ``built``: what ``vmjob --version`` reports. The worker's set is fetched where it is missing. Raises HostError,
    OSError.
    """
    contents = sorted(_contents(root, worker_set(root), built))
    with target.open("wb") as file:
        file.write(_HEAD)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, data in contents:
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.external_attr = 0o644 << 16
                entry.create_system = 3
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, data)
    target.chmod(0o755)


def _contents(root: Path, wheels: Path, built: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", _MAIN.encode()
    yield "qemu/__init__.py", b""  # a namespace package elsewhere; zipimport wants a folder entry or this
    yield BUILT, built_text(built)
    yield from _folder(root / "vmjob", "vmjob")
    yield from _folder(root / "wrappers", "vmjob/wrappers")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            yield from _wheel(archive)


def _folder(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        inside = f"{name}/{path.relative_to(folder).as_posix()}"
        if path.is_file() and not _LEFT_OUT.search(inside) and inside != BUILT:
            yield inside, path.read_bytes()


def _wheel(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """A wheel's modules, and its licence texts, which must travel with copies."""
    for name in archive.namelist():
        licence = _LICENCE.search(name)
        if licence:
            yield f"licences/{licence['name']}/{licence['file']}", archive.read(name)
        elif not (name.endswith("/") or ".dist-info/" in name or _LEFT_OUT.search(name) or name == "qemu/__init__.py"):
            yield name, archive.read(name)


# ---------------------------------------------------------------- the worker's set


def locked(root: Path) -> dict[str, str]:
    """Distribution → version of the worker's set. Raises OSError."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (root / LOCK).read_text(encoding="utf-8"), re.M)
    return dict(sorted(found))


def worker_set(root: Path) -> Path:
    """The folder with the wheels of locks/worker.txt, below ``root``/build, fetched by pip if it is missing: whole
    or not at all. Raises HostError, OSError."""
    lock = (root / LOCK).read_bytes()
    wanted = kept(root) / f"worker-set-{hashlib.sha256(lock).hexdigest()[:12]}"
    if wanted.is_dir():
        return wanted
    with tempfile.TemporaryDirectory(prefix=".worker-set-", dir=wanted.parent) as spare:
        new = Path(spare) / "wheels"
        _fetch(root / LOCK, new)
        try:
            new.rename(wanted)
        except OSError:
            if not wanted.is_dir():  # else somebody was quicker
                raise
    return wanted


def kept(root: Path) -> Path:
    """The folder for what is made from a checkout: its own ``build``, or one of ours where we may not write there."""
    own = root / "build"
    with suppress(OSError):
        own.mkdir(exist_ok=True)
    if os.access(own, os.W_OK):
        return own
    own = config.cache_dir() / "build"
    own.mkdir(parents=True, exist_ok=True)
    return own


def _fetch(lock: Path, folder: Path) -> None:
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--require-hashes", *_WHEELS, "--dest", str(folder), "--requirement", str(lock)]
    done = process.run(words, check=False)
    if done.returncode:
        raise HostError(f"pip cannot bring what {lock} names:\n{done.stderr.decode(errors='replace').strip()[-2000:]}",
                        "check the network and pip's configuration (pip config list), then do the same again")


# ---------------------------------------------------------------- what --version reports


def built_text(built: Mapping[str, Any]) -> bytes:
    return (json.dumps(built, indent=1, sort_keys=True) + "\n").encode()


def built_from(root: Path) -> dict[str, Any]:
    """Commit (with ``+`` where files differ from it; empty where that is not known) and worker's set of a checkout."""
    commit = _git(root, "rev-parse", "HEAD")[:12]
    changed = bool(commit) and bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    return {"commit": commit + "+" * changed, "worker": locked(root)}


def _git(root: Path, *words: str) -> str:
    if not (root / ".git").exists():  # a folder in somebody else's repository is not of that commit
        return ""
    try:
        done = process.run(["git", "-C", root, *words], check=False, env={**os.environ, "LC_ALL": "C"})
    except CommandMissing:
        return ""
    return done.stdout.decode().strip() if done.returncode == 0 else ""
