"""What a source says of sites: read from a stranger's JSON, written for our own parent process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from vmjob.ads.site_ad import SiteAd, from_json, to_json
from vmjob.core import schema
from vmjob.core.site_errors import SitesRefused

ANSWER = 64 * 2**20  # bytes of JSON
_NOTES = 5


@dataclass(frozen=True)
class Answer:
    """What a source tells; ``notes`` say what of it was left out."""

    ads: tuple[SiteAd, ...]
    notes: tuple[str, ...] = ()


def few(notes: tuple[str, ...]) -> tuple[str, ...]:
    """A source that is bad throughout is told of in a few lines."""
    notes = tuple(dict.fromkeys(notes))
    return notes if len(notes) <= _NOTES + 1 else (*notes[:_NOTES], f"and {len(notes) - _NOTES} more such things")


def ad_of(body: Any, where: str) -> SiteAd:
    """From JSON, whoever wrote it. Raises SitesRefused for what the schema does not take, and for what Python takes as
    JSON though nothing else does: NaN, and halves of characters, which have no UTF-8."""
    try:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as half:
        raise SitesRefused(f"{where}: half a character (a surrogate) is in it", "tell those who run it") from half
    except ValueError as odd:
        raise SitesRefused(f"{where}: a number in it is none, or has no end (NaN, Infinity)",
                           "tell those who run it") from odd
    return from_json(schema.check(body, "site-ad", where, SitesRefused))


def document(answer: Answer) -> dict[str, Any]:
    return {"ads": [to_json(ad) for ad in answer.ads], "notes": list(answer.notes)}
