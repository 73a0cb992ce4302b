"""One host: its files, its bubblewrap with condor_master in it, and what can be asked of and done to it."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from tests.site import config, network
from tests.site.layout import DAEMON_USER, NODE_CACHE, USERS, Host
from tests.site.root import namespaced

KVM = Path("/dev/kvm")
# As every distribution mounts it: else sshd, run by a job's user, cannot give a terminal. The machine's own may differ.
TERMINALS = "mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts /dev/pts"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
KVM_GROUP = 21000  # where the machine's device says nothing of a group


def passwd_numbers(root: Path, user: str) -> tuple[int, int]:
    """User and group number of ``user`` in the root."""
    for line in (root / "etc/passwd").read_text().splitlines():
        name, _, uid, gid, *_ = line.split(":")
        if name == user:
            return int(uid), int(gid)
    raise LookupError(user)


def prepare(host: Host, root: Path) -> None:
    """Writes the host's files. What a disk would keep over a crash (spool, homes, tokens, logs) stays as it is."""
    folder, daemon = host.folder, passwd_numbers(root, DAEMON_USER)
    if (folder / "run").exists():
        shutil.rmtree(folder / "run")
    for name in ("etc", "config.d", "tokens.d", "passwords.d", "home", "cache", "var-tmp", "run/lock"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("log", "spool", "state", "state/execute", "run/condor", "run/lock/condor"):
        (folder / name).mkdir(exist_ok=True)
        os.chown(folder / name, *daemon)
    for name in ("tokens.d", "passwords.d"):
        (folder / name).chmod(0o700)
    for name in ("var-tmp", "cache", "run/lock"):
        (folder / name).chmod(0o1777)
    for user in host.users if host.homes else ():
        home = folder / "home" / user
        home.mkdir(mode=0o700, exist_ok=True)
        os.chown(home, USERS[user], USERS[user])
    node = kvm_node(host)
    (folder / "config.d/50-site.config").write_text(config.of_host(host))
    (folder / "etc/hosts").write_text(config.etc_hosts())
    (folder / "etc/resolv.conf").write_text("# the site has no name server\n")
    (folder / "etc/passwd").write_text(config.etc_passwd(root, host))
    (folder / "etc/group").write_text(config.etc_group(root, host, node.stat().st_gid if node else KVM_GROUP))


def kvm_node(host: Host) -> Optional[Path]:
    """A /dev/kvm as a site has it, for its group only: the machine's own, else one that we make. None without KVM, and
    where an ordinary user holds the site: her devices have no group that alice could be in."""
    if not KVM.exists() or namespaced():
        return None
    found = KVM.stat()
    if found.st_gid and found.st_mode & 0o060 == 0o060 and not found.st_mode & 0o006:
        return KVM
    node = host.folder / "kvm"
    node.unlink(missing_ok=True)
    os.mknod(node, stat.S_IFCHR | 0o660, found.st_rdev)
    os.chown(node, 0, KVM_GROUP)
    node.chmod(0o660)
    return node


def bubblewrap(host: Host, root: Path, *command: str) -> list[str]:
    """Command line that runs ``command`` in the host's file system, in process and name spaces of its own."""
    own = {"config.d": "/etc/condor/config.d", "tokens.d": "/etc/condor/tokens.d",
           "passwords.d": "/etc/condor/passwords.d", "run": "/run", "home": "/home", "var-tmp": "/var/tmp",
           "state": "/var/lib/condor", "log": "/var/log/condor", "spool": "/var/spool/condor", "cache": NODE_CACHE}
    words = ["bwrap", "--ro-bind", str(root), "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc",
             "--ro-bind", "/sys", "/sys", "--tmpfs", "/tmp", "--chmod", "1777", "/tmp"]
    for name, place in own.items():
        words += ["--bind", str(host.folder / name), place]
    for name in ("hosts", "resolv.conf", "passwd", "group"):
        words += ["--ro-bind", str(host.folder / "etc" / name), f"/etc/{name}"]
    if (host.folder / "kvm").exists():
        words += ["--dev-bind", str(host.folder / "kvm"), str(KVM)]
    return [*words, "--unshare-pid", "--unshare-uts", "--unshare-ipc", "--hostname", host.full_name,
            "--die-with-parent", "--clearenv", "--setenv", "PATH", PATH, "--chdir", "/", *command]


def start(host: Host, root: Path) -> None:
    """Starts condor_master; comes back at once. It lives on when we do not."""
    prepare(host, root)
    # The shell stays as bubblewrap's parent: bubblewrap must end with something, and not with us.
    command = ["ip", "netns", "exec", host.namespace, "sh", "-c", '"$@"; exit', "sh",
               *bubblewrap(host, root, "sh", "-c", f"{TERMINALS}; exec condor_master -f")]
    with (host.folder / "console").open("ab") as console:
        subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                         start_new_session=True)


def started(host: Host) -> float:
    """When the host was last started, in seconds since the epoch."""
    return (host.folder / "etc/hosts").stat().st_mtime


def init(host: Host) -> Optional[int]:
    """The machine's number of the host's process 1, None if the host is down."""
    for pid in network.processes(host):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        if len(numbers) == len(_own_numbers()) + 1 and numbers[-1] == "1":
            return pid
    return None


def _own_numbers() -> list[str]:
    text = Path("/proc/self/status").read_text()
    return next(line.split()[1:] for line in text.splitlines() if line.startswith("NSpid:"))


@dataclass(frozen=True)
class Process:
    pid: int  # on the machine
    user: str
    argv: tuple[str, ...]

    @property
    def program(self) -> str:
        return Path(self.argv[0]).name if self.argv else ""


def processes(host: Host) -> Iterator[Process]:
    """What runs in the host, bubblewrap itself left out."""
    passwd = host.folder / "etc/passwd"
    names: dict[int, str] = {}
    for line in passwd.read_text().splitlines() if passwd.exists() else ():
        name, _, uid, *_ = line.split(":")
        names[int(uid)] = name
    for pid in network.processes(host):
        try:
            argv = tuple(os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1])
            owner = Path(f"/proc/{pid}").stat().st_uid
            depth = len(Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].splitlines()[0].split())
        except (OSError, IndexError):
            continue
        if argv and depth > len(_own_numbers()) and Path(argv[0]).name != "bwrap":
            yield Process(pid, names.get(owner, str(owner)), argv)


def execute(host: Host, user: str, argv: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command in the host as ``user``; ``more`` goes to subprocess.run. Output is captured as text."""
    pid = init(host)
    if pid is None:
        raise RuntimeError(f"{host.name} is down")
    inside = ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid"]
    home = "/root" if user == "root" else f"/home/{user}"
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--pdeathsig=KILL",
              "env", "-i", "--chdir=/", f"PATH={PATH}", f"HOME={home}", f"USER={user}", f"LOGNAME={user}"]
    options = {"stdin": subprocess.DEVNULL, "timeout": 60, **more}
    if "input" in options:
        del options["stdin"]
    return subprocess.run([*inside, *become, *argv], capture_output=True, text=True, **options)


def send(host: Host, program: str, number: signal.Signals) -> int:
    """Sends a signal to every process of that program; returns how many there were."""
    count = 0
    for process in list(processes(host)):
        if process.program == program:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue
            count += 1
    return count


def of_jobs(every: Iterable[Process], word: str, marks: set[str]) -> list[Process]:
    """Those of jobs that have ``word`` in their environment; and programs which have little of that, by what HTCondor
    itself knows a job's processes by: ``marks``, which are added to."""
    known = {process: set(_environment(process.pid).split("\0")) for process in every}
    ours = {process for process, words in known.items() if word in "\0".join(words)}
    daemons = set().union(*(words for process, words in known.items() if process.program.startswith("condor_")))
    for process in ours:
        marks.update(mark for mark in known[process] - daemons if mark.startswith("_CONDOR_ANCESTOR_"))
    return [process for process, words in known.items() if process in ours or words & marks]


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""
