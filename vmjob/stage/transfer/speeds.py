"""How fast which host gave us bytes, kept in the cache folder as ``speeds.json``: other jobs begin with the fastest.

Written whole or not at all; of two who write at once one is forgotten, and what cannot be read is nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Optional

from vmjob.core.files import write_whole

FORGET = 30 * 86400  # seconds
_MOST = 200  # hosts


class Speeds:
    """Bytes a second by host. ``path``: the file, None to remember nothing."""

    def __init__(self, path: Optional[Path]) -> None:
        self._path = path
        self._known: Optional[dict[str, tuple[float, float]]] = None

    def of(self, host: str) -> Optional[float]:
        """None: not known, or too long ago."""
        if self._known is None:
            self._known = self._read()
        speed, _ = self._known.get(host, (None, 0.0))
        return speed

    def learn(self, host: str, speed: float) -> None:
        """A measurement; it weighs as much as all before it. Never raises."""
        if not host or speed <= 0:
            return
        known = self._read()
        before = known.get(host)
        known[host] = ((before[0] + speed) / 2 if before else speed, time.time())
        latest = sorted(known.items(), key=lambda item: -item[1][1])[:_MOST]
        self._known = dict(latest)
        if self._path is None:
            return
        text = json.dumps({host: {"speed": round(speed), "at": round(at)} for host, (speed, at) in self._known.items()},
                          indent=1)
        with contextlib.suppress(OSError):  # a full or read-only disk: it was only to be quicker next time
            write_whole(self._path, text + "\n")

    def _read(self) -> dict[str, tuple[float, float]]:
        found: dict[str, tuple[float, float]] = {}
        if self._path is None:
            return self._known or {}
        try:
            if self._path.stat().st_size > 2**20:
                return {}
            body = json.loads(self._path.read_bytes())
            for host, entry in body.items():
                speed, at = float(entry["speed"]), float(entry["at"])
                if math.isfinite(speed) and speed > 0 and abs(time.time() - at) < FORGET:
                    found[host] = (speed, at)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        return found
