"""How fast a source is, before much is asked of it."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmjob.core.model import ImageFile

if TYPE_CHECKING:
    from vmjob.stage.transfer.attempt import Try

log = logging.getLogger("vmjob.stage")
_SAMPLE = 2**20


@dataclass
class Probe:
    """A sample of a place, taken in a thread."""

    this: Try
    file: ImageFile
    position: int
    thread: threading.Thread = field(init=False)
    _got: int = 0
    _took: float = 0.0

    def __post_init__(self) -> None:
        assert self.this.place
        self._begin = time.monotonic()
        self._transfer = self.this.place.begin(self.file, self.position, 0, sample=_SAMPLE)
        self.thread = threading.Thread(target=self._read, name="vmjob-sample", daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            while self._got < _SAMPLE and (data := self._transfer.read(_SAMPLE - self._got)):
                self._got += len(data)
            self._took = time.monotonic() - self._begin
        except Exception as failure:
            log.info("%s: %s", self.this.shown, failure)
            self._got = 0
        finally:
            self._transfer.close()

    def end(self) -> float:
        """Bytes a second, 0 where nothing came."""
        got, took = self._got, self._took or time.monotonic() - self._begin
        self._transfer.stop()
        return got / took if took else 0.0
