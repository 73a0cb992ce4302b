"""What other programs bring: xrdcp, which writes to a pipe; gfal-copy and HTCondor's plug-ins, which write files.

Command lines are pure functions. Programs are started by the thread that asks for the transfer and end with it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Optional

from vmjob import process
from vmjob.errors import CommandMissing
from vmjob.stage import credentials
from vmjob.stage.flow import Failed, Patience
from vmjob.units import format_size

_PREFIX = "vmjob-stage-"
# xrdcp waits for minutes by itself; the next source, or another try, is our business
_XROOTD = {"XRD_CONNECTIONRETRY": "2", "XRD_STREAMERRORWINDOW": "30", "XRD_LOGLEVEL": "Error"}


def xrdcp_argv(program: str, address: str) -> list[str]:
    return [program, "--nopbar", "--silent", address, "-"]


def gfal_argv(program: str, address: str, target: Path, seconds: float) -> list[str]:
    return [program, "--force", "--timeout", str(max(1, round(seconds))), address, f"file://{target}"]


def environment(host: str, environ: Mapping[str, str], patience: Patience) -> dict[str, str]:
    """For what fetches from ``host``: with the user's tokens only where these are for it."""
    may = credentials.meant_for(credentials.bearer_token(environ), host, environ.get("VMJOB_TOKEN_HOSTS", ""))
    plain = dict(environ) if may else credentials.without_token(environ)
    own = {**_XROOTD, "XRD_CONNECTIONWINDOW": f"{patience.connect:.0f}", "XRD_REQUESTTIMEOUT": f"{patience.stall:.0f}",
           "XRD_STREAMTIMEOUT": f"{patience.stall:.0f}"}
    return {**own, **plain}


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

    def moved(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self._scratch.folder.glob("data*"))

    def read(self, amount: int) -> bytes:
        if self._file is None:
            self._file = self._wait()
        return self._file.read(amount) or b""

    def _wait(self) -> IO[bytes]:
        status = self._child.wait()
        told = self._verdict.read_text(errors="replace") if self._verdict and self._verdict.exists() else ""
        wrong = plugin_failure(told) if self._verdict else None
        if wrong:
            raise Failed(wrong, final="404" in wrong)
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
        state = os.statvfs(base)
        if state.f_bavail * state.f_frsize < size:
            raise Failed(f"{base} has no room for it ({format_size(size)})", final=True)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self.data = self.folder / "data"
        # locked before it has its name: a folder whose lock can be had is a dead run's
        self._lock = os.open(self.folder / "new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.folder / "new").rename(self.folder / "lock")

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)


def _sweep(base: Path) -> None:
    for old in base.glob(_PREFIX + "*"):
        with suppress(OSError):
            lock = os.open(old / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(lock)


def gfal_transfer(program: str, address: str, env: Mapping[str, str], start: int, size: int,
                  seconds: float) -> FileTransfer:
    scratch = Scratch(size)
    return FileTransfer(scratch, gfal_argv(program, address, scratch.data, seconds), env, start, size)


def plugin_transfer(url: str, env: Mapping[str, str], start: int, size: int) -> FileTransfer:
    """Through the plug-in that this node's HTCondor has for the address. Raises Failed."""
    # what is before a + names one of the user's credentials
    plugin, many = find_plugin(url.partition(":")[0].lower().rpartition("+")[2])
    scratch = Scratch(size)
    if not many:
        return FileTransfer(scratch, [plugin, url, str(scratch.data)], env, start, size)
    request, verdict = scratch.folder / "in", scratch.folder / "out"
    request.write_text(plugin_request(url, scratch.data))
    argv = [plugin, "-infile", str(request), "-outfile", str(verdict)]
    return FileTransfer(scratch, argv, env, start, size, verdict)


def plugin_request(url: str, target: Path) -> str:
    """What a plug-in of HTCondor is asked for: one ClassAd."""
    def text(value: object) -> str:
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

    return f"[ Url = {text(url)}; LocalFileName = {text(target)}; ]\n"


def plugin_failure(answer: str) -> Optional[str]:
    """Why a plug-in says that its transfer failed, None where it went well."""
    if re.search(r"\bTransferSuccess\s*=\s*true\b", answer, re.IGNORECASE):
        return None
    found = re.search(r'\bTransferError\s*=\s*"((?:[^"\\]|\\.)*)"', answer)
    text = re.sub(r"\\(.)", r"\1", found.group(1)) if found else ""
    return "".join(c for c in text if c.isprintable())[:300] or "HTCondor's plug-in does not say that it went well"


def plugin_methods(answer: str) -> tuple[set[str], bool]:
    """The schemes that a plug-in serves, and whether it takes a list of files, from what ``-classad`` printed."""
    found = re.search(r'^\s*SupportedMethods\s*=\s*"([^"]*)"', answer, re.IGNORECASE | re.MULTILINE)
    names = {name.strip().lower() for name in found.group(1).split(",")} if found else set()
    many = re.search(r"^\s*MultipleFileSupport\s*=\s*true\b", answer, re.IGNORECASE | re.MULTILINE)
    return names - {""}, bool(many)


def find_plugin(scheme: str) -> tuple[str, bool]:
    """The plug-in of this node's HTCondor for a scheme, and whether it takes lists. Raises Failed."""
    asker = process.which("condor_config_val")
    if not asker:
        raise Failed("this node has no HTCondor whose plug-ins could fetch it (no condor_config_val)", broken=True)
    try:
        told = process.run([asker, "FILETRANSFER_PLUGINS"], timeout=20, check=False)
    except (CommandMissing, OSError) as broken:
        raise Failed(f"{asker} cannot be started", broken=True) from broken
    names = [n for n in re.split(r"[,\s]+", told.stdout.decode(errors="replace")) if n.startswith("/")]
    if told.returncode or not names:
        raise Failed("HTCondor here has no plug-ins for file transfer (condor_config_val FILETRANSFER_PLUGINS)",
                     broken=True)
    offered: set[str] = set()
    for name in names:
        with suppress(Exception):  # one that does not run here is as one that is not there
            methods, many = plugin_methods(process.run([name, "-classad"], timeout=20).stdout.decode(errors="replace"))
            if scheme in methods:
                return name, many
            offered |= methods
    raise Failed(f"no plug-in of HTCondor here fetches {scheme}: (there are {', '.join(sorted(offered)) or 'none'})",
                 broken=True)


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
    lines = [line.strip() for line in said.read(2**16).decode(errors="replace").splitlines() if line.strip()]
    text = re.sub(r"^.*\[(ERROR|FATAL)\] (Server responded with an error: )?", "", lines[-1] if lines else "")
    text = "".join(c for c in text if c.isprintable())[:300]
    assert isinstance(child.args, list)
    name = Path(str(child.args[0])).name
    if not status:
        return Failed(f"{name} ended {format_size(left)} too early")
    # the words of XRootD and gfal for what no second try mends
    final = re.search(r"no such file|\[3011\]|3010|permission denied|not authori[sz]ed|ENOENT|invalid", text, re.I)
    return Failed(f"{name}: {text}" if text else f"{name} ended with status {status}", final=bool(final))

