"""Who vouches for an image: signed image lists, checked as a whole before anything in them counts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from vmjob.core.errors import EndorsementRefused
from vmjob.core.model import Manifest
from vmjob.image.trust import imagelist, smime
from vmjob.image.trust.endorsement import Endorsement, Endorser
from vmjob.image.trust.imagelist import ImageList, ListedImage

_SKEW = 300  # seconds that two clocks may differ


@dataclass(frozen=True)
class SignedList:
    """A list whose signature, chain, endorser and dates hold. ``certificate_expires``: of the endorser's certificate;
    ``sha256``: of the message."""

    listing: ImageList
    certificate_expires: float
    sha256: str

    @property
    def endorser(self) -> Endorser:
        return self.listing.endorser

    @property
    def expires(self) -> float:
        """The sooner of list and certificate, in seconds since 1970."""
        return min(self.listing.expires, self.certificate_expires)

    def endorsement(self, image: ListedImage) -> Endorsement:
        """What it says of one of its images that has a manifest."""
        assert image.manifest
        until = self.expires if image.expires is None else min(self.expires, image.expires)
        return Endorsement(self.listing.identifier, self.listing.version, self.endorser, image.identifier,
                           image.title, image.manifest.digest, until, image.group, image.tested)


def verify_list(message: Union[Path, bytes], ca_dir: Path, now: float, *, expired: bool = False) -> SignedList:
    """The list in a signed message, which is valid at ``now`` (seconds since 1970) and signed by exactly the endorser
    it names, whose certificate chain ends in ``ca_dir``. ``expired``: one that has expired will do.

    Raises EndorsementRefused with what is wrong (the file is named), or CommandMissing.
    """
    where = f"{message}: " if isinstance(message, Path) else ""
    data = read_message(message) if isinstance(message, Path) else message
    try:
        signed = smime.verify(data, ca_dir, now)
        listing = imagelist.parse(signed.text)
        _is_endorser(listing, Endorser(signed.signer.subject, signed.signer.issuer))
        _is_valid(listing, now, expired)
    except EndorsementRefused as refused:
        raise EndorsementRefused(where + refused.message, refused.hint) from refused
    return SignedList(listing, signed.signer.expires, hashlib.sha256(data).hexdigest())


def read_message(path: Path) -> bytes:
    """The bytes of a message. Raises EndorsementRefused naming the file."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > smime.LARGEST:
                raise EndorsementRefused(f"{path}: larger than {smime.LARGEST // 2**20} MiB", "it is no image list")
            return file.read()
    except OSError as unreadable:
        raise EndorsementRefused(f"{path}: cannot be read: {unreadable.strerror}", "check the path") from unreadable


def endorsements(manifest: Manifest, messages: Sequence[Path], ca_dir: Path,
                 now: float) -> tuple[list[Endorsement], list[str]]:
    """Those lists that vouch for exactly this image, by its digest, and why the others do not. Raises nothing but
    CommandMissing: a list that is refused is a reason."""
    found, reasons = [], []
    for path in messages:
        try:
            signed = verify_list(path, ca_dir, now)
            image = vouched(signed, manifest.digest, now)
        except EndorsementRefused as refused:
            reasons.append(refused.message)
            continue
        if image is None:
            reasons.append(f"{path}: the list {signed.listing.identifier} (version {signed.listing.version}) "
                           f"does not name {manifest.name} ({manifest.digest[:19]}…)")
        else:
            found.append(signed.endorsement(image))
    return found, reasons


def vouched(signed: SignedList, digest: str, now: float) -> Optional[ListedImage]:
    """The image with this digest, None where the list does not name it. Raises EndorsementRefused where it was
    withdrawn or has expired, or where its entry is not to be trusted."""
    name = f"the list {signed.listing.identifier} (version {signed.listing.version})"
    if digest in signed.listing.withdrawn:
        raise EndorsementRefused(f"{name} has withdrawn {digest[:19]}…", "use the endorser's newer image")
    image = signed.listing.by_digest(digest)
    if image and image.expires is not None and image.expires <= now:
        raise EndorsementRefused(f"{name}: {image.title or image.identifier} expired on "
                                 f"{imagelist.time_text(image.expires)}", "use the endorser's newer image")
    return image


def _is_endorser(listing: ImageList, signer: Endorser) -> None:
    if listing.endorser != signer:
        raise EndorsementRefused(
            f"the list names {_tell(listing.endorser)} as its endorser, but {_tell(signer)} signed it",
            "a list counts if the endorser named in it signed it: ask her")


def _is_valid(listing: ImageList, now: float, expired: bool) -> None:
    if listing.created > now + _SKEW:
        raise EndorsementRefused(f"the list was made in the future, on {imagelist.time_text(listing.created)}",
                                 "check the clock here (date -u)")
    if listing.expires <= now and not expired:
        raise EndorsementRefused(f"the list {listing.identifier} expired on {imagelist.time_text(listing.expires)}",
                                 "fetch the newest: vmjob image subscribe --refresh; or ask the endorser for it")


def _tell(one: Endorser) -> str:
    return f"{one.dn or 'nobody'} (certified by {one.ca or 'nobody'})"


def checked(image: ListedImage, sha512: str, size: int, now: float) -> None:
    """Refuse bytes of a file that are not those of the listed image, or an image that has expired. Raises
    EndorsementRefused."""
    if image.expires is not None and image.expires <= now:
        raise EndorsementRefused(f"{image.title} expired on {imagelist.time_text(image.expires)}",
                                 "use the endorser's newer image")
    if not image.sha512:
        raise EndorsementRefused(f"{image.title}: the list tells no sl:checksum:sha512", "ask the endorser")
    if image.size and image.size != size:
        raise EndorsementRefused(f"{image.title}: the list says {image.size} bytes, the file has {size}",
                                 "fetch the image again")
    if image.sha512 != sha512:
        raise EndorsementRefused(f"{image.title}: the list says sha512 {image.sha512[:16]}…, the file has "
                                 f"{sha512[:16]}…", "fetch the image again")
