"""A node with slots and a cache, a web server with images, a link of limited rate between them: for bench.staging."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional

from bench.common import Bench, execute, tool
from bench.debian import image as built
from vmjob.core.files import hash_file
from vmjob.core.process import die_with_parent
from vmjob.image import manifest as manifests

_PORT = 8080  # of the namespace's own loopback
_PIECE = 128 * 2**20
_HOLE = 4 * 2**30  # where the file system of bench/debian.yaml ends
DIRECT = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}

# A network namespace that ends with its server, however that ends. An MTU as on a wire, or bursts would be 64 kB.
_SERVER = """\
PATH=$PATH:/usr/sbin:/sbin
ip link set lo mtu 1500 up
if [ -n "$1" ]; then tc qdisc add dev lo root tbf rate "$1" burst 64kb latency 50ms; fi
shift
exec setpriv --pdeathsig KILL "$@"
"""
_NGINX = """\
daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;
events {{ }}
http {{
    log_format own '$request_uri $status $body_bytes_sent';
    access_log {place}/access.log own;
    client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
    default_type application/octet-stream; sendfile on;
    server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""


@dataclass(frozen=True)
class Image:
    """``payload``: a job `true` with it. ``size``: bytes of its files; ``cache``: of a node that has no other image."""

    name: str
    size: int
    payload: Path
    cache: Path


@dataclass(frozen=True)
class Way:
    """One process to its end, in a folder of its own."""

    argv: Sequence[str]
    folder: Path
    env: Mapping[str, str]

    @property
    def said(self) -> str:
        return " | ".join((self.folder / "said").read_text(errors="replace").strip().splitlines()[-4:])


@dataclass(frozen=True)
class Server:
    """``within``: the beginning of a command line that runs in the server's namespace."""

    within: tuple[str, ...]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{_PORT}"

    @property
    def moved(self) -> int:
        """Bytes of files that were sent, without headers."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return sum(int(sent) for _, status, sent in lines if status in ("200", "206"))


@dataclass
class Work:
    """Images as ``www``/NAME; all else of this measurement is below ``folder`` too."""

    bench: Bench
    folder: Path
    slots: int = 0

    @property
    def www(self) -> Path:
        return self.folder / "www"

    def slot(self) -> Path:
        """A new folder each time."""
        self.slots += 1
        slot = self.folder / f"slot{self.slots}"
        slot.mkdir()
        return slot

    def job(self, one: Image, within: Sequence[str] = (), cache: Optional[Path] = None) -> Way:
        """The wrapper in a slot of a node; it is cold where ``cache`` does not exist yet."""
        env = self.bench.environment({"VMJOB_CACHE": str(cache or one.cache), "PYTHONPATH": "", **DIRECT})
        return Way([*within, "sh", str(one.payload / "vmjob-wrapper.sh")], self.slot(), env)


# ---------------------------------------------------------------- the image and its server


def make(work: Work, name: str, size: int) -> Image:
    """The Debian guest, with so many bytes of noise behind its file system that its files have ``size`` bytes."""
    source, folder = built(work.bench, "debian"), work.www / name
    shutil.copytree(source, folder)
    rest = size - sum(path.stat().st_size for path in folder.iterdir())
    disk, noise, at = folder / "disk.qcow2", work.folder / "noise", _HOLE
    qemu_io = tool("qemu-io")
    if rest > 0:
        execute([tool("qemu-img"), "resize", "-q", disk, str(_HOLE + rest // _PIECE * _PIECE + _PIECE)])
    while rest > 0:
        noise.write_bytes(os.urandom(min(_PIECE, -(-rest // 2**16) * 2**16)))
        length = noise.stat().st_size
        execute([qemu_io, "-f", "qcow2", "-t", "writeback", "-c", f"write -q -s {noise} {at} {length}", disk])
        at, rest = at + length, rest - length
    noise.unlink(missing_ok=True)
    _describe(folder, name)
    payload = work.folder / f"payload-{name}"
    work.bench.vmjob("pack", "--image", folder, "--network", "none", "--memory", "512MiB", "-o", payload, "--", "true")
    total = sum(path.stat().st_size for path in folder.iterdir() if path.name != "manifest.yaml")
    return Image(name, total, payload, work.folder / f"cache-{name}")


def _describe(folder: Path, name: str) -> None:
    """The manifest tells of the new disk, and where it all is."""
    path, disk = folder / "manifest.yaml", folder / "disk.qcow2"
    old = manifests.load(path)
    digest, size = hash_file(disk)
    virtual = json.loads(execute([tool("qemu-img"), "info", "--output=json", disk]).stdout)["virtual-size"]
    files = tuple(replace(file, sha256=digest, size=size, virtual_size=virtual) if file.role == "disk" else file
                  for file in old.files)
    new = replace(old, name=f"bench-{name}", files=files, sources=(f"http://127.0.0.1:{_PORT}/{name}/",))
    path.write_text(json.dumps(manifests.to_document(new), indent=1) + "\n")


@contextmanager
def serving(work: Work, rate: str) -> Iterator[Server]:
    """nginx in a network namespace of its own, whose loopback has ``rate`` (of tc); empty: as it is. Both end with us,
    also at kill -9."""
    for name in ("ip", "tc", "curl"):
        tool(name)
    with tempfile.TemporaryDirectory(dir=work.folder) as temporary:
        place = Path(temporary)
        (place / "nginx.conf").write_text(_NGINX.format(place=place, port=_PORT, folder=work.www))
        argv = ["unshare", "--net", "--", "sh", "-ec", _SERVER, "server", rate, tool("nginx"), "-p", str(place), "-e",
                f"{place}/error.log", "-c", f"{place}/nginx.conf"]
        with (place / "said").open("wb") as said:
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                                     preexec_fn=die_with_parent(os.getpid()))
        try:
            server = Server(("nsenter", f"--net=/proc/{child.pid}/ns/net", "--"), place / "access.log")
            deadline = time.monotonic() + 10
            # until the namespace is there it is asked for in ours
            asked = [*server.within, "curl", "-s", server.url]
            while not server.log.exists() or execute(asked, check=False).returncode:
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"nginx did not start: {(place / 'said').read_text()[-500:]}")
                time.sleep(0.05)
            yield server
        finally:
            child.kill()
            child.wait()


# ---------------------------------------------------------------- processes and files


def together(ways: Sequence[Way], watch: Callable[[], None] = lambda: None, timeout: float = 600) -> list[float]:
    """Start all at once; seconds that each took, in their order. ``watch`` is called all the time."""
    with ExitStack() as stack:
        start = time.perf_counter()
        children = [stack.enter_context(_child(way)) for way in ways]
        took: dict[int, float] = {}
        while len(took) < len(children):
            for number, (way, child) in enumerate(zip(ways, children)):
                if number not in took and child.poll() is not None:
                    took[number] = time.perf_counter() - start
                    if child.returncode:
                        raise RuntimeError(f"{way.argv[-1]} ended with {child.returncode}: {way.said}")
            if time.perf_counter() - start > timeout:
                raise RuntimeError(f"{ways[0].argv[-1]} took more than {timeout:.0f} s")
            watch()
            time.sleep(0.01)
    return [took[number] for number in range(len(ways))]


@contextmanager
def _child(way: Way) -> Iterator[subprocess.Popen[bytes]]:
    with (way.folder / "said").open("wb") as said:
        child = subprocess.Popen(way.argv, cwd=way.folder, env=dict(way.env), stdin=subprocess.DEVNULL, stdout=said,
                                 stderr=said, preexec_fn=die_with_parent(os.getpid()))
    try:
        yield child
    finally:
        child.terminate()  # the wrapper cleans up
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def stages_of(way: Way) -> dict[str, float]:
    """Seconds, as result.json tells them."""
    return {stage["name"]: float(stage["seconds"])
            for stage in json.loads((way.folder / "result.json").read_text())["stages"]}


def blocks(folders: Sequence[Path]) -> int:
    """Bytes on disk of all files; links to one are one."""
    found: dict[tuple[int, int], int] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                known = path.lstat()
            except OSError:
                continue
            found[known.st_dev, known.st_ino] = known.st_blocks * 512
    return sum(found.values())
