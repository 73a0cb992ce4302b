"""The disk of an image as QEMU stacks it: the disk itself, and on it the layers, each as a qcow2 that holds only what
it changes. That is made once per node and boot, and belongs to the cache like what was fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from vmjob.model import Manifest
from vmjob.progress import Reporter

if TYPE_CHECKING:
    from vmjob.image.blobs import Blobs


def formats(manifest: Manifest) -> tuple[str, ...]:
    """Of each file of the disk's chain, as QEMU is to be told."""
    disk = manifest.file("disk")
    return (disk.format, *("qcow2" for _ in manifest.layers)) if disk else ()


def nodes(manifest: Manifest, chain: Sequence[Path]) -> list[tuple[str, str]]:
    """``chain`` as blockdev.stacked takes it."""
    return [(str(path.absolute()), form) for path, form in zip(chain, formats(manifest))]


def chain(manifest: Manifest, paths: Mapping[str, Path], blobs: Blobs, spare: Path,
          reporter: Optional[Reporter] = None) -> tuple[Path, ...]:
    """The files of the disk, lowest first; ``paths``: the verified files by role; ``spare``: a folder of this run
    alone, for what ``blobs`` cannot keep (Blobs.derive).

    Raises ImageRefused where a layer belongs on another disk, ImageCorrupt, ScratchFull, and CommandMissing or
    HostError where qemu-nbd is missing or fails.
    """
    disk = manifest.file("disk")
    if disk is None:
        return ()
    if not manifest.layers:  # nearly always; what follows takes longer to import
        return (paths["disk"],)
    from vmjob.image import delta

    stack, below, size = [paths["disk"]], [disk.sha256], disk.virtual_size
    for layer in manifest.layers:
        # what is below is told now: the list will be longer when it is looked at again
        make = partial(_make, paths[layer.role], tuple(below), size, layer.virtual_size, nodes(manifest, stack),
                       reporter or Reporter())
        below.append(layer.sha256)
        stack.append(blobs.derive(_key(below), make, spare, delta.becomes(paths[layer.role])))
        size = layer.virtual_size
    return tuple(stack)


def places(manifest: Manifest, paths: Mapping[str, Path], blobs: Blobs) -> tuple[Path, ...]:
    """Where the files of the chain would be; nothing is read or made."""
    from vmjob.image.blobs import DERIVED

    digests = [file.sha256 for file in (manifest.file("disk"), *manifest.layers) if file]
    return tuple(paths["disk"] if n == 1 else blobs.path(DERIVED + _key(digests[:n]))
                 for n in range(1, len(digests) + 1))


def _key(digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(("qcow2 of layers, 1", *digests)).encode()).hexdigest()


def _make(layer: Path, digests: Sequence[str], below_size: int, size: int, below: Sequence[tuple[str, str]],
          reporter: Reporter, target: Path) -> None:
    from vmjob.image import apply, delta

    read = delta.read(layer, digests, below_size, size)
    with reporter.bar(f"unpack layer {len(digests)}", (read.runs.new + read.runs.copied) * delta.BLOCK) as bar:
        apply.materialise(read, below, target, bar)
