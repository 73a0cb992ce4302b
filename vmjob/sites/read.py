"""All sources asked at the same time, and what they tell put together: each site once."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Optional, Union

from vmjob.ads.site_ad import SiteAd
from vmjob.core import process
from vmjob.core.errors import JobError, VmjobError
from vmjob.core.progress import Reporter
from vmjob.core.site_errors import SitesRefused, SitesUnreachable
from vmjob.core.units import format_duration
from vmjob.sites import cache
from vmjob.sites.answer import ANSWER, Answer, ad_of, few
from vmjob.sites.child import ask
from vmjob.sites.sources import Source

_AT_ONCE = 16  # each is a process
_GRACE = 1.0  # seconds that a source gets on top, to start and to say itself what is wrong
_SKEW = 300  # seconds that a site's clock may be ahead of ours
_ABOUT = ("description", "web", "contact", "country", "latitude", "longitude")
_ERRORS = {kind.__name__: kind for kind in (SitesRefused, SitesUnreachable, JobError)}
Outcome = Union[Answer, VmjobError]


@dataclass(frozen=True)
class Known:
    """A site, and who told of it. ``asked``: when, seconds since 1970. ``stale``: now it does not answer."""

    ad: SiteAd
    source: Source
    asked: float
    stale: bool = False


@dataclass(frozen=True)
class Found:
    """Sites by name. ``troubles``: what became of sources that are down, or lied. ``notes``: what was left out."""

    known: tuple[Known, ...]
    troubles: tuple[VmjobError, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[SiteAd, ...]:
        return tuple(one.ad for one in self.known)


def read(sources: Sequence[Source], reporter: Reporter, *, fresh: bool = False) -> Found:
    """Ask all sources, each within its own deadline; what one told less than a minute ago serves, unless ``fresh``, and
    what it told before, where it is down and that has not expired. Raises SitesUnreachable, or SitesRefused, where no
    source told anything now or before; troubles with some of them are in what is returned."""
    now = time.time()
    at_hand = {} if fresh else {source: one for source in sources if (one := cache.fresh(source, now))}
    outcomes = dict(_ask_all([source for source in sources if source not in at_hand], reporter))
    known, troubles, notes = list[Known](), list[VmjobError](), list[str]()
    for source in sources:
        outcome = at_hand.get(source) or outcomes[source]
        if isinstance(outcome, VmjobError):
            before = cache.last(source)
            more = f"; what it said {_ago(now - before.asked)} ago counts until it expires" if before else ""
            troubles.append(type(outcome)(outcome.message + more, outcome.hint))
            known += [Known(ad, source, before.asked, True) for ad in before.ads] if before else []
            continue
        asked = outcome.asked if isinstance(outcome, cache.Kept) else now
        if not isinstance(outcome, cache.Kept):
            cache.keep(source, outcome, now)
        notes += [f"{source}: {note}" for note in outcome.notes]
        known += [Known(ad, source, asked) for ad in outcome.ads]
    alive, expired = _alive(known, now)
    if troubles and len(troubles) == len(sources) and not alive:
        raise _all(troubles)
    return Found(merged(alive, now), tuple(troubles), (*notes, *expired))


def _all(troubles: list[VmjobError]) -> VmjobError:
    if len(troubles) == 1:
        return troubles[0]
    kind = SitesRefused if all(isinstance(one, SitesRefused) for one in troubles) else SitesUnreachable
    lines = "".join(f"\n  {one.message}" for one in troubles)
    return kind(f"none of {len(troubles)} sources tells of sites:{lines}", troubles[0].hint)


def _alive(known: Sequence[Known], now: float) -> tuple[list[Known], list[str]]:
    """Those that have not expired, and what to say of the others. GLUE 1.3 has no word for a date: where the same
    source says of a site what has expired, what it says without a date is no newer."""
    alive, notes = list[Known](), list[str]()
    old = {(one.source, one.ad.name) for one in known if one.ad.expires and one.ad.expires <= now}
    for one in known:
        if one.ad.expires and one.ad.expires <= now:
            notes.append(f"{one.source}: what it says of {one.ad.name} expired {_ago(now - one.ad.expires)} ago")
        elif not one.ad.expires and one.asked + cache.KEEP < now:
            notes.append(f"{one.source}: what it said of {one.ad.name} is {_ago(now - one.asked)} old")
        elif one.ad.expires or (one.source, one.ad.name) not in old:
            alive.append(one)
    return alive, notes


def merged(known: Sequence[Known], now: float) -> tuple[Known, ...]:
    """Each site once, by name: what was made last counts, and what was made in the future last of all. Compute elements
    that only the others tell of are kept, as each may speak for its own; so is what the last leaves empty. Pure."""
    by_name = dict[str, list[Known]]()
    for one in known:
        by_name.setdefault(one.ad.name, []).append(one)
    found = []
    for same in by_name.values():
        same.sort(key=lambda one: -one.ad.created if one.ad.created <= now + _SKEW else 1)
        best = replace(same[0], ad=_filled([one.ad for one in same]))
        elements = {element.host: element for one in reversed(same) for element in one.ad.elements}
        own = {element.host for element in best.ad.elements}
        more = tuple(element for host, element in elements.items() if host not in own)
        found.append(replace(best, ad=replace(best.ad, elements=best.ad.elements + more)) if more else best)
    return tuple(sorted(found, key=lambda one: one.ad.name))


def _filled(ads: Sequence[SiteAd]) -> SiteAd:
    """The first, with what others say where it says nothing of that: not every format has a word for all."""
    more = {key: next((value for ad in ads if (value := getattr(ad, key))), getattr(ads[0], key)) for key in _ABOUT}
    return replace(ads[0], **more)


def _ago(seconds: float) -> str:
    return format_duration(max(1, round(seconds)) if seconds < 60 else seconds).replace(".00 s", " s")


# ---------------------------------------------------------------- processes


@dataclass
class _Child:
    source: Source
    process: Any
    output: IO[bytes]
    until: float


def _ask_all(sources: Sequence[Source], reporter: Reporter) -> Iterator[tuple[Source, Outcome]]:
    """Files are read here; every other source has a child."""
    waiting = [source for source in reversed(sources) if source.kind != "file"]
    for source in sources:
        if source.kind == "file":
            try:
                yield source, ask(source)
            except VmjobError as trouble:
                yield source, trouble
    children = list[_Child]()
    with ExitStack() as stack, reporter.bar("ask for sites", len(waiting) or None, "source") as bar:
        while waiting or children:
            while waiting and len(children) < _AT_ONCE:
                children.append(stack.enter_context(_child(waiting.pop())))
            for child in list(children):
                outcome = _outcome(child)
                if outcome is not None:
                    children.remove(child)
                    bar.advance(1)
                    yield child.source, outcome
            time.sleep(0.02)


@contextmanager
def _child(source: Source) -> Iterator[_Child]:
    """Asks it; is gone, whatever it waits for, when this ends."""
    # it finds vmjob where we did; -m puts the current folder before that, so it is one where nobody leaves modules
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    inward, ours = os.pipe()
    with tempfile.TemporaryFile() as output:
        try:
            os.write(ours, json.dumps(asdict(source)).encode())  # an address may hold a secret
            started = process.spawn([sys.executable, "-m", "vmjob.sites.child", str(inward)], cwd=Path("/"), env=env,
                                    pass_fds=[inward], stdout=output)
        finally:
            os.close(inward)
            os.close(ours)
        try:
            yield _Child(source, started, output, time.monotonic() + source.timeout + _GRACE)
        finally:
            if started.poll() is None:
                started.kill()
            started.wait()


def _outcome(child: _Child) -> Optional[Outcome]:
    """None while it works."""
    status, source = child.process.poll(), child.source
    if status is None and time.monotonic() < child.until:
        return None
    if status is None:
        child.process.kill()
        return SitesUnreachable(f"{source}: no whole answer within {source.timeout} s",
                                "is it up, and reachable from here? 'timeout:' in sites.yaml gives it more time")
    child.output.seek(0)
    try:
        body = json.loads(child.output.read(ANSWER))
    except (ValueError, RecursionError):
        return SitesRefused(f"{source}: its answer cannot be read (the reader ended with status {status})",
                            "tell those who run it")
    if "failure" in body:
        failure = body["failure"]
        kind: type[VmjobError] = _ERRORS.get(failure["kind"], VmjobError)
        return kind(failure["message"], failure["hint"])
    return answer_of(body)


def answer_of(body: dict[str, Any]) -> Answer:
    """What a child wrote, or was kept; ads that cannot be are left out with a note."""
    ads, notes = list[SiteAd](), list(body["notes"])
    for one in body["ads"]:
        try:
            ads.append(ad_of(one, str(one.get("name"))[:100]))
        except SitesRefused as wrong:
            notes.append(f"left out: {wrong.message[:300]}")
    return Answer(tuple(ads), few(tuple(notes)))
