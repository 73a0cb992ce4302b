"""Files named by the SHA-256 of their bytes, shared by many processes at once, and what is made from them.

What lies below the folder ``root``, all of it made when first needed; a file that was made here from others is called
``d-KEY`` beside those called HEX::

    blobs/sha256/HEX    the bytes; here only whole and verified: linked or renamed in as the last step
    derived/KEY         made on this machine from verified files, and trusted until it boots
    tmp/NAME            a copy on its way, of whoever holds the lock; what kill -9 leaves is resumed or overwritten
    locks/NAME          flock: one process copies, fetches or hashes, the others wait and find it done
    uses/NAME           flock: shared by those that use it (image.uses); its mtime is the last use
    verified/NAME       the stamp: these bytes were verified since the host booted (image.stamps)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Optional

from vmjob import config, locks
from vmjob.errors import ImageCorrupt, ImageMissing, ScratchFull
from vmjob.files import FULL, hash_file, sync_folder
from vmjob.image.stamps import Stamps, identity
from vmjob.image.transfer import ROOM, STILL, copy_file, expect, hash_expected, made, receive_file
from vmjob.image.uses import Uses
from vmjob.model import Fetch, ImageFile
from vmjob.opened import Opened, naming
from vmjob.opened import hold as hold_open
from vmjob.progress import Bar

log = logging.getLogger("vmjob.image")

DERIVED = "d-"


class Blobs:
    """A folder of blobs. One that cannot be written serves all the same, but remembers nothing. ``make_room``, called
    with the bytes that are about to come, removes what can be fetched again; a user's own store has none. ``theirs``:
    somebody else's, of which only ``path`` and ``hold`` are of use."""

    def __init__(self, root: Path, make_room: Optional[Callable[[int], None]] = None, *, theirs: bool = False) -> None:
        self.root = root
        self.stamps, self.uses = Stamps(root / "verified"), Uses(root / "uses", theirs=theirs)
        self.note: Callable[[str], None] = log.info  # is told of a wait for another process
        self._make_room = make_room or (lambda size: None)
        self._held: dict[str, int] = {}
        self._holds = 0

    def path(self, name: str) -> Path:
        """Where the blob HEX or the derived file d-KEY is, if it is here."""
        if name.startswith(DERIVED):
            return self.root / "derived" / name[len(DERIVED):]
        return self.root / "blobs/sha256" / name

    @contextlib.contextmanager
    def hold(self, names: Iterable[str]) -> Iterator[None]:
        """Until the end of the with block nobody evicts ``names``, nor what else is brought in or derived here
        meanwhile. At kill -9 the kernel lets go. Does nothing in a folder that cannot be written."""
        self._holds += 1
        try:
            for name in names:
                if name not in self._held:
                    lock = self.uses.take(name)
                    if lock is not None:
                        self._held[name] = lock
            yield
        finally:
            self._holds -= 1
            while self._held and not self._holds:
                self.uses.leave(self._held.popitem()[1])

    def check(self, sha256: str, size: int, bar: Optional[Bar] = None) -> bool:
        """Whether the blob is here and its bytes are right, hashing them at most once per boot of the host.
        Raises ImageCorrupt."""
        with contextlib.ExitStack() as stack:
            return self.open(sha256, size, stack, bar) is not None

    def open(self, sha256: str, size: int, stack: contextlib.ExitStack, bar: Optional[Bar] = None) -> Optional[Opened]:
        """As ``check``; the blob, open from before its bytes were verified until ``stack`` ends; None: it is not
        here."""
        return self.open_at(self.path(sha256), sha256, size, self.stamps, stack, bar)

    def open_at(self, path: Path, sha256: str, size: int, stamps: Stamps, stack: contextlib.ExitStack,
                bar: Optional[Bar] = None, *, follow: bool = True) -> Optional[Opened]:
        """As ``open``, for a file that may be elsewhere, with ``stamps`` of its own. Without ``follow`` it may be no
        link, which is an OSError."""
        with contextlib.ExitStack() as mine, naming():
            here = _open(path, mine, follow)
            if here and not stamps.hold(sha256, here.place):
                with self._lock(sha256):
                    mine.close()
                    here = _open(path, mine, follow)  # whoever had the lock may have put another there
                    if here and not stamps.hold(sha256, here.place):
                        stamps.make(sha256, hash_expected(here.place, sha256, size, bar))
            stack.enter_context(mine.pop_all())
            return here

    def weed(self, name: str, wrong: Callable[[], str], *, keep: bool) -> tuple[str, bool]:
        """What ``wrong`` says of a file, and whether it was removed for that (never with ``keep``). Nobody brings it in
        or makes it meanwhile: what is removed is what was judged."""
        with self._lock(name) as alone:
            why = wrong()
            remove = bool(why) and alone and not keep
            if remove:
                self._remove(name)
        return why, remove

    def take(self, source: Path, sha256: str, size: int, *, link: bool = False, durable: bool = True,
             bar: Optional[Bar] = None) -> Path:
        """Bring a file in, unless it is here; its path. Copied while hashed, as a reflink where the file system
        can; ``link`` allows a hard link to a file of our own. ``durable``: survive a power cut, not only a kill.

        Raises ImageCorrupt naming ``source``, ImageMissing, ScratchFull, or OSError (read-only folder).
        """
        with self.hold([sha256]):
            with contextlib.suppress(ImageCorrupt):  # a good source mends a spoilt blob
                if self.check(sha256, size, bar):
                    return self.path(sha256)
            with self._writing(sha256):
                if not self.stamps.hold(sha256, self.path(sha256)):
                    self._make_room(size)
                    self._take(source, sha256, size, link, durable, bar)
                    self._make_room(0)  # others came meanwhile
        return self.path(sha256)

    def receive(self, file: ImageFile, fetch: Fetch, bar: Optional[Bar] = None) -> Path:
        """Bring a file in from elsewhere, unless it is here; its path. One process fetches, the others wait for it;
        where it was killed, the next fetches the rest.

        Raises ImageCorrupt where two tries brought other bytes, ScratchFull, OSError (read-only folder), or what
        ``fetch`` raises: then what has come stays for the next.
        """
        name = file.sha256
        with self.hold([name]):
            with contextlib.suppress(ImageCorrupt):
                if self.check(name, file.size):
                    return self.path(name)
            with self._writing(name):
                if not self.stamps.hold(name, self.path(name)):
                    temporary = self.root / "tmp" / name
                    self._make_room(file.size - (temporary.stat().st_size if temporary.exists() else 0))
                    receive_file(file, fetch, temporary, bar)
                    self._bring_in(name)
                    self._make_room(0)
        return self.path(name)

    def derive(self, key: str, make: Callable[[Path], None], spare: Optional[Path], size: int = 0) -> Path:
        """The file that ``make`` makes at the path it is given, from verified files alone; ``key`` is a hexadecimal
        digest of all that it is made from. One process makes it, the others wait; it is made anew after a boot of the
        host, as no digest says what its bytes should be. ``size``: about how many bytes it will have.

        Where this folder is read-only or full, it is made in ``spare``, a folder of this run alone; without one that
        raises OSError or ScratchFull. Raises what ``make`` raises.
        """
        with contextlib.ExitStack() as stack:
            return self.open_derived(key, make, spare, stack, size).name

    def open_derived(self, key: str, make: Callable[[Path], None], spare: Optional[Path], stack: contextlib.ExitStack,
                     size: int = 0) -> Opened:
        """As ``derive``; the file is open until ``stack`` ends, from when it was made or found to be what was made."""
        name = DERIVED + key
        try:
            with self.hold([name]):
                here = self._unchanged(name, stack)
                if here:
                    return here
                with self._writing(name):
                    here = self._unchanged(name, stack)
                    if not here:
                        self._make_room(size)
                        place = made(make, self.root / "tmp" / name, stack).place
                        self._bring_in(name)
                        self._make_room(0)
                        here = Opened(self.path(name), place)
            return here
        except (OSError, ScratchFull) as refused:
            if spare is None:
                raise
            log.info("%s: not kept here: %s", self.path(name), refused)
            return made(make, spare / name, stack)

    def remove(self, name: str) -> None:
        """Remove a blob or a derived file, and what is remembered of it; who has it open keeps it until its end."""
        with self._lock(name):
            self._remove(name)

    # -------------------------------------------------------------- details

    def _unchanged(self, name: str, stack: contextlib.ExitStack) -> Optional[Opened]:
        with contextlib.ExitStack() as mine:
            here = _open(self.path(name), mine)
            if here and self.stamps.hold(name, here.place):
                stack.enter_context(mine.pop_all())
                return here
        return None

    def _remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)
        (self.root / "tmp" / name).unlink(missing_ok=True)
        self.stamps.drop(name)
        with self.uses.claim(name) as ours:
            if ours:  # who holds it, holds this file
                self.uses.forget(name)

    def _take(self, source: Path, sha256: str, size: int, link: bool, durable: bool, bar: Optional[Bar]) -> None:
        temporary = self.root / "tmp" / sha256
        temporary.unlink(missing_ok=True)
        try:
            seen = self._linked(source, temporary, sha256, size, bar) if link else None
            if not seen:
                expect(source, copy_file(source, temporary, bar, durable=durable), sha256, size)
            self._bring_in(sha256, durable=durable, seen=seen)
        except FileNotFoundError as missing:
            raise ImageMissing(f"{source}: no such file, though its manifest names it",
                               "fetch the image again") from missing
        except OSError as error:
            if error.errno in FULL:
                raise ScratchFull(f"{self.root}: no space for {source.name}", ROOM) from error
            raise
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)  # whatever ended it

    def _linked(self, source: Path, target: Path, sha256: str, size: int,
                bar: Optional[Bar]) -> Optional[tuple[int, ...]]:
        """The identity of what was hashed; None where it is to be copied."""
        # somebody else's file could be changed after it was verified
        try:
            if source.stat().st_uid != os.getuid() or source.is_symlink():
                return None
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links
            return None
        before = identity(target)
        expect(source, hash_file(target, bar), sha256, size)
        if identity(target)[:4] == before[:4]:
            return before
        target.unlink()  # its owner still writes to it
        return None

    def _bring_in(self, name: str, *, durable: bool = False, seen: Optional[tuple[int, ...]] = None) -> None:
        """The last step of whoever holds the lock: from tmp/ to where it belongs. ``seen``: what was hashed, where
        others than we could write to it since."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.root / "tmp" / name).replace(path)
        if durable:
            sync_folder(path.parent)
        now = identity(path)  # renamed: that moves ctime
        if seen and now[:4] != seen[:4]:
            raise ImageCorrupt(f"{path} changed while it was taken in", STILL)
        self.stamps.make(name, now)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[bool]:
        """One process at a time for each name; False in a folder that cannot be written (there is nothing to guard) and
        after a long wait."""
        with contextlib.ExitStack() as stack:
            alone = False
            with contextlib.suppress(OSError):
                stack.enter_context(self._locked(name))
                alone = True
            yield alone

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """As ``_lock``, for whoever writes: where it cannot be locked (a full disk, a file system that has no locks)
        nobody does. Raises OSError."""
        if name not in self._held:  # somebody else could evict it, and this lock with it
            raise OSError(errno.EROFS, f"{self.uses.folder / name} cannot be locked")
        with self._locked(name):
            (self.root / "tmp").mkdir(exist_ok=True)
            yield

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        path = self.root / "locks" / name
        lock = locks.open_own(path)
        try:
            locks.wait(lock, locks.ALONE, path, config.stage_timeout(), self.note)
            yield
        finally:
            os.close(lock)


def _open(path: Path, stack: contextlib.ExitStack, follow: bool = True) -> Optional[Opened]:
    try:
        return hold_open(path, stack, follow=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None
