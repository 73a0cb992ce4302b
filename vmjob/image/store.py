"""Images on this machine: the user's store (config.store_dir()) and a node's cache (config.cache_dir()).

Beside the blobs (image.blobs) lie ``images/HEX.yaml``, a manifest by its digest, and ``names/NAME``, the digest a
name stands for. Written in the order blobs, manifest, name: a kill in between leaves nothing that looks whole. A cache
has no names: manifests are there to tell what is in it, and when each image was used (image.inventory).
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Optional

from vmjob import config, locks
from vmjob.errors import ImageCorrupt, ImageError, ImageMissing
from vmjob.files import write_durably
from vmjob.image import formats
from vmjob.image import manifest as manifests
from vmjob.image.blobs import DERIVED, Blobs
from vmjob.image.chain import chain
from vmjob.image.inventory import derived, is_store, known
from vmjob.image.opening import LazyBar, Opening, hold, missing
from vmjob.image.shared import Shared
from vmjob.model import Fetch, Image, Manifest
from vmjob.opened import Opened, naming
from vmjob.progress import Reporter

log = logging.getLogger("vmjob.image")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\Z")
_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})\Z")


class Store:
    """Images by name and digest below the folder ``root``, which is made when something is added."""

    def __init__(self, root: Path, *, cache: bool = False) -> None:
        """``cache``: what is in it can be had again, so it is evicted where there is no more room (image.eviction); and
        what an admin keeps for all users (image.shared) need not be in it."""
        self.root = root
        self._cache = cache and not is_store(root)
        self._note: Callable[[str], None] = log.info
        self.blobs = Blobs(root, self._make_room if self._cache else None)
        shared = config.shared_cache() if self._cache else None
        self._shared = Shared(shared, self.blobs) if shared else None

    def add(self, manifest: Manifest, folder: Path, reporter: Optional[Reporter] = None, *,
            sources: Optional[Mapping[str, Path]] = None) -> None:
        """Take an image in under its name; its files are ``folder``/path, or ``sources`` by role. The files are
        copied (as reflinks where possible), so what the user does to them later does no harm here.

        Raises ImageCorrupt where a file is not what the manifest says, ImageMissing, ScratchFull.
        """
        with self._lock(locks.SHARED), (reporter or Reporter()).bar(f"add {manifest.name}", manifest.size) as bar:
            for file in manifest.files:
                source = (sources or {}).get(file.role, folder / file.path)
                if file.role == "disk" and source.exists():
                    formats.check_header(source, file.format, file.virtual_size)
                self.blobs.take(source, file.sha256, file.size, bar=bar)
            self._write_manifest(manifest)
            self._write(f"names/{manifest.name}", manifest.digest + "\n")

    def describe(self, manifest: Manifest, name: str) -> None:
        """Take in an image that is elsewhere, under ``name``: its files come from its sources when they are needed."""
        with self._lock(locks.SHARED):
            sources = manifest.sources
            with contextlib.suppress(ImageError):  # it may have been made here
                sources = tuple(dict.fromkeys((*self._load(_hex(manifest)).sources, *sources)))[:256]
            self._write_manifest(replace(manifest, name=name, sources=sources))
            self._write(f"names/{name}", manifest.digest + "\n")

    def unname(self, name: str, digest: str) -> None:
        """``name`` no longer means the image with this digest, if it does; the image stays."""
        with self._lock(locks.ALONE):
            if self.names().get(name) == digest:
                (self.root / "names" / name).unlink(missing_ok=True)

    def list(self) -> list[Manifest]:
        """All images, by name. One that an upgrade made unreadable is left out."""
        found = []
        for path in sorted((self.root / "images").glob("*.yaml")):
            with contextlib.suppress(ImageError):
                found.append(manifests.load(path))
        return sorted(found, key=lambda m: (m.name, m.digest))

    def names(self) -> dict[str, str]:
        """Digest by name."""
        names = {}
        for path in sorted((self.root / "names").glob("[!.]*")):
            with contextlib.suppress(OSError):
                names[path.name] = path.read_text().strip()
        return names

    def find(self, ref: str) -> Manifest:
        """The image called ``ref``: a name, a digest or the unique beginning of one (six digits or more).

        Raises ImageMissing with the names that come close and the next action.
        """
        if _NAME.match(ref):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return self._load((self.root / "names" / ref).read_text().strip().partition(":")[2])
        prefix = _PREFIX.match(ref)
        if prefix:
            fits = sorted(p.stem for p in (self.root / "images").glob(f"{prefix.group(1)}*.yaml"))
            if len(fits) == 1:
                return self._load(fits[0])
            if fits:
                raise ImageMissing(f"{ref}: {len(fits)} images begin like this", "give more digits")
        raise ImageMissing(f"there is no image '{ref}' on this machine", self._next_action(ref))

    def resolve(self, ref: str) -> tuple[Manifest, dict[str, Path]]:
        """Like ``find``, and where each file is (by role, not yet verified). ``ref`` may also be a path to a
        manifest or to the folder that holds one; a name in the store comes first, unless it has a slash."""
        path = Path(ref)
        if "/" in ref or path.suffix in (".yaml", ".yml") or ref in (".", ".."):
            return self._from_path(path)
        try:
            found = self.find(ref)
        except ImageMissing:
            if not path.exists():
                raise
            return self._from_path(path)
        return found, {f.role: self.blobs.path(f.sha256) for f in found.files}

    @contextlib.contextmanager
    def hold(self, manifest: Manifest) -> Iterator[None]:
        """Until the end of the with block nobody evicts the image's files, nor what ``open`` derives from them: they
        are in use. Call it before ``open``. At kill -9 the kernel lets go; in a read-only store nobody evicts.
        Raises ImageOutOfReach where somebody else has locked them.
        """
        names = [file.sha256 for file in manifest.files]
        with contextlib.ExitStack() as stack:
            hold(stack, self.blobs, names)
            if self._shared:
                stack.enter_context(self._shared.blobs.hold(names))
            yield

    def open(self, manifest: Manifest, sources: Mapping[str, Path], reporter: Reporter,
             fetch: Optional[Fetch] = None, spare: Optional[Path] = None, *, layered: bool = True,
             keep: Optional[contextlib.ExitStack] = None) -> Image:
        """The image with verified files on this machine. What is not here yet is taken from ``sources`` (by role):
        as a hard link where that is safe, else copied while hashed; where this store is read-only, used in place.
        What is not there either is brought by ``fetch``; where this store is read-only or full, into ``spare``, a
        folder of this run alone. Without ``layered`` the chain is the disk alone: layers are verified, not unpacked.

        Who reads the files hands in ``keep``: until it ends they stay open as they were verified, and the image's paths
        lead to what is open (vmjob.opened). Else the paths are names, where anything may lie in a moment.

        Each file is fetched once, and hashed once per boot of the host, whatever the number of jobs. So that none is
        evicted afterwards, call it within ``hold``. Raises ImageCorrupt naming the file and both digests, ImageMissing,
        ScratchFull, OSError (without ``spare``), or what ``fetch`` raises.
        """
        opened: dict[str, Opened] = {}
        self._note = self.blobs.note = reporter.note
        with contextlib.ExitStack() as stack:
            files = keep or stack.enter_context(contextlib.ExitStack())
            stack.enter_context(naming())
            stack.enter_context(self.hold(manifest))
            here = Opening(self.blobs, self._shared, fetch, spare, reporter.note,
                           LazyBar(stack, reporter, "verify", manifest), LazyBar(stack, reporter, "fetch", manifest),
                           files)
            self._remember_use(manifest)
            for file in manifest.files:
                source = sources.get(file.role)
                one = opened[file.role] = here.file(file, source)
                if file.role == "disk":
                    formats.check_header(one.place, file.format, file.virtual_size, source or one.name)
            disk = tuple(one for role, one in opened.items() if role == "disk")
            if layered:
                disk = chain(manifest, opened, self.blobs, spare, files, reporter)
            self._remember_derived(manifest, [one.name for one in disk])
        path = attrgetter("place" if keep else "name")
        return Image(manifest, {role: path(one) for role, one in opened.items()}, tuple(map(path, disk)))

    def warm(self, manifest: Manifest, sources: Mapping[str, Path], reporter: Reporter,
             fetch: Optional[Fetch] = None) -> None:
        """Bring an image in ahead of jobs: what is not here is copied from ``sources`` (by role), else fetched. Nothing
        is used in place. Raises as ``open``, and OSError where this store cannot be written."""
        self._note = self.blobs.note = reporter.note
        opened: dict[str, Opened] = {}
        with contextlib.ExitStack() as stack, naming(), self.hold(manifest), \
                reporter.bar(f"warm {manifest.name}", manifest.size) as bar:
            self._write_manifest(manifest)
            for file in manifest.files:
                source = sources.get(file.role)
                if source is not None and source.exists():
                    self.blobs.take(source, file.sha256, file.size, bar=bar)
                elif fetch:
                    self.blobs.receive(file, fetch, bar)
                here = self.blobs.open(file.sha256, file.size, stack, bar)
                if here is None:
                    raise missing(file, source)
                opened[file.role] = here
                if file.role == "disk":
                    formats.check_header(here.place, file.format, file.virtual_size, source or here.name)
            if self._cache:  # what is made from them is of no use to other users
                disk = chain(manifest, opened, self.blobs, None, stack)
                self._remember_derived(manifest, [one.name for one in disk])

    def remove(self, ref: str) -> Manifest:
        """Remove an image, the names that mean it, and the blobs that no other image needs."""
        with self._lock(locks.ALONE):
            gone = self.find(ref)
            for name, digest in self.names().items():
                if digest == gone.digest:
                    (self.root / "names" / name).unlink(missing_ok=True)
            path = self.root / f"images/{_hex(gone)}.yaml"
            mine = {file.sha256 for file in gone.files} | set(derived(path))
            path.unlink(missing_ok=True)
            path.with_suffix(".derived").unlink(missing_ok=True)
            needed = {name for other, one in known(self.root)
                      for name in (*(file.sha256 for file in one.files), *derived(other))}
            for name in mine - needed:
                self.blobs.remove(name)
        return gone

    # -------------------------------------------------------------- details

    def _make_room(self, size: int) -> None:
        from vmjob.image.eviction import make_room

        def note(text: str) -> None:
            self._note(text)
            self._note = log.info  # once: a file of the image after the other would tell it

        make_room(self.blobs, size, note)

    def _remember_use(self, manifest: Manifest) -> None:
        with contextlib.suppress(OSError):  # read-only
            if self._cache:
                try:
                    os.utime(self.root / f"images/{_hex(manifest)}.yaml")
                except FileNotFoundError:
                    self._write_manifest(manifest)

    def _remember_derived(self, manifest: Manifest, disk: Sequence[Path]) -> None:
        """What of the disk was made here: it goes when the image goes."""
        keys = [file.name for file in disk if file.parent == self.blobs.path(DERIVED)]
        path = self.root / f"images/{_hex(manifest)}.yaml"
        with contextlib.suppress(OSError):
            if keys and sorted(derived(path)) != sorted(DERIVED + key for key in keys):
                self._write(f"images/{_hex(manifest)}.derived", "\n".join(keys) + "\n")

    def _write_manifest(self, manifest: Manifest) -> None:
        document = manifests.to_document(manifest)  # as JSON, which is YAML too and read at once
        self._write(f"images/{_hex(manifest)}.yaml", json.dumps(document, indent=1) + "\n")

    def _from_path(self, path: Path) -> tuple[Manifest, dict[str, Path]]:
        file = path / manifests.FILE_NAME if path.is_dir() else path
        if not file.exists():
            if path.is_dir():
                raise ImageMissing(f"{path}: no {manifests.FILE_NAME} in this folder", "make one: vmjob image build")
            raise ImageMissing(f"{path}: no such file", "check the path, or see vmjob image list")
        if file.suffix not in (".yaml", ".yml"):
            raise ImageMissing(f"{path} is no manifest", f"a disk is taken in first: vmjob image import {path}")
        found = manifests.load(file)
        return found, {f.role: file.parent / f.path for f in found.files}

    def _load(self, digits: str) -> Manifest:
        path = self.root / f"images/{digits}.yaml"
        found = manifests.load(path)
        if _hex(found) != digits:
            raise ImageCorrupt(f"{path}: expected sha256:{digits}, found {found.digest}", "remove it: vmjob image rm")
        return found

    def _next_action(self, ref: str) -> str:
        from vmjob.image.subscriptions import withdrawn

        lists = self.root / "lists"
        for one in self.list() if lists.is_dir() else ():
            if one.name == ref and (why := withdrawn(one.digest, [lists])):
                return f"the image of this name was withdrawn: {why}"
        if ref == "micro":
            return "make it in a few seconds: vmjob image micro"
        close = difflib.get_close_matches(ref, list(self.names()), 3)
        if close:
            return f"did you mean {' or '.join(close)}?"
        return "see vmjob image list; make one with vmjob image micro, build or import"

    def _write(self, name: str, text: str) -> None:
        write_durably(self.root / name, text)

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        """Adding may go on side by side; removing waits for it, or a blob could go while its manifest comes."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locks.held(self.root / "lock", config.stage_timeout(), how, self._note, "adds or removes images"):
            yield


def _hex(manifest: Manifest) -> str:
    return manifest.digest.partition(":")[2]
