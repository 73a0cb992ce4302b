"""What a fuzz target is: a parser, the exceptions by which it refuses, and the valid inputs that it begins with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vmjob.errors import VmjobError

CPU = 5.0  # seconds of processor time that an input may take
LARGEST = 64 * 1024  # bytes of an input that a parser gets
CORPUS = Path(__file__).resolve().parent / "corpus"

Call = Callable[[bytes, Path], object]
Seeds = Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Target:
    """``call`` takes an input and an empty folder of its own. It may raise ``refuses``, an AssertionError where a
    promise of the parser does not hold, and nothing else. ``seeds``: inputs that it accepts."""

    name: str
    what: str
    call: Call
    refuses: tuple[type[Exception], ...]
    seeds: Seeds

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name


TARGETS: dict[str, Target] = {}


def target(seeds: Seeds, *refuses: type[Exception]) -> Callable[[Call], Call]:
    """Enter a function as a target of its name."""
    def enter(call: Call) -> Call:
        name = call.__name__.replace("_", "-")
        assert name not in TARGETS, name
        TARGETS[name] = Target(name, (call.__doc__ or "").strip().partition("\n")[0], call, refuses, seeds)
        return call
    return enter


class TooSlow(BaseException):
    """An input takes more time than any may; of no kind that a parser would take for a fault of the input."""


def run(one: Target, data: bytes, place: Path, most: float = CPU) -> bool:
    """Is the input accepted (True), or refused by name (False)? Anything else is a fault, and raised, as is an input
    that takes more than ``most`` seconds of processor time."""
    begun = time.process_time()
    try:
        one.call(data, place)
        accepted = True
    except one.refuses as refused:
        if type(refused) is VmjobError:  # exit status 250: "a bug in vmjob"
            raise
        accepted = False
    if (spent := time.process_time() - begun) > most:
        raise TooSlow(f"{spent:.1f} s of processor time")
    return accepted
