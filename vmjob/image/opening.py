"""One file of an image, verified, from wherever it is to be had: the shared cache, here, with the job, its sources."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob.errors import ImageCorrupt, ImageMissing, ImageOutOfReach, ScratchFull
from vmjob.image.blobs import Blobs
from vmjob.image.shared import Shared
from vmjob.image.stamps import identity
from vmjob.image.transfer import hash_expected, receive_file
from vmjob.model import Fetch, ImageFile, Manifest
from vmjob.opened import Opened, naming
from vmjob.opened import hold as hold_open
from vmjob.progress import Bar, Reporter


@dataclass(frozen=True)
class Opening:
    """Of the files of one image, which are open until ``stack`` ends. ``spare``: a folder of this run alone, for what
    ``blobs`` cannot keep. ``note`` gets one line where the shared cache is not used. Two bars, for what is hashed here
    and for what is fetched."""

    blobs: Blobs
    shared: Optional[Shared]
    fetch: Optional[Fetch]
    spare: Optional[Path]
    note: Callable[[str], None]
    checked: Bar
    coming: Bar
    stack: contextlib.ExitStack

    def file(self, file: ImageFile, source: Optional[Path]) -> Opened:
        """It, verified by the descriptor that it stays open by. Raises ImageCorrupt, ImageMissing, ScratchFull, or what
        ``fetch`` raises."""
        blob = self.blobs.path(file.sha256)
        carried = source if source is not None and source != blob and source.exists() else None
        shared = self.shared.find(file, self.note, self.stack, self.checked) if self.shared else None
        if shared:
            return shared
        try:
            here = self._here(file)
            if here:
                return here
        except ImageCorrupt:
            if not carried and not self.fetch:
                raise
        if carried:
            return self._taken(file, carried)
        if self.fetch:
            return self._fetched(file, self.fetch)
        raise missing(file, source if source != blob else None)

    def _here(self, file: ImageFile) -> Optional[Opened]:
        return self.blobs.open(file.sha256, file.size, self.stack, self.checked)

    def _taken(self, file: ImageFile, source: Path) -> Opened:
        try:
            path = self.blobs.take(source, file.sha256, file.size, link=True, durable=False, bar=self.checked)
        except (OSError, ScratchFull):  # nowhere to keep it: verified for this run alone
            return self._in_place(file, source)
        return self._here(file) or self._in_place(file, path)

    def _in_place(self, file: ImageFile, path: Path) -> Opened:
        with naming():
            here = hold_open(path, self.stack)
            hash_expected(here.place, file.sha256, file.size, self.checked)
        return here

    def _fetched(self, file: ImageFile, fetch: Fetch) -> Opened:
        try:
            path = self.blobs.receive(file, fetch, self.coming)
        except (OSError, ScratchFull):  # nowhere to keep it: brought for this run alone
            if self.spare is None:
                raise
            path = self.spare / file.sha256
            written = receive_file(file, fetch, path, self.coming)
            here = hold_open(path, self.stack)
            return here if identity(here.place) == written else self._in_place(file, path)
        return self._here(file) or self._in_place(file, path)


def hold(stack: contextlib.ExitStack, blobs: Blobs, names: Iterable[str]) -> None:
    """As Blobs.hold, until ``stack`` ends. Raises ImageOutOfReach where somebody keeps one of them locked."""
    try:
        stack.enter_context(blobs.hold(names))
    except TimeoutError as busy:
        raise ImageOutOfReach(f"{busy.filename}: {busy.strerror}",
                              "end that process, or use another cache: VMJOB_CACHE") from busy


def missing(file: ImageFile, source: Optional[Path]) -> ImageMissing:
    """There is no such file, where ``source`` said it is or anywhere."""
    if source:
        return ImageMissing(f"{source}: no such file, though the image needs it", "fetch the image again")
    return ImageMissing(f"{file.path} (sha256:{file.sha256[:12]}…) is not on this machine",
                        "fetch or build the image again")


class LazyBar(Bar):
    """A progress bar that appears when there is something to do; mostly there is nothing."""

    def __init__(self, stack: contextlib.ExitStack, reporter: Reporter, what: str, manifest: Manifest) -> None:
        self._stack, self._reporter, self._what, self._manifest = stack, reporter, what, manifest
        self._bar: Optional[Bar] = None

    def advance(self, amount: float) -> None:
        if self._bar is None:
            self._bar = self._stack.enter_context(
                self._reporter.bar(f"{self._what} {self._manifest.name}", self._manifest.size))
        self._bar.advance(amount)
