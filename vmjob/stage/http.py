"""A file of an image from a web server, from an offset on; and from a Pelican federation, which is web servers too."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional
from urllib.parse import quote, urlsplit

from vmjob.machinetext import is_number
from vmjob.stage.addresses import origin
from vmjob.stage.flow import Failed, explain
from vmjob.stage.web import Web, is_timeout
from vmjob.units import format_size

if TYPE_CHECKING:
    import requests

OSDF = "osg-htc.org"  # the federation that osdf: stands for, unless VMJOB_OSDF_FEDERATION names another
_JSON = 2**20
_PART = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")


@dataclass
class Seen:
    """What a server said of the version whose bytes were taken, to be held against its next answer."""

    url: str = ""
    etag: str = ""
    modified: str = ""

    @property
    def validator(self) -> str:
        """For If-Range, where only a strong one will do."""
        return self.etag if self.etag and not self.etag.startswith("W/") else "" if self.etag else self.modified


class HttpTransfer:
    """``size``: bytes of the whole file. ``locate`` gives its address, when the first byte is asked for. ``seen`` is
    what was seen before, and is told what is seen now."""

    def __init__(self, web: Web, locate: Callable[[], str], start: int, size: int, seen: Seen, *,
                 fresh: bool = False, proxy_certificate: bool = False, sample: int = 0) -> None:
        """``fresh``: past caches on the way. ``sample``: not all of it, so many bytes."""
        import requests  # noqa: F401  # now, while nobody waits for a byte: from vmjob.pyz it takes a second

        self._sample = sample
        self._web, self._locate, self._start, self._size, self._seen = web, locate, start, size, seen
        self._fresh, self._proxy_certificate = fresh, proxy_certificate
        self._answer: Optional[requests.Response] = None
        self._stopped = threading.Event()
        self._left = 0
        self.behind = 0

    def read(self, amount: int) -> bytes:
        if self._answer is None:
            self._answer = self._ask()
        if self._stopped.is_set():
            raise Failed("it was left")
        if not self._left:
            return b""
        try:
            data: bytes = self._answer.raw.read1(min(amount, self._left), decode_content=False)
        except Exception as broken:  # urllib3, http.client, ssl and sockets each have their own
            raise Failed("no byte came in time" if is_timeout(broken) else
                         f"the connection broke: {explain(broken)}") from broken
        if not data:
            raise Failed(f"the connection ended {format_size(self._left)} too early")
        self._left -= len(data)
        return data

    def moved(self) -> int:
        return 0

    def stop(self) -> None:
        self._stopped.set()
        answer = self._answer
        if answer is not None:
            with suppress(OSError, ValueError, RuntimeError):  # ended by itself a moment ago
                answer.raw.shutdown()

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()

    def _ask(self) -> requests.Response:
        answer = self._web.request("GET", self._locate(), self._headers, fresh=self._fresh,
                                   proxy_certificate=self._proxy_certificate)
        try:
            self._check(answer)
        except BaseException:
            answer.close()
            raise
        return answer

    def _headers(self, url: str) -> dict[str, str]:
        if self._sample:
            return {"Range": f"bytes={self._start}-{self._start + self._sample - 1}"}
        if not self._start:
            return {}
        held = self._seen.validator if url == self._seen.url else ""
        return {"Range": f"bytes={self._start}-", **({"If-Range": held} if held else {})}

    def _check(self, answer: requests.Response) -> None:
        """Nothing is taken of an answer that cannot be the file."""
        coding = answer.headers.get("Content-Encoding", "identity")
        if coding != "identity":
            raise Failed(f"it comes packed ({coding[:20]}), though that was not asked for", final=True)
        begin, total = 0, answer.headers.get("Content-Length", "")
        if answer.status_code == 206:
            found = _PART.fullmatch(answer.headers.get("Content-Range", "").strip())
            if not found or int(found.group(1)) != self._start:
                raise Failed("it sends another part of the file than was asked for", final=True)
            begin, total = self._start, found.group(2)
        elif answer.status_code != 200:
            raise Failed(f"an unexpected answer: {answer.status_code}", final=True)
        if is_number(total) and int(total) != self._size:
            raise Failed(f"{total} bytes are there, but the manifest says {self._size}", final=True)
        self._compare(answer)
        end = min(self._size, self._start + (self._sample or self._size))
        self.behind, self._left = self._start - begin, end - begin

    def _compare(self, answer: requests.Response) -> None:
        now = Seen(answer.url, answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))
        before = self._seen
        if self._start and before.url == now.url and before.etag != now.etag:
            before.url = ""  # the next one begins with what there is now
            raise Failed("the file there was changed meanwhile", changed=True)
        before.url, before.etag, before.modified = now.url, now.etag, now.modified


# ---------------------------------------------------------------- Pelican


def federation(address: str) -> tuple[str, str]:
    """Host (and port) of the federation, and the path in it, of ``pelican://FEDERATION/path`` or ``osdf:///path``."""
    parts = urlsplit(address)
    if parts.scheme == "pelican":
        return parts.netloc.rpartition("@")[2], parts.path
    # osdf://first/second is written too, and means the path /first/second
    host = os.environ.get("VMJOB_OSDF_FEDERATION") or OSDF
    return host, (f"/{parts.netloc}" if parts.netloc else "") + parts.path


def director(web: Web, host: str) -> str:
    """The address that knows where a federation's files are. Raises Failed."""
    answer = web.request("GET", f"https://{host}/.well-known/pelican-configuration", lambda _: {})
    with answer:
        try:
            data: bytes = answer.raw.read(_JSON, decode_content=False)
        except Exception as broken:  # as in HttpTransfer.read
            raise Failed(f"the configuration of {host} did not come whole: {explain(broken)}") from broken
    return director_in(data, host)


def director_in(data: bytes, host: str) -> str:
    """The director's address in the configuration of the federation ``host``, which may be anybody's. Raises Failed."""
    import json

    try:
        named = json.loads(data)["director_endpoint"]
    except (ValueError, LookupError, TypeError, RecursionError) as broken:
        raise Failed(f"{host} is no federation of Pelican: its configuration names no director", final=True) from broken
    named = str(named) if "//" in str(named) else f"https://{named}"
    if not re.fullmatch(r"[!-~]{1,2000}", named) or origin(named).scheme != "https":
        raise Failed(f"the director of {host} is not at an address of https", final=True)
    return named.rstrip("/")


def pelican_locator(web: Web, address: str) -> Callable[[], str]:
    """Finds the address of a file at the federation's director, which sends on to a cache."""
    def locate() -> str:
        host, path = federation(address)
        return director(web, host) + quote(path, safe="/%~:@!$&'()*+,;=")

    return locate
