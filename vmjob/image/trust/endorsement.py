"""Who vouches for an image, as typed, frozen values: what a verified image list says of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Endorser:
    """The subject of a certificate and of the authority that issued it, as /DC=org/DC=example/CN=Ada (the slash form
    that grid software writes)."""

    dn: str
    ca: str


@dataclass(frozen=True)
class Endorsement:
    """What one signed list says of one image, by its digest (Manifest.digest). ``list``: dc:identifier of the list;
    ``version``: hv:version of it; ``image``: dc:identifier of the image in it; ``expires``: of list, image and
    certificate the soonest, in seconds since 1970; ``group``: ad:group; ``tested``: when its functionality test passed,
    if the list tells one, in seconds since 1970."""

    list: str
    version: str
    endorser: Endorser
    image: str
    title: str
    digest: str
    expires: float
    group: str = ""
    tested: float = 0.0
