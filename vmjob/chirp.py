"""HTCondor's Chirp: from the slot, files of the submit side in pieces, and attributes of the job's own ad.

The starter of a job with ``WantIOProxy`` listens on the node and asks the shadow, which asks the schedd. While the
network between them is cut a call hangs or fails; when it is back, the same call succeeds: so calls are repeated.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from vmjob import classads, interrupt
from vmjob.classads import Value
from vmjob.errors import ChirpFailed, ImageMissing

if TYPE_CHECKING:
    import htchirp

log = logging.getLogger("vmjob.chirp")

_T = TypeVar("_T")

PIECE = 4 * 2**20
PATIENCE = 300.0  # seconds for which nothing may come; HTCondor's own lease of a cut job is longer
_TIMEOUT = 120.0  # of one answer; a cut that HTCondor itself survives shows as silence
_PAUSES = (0.2, 1.0, 5.0)
_TEXT = 900  # the starter reads lines of 1 KiB or more, escapes included
_HINT = ("ask the site for ENABLE_CHIRP, or set image: job for this target in targets.yaml, "
         "and image and token travel with every job")


class Chirp:
    """The starter's proxy. One connection, made when first needed; calls from several threads take turns."""

    def __init__(self, host: str, port: int, cookie: str) -> None:
        self._where = (host, port, cookie)
        self._client: Optional[htchirp.HTChirp] = None
        self._turn = threading.Lock()

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> Optional[Chirp]:
        """The proxy of the slot we are in, None where there is none."""
        named, scratch = environ.get("_CONDOR_CHIRP_CONFIG"), environ.get("_CONDOR_SCRATCH_DIR")
        if not named and not scratch:
            return None
        path = Path(named) if named else Path(scratch or "") / ".chirp.config"
        try:
            host, port, cookie = path.read_text().split()
            return cls(host, int(port), cookie)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as strange:
            log.warning("%s is no configuration of Chirp (%s): ignored", path, strange)
            return None

    def pieces(self, path: str, size: int, start: int = 0) -> Iterator[bytes]:
        """The bytes from ``start`` to ``size`` of the submit side's file ``path`` (absolute), in order; fewer where
        it is shorter.

        Goes on where it was when the connection was lost and comes back. Raises ImageMissing where there is no such
        file, ChirpFailed.
        """
        position = start
        while position < size:
            try:
                data = self.read(path, min(PIECE, size - position), position)
            except FileNotFoundError as missing:
                raise ImageMissing(str(missing), "it was removed from the queue meanwhile: submit again") from missing
            if not data:
                return
            yield data
            position += len(data)

    def read(self, path: str, length: int, offset: int = 0) -> bytes:
        """At most ``length`` bytes of the submit side's file. Raises FileNotFoundError, ChirpFailed."""
        def call(client: Any) -> bytes:
            data: bytes = client.read(path, length, offset)
            if len(data) > length:
                raise ConnectionError(f"{len(data)} bytes came for {length}")
            return data

        return self._persist(f"{path} cannot be read", call)

    def remove(self, path: str, patience: float) -> None:
        """Remove the submit side's file; one that is gone is fine. Raises ChirpFailed."""
        def call(client: Any) -> None:
            client.unlink(path)

        with suppress(FileNotFoundError):
            self._persist(f"{path} cannot be removed", call, patience)

    def set(self, name: str, value: Value) -> None:
        """Set an attribute of the job's ad, once tried. Raises ConnectionError (worth another try) or ChirpFailed."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(name)
        what = f"the job's ad cannot be changed ({name})"
        with _ad(what):
            self._call(what, lambda client: client.set_job_attr(name, literal(value)))

    def get(self, name: str) -> str:
        """An attribute of the job's ad as the submit side has it (the copy in the slot has the slot's paths): the text
        of a string, other values as ClassAds write them. Raises ChirpFailed."""
        def call(client: Any) -> str:
            return str(client.get_job_attr(name))

        what = f"the job's ad cannot be read ({name})"
        with _ad(what):
            return self._persist(what, call).strip().strip('"')

    # -------------------------------------------------------------- details

    def _persist(self, what: str, call: Callable[[Any], _T], patience: Optional[float] = None) -> _T:
        """Repeat a call until the connection is back, for ``patience`` (PATIENCE) at most."""
        patience = PATIENCE if patience is None else patience
        first, pauses = 0.0, iter(_PAUSES)
        while True:
            try:
                return self._call(what, call)
            except ConnectionError as lost:
                first = first or time.monotonic()
                if time.monotonic() - first > patience:
                    raise ChirpFailed(f"{what}: {lost}, for {patience:.0f} s",
                                      "the network between this node and the submit side was lost: "
                                      "another try may do") from lost
                log.info("%s: %s; trying again", what, lost)
                interrupt.sleep(next(pauses, _PAUSES[-1]))

    def _call(self, what: str, call: Callable[[Any], _T]) -> _T:
        from htchirp import HTChirp

        with self._turn:
            try:
                if self._client is None:
                    self._client = _connect(*self._where)
                return call(self._client)
            except BaseException as failure:
                self._drop()  # whatever happened, what comes next must not be read as the rest of this
                if isinstance(failure, HTChirp.DoesntExist):
                    raise FileNotFoundError(f"{what}: there is no such file at the submit side") from failure
                if isinstance(failure, (HTChirp.NotAuthenticated, HTChirp.NotAuthorized, HTChirp.InvalidRequest,
                                        HTChirp.IsDir, HTChirp.NotDir, HTChirp.TooBig)):
                    raise ChirpFailed(f"{what}: {failure}", _HINT) from failure
                if isinstance(failure, (OSError, HTChirp.ChirpError, RuntimeError, ValueError)):
                    raise ConnectionError(str(failure) or type(failure).__name__) from failure
                raise

    def _drop(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client = None


def _connect(host: str, port: int, cookie: str) -> htchirp.HTChirp:
    from htchirp import HTChirp

    class Client(HTChirp):  # type: ignore[misc]
        """Fails where the peer has hung up (HTChirp itself would wait for ever), and takes what there is at once."""

        CHIRP_LINE_MAX = 2**18

        @property
        def socket(self) -> _Strict:
            return self._socket

        @socket.setter
        def socket(self, made: Any) -> None:
            self._socket = _Strict(made)

    client = Client(host, port, cookie=cookie, timeout=_TIMEOUT)
    client.connect()
    return client


class _Strict:
    """A socket whose end is an error."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def recv(self, *args: Any) -> bytes:
        data: bytes = self._made.recv(*args)
        if not data:
            raise ConnectionResetError("the starter closed the connection")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


@contextmanager
def _ad(what: str) -> Iterator[None]:
    """What is not there is no file."""
    try:
        yield
    except FileNotFoundError as missing:
        raise ChirpFailed(f"{what}: it has no such attribute", _HINT) from missing


def unavailable(what: str) -> ChirpFailed:
    """The failure where a slot has no Chirp."""
    return ChirpFailed(f"{what} is at the submit side, and this slot gives no access to it (HTCondor's Chirp)", _HINT)


def literal(value: Value) -> str:
    """A value as ClassAds write it, no longer than the starter takes."""
    return classads.literal(_cut(classads.line(value)) if isinstance(value, str) else value)


def _cut(text: str) -> str:
    """At most as long as the starter takes, when spaces and quotes are escaped."""
    size = 0
    for position, letter in enumerate(text):
        size += len(letter.encode(errors="replace")) * (2 if letter in ' "' else 1)
        if size > _TEXT:
            return text[:position - 1] + "…"
    return text
