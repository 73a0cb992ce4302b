"""What cuts a run short from outside: the signals of a batch system (or a person), and the end of the walltime.

SIGTERM, SIGINT, SIGHUP: the slot is taken away. SIGTSTP, SIGUSR1: pause; SIGCONT, SIGUSR2: resume.

A handler does nothing but note. While a guest runs, its event loop reads the notes from a pipe (``watch``). In all
other steps of a run the step itself asks, by ``check``, wherever it can be left in order: at each piece of a file, at
each tick of a wait (``sleep``), between two stages. A step that does not ask for Signals.patience seconds stands in a
call of the system's, which the kernel's timer then interrupts. Commands that are no run have a patience of 0: they are
left at once, wherever they are, but for ``shielded`` steps. After ``decide`` nothing is raised any more.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Optional

from vmjob.core.errors import Interrupted, VmjobError, WalltimeOver

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PAUSE = (signal.SIGTSTP, signal.SIGUSR1)
RESUME = (signal.SIGCONT, signal.SIGUSR2)
ALL = (*STOP, *PAUSE, *RESUME)
PATIENCE = 2.0
_TICK = 0.2
_AGAIN = 0.1  # seconds after which the timer looks again, where a step is shielded

_early: list[int] = []  # what came before anybody listened (hear_early)
_current: Optional[Signals] = None


class Signals:
    """Context manager: installs the handlers, and puts the old ones back. Main thread only; one inside another is
    fine. ``grace``: seconds that a step may still take after the first signal."""

    def __init__(self, patience: float = 0.0) -> None:
        self.patience, self.grace = patience, 0.0
        self._deadline: Optional[float] = None
        self._late: Optional[float] = None  # seconds that a step after the decision has from a stop on
        self.stops: list[int] = []
        self.one_run = False  # what an inner one decides is decided for this one too
        self.hurry: Optional[Callable[[], None]] = None  # called at a stop after the decision; notes and returns
        self._since = 0.0
        self._notes: list[int] = []  # of pause and resume; while a guest runs of all
        self._shields = 0
        self._raised = self._decided = False
        self._ends: Optional[tuple[int, int]] = None
        self._before: dict[int, Any] = {}
        self._outer: Optional[Signals] = None

    def __enter__(self) -> Signals:
        global _current
        self._outer, _current = _current, self
        for number in ALL:
            self._before[number] = signal.signal(number, self._handle)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._alarm)
        if self._outer and not self._outer._raised:  # what waits there is for us now
            self.stops, self._since = list(self._outer.stops), self._outer._since
        while _early:
            self._handle(_early.pop(0), None)
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        global _current
        _timer(0)
        _current = self._outer
        if self._outer and self._outer.one_run:
            self._outer.stops = self.stops
        for number, handler in self._before.items():
            signal.signal(number, handler)

    # ------------------------------------------------------------ a run's side

    def until(self, moment: Optional[float]) -> None:
        """The walltime is over at this moment (monotonic; None: never) for the steps that ask."""
        self._deadline = moment
        self._arm()

    def allow(self, seconds: float, until: Optional[float] = None) -> None:
        """From now on so many seconds, whatever came before; after them the first signal, and the walltime (its end:
        ``until``), count again."""
        del self.stops[1:]
        now = time.monotonic()
        self._since, self.grace = now if self.stops else 0.0, seconds
        self.until(until)

    def decide(self) -> None:
        """The outcome stands: from here on signals change nothing (but for ``hurry``), here nor around us where this
        was the one run."""
        self._decided = True
        _timer(0)
        if self._outer and self._outer.one_run:
            self._outer.decide()

    @contextmanager
    def patiently(self, seconds: float) -> Iterator[None]:
        """A step after the decision that may take long: from a stop on it has so many seconds, and then is
        Interrupted."""
        self._late = max(0.001, seconds)
        try:
            if self.stops:
                _timer(self._late)
            yield
        finally:
            self._late = None
            _timer(0)

    @property
    def decided(self) -> bool:
        return self._decided

    def check(self) -> None:
        """Raises Interrupted or WalltimeOver where the run is to end. Of a run, again and again, so that nothing that
        swallows one hides it."""
        if self._decided or self._shields or self._ends or (self._raised and not self.patience):
            return
        self._pause()
        if self.stops and (len(self.stops) > 1 or time.monotonic() >= self._since + self.grace):
            self._raised = True
            raise interrupted(self.stops[0])
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._raised = True
            raise walltime_over()

    def watch(self) -> int:
        """A descriptor that is readable when ``notes`` has some; until ``unwatch`` nothing is raised."""
        if self._ends is None:
            ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._notes = [*self.stops, *self._notes]
            self._ends = ours, theirs
            if self._notes:
                os.write(theirs, b"!")
        return self._ends[0]

    def notes(self) -> list[int]:
        """What came since they were read, in order; a pause that is over again is left out."""
        if self._ends:
            with suppress(BlockingIOError):
                os.read(self._ends[0], 4096)
        found, self._notes = self._notes, []
        wishes = [number for number in found if number not in STOP]
        return [number for number in found if number in STOP] + wishes[-1:]

    @property
    def noted(self) -> bool:
        """Is there something to read, that came a moment ago?"""
        return bool(self._notes)

    def unwatch(self) -> None:
        ends, self._ends = self._ends, None
        for end in ends or ():
            os.close(end)
        self._arm()

    # ------------------------------------------------------------ the handlers

    def _handle(self, number: int, _frame: Optional[FrameType]) -> None:
        if number in STOP:
            self._since = self._since or time.monotonic()
            self.stops.append(number)
            self._raised = False
        else:
            self._notes.append(number)
        if self._decided:
            here: Optional[Signals] = self
            while here and number in STOP:
                if here._late is not None and len(here.stops) == 1:
                    _timer(here._late)
                if here.hurry:
                    here.hurry()
                here = here._outer
        elif self._ends:
            self._notes += [number] if number in STOP else []
            with suppress(BlockingIOError):
                os.write(self._ends[1], b"!")
        elif self.patience or self._shields:
            self._arm()
        else:
            self.check()

    def _alarm(self, _number: int, _frame: Optional[FrameType]) -> None:
        if self._late is not None and self.stops:
            raise interrupted(self.stops[0])
        self.check()
        self._arm()

    def _arm(self) -> None:
        """The timer, for what no step has asked for until then."""
        due = [] if self._deadline is None else [self._deadline + self.patience]
        if (self.stops and not self._raised) or self._notes[-1:] == [signal.SIGTSTP]:
            due.append(max(self._since + self.grace, time.monotonic()) + (self.patience or _AGAIN))
        idle = self._decided or self._ends or not due
        _timer(0 if idle else max(_AGAIN, min(due) - time.monotonic()))

    def _pause(self) -> None:
        """Ctrl-Z where there is no guest: we stand still, as any program does."""
        del self._notes[:-1]
        if self._notes == [signal.SIGTSTP]:
            self._notes.clear()
            os.kill(os.getpid(), signal.SIGSTOP)


def _timer(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


# ---------------------------------------------------------------- for every step


def current() -> Optional[Signals]:
    """The innermost Signals, if this is the thread that hears them."""
    return _current if threading.current_thread() is threading.main_thread() else None


def check() -> None:
    """Leave here if the run is to end: raises Interrupted or WalltimeOver. Costs nothing where nobody listens."""
    if _current is not None and threading.current_thread() is threading.main_thread():
        _current.check()


def sleep(seconds: float) -> None:
    """Sleep, and ``check`` meanwhile."""
    end = time.monotonic() + seconds
    check()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _TICK))
        check()


@contextmanager
def shielded() -> Iterator[None]:
    """A step that must not be left half done, and takes no time: a signal is heard at its end."""
    here = current()
    if here is None:
        yield
        return
    here._shields += 1
    try:
        yield
    finally:
        here._shields -= 1
    if not here._shields and not here.patience:
        here.check()


def hear_early() -> None:
    """The first thing that a process does: until Signals is entered, signals wait. Those that the wrapper
    blocked are let in."""
    for number in ALL:
        if number != signal.SIGCONT:
            signal.signal(number, lambda came, _: _early.append(came))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)


def interrupted(number: int) -> Interrupted:
    """The failure for a slot taken away by signal ``number``."""
    return Interrupted(f"stopped by {signal.Signals(number).name}",
                       "the slot was taken away or somebody interrupted the job: submit it again")


def walltime_over() -> VmjobError:
    return WalltimeOver("the walltime is over", "ask for more (resources.walltime, --walltime), or do less in one job")
