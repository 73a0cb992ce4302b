"""A document of a few megabytes from a web server, which may be a stranger's: slow, endless or spiteful."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Optional

from vmjob.core.progress import Bar
from vmjob.core.units import format_size
from vmjob.stage.transfer.flow import Clock, Failed, Flow, Late, Watch, explain
from vmjob.stage.transfer.http import Web
from vmjob.stage.transfer.patience import PATIENCE, Patience

if TYPE_CHECKING:
    import requests


class TooLarge(Failed):
    """There are more bytes than anybody believes."""


def fetch(url: str, largest: int, seconds: float, bar: Bar, note: Callable[[str], None] = lambda _: None,
          patience: Patience = PATIENCE) -> bytes:
    """What is at an http(s) address, at most ``largest`` bytes of it, within ``seconds``; proxies and authorities are
    those of http.py. Raises Failed, TooLarge."""
    data, clock = bytearray(), Clock(seconds)
    flow = Flow(_Document(Web(patience, note), url, largest))
    try:
        with clock:
            for piece in flow.pieces(Watch(patience), clock):
                data += piece
                bar.advance(len(piece))
                if len(data) > largest:
                    raise _too_large(largest)
    except Late as late:
        raise Failed(f"not here after {seconds:.0f} s") from late
    except OSError as failed:
        raise Failed(explain(failed)) from failed
    return bytes(data)


def _too_large(largest: int) -> TooLarge:
    return TooLarge(f"larger than {format_size(largest)}", final=True)


class _Document:
    """A transfer (flow.py) of whatever is at an address: asked for when the first byte is, so that a server that
    says nothing, or says it a letter at a time, is watched too."""

    behind = 0

    def __init__(self, web: Web, url: str, largest: int) -> None:
        import requests  # noqa: F401  # now, while nobody waits for a byte

        self._web, self._url, self._largest = web, url, largest
        self._answer: Optional[requests.Response] = None
        self._stopped = threading.Event()

    def read(self, amount: int) -> bytes:
        if self._answer is None:
            self._answer = self._ask()
        if self._stopped.is_set():
            raise Failed("it was left")
        try:
            data: bytes = self._answer.raw.read1(amount, decode_content=False)
        except Exception as broken:  # urllib3, http.client, ssl and sockets each have their own
            raise Failed(f"the connection broke: {explain(broken)}") from broken
        return data

    def moved(self) -> int:
        return 0

    def stop(self) -> None:
        self._stopped.set()
        if self._answer is not None:
            with suppress(OSError, ValueError, RuntimeError):  # ended by itself a moment ago
                self._answer.raw.shutdown()

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()

    def _ask(self) -> requests.Response:
        answer = self._web.request("GET", self._url, lambda _: {}, fresh=True)
        try:
            coding = answer.headers.get("Content-Encoding", "identity")
            if coding != "identity":  # a few bytes could become very many
                raise Failed(f"it comes packed ({coding[:20]}), though that was not asked for", final=True)
            total = answer.headers.get("Content-Length", "")
            if re.fullmatch(r"[0-9]+", total) and (len(total) > 15 or int(total) > self._largest):
                raise _too_large(self._largest)
        except BaseException:
            answer.close()
            raise
        return answer
