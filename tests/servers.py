"""Real servers for tests, on 127.0.0.1, as whoever runs the tests; they end with the tests, also when these are killed.

``nginx`` and ``xrootd`` are Debian's; ``Faults`` does what these never would.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Optional

import pytest

from vmjob.core import process

PATIENCE = 20.0  # seconds for a server to come up


@dataclass(frozen=True)
class Server:
    """``url`` ends without a slash. ``folder``: what it serves. ``log``: of nginx a line for each request, such as
    ``GET /file 206 bytes=7-|Bearer …``."""

    url: str
    port: int
    folder: Path
    log: Path

    @property
    def requests(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running(argv: list[str], port: int, log: Path) -> Iterator[None]:
    """A server until the block ends; it listens on ``port`` when the block begins."""
    with log.open("ab") as said:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
                                 preexec_fn=process.die_with_parent(os.getpid()))
    try:
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if child.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{argv[0]} does not listen:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.02)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


# ---------------------------------------------------------------- nginx

_NGINX = """
daemon off; master_process off; pid PLACE/pid; error_log PLACE/error.log;
events {{ worker_connections 256; }}
http {{
    log_format own '$request_method $request_uri $status $http_range|$http_authorization';
    access_log PLACE/access.log own;
    client_body_temp_path PLACE/body; proxy_temp_path PLACE/proxy; fastcgi_temp_path PLACE/fastcgi;
    uwsgi_temp_path PLACE/uwsgi; scgi_temp_path PLACE/scgi;
    default_type application/octet-stream; sendfile on; client_max_body_size 0;
    server {{
        listen 127.0.0.1:{port}{tls};
        server_name localhost;
        root FOLDER;
        {own}
    }}
}}
"""
_DAV = "dav_methods PUT DELETE MKCOL COPY MOVE; create_full_put_path on; dav_access user:rw group:r all:r;"


@contextmanager
def nginx(folder: Path, *, own: str = "", dav: bool = False,
          tls: Optional[tuple[Path, Path]] = None) -> Iterator[Server]:
    """nginx serving ``folder``. ``own``: more of its configuration, in ``server``; ``dav``: it takes PUT, DELETE,
    MKCOL; ``tls``: certificate and key for localhost."""
    program = process.which("nginx")
    if not program:
        pytest.skip("needs nginx: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="vmjob-nginx-") as name:
        place, port = Path(name), free_port()
        if dav:
            own += _DAV
        if tls:
            own += f"ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]};"
        text = _NGINX.format(port=port, tls=" ssl" if tls else "", own=own)
        text = text.replace("PLACE", name).replace("FOLDER", str(folder))
        if os.getuid() == 0:
            text = "user root;" + text
        (place / "nginx.conf").write_text(text)
        with running([program, "-p", name, "-e", f"{name}/error.log", "-c", f"{name}/nginx.conf"], port,
                     place / "error.log"):
            scheme = "https" if tls else "http"
            yield Server(f"{scheme}://localhost:{port}" if tls else f"http://127.0.0.1:{port}", port, folder,
                         place / "access.log")


# ---------------------------------------------------------------- XRootD

_XROOTD = """
xrd.port {port}
all.adminpath {place}
all.pidpath {place}
all.export /
oss.localroot {place}/files
xrootd.async off
"""


@contextmanager
def xrootd() -> Iterator[Server]:
    """XRootD serving ``folder`` of what it yields, for reading and writing; its files are an unprivileged user's where
    root runs the tests, as it never runs as root."""
    program = process.which("xrootd")
    if not program or not process.which("xrdcp"):
        pytest.skip("needs xrootd and xrdcp: apt-get install xrootd-server xrootd-client")
    # short: its sockets are in there
    with tempfile.TemporaryDirectory(prefix="vmjob-xrootd-") as name:
        place, port = Path(name), free_port()
        (place / "files").mkdir()
        argv = [program, "-c", f"{name}/xrootd.cfg", "-l", f"{name}/xrootd.log", "-n", "test"]
        (place / "xrootd.cfg").write_text(_XROOTD.format(port=port, place=name))
        if os.getuid() == 0:
            user = next(u for u in ("xrootd", "nobody") if _there(u))
            for path in (place, place / "files"):
                shutil.chown(path, user)
            # by its own -R it would forget that it is to die with us
            argv = ["setpriv", "--reuid", user, "--clear-groups", "--regid", str(pwd.getpwnam(user).pw_gid),
                    "--pdeathsig", "KILL", *argv]
        with running(argv, port, place / "out"):
            yield Server(f"root://127.0.0.1:{port}/", port, place / "files", place / "xrootd.log")


def _there(user: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


# ---------------------------------------------------------------- certificates


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the tests; ``bundle`` is what trusts it."""

    folder: Path
    bundle: Path

    def certificate(self, name: str = "localhost", days: int = 2, faked: str = "") -> tuple[Path, Path]:
        """Certificate and key for a host; ``faked``: made at another time, such as -30d."""
        made, key = self.folder / f"{name}{faked}.pem", self.folder / f"{name}{faked}.key"
        request, extra = made.with_suffix(".csr"), made.with_suffix(".ext")
        extra.write_text(f"subjectAltName=DNS:{name},IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
                "-keyout", key, "-out", request)
        words = ["x509", "-req", "-in", request, "-CA", self.bundle, "-CAkey", self.folder / "ca.key", "-days", days,
                 "-CAcreateserial", "-extfile", extra, "-out", made]
        openssl(*words, faked=faked)
        return made, key


def authority(folder: Path) -> Authority:
    """A new authority, valid from a year ago on."""
    folder.mkdir(parents=True, exist_ok=True)
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
            "/CN=authority of tests", "-days", 800, "-keyout", folder / "ca.key", "-out", folder / "ca.pem",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", faked="-365d" if shutil.which("faketime") else "")
    return Authority(folder, folder / "ca.pem")


def openssl(*words: object, faked: str = "") -> None:
    tool = process.which("openssl")
    if not tool:
        pytest.skip("needs openssl: apt-get install openssl")
    if faked and not shutil.which("faketime"):
        pytest.skip("needs faketime: apt-get install faketime")
    argv = [*(["faketime", "-f", faked] if faked else []), tool, *map(str, words)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- faults


@dataclass
class Faults:
    """A web server in a thread that has ``body`` at every path and does with each request what ``plan`` says next, the
    last for ever: a function of the request. ``asked`` is a line for each request: method, path, Range."""

    body: bytes
    plan: list[Callable[[Request], None]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    etag: str = '"one"'
    port: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Request(BaseHTTPRequestHandler):
    """What a fault is made of."""

    protocol_version = "HTTP/1.1"
    faults: Faults

    def do_GET(self) -> None:
        self.faults.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '-')}")
        self.faults.headers.append(dict(self.headers))
        plan = self.faults.plan
        (plan.pop(0) if len(plan) > 1 else plan[0] if plan else good)(self)

    do_PUT = do_HEAD = do_MKCOL = do_GET

    def log_message(self, *args: Any) -> None:
        return None

    def handle_one_request(self) -> None:
        with suppress(OSError):  # whoever asked has left
            super().handle_one_request()
            return
        self.close_connection = True

    @property
    def start(self) -> int:
        """The offset that was asked for."""
        asked = self.headers.get("Range", "bytes=0-")
        held = self.headers.get("If-Range", self.faults.etag)
        return int(asked.partition("=")[2].partition("-")[0]) if held == self.faults.etag else 0

    def begin(self, start: int, size: int, body: Optional[bytes] = None) -> memoryview:
        """Status and headers of an answer that has ``size`` bytes in all; what is to be sent."""
        data = memoryview(self.faults.body if body is None else body)[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", self.faults.etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        return data


def good(request: Request) -> None:
    request.wfile.write(request.begin(request.start, len(request.faults.body)))


def without_ranges(request: Request) -> None:
    request.wfile.write(request.begin(0, len(request.faults.body)))


def wrong_bytes(request: Request) -> None:
    body = bytes([request.faults.body[0] ^ 1]) + request.faults.body[1:]
    request.wfile.write(request.begin(request.start, len(body), body))


def longer(request: Request) -> None:
    request.wfile.write(request.begin(0, len(request.faults.body) + 7, request.faults.body + b"x" * 7))


def status(code: int, **headers: str) -> Callable[[Request], None]:
    def answer(request: Request) -> None:
        request.send_response(code)
        for name, value in {"Content_Length": "0", **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    return answer


def reset_after(count: int) -> Callable[[Request], None]:
    """The connection breaks after so many bytes."""
    def answer(request: Request) -> None:
        request.wfile.write(request.begin(request.start, len(request.faults.body))[:count])
        request.wfile.flush()
        time.sleep(0.05)  # what is on its way arrives first
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()
        request.close_connection = True

    return answer


def stall_after(count: int) -> Callable[[Request], None]:
    """Nothing more comes after so many bytes (after -1: not even an answer)."""
    def answer(request: Request) -> None:
        if count >= 0:
            request.wfile.write(request.begin(request.start, len(request.faults.body))[:count])
            request.wfile.flush()
        request.faults.over.wait()
        request.close_connection = True

    return answer


def drip(request: Request) -> None:
    """A byte now and then."""
    data = request.begin(request.start, len(request.faults.body))
    for position in range(len(data)):
        if request.faults.over.wait(0.05):
            break
        request.wfile.write(data[position:position + 1])
    request.close_connection = True


@contextmanager
def faults(body: bytes, *plan: Callable[[Request], None], etag: str = '"one"', address: str = "127.0.0.1",
           tls: Optional[tuple[Path, Path]] = None) -> Iterator[Faults]:
    """``tls``: certificate and key."""
    this = Faults(body, list(plan), etag=etag)

    class Own(Request):
        faults = this

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 50
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def handle_error(self, *args: Any) -> None:
            return None

    with ExitStack() as stack:
        server = stack.enter_context(Listener((address, 0), Own))
        this.port = server.server_port
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        stack.callback(server.shutdown)
        stack.callback(this.over.set)
        yield this
