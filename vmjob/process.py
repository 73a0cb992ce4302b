"""The only door to other programs.

Each command is logged once, shell-quoted, at debug level; a failure carries the command, its status
and the end of what it printed. Nothing started here dumps its memory or outlives us (die_with_parent): on Linux
each child is told to die with the thread that made it (prctl PR_SET_PDEATHSIG), so call this from the main thread.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, Optional, Union

from vmjob import interrupt, landlock, opened
from vmjob.errors import CommandFailed, CommandMissing
from vmjob.landlock import Fence
from vmjob.machinetext import last_line
from vmjob.node_errors import of_node

log = logging.getLogger("vmjob.process")

_PR_SET_PDEATHSIG = 1
_PLAIN = {"PATH", "HOME", "TMPDIR", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH"}
_TICK = 0.2  # seconds between two looks at whether the run is to end
Argument = Union[str, Path]


def which(name: str) -> Optional[str]:
    """Full path of a program, also from the sbin folders that an ordinary user's PATH leaves out."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=f"{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/libexec")


def require(name: str, package: str) -> str:
    """``which``, or CommandMissing that names the Debian ``package`` to install."""
    found = which(name)
    if not found:
        raise CommandMissing(f"the program {name} is not installed here",
                             f"install it: sudo apt-get install {package}")
    return found


def die_with_parent(parent: int, rules: Optional[int] = None) -> Callable[[], None]:
    """A ``preexec_fn``: SIGKILL reaches the child when the parent goes away, even by kill -9; and the child leaves no
    core dump, which would hold a guest's memory, or a token. ``rules``: of a fence (landlock)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def apply() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # a program that the kernel pipes dumps to knows no limit: nothing is in them then
            kinds = os.open("/proc/self/coredump_filter", os.O_WRONLY | os.O_CLOEXEC)
            os.write(kinds, b"0")
            os.close(kinds)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before prctl was heard
            os._exit(1)
        if rules is not None:
            landlock.restrict(rules)

    return apply


def bare(env: Mapping[str, str]) -> dict[str, str]:
    """What a program needs that reads what strangers made: without the tokens, passwords and addresses that batch
    systems and users put into a job's environment, and without libraries that are put into every program
    (LD_PRELOAD), as nobody knows what these want to open."""
    return {name: value for name, value in env.items() if name in _PLAIN or name.startswith(("LC_", "QEMU_"))}


def _fenced(env: Optional[Mapping[str, str]], fence: Optional[Fence]) -> Optional[Mapping[str, str]]:
    return bare(os.environ if env is None else env) if fence else env


def run(argv: Sequence[Argument], *, cwd: Optional[Path] = None, env: Optional[Mapping[str, str]] = None,
        input: Optional[bytes] = None, timeout: Optional[float] = None, check: bool = True,
        hint: str = "", pass_fds: Sequence[int] = (),
        fence: Optional[Fence] = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; stdout and stderr are captured as bytes. ``fence``: what it may open.

    Raises CommandMissing, or (with ``check``) CommandFailed with the end of its output; a command that
    outlives ``timeout`` seconds is killed and is a CommandFailed too.
    """
    words = [str(word) for word in argv]
    _note("run", words)
    child = _start(words, hint, env, cwd=cwd, pass_fds=pass_fds, fence=fence, stdout=subprocess.PIPE,
                   stderr=subprocess.PIPE, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE)
    with child:
        try:
            done = subprocess.CompletedProcess(words, 0, *_heard(child, input, timeout))
        except subprocess.TimeoutExpired as slow:
            child.kill()
            raise CommandFailed(f"{words[0]} did not end within {timeout:.0f} s", hint) from slow
        except BaseException:
            child.kill()
            raise
        done.returncode = child.returncode
    if check and done.returncode:
        tail = opened.named((done.stderr or done.stdout).decode(errors="replace").strip()[-2000:])
        last = last_line(tail, "it printed nothing")
        raise CommandFailed(f"{Path(words[0]).name} ended with status {done.returncode}: {last}", hint,
                            output=tail, returncode=done.returncode)
    return done


def _note(what: str, words: list[str]) -> None:
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s: %s%s", what, shlex.join(words), opened.legend(" ".join(words)))


def _start(words: list[str], hint: str, env: Optional[Mapping[str, str]] = None, fence: Optional[Fence] = None,
           **more: Any) -> subprocess.Popen[bytes]:
    """A child that dies with us, behind ``fence``. Raises CommandMissing, NodeExhausted."""
    try:
        with interrupt.shielded(), landlock.ruleset(fence) as rules:  # what is raised in the midst of a fork is lost
            return subprocess.Popen(words, env=_fenced(env, fence),
                                    preexec_fn=die_with_parent(os.getpid(), rules), **more)
    except FileNotFoundError as missing:
        if str(missing.filename) != words[0]:  # the folder to start it in
            raise
        raise CommandMissing(f"the program {words[0]} is not installed here", hint) from missing
    except OSError as refused:
        raise of_node(refused) or refused from None


def _heard(child: subprocess.Popen[bytes], said: Optional[bytes], timeout: Optional[float]) -> tuple[bytes, bytes]:
    """What it writes until its end, to stdout and stderr. Raises TimeoutExpired, and what interrupt.check does."""
    if child.stdin:
        # not by communicate, which forgets the rest of it at its first time-out
        threading.Thread(target=_feed, args=(child.stdin, said), name="feed", daemon=True).start()
        child.stdin = None
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        interrupt.check()
        left = _TICK if end is None else min(_TICK, end - time.monotonic())
        try:
            return child.communicate(timeout=max(0.0, left))
        except subprocess.TimeoutExpired:
            if end is not None and time.monotonic() >= end:
                raise


def _feed(pipe: IO[bytes], said: bytes) -> None:
    with suppress(OSError), pipe:  # one that has read enough, or has ended
        pipe.write(said)


def spawn(argv: Sequence[Argument], *, cwd: Optional[Path] = None, env: Optional[Mapping[str, str]] = None,
          pass_fds: Sequence[int] = (), stdout: Optional[IO[bytes]] = None,
          stderr: Optional[IO[bytes]] = None, fence: Optional[Fence] = None) -> subprocess.Popen[bytes]:
    """Start a long-lived helper in a session of its own (a terminal's Ctrl-C and Ctrl-Z come to us
    alone, who then stop it in order). ``fence``: what it may open. The caller ends and reaps it. Raises
    CommandMissing."""
    words = [str(word) for word in argv]
    _note("start", words)
    return _start(words, "see vmjob doctor for what this machine lacks", env, cwd=cwd, pass_fds=pass_fds,
                  stdin=subprocess.DEVNULL, stdout=stdout or subprocess.DEVNULL, stderr=stderr or subprocess.DEVNULL,
                  start_new_session=True, fence=fence)


def attached(argv: Sequence[Argument], *, terminal: bool = True, quiet: Sequence[bytes] = (),
             hint: str = "") -> tuple[int, str]:
    """Run a command on our own terminal or streams, for a person: its status (negative: a signal) and the end of what
    it wrote to stderr, which comes by here and goes on, but for the lines that hold one of ``quiet``.

    ``terminal``: it needs ours, and with it gets Ctrl-C; else that comes to us alone. Raises CommandMissing. However
    this ends, the command has ended, and what it started before it, so that it can clean up.
    """
    words = [str(word) for word in argv]
    log.debug("attach: %s", shlex.join(words))
    child = _start(words, hint, stderr=subprocess.PIPE, start_new_session=not terminal)
    assert child.stderr
    said = b""
    try:
        for line in iter(child.stderr.readline, b""):
            said = (said + line)[-2000:]
            if not any(word in line for word in quiet):
                os.write(2, line)
        return child.wait(), said.decode(errors="replace").strip()
    finally:
        if child.poll() is None:
            with suppress(OSError):
                for below in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
                    os.kill(int(below), signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(5)
        if child.poll() is None:
            child.terminate()
            child.wait()
        child.stderr.close()


def in_child(call: Callable[[], None], read: Callable[[int], None], pause: float = 0.2) -> str:
    """Run ``call`` in a forked child, for a library that stands still (and us with it) while it works. ``read`` hears
    now and then how many bytes the child has read. Returns what was wrong, empty if nothing; the child is gone then."""
    mine, its = os.pipe()
    with interrupt.shielded():
        child = os.fork()
        if child == 0:
            _as_child(call, its)
    os.close(its)
    try:
        while True:
            gone, status = os.waitpid(child, os.WNOHANG)
            if gone:
                break
            with suppress(OSError, ValueError, IndexError):
                read(int(Path(f"/proc/{child}/io").read_text().split()[1]))
            interrupt.sleep(pause)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(mine)
        raise
    said = os.read(mine, 4096).decode(errors="replace")
    os.close(mine)
    return said or ("" if status == 0 else f"it ended with status {status}")


def _as_child(call: Callable[[], None], pipe: int) -> NoReturn:
    status = 1
    try:
        for number in interrupt.ALL:
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(os.getppid())()  # sees a parent that is gone by now as its own
        call()
        status = 0
    except BaseException as failure:
        os.write(pipe, (str(failure) or type(failure).__name__).encode()[:4000])
    finally:
        os._exit(status)
