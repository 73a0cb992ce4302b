"""The disk of an image as QEMU stacks it: the disk itself, and on it the layers, each as a qcow2 that holds only what
it changes. That is made once per node and boot, under a name of its own for each, and belongs to the cache like what
was fetched: what earlier boots left is counted, was used longest ago and so is evicted first, and goes in any case
where nobody used it for a week.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from vmjob import config
from vmjob.model import ImageFile, Manifest
from vmjob.opened import Opened
from vmjob.progress import Reporter

if TYPE_CHECKING:
    from vmjob.image.blobs import Blobs

_STALE = 7 * 86400


def formats(manifest: Manifest) -> tuple[str, ...]:
    """Of each file of the disk's chain, as QEMU is to be told."""
    disk = manifest.file("disk")
    return (disk.format, *("qcow2" for _ in manifest.layers)) if disk else ()


def nodes(manifest: Manifest, chain: Sequence[Path]) -> list[tuple[str, str]]:
    """``chain`` as blockdev.stacked takes it."""
    return [(str(path.absolute()), form) for path, form in zip(chain, formats(manifest))]


def chain(manifest: Manifest, opened: Mapping[str, Opened], blobs: Blobs, spare: Optional[Path],
          stack: ExitStack, reporter: Optional[Reporter] = None) -> tuple[Opened, ...]:
    """The files of the disk, lowest first, open until ``stack`` ends; ``opened``: the verified files by role;
    ``spare``: a folder of this run alone, for what ``blobs`` cannot keep (Blobs.derive), None where there is none.

    Raises ImageRefused where a layer belongs on another disk, ImageCorrupt, ScratchFull, and CommandMissing or
    HostError where qemu-nbd is missing or fails.
    """
    disk = manifest.file("disk")
    if disk is None:
        return ()
    if not manifest.layers:  # nearly always; what follows takes longer to import
        return (opened["disk"],)
    disks, files, size = [opened["disk"]], [disk], disk.virtual_size
    for layer in manifest.layers:
        # what is below is told now: the lists will be longer when they are looked at again
        below = nodes(manifest, [one.place for one in disks])
        digests = tuple(file.sha256 for file in files)
        files.append(layer)
        disks.append(_layer(layer, opened[layer.role].place, digests, size, below, _key(files), blobs, spare, stack,
                            reporter or Reporter()))
        size = layer.virtual_size
    return tuple(disks)


def places(manifest: Manifest, paths: Mapping[str, Path], blobs: Blobs) -> tuple[Path, ...]:
    """Where the files of the chain would be; nothing is read or made."""
    from vmjob.image.blobs import DERIVED

    files = [file for file in (manifest.file("disk"), *manifest.layers) if file]
    return tuple(paths["disk"] if n == 1 else blobs.path(DERIVED + _key(files[:n])) for n in range(1, len(files) + 1))


def _key(files: Sequence[ImageFile]) -> str:
    """Of all that decides what is made: bytes, and how a manifest, perhaps a stranger's, says they are to be read. And
    of this boot of this node: in a cache that nodes share, none makes anew what another's QEMU has open."""
    text = json.dumps(["qcow2 of layers, 2", config.boot_id(),
                       [(file.sha256, file.format, file.virtual_size) for file in files]])
    return hashlib.sha256(text.encode()).hexdigest()


def _layer(layer: ImageFile, path: Path, digests: Sequence[str], below_size: int, below: Sequence[tuple[str, str]],
           key: str, blobs: Blobs, spare: Optional[Path], stack: ExitStack, reporter: Reporter) -> Opened:
    from vmjob.image.blobs import DERIVED

    make = partial(_make, path, digests, below_size, layer.virtual_size, below, reporter)
    if blobs.stamps.hold(DERIVED + key, blobs.path(DERIVED + key)):  # nearly always: the layer is not even read
        return blobs.open_derived(key, make, spare, stack)
    from vmjob.image import apply, delta

    size = apply.becomes(delta.read(path, digests, below_size, layer.virtual_size))
    # nothing is evicted for what never fits
    made = blobs.open_derived(key, make, spare, stack, size if size < _disk_size(blobs.root) else 0)
    _clean(blobs)
    return made


def _make(layer: Path, digests: Sequence[str], below_size: int, size: int, below: Sequence[tuple[str, str]],
          reporter: Reporter, target: Path) -> None:
    from vmjob.image import apply, delta

    read = delta.read(layer, digests, below_size, size)
    with reporter.bar(f"unpack layer {len(digests)}", (read.runs.new + read.runs.copied) * delta.BLOCK) as bar:
        apply.materialise(read, below, target, bar)


def _disk_size(folder: Path) -> int:
    """Bytes of the file system that ``folder`` is or will be on."""
    found = os.statvfs(next(one for one in (folder, *folder.parents) if one.exists()))
    return found.f_blocks * found.f_frsize


def _clean(blobs: Blobs) -> None:
    """What was made in earlier boots, or on other nodes, goes where nobody used it for _STALE seconds: nothing evicts
    from a user's own store, and from a cache only where room is short."""
    from vmjob.image.blobs import DERIVED

    for path in (blobs.root / "derived").glob("*"):
        name = DERIVED + path.name
        with contextlib.suppress(OSError):
            used = blobs.uses.last(name)
            if (path.lstat().st_ctime if used is None else used) > time.time() - _STALE \
                    or blobs.stamps.hold(name, path):
                continue
            with blobs.uses.claim(name) as ours:
                if ours:
                    blobs.remove(name)
                    blobs.uses.forget(name)
                    blobs.uses.forget(name)
                    (blobs.root / "locks" / name).unlink(missing_ok=True)
