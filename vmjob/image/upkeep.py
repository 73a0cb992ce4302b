"""A cache looked through: what is in it, as plain values, and whether its bytes are still what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vmjob.errors import ImageCorrupt
from vmjob.image.blobs import DERIVED, Blobs
from vmjob.image.inventory import Group, Item, survey
from vmjob.image.transfer import hash_expected
from vmjob.progress import Bar, Reporter


@dataclass(frozen=True)
class Poisoned:
    """A file whose bytes are others than its name says; ``images`` that need it. ``in_use``: by a running VM."""

    path: Path
    why: str
    images: tuple[str, ...]
    in_use: bool
    removed: bool


def describe(blobs: Blobs, group: Group) -> dict[str, Any]:
    """What is worth telling of it. Sizes in bytes, times in seconds since 1970."""
    needed = [file.sha256 for file in group.manifest.files] if group.manifest else group.names
    return {
        "kind": group.kind,
        "name": group.title,
        "digest": group.manifest.digest if group.manifest else "",
        "files": [item.name for item in group.items],
        "size": group.size,
        "used": round(group.used, 3),
        "pinned": group.pinned,
        "in_use": not any(map(blobs.uses.free, needed)),  # an image that only shares a file with one in use is not
        "verified": bool(group.items) and all(blobs.stamps.hold(item.name, item.path) for item in group.items),
        "whole": group.whole and group.kind != "part",
    }


def verify(blobs: Blobs, reporter: Reporter, *, keep: bool = False) -> list[Poisoned]:
    """Hash every file, whatever is remembered of it. One that is wrong is removed, unless ``keep``: jobs then fetch it
    anew. What was made here has no digest to compare with: it stays if nobody touched it since. Raises OSError."""
    blobs.note = reporter.note
    groups = survey(blobs)
    items = {item.name: item for group in groups if group.kind != "part" for item in group.items}
    found = []
    with reporter.bar("verify", sum(item.length for item in items.values())) as bar:
        for name, item in sorted(items.items()):
            with blobs.hold([name]):
                why, removed = blobs.weed(name, partial(_wrong, blobs, item, bar), keep=keep)
            if why:
                images = tuple(group.title for group in groups if group.manifest and name in group.names)
                found.append(Poisoned(item.path, why, images, not blobs.uses.free(name), removed))
    return found


def _wrong(blobs: Blobs, item: Item, bar: Bar) -> str:
    if item.name.startswith(DERIVED):
        bar.advance(item.length)
        return "" if blobs.stamps.hold(item.name, item.path) else "made before the host booted, or changed since"
    try:
        blobs.stamps.make(item.name, hash_expected(item.path, item.name, item.path.stat().st_size, bar))
    except FileNotFoundError:  # evicted meanwhile
        return ""
    except ImageCorrupt as corrupt:
        blobs.stamps.drop(item.name)
        return corrupt.message
    return ""
