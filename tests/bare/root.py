"""Bare Debian roots: ``mmdebstrap --variant=minbase``, kept as a tar, unpacked for each test, removed after it.

In one runs what would run on such a machine: apt-get, mmdebstrap, passt, QEMU; as root, as ``ada``, an ordinary user
without sudo, or as ``bob``, who has not even subordinate users. It has the host's network and what that takes (name
server, CA certificates, proxies, pip's settings), and nothing else of the host. All of its folders persist from command
to command, processes do not. As an ordinary user of the host, its root is root of a user namespace.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

KEPT = Path(__file__).resolve().parents[2] / "build/bare"
ENTER = Path(__file__).with_name("enter.sh")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NUMBERS = {"root": 0, "ada": 1000, "bob": 1001}
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
CA_FOLDER = Path("/usr/local/share/ca-certificates")  # what update-ca-certificates adds to Debian's
VARIABLES = re.compile(r"(?i:(https?|ftp|all|no)_proxy)|PIP_\w+|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE")
ARCHIVE = "http://archive.debian.org/debian"  # where a suite goes when Debian no longer keeps it
APT_SETTINGS = re.compile(r"Acquire::(https?::.*Proxy.*|Check-(Valid-Until|Date)) ")


@dataclass
class Bare:
    """A writable Debian root in the folder ``path``; ``mounts`` are made in it for every command."""

    path: Path
    mounts: list[tuple[str, str, str]] = field(default_factory=list)

    def run(self, *words: Union[str, Path], user: str = "root", cwd: str = "/", env: Optional[Mapping[str, str]] = None,
            input: Optional[str] = None, check: bool = True, timeout: float = 600,
            network: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command; with its end, all ends that it started. Without ``network`` there is a loopback of its own.

        Raises AssertionError with what it printed, where it fails and ``check`` is set, or takes over ``timeout`` s.
        """
        command = self.command(*words, user=user, cwd=cwd, env=env, network=network)
        given = {"stdin": subprocess.DEVNULL} if input is None else {}
        try:
            done = subprocess.run(command, input=input, capture_output=True, text=True, errors="replace",
                                  timeout=timeout, **given)  # type: ignore[call-overload]
        except subprocess.TimeoutExpired as late:
            printed = b"".join(part for part in (late.stdout, late.stderr) if part).decode(errors="replace")
            raise AssertionError(f"{words} took more than {timeout} s:\n{printed[-5000:]}") from None
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{(done.stdout + done.stderr)[-5000:]}"
        return done  # type: ignore[no-any-return]

    def command(self, *words: Union[str, Path], user: str = "root", cwd: str = "/",
                env: Optional[Mapping[str, str]] = None, network: bool = True) -> list[str]:
        """The words that run a command in the root, for a test that starts it itself. To kill it is enough."""
        home = "/root" if user == "root" else f"/home/{user}"
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        variables = {"PATH": PATH, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8",
                     **_variables(self.path), **(env or {})}
        return ["setpriv", "--pdeathsig=KILL", *_namespace(), "--pid", "--fork", "--kill-child", "--uts", "--ipc",
                *([] if network else ["--net"]), "sh", str(ENTER), str(self.path),
                *(word for mount in self.mounts for word in mount), "--",
                *become, "env", "-i", f"--chdir={cwd}", *(f"{key}={value}" for key, value in variables.items()),
                *map(str, words)]

    def put(self, source: Path, place: str, user: str = "root") -> None:
        """Copies a file or a tree to ``place`` (a path in the root, whose folder is made), where ``user`` owns it."""
        target = self.path / place.lstrip("/")
        owner = f"{NUMBERS[user]}:{NUMBERS[user]}"
        _as_root("sh", "-c", 'mkdir -p "$(dirname "$2")" && rm -rf "$2" && cp -R "$1" "$2" && chown -Rh "$3" "$2"',
                 "sh", source, target, owner)

    def write(self, place: str, text: str) -> None:
        """Writes a file of root's; its folder is made."""
        target = self.path / place.lstrip("/")
        _as_root("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", target, input=text)

    def bind(self, source: Path, place: str, read_only: bool = True) -> None:
        """Shows a file or folder of the host at ``place``, from the next command on. A file needs one in that place."""
        self.mounts.append(("ro" if read_only else "bind", str(source), place))


@contextmanager
def bare(suite: str, include: Sequence[str] = (), *, folder: Path) -> Iterator[Bare]:
    """A root of its own, unpacked below ``folder``; it is gone afterwards."""
    archive, path = kept(suite, include), folder / f"bare-{suite}"
    try:
        _as_root("rm", "-rf", "--one-file-system", path)  # of a test that was killed
        _as_root("sh", "-c", 'mkdir -p -m 755 "$2" && tar -xf "$1" -C "$2" --numeric-owner --exclude="./dev/*"', "sh",
                 archive, path)
        made = Bare(path)
        for user in ("ada", "bob"):
            made.run("useradd", "--create-home", "--shell=/bin/bash", f"--uid={NUMBERS[user]}", user)
        # as adduser gives them; in a namespace, of those that are in it
        subordinate = "ada:2000:60000\n" if _namespace()[1:2] == ["--user"] else "ada:100000:65536\n"
        for name in ("subuid", "subgid"):
            made.write(f"etc/{name}", subordinate)
        _surround(made)
        yield made
    finally:
        _as_root("rm", "-rf", "--one-file-system", path)


def kept(suite: str, include: Sequence[str] = ()) -> Path:
    """The tar of a root with the packages ``include`` (names, or apt's patterns: ?name(REGEX)) besides the essential
    ones; made once (half a minute)."""
    names, patterns = ([one for one in include if one.startswith("?") is pattern] for pattern in (False, True))
    recipe = ["--variant=minbase", *(f"--include={one}" for one in (",".join(names), *patterns) if one),
              "--format=tar", suite]
    wanted = KEPT / f"{suite}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}.tar"
    KEPT.mkdir(parents=True, exist_ok=True)
    with wanted.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            unfinished = wanted.with_suffix(".new")
            around, mode = (_namespace(), "root") if os.geteuid() == 0 else ([], "unshare")
            command = [*around, "mmdebstrap", f"--mode={mode}", *(f"--aptopt={one}" for one in _apt_settings())]
            said = ""
            for mirror in ([], [ARCHIVE]):
                # its output is ours to write, also where another user of a namespace makes it
                with unfinished.open("wb") as out:
                    done = subprocess.run([*command, *recipe, "-", *mirror], stdout=out, stdin=subprocess.DEVNULL,
                                          stderr=subprocess.PIPE, text=True)
                if done.returncode == 0:
                    break
                said += f"\nmmdebstrap {suite} {' '.join(mirror)} failed ({done.returncode}):\n{done.stderr[-2000:]}"
            else:
                unfinished.unlink()
                raise RuntimeError(said)
            unfinished.rename(wanted)
    return wanted


def why_not() -> Optional[str]:
    """Why there can be no such root here."""
    done = subprocess.run([*_namespace(), "--pid", "--fork", "true"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (f"needs root, or user namespaces with subordinate users: {done.stderr.strip()} (it takes util-linux 2.38, "
            f"the package uidmap, and a range for this user in /etc/subuid and /etc/subgid)")


def _namespace() -> list[str]:
    """The words before more options or a command, which is then root, in a mount namespace of its own."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    return ["unshare", *user, "--mount"]


def _as_root(*words: Union[str, Path], input: str = "") -> None:
    done = subprocess.run([*_namespace(), *map(str, words)], input=input, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"


def _apt_settings() -> list[str]:
    """What this machine's apt is told of its mirrors, a line each."""
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout.splitlines()
    return [setting for setting in settings if APT_SETTINGS.match(setting)]


def _variables(root: Path) -> dict[str, str]:
    """What the environment says of the network; not where it names a folder that the root has not."""
    found = {key: value for key, value in os.environ.items() if VARIABLES.fullmatch(key)}
    return {key: value for key, value in found.items()
            if not value.startswith("/") or (root / value.lstrip("/")).exists()}


def _surround(made: Bare) -> None:
    """What the host's network takes: name server, CA certificates, settings of apt and pip, each in its place."""
    named = [Path(value) for key, value in os.environ.items() if VARIABLES.fullmatch(key) and value.startswith("/")]
    files = [Path("/etc/resolv.conf"), CA_BUNDLE, *CA_FOLDER.glob("*.crt"), Path("/etc/pip.conf"),
             *Path("/etc/xdg/pip").glob("*"), *named]
    for file in files:
        if file.is_file():
            made.put(file.resolve(), str(file))
    for config in (".config/pip/pip.conf", ".pip/pip.conf"):
        if (Path.home() / config).is_file():
            for user, home in (("root", "/root"), ("ada", "/home/ada")):
                made.put(Path.home() / config, f"{home}/{config}", user)
    made.write("/etc/apt/apt.conf.d/80surroundings", "".join(f"{setting}\n" for setting in _apt_settings()))
    made.write("/etc/hosts", "127.0.0.1 localhost bare\n::1 localhost\n")
