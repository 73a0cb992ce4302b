"""vmjob.pyz: this program with all it needs as one file, for bare nodes.

It is made when the package is built (pyz_build.py) and carried in it as data. In a checkout, whose files change, it is
made when something differs from the last time.
"""

from __future__ import annotations

import hashlib
import time
import zipimport
from contextlib import suppress
from pathlib import Path
from typing import Optional

from vmjob.core.errors import HostError, VmjobError
from vmjob.core.files import whole
from vmjob.core.ownnames import PYZ, WRAPPER

# beside the payload's wrapper: HTCondor's startd hook, and the configuration that starts it
HOOK, SNIPPET = "vmjob-startd.sh", "99-vmjob-node.conf"
_OWN = Path(__file__).parents[1]  # the package


def carried_pyz() -> Path:
    """The file vmjob.pyz of this installation, about 1 MB; it is not to be changed.

    Raises HostError where it is missing or cut short, or a checkout's set-up was not done; OSError.
    """
    running = getattr(__spec__.loader, "archive", None) if __spec__ else None
    if running:  # we are such a file ourselves
        return Path(running)
    root = checkout()
    found = _of_checkout(root) if root else _OWN / PYZ
    try:
        zipimport.zipimporter(str(found))
    except zipimport.ZipImportError as broken:
        raise HostError(f"{found} is {'cut short' if found.exists() else 'missing'}",
                        "install vmjob again: pip install --force-reinstall, or its package") from broken
    return found


def checkout() -> Optional[Path]:
    """The root of the source that this is, where it is one."""
    root = _OWN.parent
    return root if (root / "pyproject.toml").exists() and (root / "locks").is_dir() else None


def _of_checkout(root: Path) -> Path:
    from vmjob.job import pyz_build

    folder = pyz_build.kept(root) / "pyz"
    path = folder / f"{_made_from(root)}.pyz"
    if not path.exists():
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for old in folder.iterdir():
            with suppress(FileNotFoundError):  # another process cleans up too
                if time.time() - old.stat().st_mtime > 3600:  # younger ones may be somebody's who packs now
                    old.unlink()
        with whole(path, mode=0o555) as spare:
            pyz_build.write(spare, root, pyz_build.built_from(root))
    return path


def _made_from(root: Path) -> str:
    """Changes when a file that goes into it does, or the commit."""
    files = [*(root / "vmjob").rglob("*"), *(root / "wrappers").iterdir(), root / "locks/worker.txt",
             root / ".git/logs/HEAD"]
    seen = [f"{path}:{state.st_mtime_ns}:{state.st_size}" for path in sorted(files)
            if path.suffix != ".pyc" and path.is_file() for state in [path.stat()]]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:32]


def wrapper_text(name: str = WRAPPER) -> bytes:
    """A file of wrappers/: package data of an installation, or a neighbour in a checkout."""
    import pkgutil

    try:
        data = pkgutil.get_data("vmjob", f"wrappers/{name}")
    except OSError:
        data = None
    if data is not None:
        return data
    neighbour = _OWN.parent / "wrappers" / name
    try:
        return neighbour.read_bytes()
    except OSError as missing:
        raise VmjobError(f"{neighbour} is missing from this installation", "reinstall vmjob") from missing
