"""HEPiX image lists: the JSON that an endorser signs, as typed, frozen values.

A list of anybody's must be readable (vmcaster's, those of the EGI AppDB, with their ad: keys), so it is checked for
what is used here and nothing else. Of 100,000 images each is looked at once, quickly; the rest of an entry is read when
it is asked for. The keys of this project's own, beside those of HEPiX and EGI:

``vmjob:manifest``   of an image: its whole manifest, with sources and digest, so that the list is the job's input
``vmjob:test``       of an image: the outcome of its functionality test (``passed``, ``time``, …)
``vmjob:withdrawn``  of the list: digests of images that must not start any longer
"""

from __future__ import annotations

import datetime
import gc
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from vmjob.endorsement import Endorser
from vmjob.errors import EndorsementRefused, VmjobError
from vmjob.manifests import manifest_from_dict
from vmjob.model import Manifest

MANIFEST, TEST, WITHDRAWN = "vmjob:manifest", "vmjob:test", "vmjob:withdrawn"
MOST_IMAGES = 1_000_000
_LONGEST = 1000  # characters of a word that we use
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?"
                   r"(Z|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?)?\Z", re.ASCII)
_LAST = 253402300799  # the end of the year 9999, behind which no time can be written
# a host, and who asks it: nothing in which two programs could see two hosts; the same in manifest.schema.json
_HOST = r"""[!"\$-.0->A-[\]-~]+(?:@[!"\$-.0->A-[\]-~]+)?"""
_URI = re.compile(rf"(?:(?:https?|roots?|davs?|osdf|pelican)://{_HOST}(?:/[!-~]*)?|osdf:///[!-~]+|"
                  r"condor:[a-z][!-~]*)\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
# Python itself refuses to spend minutes on a number of a million digits, in releases since 2022
_LIMITED = hasattr(sys, "get_int_max_str_digits")
_ASK = "tell the endorser: the list does not follow HEPiX' format"


@dataclass(frozen=True)
class ListedImage:
    """One image of a list. ``sha512`` and ``size`` (bytes) are of the file at ``uri``, its disk; empty and 0 where the
    list does not tell. ``expires``: of the image alone, in seconds since 1970. ``manifest``: None in lists of others.
    ``tested``: when its functionality test passed, 0.0 where the list tells none."""

    identifier: str
    title: str
    version: str
    uri: str
    size: int
    sha512: str
    expires: Optional[float] = None
    group: str = ""
    arch: str = ""
    manifest: Optional[Manifest] = None
    tested: float = 0.0


@dataclass(frozen=True)
class ImageList:
    """A list as its text has it, signed or not. Times in seconds since 1970. ``digests``: the place in ``entries`` of
    each image with a manifest, by its digest."""

    identifier: str
    version: str
    created: float
    expires: float
    endorser: Endorser
    title: str = ""
    description: str = ""
    uri: str = ""
    withdrawn: tuple[str, ...] = ()
    entries: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    digests: Mapping[str, int] = field(default_factory=dict, repr=False)
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def image(self, place: int) -> ListedImage:
        """Raises EndorsementRefused where the entry cannot be used, naming the key."""
        return _image(self.entries[place], f"{self.identifier}: hv:images.{place}")

    def by_digest(self, digest: str) -> Optional[ListedImage]:
        """The image with this Manifest.digest. Raises EndorsementRefused."""
        place = self.digests.get(digest)
        return None if place is None else self.image(place)

    def by_sha512(self, sha512: str) -> Optional[ListedImage]:
        """The image whose file has this digest. Raises EndorsementRefused."""
        wanted = sha512.lower()
        for place, entry in enumerate(self.entries):
            if str(entry.get("sl:checksum:sha512", "")).lower() == wanted:
                return self.image(place)
        return None


def parse(text: bytes) -> ImageList:
    """The list in a text, distrusted. Raises EndorsementRefused naming the key."""
    body = _json(text).get("hv:imagelist")
    if not isinstance(body, dict):
        raise EndorsementRefused("hv:imagelist: the text is no image list", _ASK)
    entries, digests = _entries(body.get("hv:images", []))
    x509 = _mapping(_mapping(body.get("hv:endorser"), "hv:endorser").get("hv:x509"), "hv:endorser.hv:x509")
    withdrawn = body.get(WITHDRAWN, [])
    if not isinstance(withdrawn, list) or not all(isinstance(one, str) and _DIGEST.match(one) for one in withdrawn):
        raise EndorsementRefused(f"{WITHDRAWN}: expected a list of digests (sha256:…)", _ASK)
    return ImageList(
        identifier=_word(body, "dc:identifier"), version=_word(body, "hv:version"),
        created=moment(_word(body, "dc:date:created"), "dc:date:created"),
        expires=moment(_word(body, "dc:date:expires"), "dc:date:expires"),
        endorser=Endorser(_word(x509, "hv:dn", ""), _word(x509, "hv:ca", "")), title=_word(body, "dc:title", ""),
        description=_word(body, "dc:description", ""), uri=_word(body, "hv:uri", ""),
        withdrawn=tuple(withdrawn), entries=entries, digests=digests, document=body)


def render(document: Mapping[str, Any]) -> bytes:
    """The text that is signed: as vmcaster writes it, but an image a line, or a large list would double."""
    head = {key: value for key, value in document.items() if key != "hv:images"}
    images = ",\n".join(json.dumps(one, sort_keys=True, separators=(",", ":")) for one in document.get("hv:images", ()))
    text = json.dumps({"hv:imagelist": {**head, "hv:images": []}}, indent=4, sort_keys=True)
    # no string in JSON can hold this: its quotes would be escaped
    return text.replace('"hv:images": []', f'"hv:images": [\n{images}\n]', 1).encode() + b"\n"


def moment(text: str, where: str) -> float:
    """Seconds since 1970 of 2026-03-01T12:00:00Z, with another offset, or of a day (its beginning)."""
    found = _TIME.match(text)
    try:
        if not found:
            raise ValueError
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
        when = datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.timezone.utc)
        zone = found.group(7) or "Z"
        shift = 0 if zone == "Z" else int(zone[:3]) * 3600 + int(zone[0] + zone[-2:]) * 60
        seconds = when.timestamp() - shift
        if not 0 <= seconds <= _LAST:
            raise ValueError
        return seconds
    except (ValueError, OverflowError) as wrong:
        raise EndorsementRefused(f"{where}: {text[:40]!r} is no time", "written as 2026-03-01T12:00:00Z") from wrong


def time_text(seconds: float) -> str:
    """As HEPiX' lists have it."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """What versions are ordered by, as vmcatcher does: numbers as numbers, after words; longer is later."""
    parts = re.findall(r"[0-9]{1,300}|[^0-9._+-]+", version[:_LONGEST])
    return tuple((1, int(part), "") if part[0] in "0123456789" else (0, 0, part) for part in parts)


def is_digest(text: str) -> bool:
    """Whether it is a whole digest of a manifest."""
    return bool(_DIGEST.match(text))


def file_path(uri: str) -> bool:
    """Whether an address of a list names a file of whoever reads it (or is none at all)."""
    return not _URI.match(uri) or ("/.." in uri and ".." in re.split("[/?#]", uri))


# ---------------------------------------------------------------- reading


def _json(text: bytes) -> dict[str, Any]:
    if text[:13].lower() == b"content-type:":  # signed with openssl's -text: a head that is part of what was signed
        text = text.partition(b"\r\n\r\n")[2]
    collecting = gc.isenabled()
    gc.disable()  # two thirds of the time for a large list, in which there are no cycles
    try:
        found = json.loads(text, parse_int=None if _LIMITED else _number, parse_constant=_number)
    except (ValueError, RecursionError) as broken:
        why = "lists within lists without end" if isinstance(broken, RecursionError) else str(broken)
        raise EndorsementRefused(f"the text is no JSON: {why}", _ASK) from broken
    finally:
        if collecting:
            gc.enable()
    return _mapping(found, "the text")


def _number(digits: str) -> int:
    if len(digits) > 18 or not re.match(r"-?[0-9]+\Z", digits):
        raise ValueError(f"{digits[:20]} is no number that a list needs")
    return int(digits)


def _entries(images: Any) -> tuple[tuple[Mapping[str, Any], ...], dict[str, int]]:
    """The images, each looked at: its kind, its name, its address, the digest it states."""
    if not isinstance(images, list) or len(images) > MOST_IMAGES:
        raise EndorsementRefused(f"hv:images: expected a list of at most {MOST_IMAGES} images", _ASK)
    entries, digests, names = [], {}, set()
    for place, outer in enumerate(images):
        entry = outer.get("hv:image") if isinstance(outer, dict) else None
        name = entry.get("dc:identifier") if isinstance(entry, dict) else None
        if not entry or not isinstance(name, str) or not name:
            raise EndorsementRefused(f"hv:images.{place}: expected an hv:image with a dc:identifier", _ASK)
        if name in names:
            raise EndorsementRefused(f"hv:images.{place}: two images have the identifier {name[:80]}", _ASK)
        names.add(name)
        entries.append(entry)
        _address(entry.get("hv:uri") or "", place)
        if MANIFEST in entry:
            digest = _stated(entry[MANIFEST], place)
            if digest in digests:
                raise EndorsementRefused(f"hv:images.{place}: two images have the same digest", _ASK)
            digests[digest] = place
    return tuple(entries), digests


def _address(uri: Any, place: int) -> None:
    if not isinstance(uri, str):
        raise EndorsementRefused(f"hv:images.{place}: an address is no text", _ASK)
    if uri and file_path(uri):
        raise EndorsementRefused(f"hv:images.{place}: {uri[:200]!r} names a file path or no address at all",
                                 "a list is read on other machines: an address of its own, such as https://…")


def _stated(manifest: Any, place: int) -> str:
    """The digest that a manifest says to have; its addresses are looked at."""
    digest = manifest.get("digest") if isinstance(manifest, dict) else None
    if not isinstance(digest, str) or not _DIGEST.match(digest):
        raise EndorsementRefused(f"hv:images.{place}: {MANIFEST}: the digest is missing", _ASK)
    sources = manifest.get("sources")
    for uri in sources if isinstance(sources, list) else ():
        _address(uri, place)
    return digest


def _image(entry: Mapping[str, Any], where: str) -> ListedImage:
    size = entry.get("hv:size", 0)
    if not isinstance(size, (int, str)) or not re.match(r"[0-9]{0,18}\Z", str(size)):
        raise EndorsementRefused(f"{where}: hv:size: {str(size)[:40]!r} is no number of bytes", _ASK)
    sha512 = _word(entry, "sl:checksum:sha512", "").lower()
    if sha512 and not re.match(r"[0-9a-f]{128}\Z", sha512):
        raise EndorsementRefused(f"{where}: sl:checksum:sha512 is no SHA-512 digest", _ASK)
    until = _word(entry, "dc:date:expires", "")
    return ListedImage(
        _word(entry, "dc:identifier"), _word(entry, "dc:title", ""), _word(entry, "hv:version", ""),
        _word(entry, "hv:uri", ""), int(size or 0), sha512,
        moment(until, f"{where}: dc:date:expires") if until else None, _word(entry, "ad:group", ""),
        _word(entry, "sl:arch", ""), _manifest(entry, where), _tested(entry, where))


def _manifest(entry: Mapping[str, Any], where: str) -> Optional[Manifest]:
    if MANIFEST not in entry:
        return None
    try:
        return manifest_from_dict(entry[MANIFEST], f"{where}: {MANIFEST}", EndorsementRefused)
    except VmjobError as wrong:  # also a digest that is not the content's
        raise EndorsementRefused(wrong.message, _ASK) from wrong


def _tested(entry: Mapping[str, Any], where: str) -> float:
    test = entry.get(TEST)
    if not isinstance(test, dict) or test.get("passed") is not True:
        return 0.0
    when = test.get("time")
    if isinstance(when, (int, float)) and not isinstance(when, bool) and 0 < when < 1e11:
        return float(when)
    return moment(when, f"{where}: {TEST}: time") if isinstance(when, str) else 0.0


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EndorsementRefused(f"{where}: expected a mapping of keys to values", _ASK)
    return value


def _word(body: Mapping[str, Any], key: str, default: Optional[str] = None) -> str:
    value = body.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        value = str(value)  # hv:version: 1
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or (default is None and not value):
        raise EndorsementRefused(f"{key}: is missing" if value is None or value == "" else f"{key}: is no text", _ASK)
    if len(value) > _LONGEST and default is None:
        raise EndorsementRefused(f"{key}: is longer than {_LONGEST} characters", _ASK)
    return value[:_LONGEST * 10]
