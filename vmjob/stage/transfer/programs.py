"""What other programs bring: xrdcp, which writes to a pipe; gfal-copy and HTCondor's plug-ins, which write files.

Command lines are pure functions. Programs are started by the thread that asks for the transfer and end with it.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Optional

from vmjob.core import locks, process
from vmjob.core.errors import CommandMissing
from vmjob.core.files import free_bytes
from vmjob.core.machinetext import last_line
from vmjob.core.units import format_size
from vmjob.stage.transfer import credentials
from vmjob.stage.transfer.condor_plugins import Plugins, plugin_failure, plugin_request
from vmjob.stage.transfer.flow import Failed
from vmjob.stage.transfer.patience import Patience

_PREFIX = "vmjob-stage-"
_SPARE = 2**20  # bytes that a program may write besides the file, such as what it says
_POLL = 0.2  # seconds
# what no second try fixes, in the words of web servers, and of XRootD, gfal and the system
_FINAL = re.compile(r"""\b(HTTP(/[0-9.]+)?|error|code|status|response)[\s:=(]{1,3}(400|401|403|404|410)\b
    |(?<![\w.:/-])(404\ not\ found|403\ forbidden|410\ gone)\b |\bno\ such\ (file|bucket|key|object)
    |\b(file|object)\ not\ found |[\[(]30(00|02|06|10|11|13|16|18|30)[\])] |permission\ denied |access\ denied
    |not\ authori[sz]ed |\bauth(entication|orization)?\ fail |unable\ to\ auth |no\ protocols\ left |\bENOENT\b
    |\binvalid\ (address|argument|name|path|ur[il])\b |file\ too\ large |(not|is)\ a\ directory""", re.I | re.X)


def xrdcp_argv(program: str, address: str) -> list[str]:
    return [program, "--nopbar", "--silent", address, "-"]


def gfal_argv(program: str, address: str, target: Path, seconds: float) -> list[str]:
    return [program, "--force", "--timeout", str(max(1, round(seconds))), address, f"file://{target}"]


def environment(host: str, environ: Mapping[str, str], patience: Patience) -> dict[str, str]:
    """For what fetches from ``host``: with the user's tokens only where these are for it, and with her certificate only
    where she or the site named it."""
    may = credentials.meant_for(credentials.bearer_token(environ), host, environ)
    plain = dict(environ) if may else credentials.without_token(environ)
    plain = plain if credentials.named(host, environ) else credentials.without_certificate(plain)
    return {**xrootd_times(patience, patience.stall), **plain}


def xrootd_times(patience: Patience, answer: float) -> dict[str, str]:
    """What XRootD's programs are told of time: they would wait for minutes by themselves, and the next source, or
    another try, is our business. ``answer``: seconds for a server to think."""
    stall = max(patience.stall, min(answer, 60))
    return {"XRD_CONNECTIONRETRY": "2", "XRD_STREAMERRORWINDOW": "30", "XRD_LOGLEVEL": "Error",
            "XRD_CONNECTIONWINDOW": f"{patience.connect:.0f}", "XRD_REQUESTTIMEOUT": f"{max(1, answer):.0f}",
            "XRD_STREAMTIMEOUT": f"{stall:.0f}"}


class PipeTransfer:
    """What a program writes to its stdout; it begins with the first byte of the file."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], start: int, size: int) -> None:
        self.behind, self._left = start, size
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the transfer
        out, into = os.pipe()
        with suppress(OSError):
            fcntl.fcntl(out, 1031, 2**20)  # F_SETPIPE_SZ
        self._out = out
        try:
            with os.fdopen(into, "wb") as end:
                self._child = process.spawn(argv, env=env, stdout=end, stderr=self._said)
        except BaseException:
            os.close(out)
            self._said.close()
            raise

    def read(self, amount: int) -> bytes:
        data = os.read(self._out, amount)
        if data:
            self._left -= len(data)
            if self._left < 0:
                raise Failed("more bytes come than the manifest says", final=True)
            return data
        status = self._child.wait()
        if status or self._left:
            raise _complaint(self._child, status, self._said, self._left)
        return b""

    def moved(self) -> int:
        return 0

    def stop(self) -> None:
        _end(self._child)

    def close(self) -> None:
        _end(self._child)
        os.close(self._out)
        self._said.close()


class FileTransfer:
    """What a program writes to a file in a folder of its own, handed on when it has ended well; removed at the end."""

    def __init__(self, scratch: Scratch, argv: Sequence[str], env: Mapping[str, str], start: int, size: int,
                 verdict: Optional[Path] = None) -> None:
        """``verdict``: where the program writes what became of it, as a ClassAd. ``scratch`` is closed here."""
        self.behind, self._start, self._size = 0, start, size
        self._scratch, self._verdict = scratch, verdict
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the transfer
        self._file: Optional[IO[bytes]] = None
        try:
            self._child = process.spawn(argv, env=env, cwd=scratch.folder, stderr=self._said)
        except (CommandMissing, OSError) as broken:
            self._said.close()
            scratch.close()
            raise Failed(f"{argv[0]} cannot be started", broken=True) from broken
        with suppress(OSError):  # it has ended already, or has a limit that is lower
            resource.prlimit(self._child.pid, resource.RLIMIT_FSIZE, (size + _SPARE, size + _SPARE))

    def moved(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self._scratch.folder.glob("data*"))

    def read(self, amount: int) -> bytes:
        if self._file is None:
            self._file = self._wait()
        return self._file.read(amount) or b""

    def _wait(self) -> IO[bytes]:
        status = self._ended()
        if self._scratch.data.exists() and self._scratch.data.stat().st_size > self._size:
            raise Failed("more bytes come than the manifest says", final=True)
        told = self._verdict.read_text(errors="replace") if self._verdict and self._verdict.exists() else ""
        wrong = plugin_failure(told) if self._verdict else None
        if wrong:
            raise Failed(wrong, final=is_final(wrong))
        if status:
            raise _complaint(self._child, status, self._said, 0)
        try:
            file = self._scratch.data.open("rb", buffering=0)
        except OSError as missing:
            raise Failed("it brought no file") from missing
        there = os.fstat(file.fileno()).st_size
        if there != self._size:
            file.close()
            raise Failed(f"{there} bytes are there, but the manifest says {self._size}", final=True)
        file.seek(self._start)
        return file

    def _ended(self) -> int:
        """Its status. It may write into several files, so their sum is looked at too."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self._child.wait(_POLL)
            if self.moved() > self._size + 2 * _SPARE:
                _end(self._child)
                raise Failed("more bytes come than the manifest says", final=True)

    def stop(self) -> None:
        _end(self._child)

    def close(self) -> None:
        _end(self._child)
        if self._file:
            self._file.close()
        self._said.close()
        self._scratch.close()


class Scratch:
    """A folder of our own in the slot's scratch, for one file of ``size`` bytes; what killed runs left is removed."""

    def __init__(self, size: int) -> None:
        """Raises Failed where there is no room."""
        names = ("_CONDOR_SCRATCH_DIR", "TMPDIR")
        base = next((Path(os.environ[n]) for n in names if os.environ.get(n) and Path(os.environ[n]).is_dir()),
                    Path("/var/tmp"))
        _sweep(base)
        if free_bytes(base) < size:
            raise Failed(f"{base} has no room for it ({format_size(size)})", final=True)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self.data = self.folder / "data"
        # locked before it has its name: a folder whose lock can be had is a dead run's
        self._lock = os.open(self.folder / "new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        locks.attempt(self._lock)
        (self.folder / "new").rename(self.folder / "lock")

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)


def _sweep(base: Path) -> None:
    for old in base.glob(_PREFIX + "*"):
        with suppress(OSError):
            found = old.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue  # another user's, whom nobody cleans up after but herself
            lock = locks.open_own(old / "lock", make=False)
            try:
                if locks.attempt(lock):
                    shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(lock)


def gfal_transfer(program: str, address: str, env: Mapping[str, str], start: int, size: int,
                  seconds: float) -> FileTransfer:
    scratch = Scratch(size)
    return FileTransfer(scratch, gfal_argv(program, address, scratch.data, seconds), env, start, size)


def plugin_transfer(plugins: Plugins, url: str, env: Mapping[str, str], start: int, size: int) -> FileTransfer:
    """Through the plug-in that this node's HTCondor has for the address. Raises Failed."""
    # what is before a + names one of the user's credentials
    plugin, many = plugins.find(url.partition(":")[0].lower().rpartition("+")[2])
    scratch = Scratch(size)
    if not many:
        return FileTransfer(scratch, [plugin, url, str(scratch.data)], env, start, size)
    request, verdict = scratch.folder / "in", scratch.folder / "out"
    request.write_text(plugin_request(url, scratch.data))
    argv = [plugin, "-infile", str(request), "-outfile", str(verdict)]
    return FileTransfer(scratch, argv, env, start, size, verdict)


def is_final(said: str) -> bool:
    """Whether a program's words tell of what no second try fixes: a file that is not there, not one for us."""
    return bool(_FINAL.search(said))


def _end(child: subprocess.Popen[bytes]) -> None:
    for number, wait in ((signal.SIGTERM, 2), (signal.SIGKILL, 5)):
        if child.poll() is None:
            with suppress(OSError):
                os.killpg(child.pid, number)  # a plug-in may have children
        with suppress(subprocess.TimeoutExpired):
            child.wait(wait)
            return


def _complaint(child: subprocess.Popen[bytes], status: int, said: IO[bytes], left: int) -> Failed:
    """What the program said of its failure."""
    said.seek(0)
    last = last_line(said.read(2**16).decode(errors="replace"))
    text = re.sub(r"^.*\[(ERROR|FATAL)\] (Server responded with an error: )?", "", last)
    text = "".join(c for c in text if c.isprintable())[:300]
    assert isinstance(child.args, list)
    name = Path(str(child.args[0])).name
    if not status:
        return Failed(f"{name} ended {format_size(left)} too early")
    return Failed(f"{name}: {text}" if text else f"{name} ended with status {status}", final=is_final(text))
