"""Images on this machine: the user's store (config.store_dir()) and a node's cache (config.cache_dir()).

Beside the blobs (image.blobs) lie ``images/HEX.yaml``, a manifest by its digest, and ``names/NAME``, the digest a
name stands for. Written in the order blobs, manifest, name: a kill in between leaves nothing that looks whole.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

from vmjob.errors import ImageCorrupt, ImageError, ImageMissing, ScratchFull
from vmjob.files import hash_file
from vmjob.image import formats
from vmjob.image import manifest as manifests
from vmjob.image.blobs import Blobs, receive_file
from vmjob.image.chain import chain
from vmjob.model import Fetch, Image, ImageFile, Manifest
from vmjob.progress import Bar, Reporter

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\Z")
_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})\Z")


class Store:
    """Images by name and digest below the folder ``root``, which is made when something is added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = Blobs(root)

    def add(self, manifest: Manifest, folder: Path, reporter: Optional[Reporter] = None, *,
            sources: Optional[Mapping[str, Path]] = None) -> None:
        """Take an image in under its name; its files are ``folder``/path, or ``sources`` by role. The files are
        copied (as reflinks where possible), so what the user does to them later does no harm here.

        Raises ImageCorrupt where a file is not what the manifest says, ImageMissing, ScratchFull.
        """
        with self._lock(fcntl.LOCK_SH), _bar(reporter, f"add {manifest.name}", manifest.size) as bar:
            for file in manifest.files:
                source = (sources or {}).get(file.role, folder / file.path)
                if file.role == "disk" and source.exists():
                    formats.check_header(source, file.format, file.virtual_size)
                self.blobs.take(source, file.sha256, file.size, bar=bar)
            document = manifests.to_document(manifest)  # as JSON, which is YAML too and read at once
            self._write(f"images/{_hex(manifest)}.yaml", json.dumps(document, indent=1) + "\n")
            self._write(f"names/{manifest.name}", manifest.digest + "\n")

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

    def open(self, manifest: Manifest, sources: Mapping[str, Path], reporter: Reporter,
             fetch: Optional[Fetch] = None, spare: Path = Path()) -> Image:
        """The image with verified files on this machine. What is not here yet is taken from ``sources`` (by role):
        as a hard link where that is safe, else copied while hashed; where this store is read-only, used in place.
        What is not there either is brought by ``fetch``; where this store is read-only, into the folder ``spare``.

        Each file is fetched once, and hashed once per boot of the host, whatever the number of jobs. Raises
        ImageCorrupt naming the file and both digests, ImageMissing, ScratchFull, or what ``fetch`` raises.
        """
        paths = {}
        with contextlib.ExitStack() as stack:
            lazy = _LazyBar(stack, reporter, "verify", manifest)
            coming = _LazyBar(stack, reporter, "fetch", manifest)
            for file in manifest.files:
                source = sources.get(file.role)
                if source is None and fetch:
                    paths[file.role] = self._fetched(file, fetch, spare, coming)
                else:
                    paths[file.role] = self._open_file(file, source, lazy)
                if file.role == "disk":
                    formats.check_header(paths[file.role], file.format, file.virtual_size, sources.get(file.role))
        return Image(manifest, paths, chain(manifest, paths, self.blobs))

    def remove(self, ref: str) -> Manifest:
        """Remove an image, the names that mean it, and the blobs that no other image needs."""
        with self._lock(fcntl.LOCK_EX):
            gone = self.find(ref)
            for name, digest in self.names().items():
                if digest == gone.digest:
                    (self.root / "names" / name).unlink(missing_ok=True)
            (self.root / f"images/{_hex(gone)}.yaml").unlink(missing_ok=True)
            needed = {file.sha256 for image in self.list() for file in image.files}
            for file in gone.files:
                if file.sha256 not in needed:
                    self.blobs.remove(file.sha256)
        return gone

    # -------------------------------------------------------------- details

    def _open_file(self, file: ImageFile, source: Optional[Path], bar: Bar) -> Path:
        blob = self.blobs.path(file.sha256)
        own = source is None or source == blob
        try:
            if self.blobs.check(file.sha256, file.size, bar):
                return blob
        except ImageCorrupt:
            if own:
                raise
        if own:
            raise ImageMissing(f"{file.path} (sha256:{file.sha256[:12]}…) is not on this machine",
                               "fetch or build the image again")
        assert source is not None
        if not source.exists():
            raise ImageMissing(f"{source}: no such file, though the image needs it", "fetch the image again")
        try:
            return self.blobs.take(source, file.sha256, file.size, link=True, durable=False, bar=bar)
        except (OSError, ScratchFull):  # nowhere to keep it: verified for this run alone
            found, size = hash_file(source, bar)
            if (found, size) != (file.sha256, file.size):
                raise ImageCorrupt(f"{source}: expected sha256:{file.sha256} ({file.size} bytes), "
                                   f"found sha256:{found} ({size} bytes)", "fetch the image again") from None
            return source

    def _fetched(self, file: ImageFile, fetch: Fetch, spare: Path, bar: Bar) -> Path:
        try:
            return self.blobs.receive(file, fetch, bar)
        except (OSError, ScratchFull):  # nowhere to keep it: brought for this run alone
            target = spare / file.sha256
            receive_file(file, fetch, target, bar)
            return target

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
        if ref == "micro":
            return "make it in a few seconds: vmjob image micro"
        close = difflib.get_close_matches(ref, list(self.names()), 3)
        if close:
            return f"did you mean {' or '.join(close)}?"
        return "see vmjob image list; make one with vmjob image micro, build or import"

    def _write(self, name: str, text: str) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        """Adding may go on side by side; removing waits for it, or a blob could go while its manifest comes."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("a") as file:
            fcntl.flock(file, how)
            yield


class _LazyBar(Bar):
    """A progress bar that appears when there is something to do; mostly there is nothing."""

    def __init__(self, stack: contextlib.ExitStack, reporter: Reporter, what: str, manifest: Manifest) -> None:
        self._stack, self._reporter, self._what, self._manifest = stack, reporter, what, manifest
        self._bar: Optional[Bar] = None

    def advance(self, amount: float) -> None:
        if self._bar is None:
            self._bar = self._stack.enter_context(
                self._reporter.bar(f"{self._what} {self._manifest.name}", self._manifest.size))
        self._bar.advance(amount)


def _bar(reporter: Optional[Reporter], name: str, total: int) -> Bar:
    return (reporter or Reporter()).bar(name, total)


def _hex(manifest: Manifest) -> str:
    return manifest.digest.partition(":")[2]
