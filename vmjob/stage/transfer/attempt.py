"""How one file fares at one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from vmjob.stage.transfer.source import Place

_CARRIED = "the submit side"


@dataclass
class Try:
    """How one file fares at one place; ``place`` None is the submit side's own way. ``after``: not before that moment
    of the monotonic clock."""

    place: Optional[Place]
    number: int
    strikes: int = 0
    after: float = 0
    why: str = ""
    over: bool = False
    left: bool = False
    changed: bool = False
    denied: bool = False

    @property
    def shown(self) -> str:
        return self.place.shown if self.place else _CARRIED

    @property
    def wrong(self) -> int:
        return self.place.wrong if self.place else 0

    @property
    def host(self) -> str:
        return self.place.host if self.place else ""
