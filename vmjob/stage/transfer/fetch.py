"""The bytes of an image's files from the best of its sources, whatever happens to the others.

Which source is asked next: those whose bytes were right before those whose were wrong; of them those with the fewest
failures at this file; of them a shared file system first, then by measured speed (a host not met yet counts as
UNKNOWN bytes a second; for a large file all such are measured by a sample first), then as they are listed; the submit
side's own way last. A source that fails is left for the next one, which goes on at the same byte. One that failed
``tries`` times comes after all others; where there are none it is tried until the deadline.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Optional

from vmjob.core import config
from vmjob.core.errors import ImageCorrupt, ImageOutOfReach, Interrupted, VmjobError
from vmjob.core.model import Fetcher, ImageFile, Manifest
from vmjob.core.units import format_duration, format_size
from vmjob.stage.transfer.attempt import Try
from vmjob.stage.transfer.condor_plugins import Plugins
from vmjob.stage.transfer.flow import Clock, Failed, Flow, Late, Throttle, Watch
from vmjob.stage.transfer.http import CERTIFICATES, Web
from vmjob.stage.transfer.patience import MORE_TIME, PATIENCE, Patience
from vmjob.stage.transfer.sample import Probe
from vmjob.stage.transfer.source import WEB, Place
from vmjob.stage.transfer.speeds import Speeds

log = logging.getLogger("vmjob.stage")

UNKNOWN = 10e6
_TELLING = 4 * 2**20  # bytes; fewer say more of the latency than of the speed


class Changed(ImageCorrupt):
    """The only source that was left has another file now: what came of the old one is of no use, begin again."""


def fetcher(manifest: Manifest, *, carried: Optional[Fetcher] = None, timeout: float, rate: Optional[int] = None,
            note: Callable[[str], None] = lambda _: None, patience: Patience = PATIENCE) -> Optional[Fetcher]:
    """What brings the files of an image, None where nothing can: it has no sources, and nothing is ``carried``.

    ``carried`` is the submit side's own way. ``timeout``: seconds for all files together, of which only the time
    spent in fetching counts; ``rate``: most bytes a second. ``note`` hears of each source that fails. What it returns
    raises ImageOutOfReach when nothing helped, Changed when the caller must begin at 0, and what ``carried`` raises
    where there is nothing else. It starts programs: call it from the main thread.
    """
    if not manifest.sources and not carried:
        return None
    return SourceFetcher(manifest, carried, timeout, rate, note, patience)


class SourceFetcher(Fetcher):
    """See ``fetcher``."""

    def __init__(self, manifest: Manifest, carried: Optional[Fetcher], timeout: float, rate: Optional[int],
                 note: Callable[[str], None], patience: Patience) -> None:
        self._manifest, self._carried, self._note, self._patience = manifest, carried, note, patience
        self._clock = Clock(timeout)
        self._throttle = Throttle(rate, self._clock)
        web, plugins = Web(patience, note), Plugins()
        self._places = [Place(source, web, patience, plugins) for source in manifest.sources]
        self._speeds: Optional[Speeds] = None
        self._told: set[str] = set()
        self._gave: dict[str, list[Place]] = {}  # whole files, by digest
        self._last: dict[str, list[Try]] = {}

    @property
    def tries(self) -> int:
        """Each of the places may have other bytes, and the only one is asked twice, the second time past caches."""
        return max(2, 1 + len(self._places) + bool(self._carried))

    def __call__(self, file: ImageFile, start: int) -> Iterator[bytes]:
        if start == 0:
            for place in self._gave.pop(file.sha256, ()):
                place.wrong += 1  # all of it was here, and is asked for again
                self._note(f"{place.shown}: other bytes than the manifest says")
        givers: list[Place] = []
        with self._clock:
            yield from self._pieces(file, start, givers)
        self._gave[file.sha256] = givers

    def _pieces(self, file: ImageFile, position: int, givers: list[Place]) -> Iterator[bytes]:
        tries = [Try(place, n, strikes=int(place.missed), over=bool(place.broken), why=place.broken)
                 for n, place in enumerate(self._places)]
        if self._carried:
            tries.append(Try(None, len(tries)))
        self._last[file.sha256] = tries
        self._sample(tries, file, position)
        while position < file.size:
            this = self._choose(tries, file)
            begin = position
            try:
                for piece in self._from(this, tries, file, position):
                    if this.place and this.place not in givers:
                        givers.append(this.place)
                    position += len(piece)
                    yield piece
                    self._throttle.passed(len(piece))
                if position < file.size:
                    raise Failed(f"it ended {format_size(file.size - position)} too early", final=True)
            except Failed as failure:
                self._strike(this, failure, position - begin)
            except Late:
                this.why = this.why or "too slow"
                raise self._out_of_reach(tries, file, late=True) from None

    def unreached(self, file: ImageFile) -> list[str]:
        """A line for each place that may have the file, and did not answer; for who got wrong bytes elsewhere."""
        wrong = self._gave.get(file.sha256, [])
        return [f"{t.shown}: {t.why}" for t in self._last.get(file.sha256, ())
                if t.why and not t.over and not t.wrong and t.place not in wrong]

    def wrong(self, file: ImageFile) -> list[str]:
        """The places that had other bytes."""
        return [place.shown for place in self._places if place.wrong or place in self._gave.get(file.sha256, [])]

    # -------------------------------------------------------------- which

    def _choose(self, tries: list[Try], file: ImageFile) -> Try:
        """The next one, when its time has come. Raises ImageOutOfReach, Changed."""
        able = [t for t in tries if not t.over]
        if not able:
            raise self._out_of_reach(tries, file)
        fresh = [t for t in able if t.strikes < self._patience.tries]
        if not fresh:
            self._tell(f"{self._manifest.name}: no source answers; trying on until VMJOB_STAGE_TIMEOUT is over")
        able = fresh or able
        able = [t for t in able if t.wrong == min(t.wrong for t in able)]
        now = time.monotonic()
        ready = [t for t in able if t.after <= now]
        if not ready:
            ready = [min(able, key=lambda t: t.after)]
            if ready[0].after - now >= self._clock.left:
                raise self._out_of_reach(tries, file, late=True)
            self._clock.sleep(ready[0].after - now)
        if self._clock.left <= 0:
            raise self._out_of_reach(tries, file, late=True)
        return min(ready, key=lambda t: (t.strikes, _rank(t), -(self._speed(t) or UNKNOWN), t.number))

    def _speed(self, this: Try) -> Optional[float]:
        if self._speeds is None:
            try:
                self._speeds = Speeds(config.cache_dir() / "speeds.json")
            except OSError:
                self._speeds = Speeds(None)
        return self._speeds.of(this.host) if this.host else None

    def _learn(self, this: Try, speed: float) -> None:
        self._speed(this)
        if self._speeds and this.host:
            self._speeds.learn(this.host, speed)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._note(text)

    def _strike(self, this: Try, failure: Failed, brought: int) -> None:
        if this.place:
            failure = this.place.failed(failure)
        log.info("%s: %s", this.shown, failure)
        self._tell(f"{this.shown}: {failure}")
        this.why = str(failure)
        this.strikes = 1 if brought >= self._patience.worth else this.strikes + 1
        this.over = failure.final
        this.left, this.changed, this.denied = this.left or failure.left, failure.changed, failure.denied
        this.after = time.monotonic() + max(self._patience.rest(this.strikes, self._clock.left), failure.after)

    # -------------------------------------------------------------- how

    def _from(self, this: Try, tries: list[Try], file: ImageFile, start: int) -> Iterator[bytes]:
        """Bytes from one place. Raises Failed, Late."""
        if this.place is None:
            yield from self._by_submit_side(file, start)
            return
        log.info("%s of %s from %s, from byte %d on", file.path, self._manifest.name, this.shown, start)
        flow = Flow(this.place.begin(file, start, self._clock.left), self._throttle.piece)
        try:
            yield from flow.pieces(Watch(self._patience, self._need(this, tries, file.size - start)), self._clock)
        finally:
            if flow.arrived >= _TELLING and self._throttle.rate is None:
                self._learn(this, flow.speed)

    def _need(self, this: Try, tries: list[Try], rest: int) -> float:
        """Bytes a second below which one of the others is worth a try: it would be too late, or another was much
        faster before; 0 where there is no other."""
        others = [t for t in tries if t is not this and not t.over and not t.left and t.strikes <= this.strikes
                  and t.wrong <= this.wrong]
        known = [speed for t in others if (speed := self._speed(t))]
        return max([rest / max(self._clock.left, 1), *(speed / 8 for speed in known)]) if others else 0

    def _by_submit_side(self, file: ImageFile, start: int) -> Iterator[bytes]:
        assert self._carried
        try:
            for piece in self._carried(file, start):
                yield piece
                if self._clock.left <= 0:
                    raise Late
        except Interrupted:
            raise
        except VmjobError as failure:  # it has been patient itself
            if not self._places:
                raise
            raise Failed(failure.message, final=True) from failure

    def _sample(self, tries: list[Try], file: ImageFile, position: int) -> None:
        """Measure hosts that are not known, all at once, where much is to come and there is a choice."""
        web = [t for t in tries if t.place and t.place.scheme in WEB and not t.over]
        unknown = [t for t in web if t.host and self._speed(t) is None]
        near = any(_rank(t) == 0 and not t.over for t in tries)
        if file.size - position < self._patience.large or len(web) < 2 or near or self._throttle.rate:
            return
        probes = []
        for this in {t.host: t for t in reversed(unknown)}.values():
            with suppress(Failed):  # it will say so again when its turn comes
                probes.append(Probe(this, file, position))
        end = time.monotonic() + min(self._patience.probe, self._clock.left)
        for probe in probes:
            probe.thread.join(max(0.0, end - time.monotonic()))
        for probe in probes:
            speed = probe.end()
            log.info("%s: %s", probe.this.shown, f"{format_size(speed)}/s" if speed else "no sample")
            if speed:
                self._learn(probe.this, speed)
            else:
                probe.this.strikes += 1  # it may still do, after the others

    def _out_of_reach(self, tries: list[Try], file: ImageFile, late: bool = False) -> VmjobError:
        what = f"{file.path} of the image {self._manifest.name}"
        lines = "".join(f"\n  {t.shown}: {t.why or 'not tried'}" for t in tries)
        if not late and any(t.changed for t in tries):
            return Changed(f"{what} was changed at its source while it was fetched:{lines}", "another try may do")
        if late:
            long = format_duration(self._clock.seconds)
            return ImageOutOfReach(f"{what} is not here after {long}:{lines}", MORE_TIME)
        hint = CERTIFICATES if any("certificate" in t.why for t in tries) else \
            "see from this node what its sources answer; an image may also travel with the job"
        return ImageOutOfReach(f"{what}: none of its sources gave it:{lines}", hint)


def _rank(this: Try) -> int:
    return 2 if this.place is None else 0 if this.place.scheme == "file" else 1
