"""What sources said last, a file each in the cache: fresh, it saves asking; later it serves while a source is down."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob.ads.site_ad import SiteAd
from vmjob.core import config
from vmjob.core.files import whole
from vmjob.core.site_errors import SitesRefused
from vmjob.sites.answer import ANSWER, Answer, ad_of, document
from vmjob.sites.sources import Source

log = logging.getLogger("vmjob.sites")

FRESH = 60  # seconds; a BDII takes that long to hear of anything
KEEP = 86400  # seconds, for ads that do not say when they expire


@dataclass(frozen=True)
class Kept:
    """An answer of before. ``asked``: seconds since 1970."""

    ads: tuple[SiteAd, ...]
    notes: tuple[str, ...]
    asked: float


def fresh(source: Source, now: float) -> Optional[Kept]:
    """What it said less than FRESH seconds ago."""
    if source.kind == "file":
        return None
    with suppress(OSError):
        if 0 <= now - _path(source).stat().st_mtime < FRESH:
            return last(source)
    return None


def last(source: Source) -> Optional[Kept]:
    """What it said when it last answered, None where that is not known."""
    if source.kind == "file":
        return None
    try:
        with _path(source).open("rb") as file:
            asked = os.fstat(file.fileno()).st_mtime
            body = json.loads(file.read(ANSWER))
        ads = [ad_of(one, "kept") for one in body["ads"]]
        return Kept(tuple(ads), tuple(map(str, body["notes"])), asked)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SitesRefused) as broken:
        log.info("%s: not used: %s", _path(source), broken)
        return None


def keep(source: Source, answer: Answer, now: float) -> None:
    """For another time; a cache that cannot be written is none."""
    if source.kind == "file":
        return
    path = _path(source)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with whole(path) as spare:
            spare.write_text(json.dumps(document(answer)))
            os.utime(spare, (now, now))
    except OSError as full:
        log.info("%s: not kept: %s", path, full)


def _path(source: Source) -> Path:
    return config.cache_dir() / "sites" / f"{hashlib.sha256(source.url.encode()).hexdigest()[:32]}.json"
