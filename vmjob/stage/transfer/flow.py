"""Bytes of one transfer: read ahead in a thread, watched for standing still or dripping, slowed down to a rate."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Optional, Protocol, Union

from vmjob.core import interrupt
from vmjob.core.errors import VmjobError
from vmjob.core.escapes import shown
from vmjob.core.units import format_size
from vmjob.stage.transfer.patience import PATIENCE as PATIENCE
from vmjob.stage.transfer.patience import Patience as Patience

PIECE = 2 * 2**20
_SOON = 0.25  # seconds after which a piece goes on, however small it is
_AHEAD = 2  # pieces
_TICK = 0.2  # seconds between two looks at whether the run is to end
_END = 1.0  # seconds for a reader to clean up; one that hangs is left behind


class Failed(Exception):
    """A transfer did not work; the text says why, for people. ``final``: no use in trying this source again for this
    file; ``broken``: nor for others; ``after``: seconds that it asks to be left alone; ``left``: it works, but slowly;
    ``changed``: what it has now is not what it had before; ``denied``: it wants to know who we are, or we who it is."""

    def __init__(self, why: str, *, final: bool = False, broken: bool = False, after: float = 0, left: bool = False,
                 changed: bool = False, denied: bool = False) -> None:
        super().__init__(shown(why))
        self.final = final or broken or changed
        self.broken, self.after, self.left, self.changed, self.denied = broken, after, left, changed, denied


class Late(Exception):
    """The deadline is over."""


class Transfer(Protocol):
    """What a source gives. ``read`` and ``close`` are called from one thread, ``stop`` from another.
    ``behind``: so many bytes come before those that were asked for; known when ``read`` has returned once."""

    behind: int

    def read(self, amount: int) -> bytes:
        """Bytes as they come, at most ``amount``; none at the end. Blocks. Raises Failed, OSError."""

    def moved(self) -> int:
        """Bytes that have come and cannot be read yet: they show that it goes on. From any thread."""

    def stop(self) -> None:
        """Let a ``read`` that blocks come to an end. Never raises."""

    def close(self) -> None:
        """Give back whatever is held. Never raises."""


class Clock:
    """The time that is left of a deadline, of which only what was spent in fetching is taken."""

    def __init__(self, seconds: float) -> None:
        self.seconds = self._left = seconds
        self._since: Optional[float] = None

    def __enter__(self) -> Clock:
        self._since = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        self._left, self._since = self.left, None

    @property
    def left(self) -> float:
        return self._left - (time.monotonic() - self._since if self._since is not None else 0)

    def sleep(self, seconds: float) -> None:
        """At most until the deadline."""
        interrupt.sleep(max(0.0, min(seconds, self.left)))


class Throttle:
    """At most ``rate`` bytes a second, evenly: what was not used is not saved up. None: no limit."""

    def __init__(self, rate: Optional[int], clock: Clock) -> None:
        self.rate, self._clock, self._due = rate, clock, 0.0

    @property
    def piece(self) -> int:
        """Bytes that are handed on at once: a quarter of a second's."""
        return PIECE if self.rate is None else max(16 * 2**10, min(PIECE, self.rate // 4))

    def passed(self, amount: int) -> None:
        """``amount`` bytes went by: wait until the next may."""
        if self.rate is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now) + amount / self.rate
        self._clock.sleep(self._due - now)


class Watch:
    """Judges a transfer by the time that was spent waiting for it."""

    def __init__(self, patience: Patience, need: float = 0) -> None:
        """``need``: bytes a second below which another source would do better; 0 where there is none."""
        self.patience, self.need = patience, need
        self._idle = self._waited = 0.0
        self._seen = self._from = 0

    def waited(self, seconds: float, arrived: int) -> None:
        """``seconds`` more were waited, ``arrived`` bytes are here in all. Raises Failed."""
        # a job that was suspended finds an hour gone that nobody waited
        seconds = min(seconds, 4 * self.patience.tick)
        self._idle = self._idle + seconds if arrived == self._seen else 0.0
        self._waited, self._seen = self._waited + seconds, arrived
        if self._idle >= self.patience.stall:
            raise Failed(f"no byte came for {self.patience.stall:.0f} s")
        if self._waited >= self.patience.window:
            speed = (arrived - self._from) / self._waited
            if speed < self.patience.floor:
                raise Failed(f"only {format_size(speed)}/s came")
            if speed < self.need:
                raise Failed(f"{format_size(speed)}/s is too slow, and there are others", left=True)
            self._waited, self._from = 0.0, arrived


class Flow:
    """One transfer, read ahead by a thread of its own. ``speed``: bytes a second of the time spent reading."""

    def __init__(self, transfer: Transfer, piece: int = PIECE) -> None:
        self._transfer, self._piece = transfer, piece
        self._queue: queue.Queue[Union[bytes, BaseException]] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._failure: Optional[Exception] = None
        self.arrived, self._reading = 0, 0.0

    @property
    def speed(self) -> float:
        return self.arrived / self._reading if self._reading else 0.0

    def pieces(self, watch: Watch, clock: Clock) -> Iterator[bytes]:
        """Raises Failed (also for what the transfer raised), VmjobError, Late at the deadline."""
        # a daemon: a file system that hangs holds the thread, not the job
        reader = threading.Thread(target=self._read_ahead, name="vmjob-stage", daemon=True)
        reader.start()
        try:
            while True:
                try:
                    piece = self._next(watch, clock)
                except Failed:
                    self._transfer.stop()
                    yield from self._rest()
                    raise
                if isinstance(piece, (Failed, VmjobError)):
                    raise piece
                if isinstance(piece, BaseException):
                    raise Failed(explain(piece)) from piece
                if not piece:
                    return
                yield piece
        finally:
            self._stopped.set()
            self._transfer.stop()
            with suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
            reader.join(_END)

    def _rest(self) -> Iterator[bytes]:
        """What had come when the transfer was stopped."""
        with suppress(queue.Empty):
            while isinstance(piece := self._queue.get(timeout=_END), bytes) and piece:
                yield piece

    def _next(self, watch: Watch, clock: Clock) -> Union[bytes, BaseException]:
        while clock.left > 0:
            begin = time.monotonic()
            piece: Union[bytes, BaseException, None] = None
            with suppress(queue.Empty):
                piece = self._queue.get(timeout=max(0.0, min(_TICK, watch.patience.tick, clock.left)))
            interrupt.check()
            if piece is not None:
                return piece
            watch.waited(time.monotonic() - begin, self.arrived + self._transfer.moved())
        raise Late

    def _read_ahead(self) -> None:
        try:
            while not self._stopped.is_set():
                if self._failure:
                    raise self._failure
                piece = self._gather()
                self._put(piece)
                if not piece:
                    return
        except BaseException as failure:  # the consumer raises it
            self._put(failure)
        finally:
            self._transfer.close()

    def _gather(self) -> bytes:
        parts: list[bytes] = []
        size, begin = 0, time.monotonic()
        while size < self._piece and not self._stopped.is_set():
            before = time.monotonic()
            try:
                data = self._transfer.read(self._piece - size)
            except Exception as failure:
                if not parts:
                    raise
                self._failure = failure  # what came before it is good
                break
            self._reading += time.monotonic() - before
            if not data:
                break
            self.arrived += len(data)
            if drop := min(self._transfer.behind, len(data)):
                self._transfer.behind -= drop
                data = data[drop:]
            if data:
                parts.append(data)
                size += len(data)
            if parts and time.monotonic() - begin > _SOON:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _put(self, piece: Union[bytes, BaseException]) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(piece, timeout=0.2)
                return


def watched(call: Callable[[], None], clock: Clock, stop: Callable[[], None]) -> None:
    """Run ``call`` in a thread of its own until the deadline, when ``stop`` ends it; also when a signal interrupts us.
    One that does not end is left behind. Raises Late, or what ``call`` raised."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as failure:
            failures.append(failure)

    worker = threading.Thread(target=work, name="vmjob-send", daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(max(0.0, min(_TICK, clock.left)))
            interrupt.check()
            if worker.is_alive() and clock.left <= 0:
                raise Late
    finally:
        if worker.is_alive():
            stop()
            worker.join(_END)
    if failures:
        raise failures[0]


def explain(failure: BaseException) -> str:
    """What was wrong, from the innermost cause that says something; never with an address, which may hold a secret."""
    seen, text, said = 0, "", ""
    cause: Optional[BaseException] = failure
    while cause is not None and seen < 12:
        if isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        said = str(cause) or said
        inner = next((a for a in cause.args if isinstance(a, BaseException)), None)
        reason = getattr(cause, "reason", None)
        cause = inner or (reason if isinstance(reason, BaseException) else None) or cause.__cause__ or cause.__context__
        seen += 1
    return text or re.sub(r"\S*(?:://|[?@=/])\S*", "…", said)[:200] or type(failure).__name__
