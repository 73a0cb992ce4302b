"""All targets, by name."""

from __future__ import annotations

from tests.fuzz import guest, images, machines, sites, users, wire  # noqa: F401  # each enters its own
from tests.fuzz.target import TARGETS

__all__ = ["TARGETS"]
