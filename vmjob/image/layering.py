"""Making layers, and images without them: the maker's side of image.apply."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from vmjob import blockdev
from vmjob.errors import CommandFailed, ImageError, VmjobError
from vmjob.files import hash_file, place
from vmjob.image import apply, chain, compare, delta, formats, manifest, nbd, qcow2
from vmjob.image.home import home_of, present
from vmjob.image.store import Store
from vmjob.model import Fetch, Image, ImageFile, Manifest
from vmjob.opened import naming
from vmjob.progress import Reporter

MOST = 9  # layers on one disk


@dataclass(frozen=True)
class Made:
    """``new`` and ``copied``: bytes of the disk that the layer brings, and that are below at another place."""

    manifest: Manifest
    layer: ImageFile
    new: int
    copied: int


@contextlib.contextmanager
def opened(ref: str, store: Store, reporter: Reporter,
           fetcher: Callable[[Manifest], Optional[Fetch]]) -> Iterator[Image]:
    """An image by name, digest or path, with verified files, which nobody evicts until the end of the with block. What
    is not in ``store`` goes into the cache; ``fetcher`` makes what brings an image that is elsewhere. Raises as
    Store.resolve and Store.open; ImageError where it has no disk."""
    found, paths = store.resolve(ref)
    if found.file("disk") is None:
        raise ImageError(f"the image {found.name} has no disk", "layers are changes of a disk: build the image anew")
    paths = present(found, paths)
    home = home_of(found, paths, store.root)
    with tempfile.TemporaryDirectory(prefix="vmjob-") as spare, ExitStack() as keep, naming(), home.hold(found):
        yield home.open(found, paths, reporter, fetcher(found), Path(spare), keep=keep)


def check_name(image: Image, name: str) -> None:
    """Raises ImageError where ``name`` is none for an image: better told before hours of work."""
    _checked(replace(image.manifest, name=name))


def layer_on_disk(base: Image, disk: Path, name: str, out: Path, reporter: Reporter) -> Made:
    """The image ``name`` in the folder ``out``: ``base``, and a layer that makes its disk the file ``disk``, checked
    as for import. Kernel, initrd and all else stay as they are. Raises ImageRefused and ImageCorrupt of ``disk``, and
    as layer."""
    check_name(base, name)
    info = formats.inspect_disk(disk)
    changed = replace(base.manifest, name=name, made_from=(*base.manifest.made_from, disk.name))
    return _layer(base, changed, base.paths, [(str(disk.absolute()), info.format)], info.virtual_size, out, reporter)


def layer_on_image(base: Image, new: Image, name: str, out: Path, reporter: Reporter) -> Made:
    """The image ``name`` in the folder ``out``, which boots as ``new`` does: the disk of ``base``, and a layer that
    makes it that of ``new``.

    Raises ImageError where there are too many layers or nothing differs, ScratchFull, OSError, CommandMissing, and
    HostError or CommandFailed where QEMU's tools fail.
    """
    check_name(base, name)
    return _layer(base, replace(new.manifest, name=name), new.paths, chain.nodes(new.manifest, new.chain),
                  new.manifest.virtual_size, out, reporter)


def _layer(base: Image, changed: Manifest, paths: dict[str, Path], disk: list[tuple[str, str]], size: int, out: Path,
           reporter: Reporter) -> Made:
    number = len(base.manifest.layers) + 1
    if number > MOST:
        raise ImageError(f"{base.manifest.name} has {MOST} layers, the most there can be",
                         f"make one disk of them first: vmjob image flatten {base.manifest.name} -o DIR")
    if size > delta.MAX_SIZE:
        raise ImageError(f"{disk[-1][0]}: a disk of {size} bytes is too large for layers",
                         f"they are for disks of up to {delta.MAX_SIZE} bytes")
    kept = [file for file in (base.manifest.file("disk"), *base.manifest.layers) if file]
    own = [file for file in changed.files if file.role in ("kernel", "initrd")]
    below, digests = chain.nodes(base.manifest, base.chain), [file.sha256 for file in kept]
    out.mkdir(parents=True, exist_ok=True)
    (out / manifest.FILE_NAME).unlink(missing_ok=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".layer-", dir=out)))
        file = work / f"layer{number}.delta"
        runs = _write(file, digests, below, disk, size, work, reporter)
        _prove(file, digests, below, base.manifest.virtual_size, disk, size, work, reporter)
        sha256, length = hash_file(file)
        top = ImageFile(f"layer{number}", file.name, "delta", length, sha256, size)
        made = _checked(replace(changed, files=(*kept, top, *own), sources=()))
        sources = {**{f.path: base.paths[f.role] for f in kept}, **{f.path: paths[f.role] for f in own}, top.path: file}
        _put(made, sources, out)
    return Made(made, top, runs.new * delta.BLOCK, runs.copied * delta.BLOCK)


def _write(file: Path, digests: list[str], below: compare.Chain, disk: compare.Chain, size: int, work: Path,
           reporter: Reporter) -> delta.Runs:
    old_data, new_data = compare.data_windows(below), compare.data_windows(disk)
    with ExitStack() as stack:
        old, new = (stack.enter_context(nbd.serve(one, work)) for one in (below, disk))
        with reporter.bar("compare", (2 * len(old_data) + len(new_data)) * nbd.MAX_READ) as bar:
            runs = compare.differences(old, old_data, new, new_data, bar)
        if not len(runs) and new.size == old.size:
            raise ImageError("the disk is the same as the base's: a layer would be empty", "use the base as it is")
        with reporter.bar("pack", runs.new * delta.BLOCK) as bar:
            delta.write(file, digests, size, runs, compare.new_blocks(runs, new), bar.advance)
    return runs


def _prove(file: Path, digests: list[str], below: compare.Chain, below_size: int, disk: compare.Chain, size: int,
           work: Path, reporter: Reporter) -> None:
    """What a node will make of the layer is the disk, byte for byte; or nobody gets it."""
    made, applied = delta.read(file, digests, below_size, size), work / "applied.qcow2"
    with reporter.bar("prove", (made.runs.new + made.runs.copied) * delta.BLOCK) as bar:
        apply.materialise(made, below, applied, bar)
        whole = [*below, (str(applied.absolute()), "qcow2")]
        try:
            blockdev.qemu_img("compare", "-q", blockdev.file_name(whole), blockdev.file_name(disk),
                              disks=[*whole, *disk])
        except CommandFailed as failed:
            if failed.returncode != 1:
                raise
            raise VmjobError("bug in vmjob: the layer does not make the disk that it was made from",
                             "please report it; did anybody write to the disk meanwhile?") from failed
        applied.unlink()


def flatten(image: Image, name: str, out: Path, reporter: Reporter) -> Manifest:
    """The same image as ``name`` in the folder ``out``, its disk one compressed qcow2 without layers. The guest sees
    the same bytes. Raises ScratchFull, OSError, CommandMissing, CommandFailed."""
    check_name(image, name)
    out.mkdir(parents=True, exist_ok=True)
    (out / manifest.FILE_NAME).unlink(missing_ok=True)
    old = image.manifest
    own = [file for file in old.files if file.role in ("kernel", "initrd")]
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".layer-", dir=out)))
        disk = work / "disk.qcow2"
        with reporter.bar("flatten", None):
            qcow2.pack_chain(chain.nodes(old, image.chain), disk)
        sha256, length = hash_file(disk)
        size = -(-old.virtual_size // 512) * 512
        made = _checked(replace(old, name=name, sources=(), files=(
            ImageFile("disk", disk.name, "qcow2", length, sha256, size), *own)))
        _put(made, {disk.name: disk, **{file.path: image.paths[file.role] for file in own}}, out)
    return made


def _checked(made: Manifest) -> Manifest:
    """As whoever reads it will: a name may be no name, or two files have the same."""
    return manifest.from_document(manifest.to_document(made), f"image {made.name}")


def _put(made: Manifest, sources: dict[str, Path], out: Path) -> None:
    """The files into ``out``, and the manifest as the last."""
    for name, source in sources.items():
        target = out / name
        if not (target.exists() and target.samefile(source)):
            target.unlink(missing_ok=True)
            place(source, target)
    (out / manifest.FILE_NAME).write_text(manifest.dump(made))
