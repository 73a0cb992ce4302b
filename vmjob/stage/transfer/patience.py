"""How long which trouble is borne, of sources and of storages."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long which trouble is borne; seconds and bytes. ``stall``: without a byte (also of the beginning);
    ``window``: over which a transfer is measured; ``floor``: fewer bytes a second than that are none. ``pause``:
    before the second try, twice as long before each one more, up to ``longest``; ``tries``: how many there are of one
    source without ``worth`` bytes in between, while another is left. ``answer``: least time to think for a storage
    that got a file. ``probe``: for a sample of a mirror, taken for files of ``large`` bytes."""

    connect: float = 10
    stall: float = 30
    window: float = 30
    floor: int = 16 * 2**10
    pause: float = 1
    longest: float = 60
    tries: int = 5
    worth: int = 2**20
    answer: float = 60
    retry_after: float = 120
    probe: float = 5
    large: int = 64 * 2**20
    tick: float = 0.5

    def rest(self, strikes: int, left: float) -> float:
        """Seconds before the next try, after so many that failed; the last tries are before ``left`` seconds are over.
        Not the same for all: what a thousand jobs miss comes back, and is not to be run down."""
        grown: float = self.pause * 2 ** min(strikes - 1, 30) * random.uniform(0.5, 1.5)
        return min(grown, self.longest, max(left / 2, self.pause))


PATIENCE = Patience()
MORE_TIME = ("VMJOB_STAGE_TIMEOUT gives it more time, where the walltime (resources.walltime, or the slot's) has it; a "
             "nearer or faster place would help")
