"""Room in a cache: what was used longest ago goes, unless it is in use or pinned. Only what can be fetched again.

One process evicts at a time, and waits for no user: what somebody uses (uses.py) it leaves alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmjob.core import config, locks
from vmjob.core.files import disk_bytes
from vmjob.core.units import format_size
from vmjob.image.store.blobs import Blobs
from vmjob.image.store.inventory import Group, is_store, refuse_store, survey, used_bytes

_LEFT_OVER = 3600  # seconds; a temporary name as old as that is nobody's
_RECENT = 3600
_PATIENCE = 10.0  # seconds


@dataclass(frozen=True)
class Pruned:
    """``kept`` has a reason for each. ``freed`` in bytes: what others need as well stays."""

    removed: tuple[Group, ...]
    kept: tuple[tuple[Group, str], ...]
    freed: int


def make_room(blobs: Blobs, size: int, note: Callable[[str], None]) -> None:
    """Evict until ``size`` bytes more keep the cache within its limit; where that cannot be, ``note`` is told, and the
    image comes in all the same. Nothing goes for a size that can never be had. Raises JobError for a limit that is no
    size.

    Where nobody set a limit, what was used in the last hour stays while there is room at all: mostly it is others that
    fill the disk then, and the next job would fetch it again.
    """
    over = excess(blobs.root, size)
    if over <= 0 or is_store(blobs.root):
        return
    limit = config.cache_limit()
    if size <= min(limit or math.inf, used_bytes(blobs.root) + disk_bytes(blobs.root)[1]):  # any size can be declared
        with contextlib.suppress(OSError):  # a read-only or full folder, or somebody else evicts for long
            over -= prune(blobs, over, idle=0 if limit else _RECENT).freed
            lacking = size - disk_bytes(blobs.root)[1]
            if lacking > 0:
                prune(blobs, lacking)
    if over > 0 and limit:
        note(f"the cache {blobs.root} is {format_size(over)} over its limit of {format_size(limit)} "
             "(VMJOB_CACHE_LIMIT): what is in it is in use or pinned, or this image alone is larger")


def excess(root: Path, size: int) -> int:
    """How many bytes too many there were with ``size`` more; below zero while there is room."""
    total, free = disk_bytes(root)
    limit = config.cache_limit()
    return total // 10 + size - free if limit is None else max(used_bytes(root) + size - limit, size - free)


def prune(blobs: Blobs, wanted: float = math.inf, *, idle: float = 0, dry_run: bool = False) -> Pruned:
    """Evict what was used longest ago, and not in the last ``idle`` seconds, until ``wanted`` bytes were freed;
    ``dry_run``: only say what would go. Raises OSError where the folder cannot be written (TimeoutError while somebody
    else evicts), JobError where it is no cache."""
    refuse_store(blobs.root)
    removed, kept, freed = [], [], 0
    with contextlib.nullcontext() if dry_run else _alone(blobs.root):
        groups = survey(blobs)
        needed = Counter(name for group in groups if group.kind != "part" for name in group.names)
        for group in groups:
            if group.pinned:
                kept.append((group, "pinned"))
            elif freed >= wanted or group.used > time.time() - idle:
                kept.append((group, "used later"))
            elif _evict(blobs, group, needed, dry_run):
                removed.append(group)
                own = [item.size for item in group.items if group.kind == "part" or needed[item.name] == 1]
                freed += sum(own)
                if group.kind != "part":
                    needed.subtract(group.names)
            else:
                kept.append((group, "in use"))
        if not dry_run:
            _sweep(blobs, {name for group, _ in kept for name in group.names})
    return Pruned(tuple(removed), tuple(kept), freed)


def _evict(blobs: Blobs, group: Group, needed: Counter[str], dry_run: bool) -> bool:
    """False where one of its files is in use. Files that other images need are left to them."""
    own = [name for name in group.names if group.kind == "part" or needed[name] == 1]
    if dry_run:
        return all(map(blobs.uses.free, own))
    with contextlib.ExitStack() as stack:
        if not all(stack.enter_context(blobs.uses.claim(name)) for name in own):
            return False
        if group.manifest:  # first: a kill in between leaves files without a name, which go next time
            for suffix in (".yaml", ".derived"):
                (blobs.root / "images" / f"{group.manifest.digest[7:]}{suffix}").unlink(missing_ok=True)
        for item in group.items:
            if item.name in own:
                item.path.unlink(missing_ok=True)
        if group.kind != "part":
            for name in own:
                forget(blobs, name)
    return True


def forget(blobs: Blobs, name: str) -> None:
    """All that is remembered of a file that is gone, for whoever has claimed it; one that still comes keeps its lock.
    Raises OSError."""
    blobs.stamps.drop(name)
    if not (blobs.root / "tmp" / name).exists():
        (blobs.root / "locks" / name).unlink(missing_ok=True)
        blobs.uses.forget(name)


def _sweep(blobs: Blobs, kept: set[str]) -> None:
    """What is remembered of files that are gone: somebody was killed in between."""
    for folder in ("uses", "verified", "locks", "verified-shared", "images"):
        for path in (blobs.root / folder).glob("*"):
            name = path.name
            if name.startswith("."):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < time.time() - _LEFT_OVER:
                        path.unlink()
            elif folder in ("uses", "verified", "locks") and name not in kept and not blobs.path(name).exists():
                with blobs.uses.claim(name) as ours:
                    if ours and not blobs.path(name).exists():
                        forget(blobs, name)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    lock = locks.open_own(root / "prune.lock")
    try:
        locks.wait(lock, locks.ALONE, root / "prune.lock", _PATIENCE)
        yield
    finally:
        os.close(lock)
