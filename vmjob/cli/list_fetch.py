"""The bytes of a signed list, from whoever has it: a stranger's server may be slow, endless or spiteful."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from vmjob import config
from vmjob.errors import EndorsementRefused, ImageOutOfReach, JobError
from vmjob.image import smime, trust
from vmjob.progress import Reporter
from vmjob.stage.flow import PATIENCE, Clock, Failed, Flow, Late, Patience, Watch, explain
from vmjob.stage.web import Web

if TYPE_CHECKING:
    import requests

_LONGEST = 600  # seconds for one list, where VMJOB_STAGE_TIMEOUT allows more
_AGAIN = "try again later; is the address right?"


def fetch(url: str, reporter: Reporter, patience: Patience = PATIENCE) -> bytes:
    """The signed message at an http(s) address or in a file, within config.stage_timeout() and ten minutes at most.
    Raises ImageOutOfReach, EndorsementRefused, JobError."""
    if "://" not in url:
        return trust.read_message(Path(url))
    if not url.startswith(("http://", "https://")):
        raise JobError(f"{url}: a list is fetched by http or https", "or give the path of a file that has it")
    data, clock = bytearray(), Clock(min(config.stage_timeout(), _LONGEST))
    flow = Flow(_Message(Web(patience, reporter.note), url))
    try:
        with clock, reporter.bar("fetch the list", None) as bar:
            for piece in flow.pieces(Watch(patience), clock):
                data += piece
                bar.advance(len(piece))
                if len(data) > smime.LARGEST:
                    break
    except Late as late:
        raise ImageOutOfReach(f"{url}: not here after {clock.seconds:.0f} s", _AGAIN) from late
    except (Failed, OSError) as failed:
        raise ImageOutOfReach(f"{url}: {failed}", _AGAIN) from failed
    if len(data) > smime.LARGEST:
        raise _too_large(url)
    return bytes(data)


def _too_large(url: str) -> EndorsementRefused:
    return EndorsementRefused(f"{url}: larger than {smime.LARGEST // 2**20} MiB", "it is no image list")


class _Message:
    """A transfer (stage.flow) of whatever is at an address: asked for when the first byte is, so that a server that
    says nothing, or says it a letter at a time, is watched too."""

    behind = 0

    def __init__(self, web: Web, url: str) -> None:
        import requests  # noqa: F401  # now, while nobody waits for a byte

        self._web, self._url = web, url
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
            if total.isascii() and total.isdigit() and (len(total) > 15 or int(total) > smime.LARGEST):
                raise _too_large(self._url)
        except BaseException:
            answer.close()
            raise
        return answer
