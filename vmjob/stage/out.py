"""Outputs to a storage that the job names: by HTTP (https, davs) or by XRootD's own copy program (root, roots).

A file's checksum is taken before it leaves; what has arrived is held against its size, and against the checksum where
the server knows it. A file that is there already is replaced: the batch system may run a job twice. What may pass is
borne until the deadline, and nothing goes on behind it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Optional
from urllib.parse import quote, urlsplit

from vmjob import process
from vmjob.errors import CommandFailed, StageOutFailed
from vmjob.files import hash_file
from vmjob.machinetext import is_number
from vmjob.progress import Bar, Reporter
from vmjob.result import Staged
from vmjob.stage.addresses import origin
from vmjob.stage.commands import is_final, xrootd_times
from vmjob.stage.credentials import shown
from vmjob.stage.flow import Clock, Failed, Late, Throttle, watched
from vmjob.stage.patience import MORE_TIME, PATIENCE, Patience
from vmjob.stage.web import Web
from vmjob.units import format_duration

_UNKNOWN = ("401", "403", "405", "501")  # answers of a server that lets us write, and not look
_NO_FOLDER = ("409", "404", "500")  # RFC 4918's answer where the folder is not there, and what others say (nginx: 500)
_SAFE = "/~:@!$&'()*+,;="


@dataclass(frozen=True)
class _Outgoing:
    """One file on its way; ``sha256`` in hexadecimal digits, size in bytes."""

    path: Path
    url: str
    size: int
    sha256: str


class _Wrong(Failed):
    """It has arrived, and is not what was sent."""


class _Over(Failed):
    """The time for it is over."""


def send(folder: Path, names: Sequence[str], to: str, *, timeout: float, rate: Optional[int] = None,
         reporter: Optional[Reporter] = None, patience: Patience = PATIENCE) -> tuple[Staged, ...]:
    """Send the plain files among ``names`` (relative to ``folder``) into the folder at the address ``to``; what was
    sent. Links and folders stay. ``timeout``: seconds for all of them; ``rate``: most bytes a second. Nothing is
    removed here.

    Raises StageOutFailed, also when some files have arrived.
    """
    reporter = reporter or Reporter()
    files = [name for name in names if (folder / name).is_file() and not (folder / name).is_symlink()]
    clock, done = Clock(timeout), list[Staged]()
    try:
        root = origin(to).scheme in ("root", "roots")
    except Failed as odd:
        raise StageOutFailed(f"{shown(to)}: {odd}", "outputs.to is a folder: https://HOST/FOLDER/") from odd
    put = _XRootD(patience) if root else _Http(patience, Throttle(rate, clock), reporter.note)
    total = sum((folder / name).stat().st_size for name in files)
    with clock, reporter.bar("send", total) as bar:
        for name in files:
            sha256, size = hash_file(folder / name)
            one = _Outgoing(folder / name, target(to, name), size, sha256)
            try:
                _until_there(lambda one=one: put(one, bar, clock), clock, patience)  # type: ignore[misc]
            except Failed as failure:
                what = MORE_TIME if isinstance(failure, _Over) else \
                    "check the address, and that the job has a token or proxy that may write there (docs/user.md)"
                raise StageOutFailed(
                    f"{name} could not be sent to {shown(one.url)}: {failure}",
                    f"{len(done)} of {len(files)} files were sent; all are among the job's results too; {what}"
                ) from failure
            done.append(Staged(name, one.url, size, sha256))
    return tuple(done)


def target(to: str, name: str) -> str:
    """Address of the file ``name`` (as the system's functions give it) in the folder ``to``. Pure. Raises
    StageOutFailed where it has none."""
    if not to.startswith("root"):
        return f"{to.rstrip('/')}/{quote(os.fsencode(name), safe=_SAFE)}"
    if set(name) & set("?#") or not name.isprintable():  # XRootD takes a path as it stands, up to there
        raise StageOutFailed(f"{name!r}: XRootD's tools take no name with ? or # in it, or that is not plain text",
                             "call the output otherwise")
    return f"{to.rstrip('/')}/{name}"


def _until_there(put: Callable[[], None], clock: Clock, patience: Patience) -> None:
    """Try what may pass again until the deadline, with longer and longer pauses. Raises Failed."""
    strikes = wrong = 0
    why = ""
    while True:
        try:
            put()
            return
        except Late:
            pause = float("inf")
        except Failed as failure:
            strikes, wrong, why = strikes + 1, wrong + isinstance(failure, _Wrong), f"{failure} "
            if failure.final or wrong >= patience.tries:
                raise
            pause = max(failure.after, patience.rest(strikes, clock.left))
        if clock.left <= pause:
            long = format_duration(clock.seconds)
            raise _Over(f"{why}(and the time for it, {long}, is over)" if why else f"the time for it, {long}, is over")
        clock.sleep(pause)


# ---------------------------------------------------------------- HTTP


class _Http:
    def __init__(self, patience: Patience, throttle: Throttle, note: Callable[[str], None]) -> None:
        self._web, self._throttle, self._patience = Web(patience, note), throttle, patience
        self._unsure: dict[str, float] = {}  # what was sent whole, and not confirmed; since when it was on its way

    def __call__(self, one: _Outgoing, bar: Bar, clock: Clock) -> None:
        watched(lambda: self._send(one, bar, clock), clock, self._web.cut)

    def _send(self, one: _Outgoing, bar: Bar, clock: Clock) -> None:
        url = re.sub(r"^davs?:", "https:" if one.url.startswith("davs:") else "http:", one.url)
        since = self._unsure.pop(url, None)
        if since is not None and self._has_come(one, url, time.monotonic() - since):
            return
        try:
            self._put(one, url, bar, clock)
        except Failed as failure:
            if not str(failure).startswith(_NO_FOLDER):
                raise
            self._make_folders(url)
            self._put(one, url, bar, clock)
        headers = self._ask(url)
        self._unsure.pop(url, None)
        _compare(one, headers)

    def _put(self, one: _Outgoing, url: str, bar: Bar, clock: Clock) -> None:
        digest = base64.b64encode(bytes.fromhex(one.sha256)).decode()
        begin, bodies = time.monotonic(), list[_Body]()
        with contextlib.ExitStack() as stack:
            def body() -> _Body:
                file = stack.enter_context(one.path.open("rb"))
                bodies.append(_Body(file, one.size, bar, self._throttle, clock))
                return bodies[-1]

            try:
                # a storage may sum up, or copy, before it answers
                self._web.request("PUT", url, lambda _: {"Repr-Digest": f"sha-256=:{digest}:"}, data=body, trusted=True,
                                  proxy_certificate=True, wait=max(self._patience.answer, clock.left)).close()
            except Failed as failure:
                # a gateway's word is not the storage's
                if bodies and bodies[-1].whole and not re.match(r"(?!502|504)\d{3}\b", str(failure)):
                    self._unsure[url] = begin
                raise
            self._unsure[url] = begin

    def _make_folders(self, url: str) -> None:
        parts = urlsplit(url)
        above = list(PurePosixPath(parts.path).parents)[:-1]
        for folder in reversed(above):
            with contextlib.suppress(Failed):  # it is there, or is not ours to make: the next PUT tells
                self._web.request("MKCOL", parts._replace(path=f"{folder}/").geturl(), lambda _: {}, trusted=True,
                                  proxy_certificate=True).close()

    def _ask(self, url: str) -> Optional[Mapping[str, str]]:
        """What is there; None where we may not know. Raises Failed."""
        try:
            answer = self._web.request("HEAD", url, lambda _: {"Want-Digest": "sha-256"}, trusted=True,
                                       proxy_certificate=True, fresh=True)
        except Failed as failure:
            if str(failure).startswith(_UNKNOWN):
                return None
            raise
        answer.close()
        return answer.headers

    def _has_come(self, one: _Outgoing, url: str, age: float) -> bool:
        """Whether what we sent, beginning ``age`` seconds ago, is there after all: by its checksum, or as a file of
        this size that is no older."""
        try:
            headers = self._ask(url)
            if headers is None:
                return False
            _compare(one, headers)
        except Failed:
            return False
        if not is_number(headers.get("Content-Length", "")):
            return False
        with contextlib.suppress(TypeError, ValueError, KeyError):
            now, then = (parsedate_to_datetime(headers[name]) for name in ("Date", "Last-Modified"))
            if (now - then).total_seconds() <= age + 1:  # they are told in whole seconds
                return True
        return "sha-256=" in headers.get("Digest", "")


def _compare(one: _Outgoing, headers: Optional[Mapping[str, str]]) -> None:
    """Is it there, as it was sent? Raises Failed."""
    if headers is None:
        return
    size = headers.get("Content-Length", "")
    if is_number(size) and int(size) != one.size:
        raise _Wrong(f"{size} bytes have arrived of {one.size}")
    found = re.search(r"sha-256=([A-Za-z0-9+/=]+)", headers.get("Digest", ""))
    if found and found.group(1) != base64.b64encode(bytes.fromhex(one.sha256)).decode():
        raise _Wrong("other bytes have arrived: the server tells another SHA-256")


class _Body:
    """A file as the body of a request: its length is known, its speed limited, and it ends at the deadline."""

    def __init__(self, file: BinaryIO, size: int, bar: Bar, throttle: Throttle, clock: Clock) -> None:
        self._file, self._size, self._bar, self._throttle, self._clock = file, size, bar, throttle, clock
        self._read = 0

    @property
    def whole(self) -> bool:
        """Whether all of it went."""
        return self._read >= self._size

    def __len__(self) -> int:
        return self._size

    def read(self, amount: int = -1) -> bytes:
        if self._clock.left <= 0:
            raise TimeoutError(f"the time for it, {self._clock.seconds:.0f} s, is over")
        data = self._file.read(min(amount, self._throttle.piece) if amount > 0 else self._throttle.piece)
        self._read += len(data)
        self._throttle.passed(len(data))
        self._bar.advance(len(data))
        return data


# ---------------------------------------------------------------- XRootD


def xrdcp_argv(program: str, path: Path, url: str) -> list[str]:
    """--posc: a file that did not come whole does not stay; --path: folders are made. Pure."""
    return [program, "--nopbar", "--silent", "--force", "--posc", "--path", str(path.absolute()), url]


class _XRootD:
    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    def __call__(self, one: _Outgoing, bar: Bar, clock: Clock) -> None:
        copy, look = (process.require(name, "xrootd-client") for name in ("xrdcp", "xrdfs"))
        parts = urlsplit(one.url)
        env = {**xrootd_times(self._patience, max(self._patience.answer, clock.left)), **os.environ}
        try:
            process.run(xrdcp_argv(copy, one.path, one.url), env=env, timeout=max(1.0, clock.left))
            said = process.run([look, f"{parts.scheme}://{parts.netloc}", "stat", re.sub("^/+", "/", parts.path)],
                               env=env, timeout=max(1.0, clock.left)).stdout.decode(errors="replace")
        except CommandFailed as failed:
            raise Failed(failed.message, final=is_final(failed.output)) from failed
        size = re.search(r"^Size:[ \t]*([0-9]{1,18})\b", said, re.MULTILINE)
        if size and int(size.group(1)) != one.size:
            raise _Wrong(f"{size.group(1)} bytes have arrived of {one.size}")
        bar.advance(one.size)
