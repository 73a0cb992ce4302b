"""Image lists that somebody follows: the newest of each, whom it is believed from, and what was withdrawn since.

A folder (a user's, or one that an admin keeps for a whole site) holds for each list, N being a hash of its identifier::

    N.json           what is known: the list, its endorser, its version, what it named and what it withdrew
    N-HEX.smime      the signed message that N.json means, by the beginning of its SHA-256
    lock             locked (0600): one process changes the folder

The message is written first, the state renamed into its place last: kill -9 leaves the list as it was. Identifier,
endorser and authority belong together from the first time on; a version that is older never comes back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from vmjob.core import config, locks
from vmjob.core.errors import EndorsementRefused, ImageMissing, VmjobError
from vmjob.core.files import write_whole
from vmjob.core.model import Manifest
from vmjob.image.trust.endorsement import Endorser
from vmjob.image.trust.imagelist import time_text, version_key
from vmjob.image.trust.verify import SignedList

SITE = Path("/var/lib/vmjob/lists")
_PATIENCE = 60.0  # seconds; who changes the folder has the lock for an instant
_ANSWER = "ask the endorser; vmjob image subscribe --remove forgets this list"


@dataclass(frozen=True)
class Subscription:
    """A list that is followed. Times in seconds since 1970. ``images``: digests that it names; ``withdrawn``: why, by
    digest; ``names``: what its images are called in the user's store; ``trouble``: why the last refresh failed."""

    url: str
    identifier: str
    endorser: Endorser
    version: str
    created: float
    expires: float
    message: str
    title: str = ""
    images: tuple[str, ...] = ()
    withdrawn: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    checked: float = 0.0
    trouble: str = ""


def user_folder() -> Path:
    """Where a user's own subscriptions are."""
    return config.store_dir() / "lists"


def listed(folder: Path) -> list[Subscription]:
    """All lists that are followed there, by title. Raises EndorsementRefused where one cannot be read."""
    found, broken = readable(folder)
    if broken:
        raise broken[0]
    return found


def readable(folder: Path) -> tuple[list[Subscription], list[VmjobError]]:
    """Those of the lists that can be read, by title, and what is wrong with the others."""
    found, broken = [], list[VmjobError]()
    for path in sorted(folder.glob("[0-9a-f]*.json")):
        try:
            found.append(_read(path))
        except EndorsementRefused as wrong:
            broken.append(wrong)
    return sorted(found, key=lambda one: (one.title, one.identifier)), broken


def find(folder: Path, ref: str) -> Subscription:
    """By identifier, address or title. Raises ImageMissing."""
    for one in listed(folder):
        if ref in (one.identifier, one.url, one.title):
            return one
    raise ImageMissing(f"{folder}: no list '{ref}' is followed there", "vmjob image subscribe --list shows them")


def message_of(folder: Path, one: Subscription) -> Path:
    """The signed message of a list that is followed."""
    return _message(folder, one.identifier, one.message)


def follow(folder: Path, url: str, signed: SignedList, message: bytes, now: float) -> Subscription:
    """Take in a verified list: a new one is followed from now on, a known one renewed. Refused, and nothing changed,
    where identifier, endorser or version are not what is known here. Raises EndorsementRefused, OSError."""
    with _locked(folder):
        path = _state(folder, signed.listing.identifier)
        old = _read(path) if path.exists() else None
        new = renewed(old, url, signed, now)
        _keep(_message(folder, new.identifier, new.message), message)
        _keep(path, json.dumps(asdict(new), indent=1).encode() + b"\n")
        for other in folder.glob(f"{path.stem}-*.smime"):
            if other != _message(folder, new.identifier, new.message):
                other.unlink(missing_ok=True)
    return new


def renewed(old: Optional[Subscription], url: str, signed: SignedList, now: float) -> Subscription:
    """What is known after a verified list came, ``old`` being what was known. Raises EndorsementRefused."""
    listing = signed.listing
    named = tuple(sorted(listing.digests))
    name = f"the list {listing.title or listing.identifier}"
    gone = {digest: f"{name}, version {listing.version}, withdrew it" for digest in listing.withdrawn}
    if old:
        _same_endorser(old, signed)
        _not_older(old, signed)
        for digest in (*old.images, *old.withdrawn):
            if digest not in listing.digests:
                gone.setdefault(digest, f"{name}, version {listing.version}, no longer has it")
        gone.update((digest, why) for digest, why in old.withdrawn.items() if digest in gone)
    return Subscription(url, listing.identifier, signed.endorser, listing.version, listing.created, signed.expires,
                        signed.sha256, listing.title, named, gone, old.names if old else {}, now)


def note(folder: Path, one: Subscription, *, trouble: str = "", now: float = 0.0,
         names: Optional[dict[str, str]] = None) -> None:
    """Remember why a refresh failed, or what the images are called in the store. Raises OSError."""
    with _locked(folder):
        path = _state(folder, one.identifier)
        if path.exists():
            known = _read(path)
            known = replace(known, trouble=trouble[:1000], checked=now or known.checked,
                            names=known.names if names is None else names)
            _keep(path, json.dumps(asdict(known), indent=1).encode() + b"\n")


def forget(folder: Path, one: Subscription) -> None:
    """Follow a list no longer. Raises OSError."""
    with _locked(folder):
        path = _state(folder, one.identifier)
        path.unlink(missing_ok=True)
        for other in folder.glob(f"{path.stem}-*.smime"):
            other.unlink(missing_ok=True)


# ---------------------------------------------------------------- what admission asks


def withdrawn(digest: str, folders: Sequence[Path]) -> Optional[str]:
    """Why the image with this digest must not start any longer, None where no list says so, or where another one that
    is followed still has it. Raises EndorsementRefused where a folder's state cannot be read."""
    every = [one for folder in folders for one in listed(folder)]
    if any(digest in one.images and one.expires > time.time() for one in every):
        return None
    return next((f"{one.withdrawn[digest]} ({one.identifier}, signed by {one.endorser.dn})" for one in every
                 if digest in one.withdrawn), None)


def naming(digest: str, folders: Sequence[Path]) -> list[Path]:
    """The signed messages that name an image: what travels with its jobs. Raises as ``withdrawn``."""
    return [message_of(folder, one) for folder in folders for one in listed(folder) if digest in one.images]


def newest(identifier: str, folders: Sequence[Path]) -> Optional[Subscription]:
    """The newest state of a list that is followed in one of the folders. Raises as ``withdrawn``."""
    found = [_read(path) for folder in folders for path in [_state(folder, identifier)] if path.exists()]
    return max(found, key=lambda one: (version_key(one.version), one.created), default=None)


def outdated(signed: SignedList, folders: Sequence[Path]) -> Optional[str]:
    """Why a list that came with a job counts less than the one that is followed here; None where it does not."""
    known = newest(signed.listing.identifier, folders)
    if known is None:
        return None
    try:
        _same_endorser(known, signed)
        _not_older(known, signed)
    except EndorsementRefused as refused:
        return refused.message
    return None


# ---------------------------------------------------------------- details


def _same_endorser(old: Subscription, signed: SignedList) -> None:
    if old.identifier != signed.listing.identifier:
        raise EndorsementRefused(f"the list at {old.url} is another one now: {signed.listing.identifier}, and not "
                                 f"{old.identifier}", _ANSWER)
    if old.endorser != signed.endorser:
        raise EndorsementRefused(
            f"the list {old.identifier} is signed by {signed.endorser.dn} (certified by {signed.endorser.ca}), but was "
            f"followed as {old.endorser.dn}'s (certified by {old.endorser.ca})", _ANSWER)


def _not_older(old: Subscription, signed: SignedList) -> None:
    new = signed.listing
    if signed.sha256 == old.message:
        return
    before, after = version_key(old.version), version_key(new.version)
    if after < before or new.created < old.created:
        raise EndorsementRefused(
            f"the list {old.identifier} came in an older version: {new.version} of {time_text(new.created)}, but "
            f"{old.version} of {time_text(old.created)} is known", "somebody replays it, or an old copy was published")
    if after == before:
        raise EndorsementRefused(f"the list {old.identifier} came in version {new.version} again, with other content",
                                 "a changed list needs a new version (vmjob image sign --add-to counts it up)")


def _stem(identifier: str) -> str:
    return hashlib.sha256(identifier.encode()).hexdigest()[:32]


def _state(folder: Path, identifier: str) -> Path:
    return folder / f"{_stem(identifier)}.json"


def _message(folder: Path, identifier: str, sha256: str) -> Path:
    return folder / f"{_stem(identifier)}-{sha256[:16]}.smime"


def _read(path: Path) -> Subscription:
    try:
        body: dict[str, Any] = json.loads(path.read_text())
        found = Subscription(**{**body, "endorser": Endorser(**body["endorser"]), "images": tuple(body["images"])})
        _check(found)
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as broken:
        raise EndorsementRefused(f"{path}: what is known of an image list cannot be read: {broken}",
                                 "remove the file, and subscribe to that list again") from broken


def _check(one: Subscription) -> None:
    """It decides what may start, so each value is of its kind. Raises ValueError, TypeError."""
    words = (one.url, one.identifier, one.endorser.dn, one.endorser.ca, one.version, one.message, one.title,
             one.trouble, *one.images, *one.withdrawn.values(), *one.names.values())
    times = (one.created, one.expires, one.checked)
    if not all(isinstance(word, str) for word in words) or not all(abs(time) < 1e12 for time in times):
        raise ValueError("a value of it is of another kind")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    with locks.held(folder / "lock", _PATIENCE):
        yield


def own_withdrawal(manifest: Manifest) -> str:
    """Why a list that the user herself follows no longer has the image; empty: none says so. Raises EndorsementRefused
    where what is known of her lists cannot be read."""
    if not (config.own_store() / "lists").is_dir():
        return ""
    return withdrawn(manifest.digest, [user_folder()]) or ""


def _keep(target: Path, data: bytes) -> None:
    write_whole(target, data, mode=0o644, durable=True)  # jobs of all users read a site's
