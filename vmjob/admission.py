"""Whether this machine lets a job's image in: asked before anything is moved or started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from vmjob.model import Payload, Slot
from vmjob.result import Decision


@dataclass(frozen=True)
class Admission:
    """``decision``: None where no policy is set. ``slot``: what the policy leaves of it. ``hint``: the next action of one
    who was refused."""

    decision: Optional[Decision]
    slot: Slot
    hint: str = ""


def admit(payload: Payload, slot: Slot) -> Admission:
    return Admission(None, slot)
