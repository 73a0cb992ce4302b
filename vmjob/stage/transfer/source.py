"""One source of an image: what its address means, and how a file is got from there."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Optional
from urllib.parse import quote, unquote, urlsplit

from vmjob.core import model, process
from vmjob.core.errors import CommandMissing
from vmjob.core.model import ImageFile
from vmjob.stage.transfer import addresses, credentials, programs
from vmjob.stage.transfer.condor_plugins import Plugins
from vmjob.stage.transfer.flow import Failed, Transfer
from vmjob.stage.transfer.http import Web
from vmjob.stage.transfer.http_file import HttpTransfer, Seen, federation, pelican_locator
from vmjob.stage.transfer.patience import Patience

_SAFE = "!$&'()*+,;=:@~"
WEB = ("http", "https", "dav", "davs", "osdf", "pelican")


def located(source: str, file: ImageFile) -> str:
    """The address of ``file`` at ``source``, quoted as its scheme has it."""
    quoted = file.path if source.startswith("root") else quote(file.path, safe=_SAFE)
    return model.address(source, replace(file, path=quoted))


def file_path(address: str) -> str:
    """The path in a ``file:`` address. Raises Failed."""
    try:
        parts = urlsplit(address)
    except ValueError as wrong:
        raise Failed("this is no address", broken=True) from wrong
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise Failed("file: wants an absolute path: file:///mnt/images/", broken=True)
    return path


class Place:
    """``shown``: its address for messages. ``host``: whom its speed is remembered of. ``wrong``: how often its bytes
    were others than the digest says. ``missed``: whether a file was not to be had. ``broken``: why nothing can come
    from here, empty as long as something may."""

    def __init__(self, source: str, web: Web, patience: Patience, plugins: Plugins) -> None:
        self.source, self._web, self._patience, self._plugins = source, web, patience, plugins
        self.shown = credentials.shown(source)
        self.scheme = source.partition(":")[0].lower()
        self.wrong, self.missed, self.broken = 0, False, ""
        try:
            self.host, self._name = self._named()
        except (Failed, ValueError) as odd:
            self.host, self._name = "", ""
            self.broken = str(odd) if isinstance(odd, Failed) else "this is no address"
        self._by_gfal = False
        self._seen: dict[str, Seen] = {}

    def _named(self) -> tuple[str, str]:
        """Whom it names, with the port and as a name alone; empty where it names nobody. Raises Failed."""
        inner = self.source[7:] if self.scheme == "condor" else self.source
        if inner.startswith("osdf:"):
            inner = f"https://{federation(inner)[0]}"
        elif self.scheme == "file" or (self.scheme == "condor" and not addresses.names_host(inner)):
            return "", ""
        found = addresses.origin(inner)
        wrong = addresses.refused(found.host, found.host)
        if wrong:
            raise Failed(f"it is {wrong}", broken=True)
        return found.place, found.host

    def begin(self, file: ImageFile, start: int, seconds: float, *, sample: int = 0) -> Transfer:
        """A transfer of the file's bytes from ``start`` on, within ``seconds``; ``sample``: so many bytes (of WEB
        alone). Programs belong to the thread that calls. Raises Failed."""
        if self.broken:
            raise Failed(self.broken, broken=True)
        address = located(self.source, file)
        if self.scheme == "file":
            return PathTransfer(file_path(address), start, file.size)
        if self.scheme in WEB and not self._by_gfal:
            return self._http(address, file, start, sample)
        try:
            env = programs.environment(self._name, os.environ, self._patience)
            if self.scheme == "condor":
                return programs.plugin_transfer(self._plugins, address.partition(":")[2], env, start, file.size)
            return self._by_command(address, env, file, start, seconds)
        except (CommandMissing, OSError) as broken:
            raise Failed(str(broken), broken=True) from broken

    def _http(self, address: str, file: ImageFile, start: int, sample: int) -> HttpTransfer:
        seen = Seen() if sample else self._seen.setdefault(file.sha256, Seen())
        locate = pelican_locator(self._web, address) if self.scheme in ("osdf", "pelican") else \
            lambda: address.replace("dav", "http", 1) if self.scheme in ("dav", "davs") else address
        return HttpTransfer(self._web, locate, start, file.size, seen, fresh=self.wrong > 0, sample=sample,
                            proxy_certificate=self.scheme == "davs")

    def _by_command(self, address: str, env: Mapping[str, str], file: ImageFile, start: int,
                    seconds: float) -> Transfer:
        xrdcp = process.which("xrdcp")
        if xrdcp and not self._by_gfal:
            return programs.PipeTransfer(programs.xrdcp_argv(xrdcp, address), env, start, file.size)
        gfal = process.which("gfal-copy")
        if not gfal:
            raise Failed("neither xrdcp nor gfal-copy is installed here (Debian: xrootd-client)", broken=True)
        return programs.gfal_transfer(gfal, address, env, start, file.size, seconds)

    def failed(self, failure: Failed) -> Failed:
        """What a failure means for this place: davs: that wants other credentials than https has is tried by gfal."""
        if failure.denied and self.scheme == "davs" and not self._by_gfal and process.which("gfal-copy"):
            self._by_gfal = True
            return Failed(str(failure))
        self.missed = self.missed or failure.final
        if failure.broken:
            self.broken = str(failure)
        return failure


class PathTransfer:
    """A file of a shared file system."""

    def __init__(self, path: str, start: int, size: int) -> None:
        self.behind, self._path, self._start, self._size = 0, path, start, size
        self._file: Optional[int] = None

    def read(self, amount: int) -> bytes:
        if self._file is None:
            self._file = self._open()
        return os.read(self._file, amount)

    def _open(self) -> int:
        try:
            opened = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold us
        except OSError as refused:
            raise Failed(f"{refused.strerror}: {self._path}", final=True) from refused
        found = os.fstat(opened)
        try:
            if not stat.S_ISREG(found.st_mode):
                raise Failed(f"this is no file: {self._path}", final=True)
            if found.st_size != self._size:
                raise Failed(f"{found.st_size} bytes are there, but the manifest says {self._size}", final=True)
            os.lseek(opened, self._start, os.SEEK_SET)
            with suppress(OSError):
                os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except BaseException:
            os.close(opened)
            raise
        return opened

    def moved(self) -> int:
        return 0

    def stop(self) -> None:
        return None

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
