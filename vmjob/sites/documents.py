"""Site ads as JSON, at an address or in a file: one document of site-ad.schema.json, or a list of them."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from vmjob.ads.site_ad import SiteAd
from vmjob.core.progress import Bar
from vmjob.core.site_errors import SitesRefused, SitesUnreachable
from vmjob.core.units import format_size
from vmjob.sites.answer import Answer, ad_of
from vmjob.sites.sources import Source

LARGEST = 32 * 2**20
_HINT = "vmjob-publish json writes such a document, vmjob schema site-ad describes it"


def ask(source: Source) -> Answer:
    """Raises SitesUnreachable, SitesRefused."""
    return parse(_read(source) if source.kind == "file" else _fetch(source), str(source))


def parse(data: bytes, where: str) -> Answer:
    """The ads in a document; of a list, those that are well. Raises SitesRefused where none is. Pure."""
    try:
        body = json.loads(data.decode())
    except (ValueError, RecursionError) as broken:
        raise SitesRefused(f"{where}: this is no JSON: {_short(broken)}", _HINT) from broken
    entries: list[Any] = body if isinstance(body, list) else [body]
    ads, wrong = list[SiteAd](), list[SitesRefused]()
    for number, one in enumerate(entries):
        at = f"{where}: site {number}" if isinstance(body, list) else where
        try:
            ads.append(ad_of(one, at))
        except SitesRefused as refused:
            wrong.append(refused)
        except RecursionError:
            wrong.append(SitesRefused(f"{at}: lists within lists without end", _HINT))
    if wrong and not ads:
        raise SitesRefused(_short(wrong[0]), wrong[0].hint)
    return Answer(tuple(ads), tuple(f"left out: {_short(one)}" for one in wrong))


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= 500 else f"{text[:500]}…"


def _fetch(source: Source) -> bytes:
    from vmjob.stage.transfer import document
    from vmjob.stage.transfer.flow import Failed

    try:
        return document.fetch(source.place, LARGEST, source.timeout, Bar())
    except document.TooLarge as large:
        raise SitesRefused(f"{source}: {large}", _HINT) from large
    except Failed as failed:
        raise SitesUnreachable(f"{source}: {failed}", "try again later; is the address right?") from failed


def _read(source: Source) -> bytes:
    try:
        opened = os.open(source.place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would wait
        with os.fdopen(opened, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise SitesRefused(f"{source}: this is no file", _HINT)
            data = file.read(LARGEST + 1) or b""
    except OSError as failed:
        raise SitesUnreachable(f"{source}: cannot be read: {failed.strerror}",
                               f"is {source.place} the right path? In sites.yaml it begins at that file's folder"
                               ) from failed
    if len(data) > LARGEST:
        raise SitesRefused(f"{source}: larger than {format_size(LARGEST)}", _HINT)
    return data
