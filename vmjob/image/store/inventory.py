"""What is in a cache, and what goes together: an image and its files, a layer made here, a file nobody has a name for.

Beside the blobs (blobs.py) a cache has ``images/HEX.yaml``, the manifest of each image that was opened, whose mtime
is its last use, ``images/HEX.derived``, the keys of what was made for it, and ``pins/HEX`` of those that always stay.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob.core import config
from vmjob.core.errors import ImageError, ImageMissing, JobError
from vmjob.core.model import Manifest
from vmjob.image import manifest as manifests
from vmjob.image.store.blobs import DERIVED, Blobs


@dataclass(frozen=True)
class Item:
    """One file. ``name`` as Blobs has it; ``size``: bytes that it takes on the disk; ``length``: bytes in it."""

    name: str
    path: Path
    size: int
    length: int
    used: float


@dataclass(frozen=True)
class Group:
    """What is evicted as one. ``kind``: image, file (of no image that is known), layer (made here) or part (a fetch
    that was broken off). ``names``: all that belongs to it, ``items``: what of it is here. ``used``: when it was used
    last, in seconds since 1970."""

    kind: str
    title: str
    names: tuple[str, ...]
    items: tuple[Item, ...]
    used: float
    manifest: Optional[Manifest] = None
    pinned: bool = False

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)

    @property
    def whole(self) -> bool:
        here = {item.name for item in self.items}
        return self.manifest is None or all(file.sha256 in here for file in self.manifest.files)


def is_store(root: Path) -> bool:
    """Whether it is a user's own store, however it is spelled, and no cache: nothing in it is ever evicted."""
    return (root / "names").is_dir() or root.resolve() == config.own_store().resolve()


def refuse_store(root: Path) -> None:
    """Raises JobError where it is no cache."""
    if is_store(root):
        raise JobError(f"{root} is a store of images, not a cache: nothing in it is ever evicted",
                       "vmjob image list shows it, vmjob image rm removes from it")


def survey(blobs: Blobs) -> list[Group]:
    """All groups, what was used longest ago first."""
    here = {item.name: item for item in _items(blobs)}
    groups = []
    for path, manifest in known(blobs.root):
        names = tuple(dict.fromkeys([*(file.sha256 for file in manifest.files), *derived(path)]))
        groups.append(Group("image", manifest.name, names, tuple(here[name] for name in names if name in here),
                            path.stat().st_mtime, manifest, (blobs.root / "pins" / path.stem).exists()))
    named = {name for group in groups for name in group.names}
    for item in here.values():
        if item.name not in named:
            groups.append(Group("layer" if item.name.startswith(DERIVED) else "file", "", (item.name,), (item,),
                                item.used))
    for path in _files(blobs.root / "tmp"):
        with contextlib.suppress(OSError):
            part = _item(blobs, path.name, path)
            groups.append(Group("part", "", (path.name,), (part,), path.stat().st_mtime))
    return sorted(groups, key=lambda group: group.used)


def known(root: Path) -> Iterator[tuple[Path, Manifest]]:
    """The manifests that are readable, and where each is."""
    for path in sorted((root / "images").glob("[!.]*.yaml")):
        with contextlib.suppress(ImageError, OSError):
            manifest = manifests.load(path)
            if manifest.digest == f"sha256:{path.stem}":
                yield path, manifest


def derived(manifest_path: Path) -> list[str]:
    """Names of what was made here for the image whose manifest it is."""
    try:
        keys = manifest_path.with_suffix(".derived").read_text().split()
    except (OSError, UnicodeDecodeError):
        return []
    return [DERIVED + key for key in keys if re.fullmatch(r"[0-9A-Za-z]+", key)]


def used_bytes(root: Path) -> int:
    """What all files of the cache take on the disk."""
    total = 0
    for folder in ("blobs/sha256", "derived", "tmp"):
        for path in _files(root / folder):
            with contextlib.suppress(OSError):
                total += path.lstat().st_blocks * 512
    return total


def find(groups: Iterable[Group], ref: str) -> Group:
    """The image that ``ref`` names: its name, or its digest or the beginning of one. Of several images of one name that
    which was used last. Raises ImageMissing."""
    images = [group for group in groups if group.manifest]
    digits = ref.removeprefix("sha256:")
    fits = [one for one in images if one.title == ref] or [
        one for one in images if one.manifest and len(digits) >= 6 and one.manifest.digest[7:].startswith(digits)]
    if not fits:
        raise ImageMissing(f"there is no image '{ref}' in the cache", "vmjob image cache list shows what there is")
    return fits[-1]


def pin(root: Path, manifest: Manifest, on: bool) -> None:
    """An image that is pinned is never evicted. Raises OSError."""
    path = root / "pins" / manifest.digest[7:]
    if on:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    else:
        path.unlink(missing_ok=True)


def _items(blobs: Blobs) -> Iterator[Item]:
    for folder, prefix in (("blobs/sha256", ""), ("derived", DERIVED)):
        for path in _files(blobs.root / folder):
            with contextlib.suppress(OSError):  # evicted meanwhile
                yield _item(blobs, prefix + path.name, path)


def _item(blobs: Blobs, name: str, path: Path) -> Item:
    found = path.lstat()
    used = blobs.uses.last(name)
    return Item(name, path, found.st_blocks * 512, found.st_size, found.st_ctime if used is None else used)


def _files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:
        return []
