"""What went wrong at sites of late, so that ``vmjob submit --to any`` and ``vmjob sites --for`` push them back: one
small file among the user's images. It is a convenience: where it cannot be read or written nothing is remembered.

A failure of a submission is forgotten with the next submission that works there, a failure of a job by the site's fault
with a job that ended well later; all of them after sites.matching.FORGOTTEN seconds.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmjob.core import config, locks
from vmjob.core.errors import VmjobError
from vmjob.core.files import write_whole
from vmjob.core.pool_errors import PoolError, PoolFull, PoolRefused, PoolUnreachable, TransferFailed

log = logging.getLogger("vmjob.sites")

_SITES_FAULT = (PoolUnreachable, PoolRefused, PoolFull, TransferFailed)
_EACH, _TEXT = 20, 300  # failures kept of a place, and characters of each
_PLACES = 200
_PATIENCE = 5.0  # seconds; who writes has the lock for an instant


@dataclass(frozen=True)
class Ended:
    """A job that ended at a site. ``kind``: of its failure, where that is the site's; empty: the site did its part.
    ``time``: seconds since 1970."""

    job: str
    time: float
    kind: str = ""
    message: str = ""


def path() -> Path:
    return config.store_dir() / "sites-memory.json"


def recall() -> dict[str, list[Mishap]]:
    """Failures that are not forgotten yet, by the URL of the target."""
    return {url: [Mishap(str(one["kind"]), str(one["message"]), float(one["time"])) for one in entry["failures"]]
            for url, entry in _fresh(_read(), time.time()).items() if entry["failures"]}


@contextmanager
def noting(url: str) -> Iterator[None]:
    """What becomes of the submission inside is remembered of ``url``."""
    try:
        yield
    except PoolError as failure:
        if isinstance(failure, _SITES_FAULT) or type(failure) is PoolError:
            note(url, failure)
        raise
    _change(lambda places: _worked(places, url))


def forget() -> int:
    """All of it; how many failures that were. Raises OSError."""
    known = sum(map(len, recall().values()))
    path().unlink(missing_ok=True)
    return known


def note(url: str, failure: VmjobError) -> None:
    """A submission to ``url`` failed."""
    now = time.time()
    _change(lambda places: _add(places, url, {"kind": failure.kind, "message": failure.message[:_TEXT], "time": now,
                                              "job": ""}))


def learn(url: str, ended: Iterable[Ended]) -> None:
    """How jobs at ``url`` ended; those known already are not counted twice. Writes only what is new."""
    oldest = time.time() - FORGOTTEN
    news = sorted((one for one in ended if one.time > oldest), key=lambda one: one.time)
    if news:
        _change(lambda places: any([_take(places, url, one) for one in news]))


def _take(places: dict[str, Any], url: str, one: Ended) -> bool:
    entry = places.get(url, {"good": 0, "failures": []})
    if one.kind:
        known = one.time <= entry["good"] or any(each["job"] == one.job for each in entry["failures"])
        return not known and _add(places, url, {"kind": one.kind, "message": one.message[:_TEXT], "time": one.time,
                                                "job": one.job})
    left = [each for each in entry["failures"] if each["time"] > one.time]
    if left == entry["failures"]:
        return False
    # what was cleared must not come back when its job's ad is read again
    places[url] = {"good": one.time, "failures": left}
    return True


def _worked(places: dict[str, Any], url: str) -> bool:
    entry = places.get(url, {"good": 0, "failures": []})
    left = [each for each in entry["failures"] if each["job"]]
    if left == entry["failures"]:
        return False
    places[url] = {**entry, "failures": left}
    return True


def _add(places: dict[str, Any], url: str, failure: dict[str, Any]) -> bool:
    entry = places.get(url, {"good": 0, "failures": []})
    places[url] = {**entry, "failures": [*entry["failures"], failure][-_EACH:]}
    return True


# ---------------------------------------------------------------- the file


def _change(what: Callable[[dict[str, Any]], bool]) -> None:
    """``what`` changes the places and says whether it did. Mostly it does not, and then nothing is written."""
    if not what(_fresh(_read(), time.time())):
        return
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(file.with_suffix(".lock"), _PATIENCE):
            places = _fresh(_read(), time.time())
            if what(places):
                write_whole(file, json.dumps({"schema": 1, "places": places}, indent=1))
    except OSError as refused:
        log.info("%s: failures of sites are not remembered: %s", file, refused.strerror)


def _read() -> dict[str, Any]:
    """By URL, as they are in the file; nothing where it is none of ours."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        found = json.loads(path().read_text(encoding="utf-8"))["places"]
        for entry in found.values():
            entry["good"] = _number(entry["good"])
            for one in entry["failures"]:
                one["kind"], one["message"], one["job"]
                one["time"] = _number(one["time"])
        return dict(found)
    return {}


def _number(value: Any) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    raise TypeError


def _fresh(places: dict[str, Any], now: float) -> dict[str, Any]:
    """Without what is too old; a clock that was set back must not keep anything for ever."""
    found = {}
    for url, entry in places.items():
        failures = [one for one in entry["failures"] if abs(now - one["time"]) < FORGOTTEN]
        if failures or abs(now - entry["good"]) < FORGOTTEN:
            found[url] = {"good": entry["good"], "failures": failures}
    newest = sorted(found, key=lambda url: max([found[url]["good"], *(one["time"] for one in found[url]["failures"])]))
    return {url: found[url] for url in newest[-_PLACES:]}


@dataclass(frozen=True)
class Mishap:
    """A failure that is remembered of a place. ``time``: seconds since 1970."""

    kind: str
    message: str
    time: float


FORGOTTEN = 6 * 3600.0
