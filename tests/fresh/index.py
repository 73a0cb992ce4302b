"""A package index on loopback that has everything a lock names, and serves something else."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def changed(lock: Path) -> Iterator[str]:
    """The address of its root, as pip wants it; it serves until the context ends."""
    versions = {name.lower().replace("_", "-"): version for name, version
                in re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE)}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/").split("/")[-1]
            if self.path.startswith("/files/"):
                self._send("application/octet-stream", b"not what the lock names")
            elif name in versions:
                wheel = f"{re.sub('[-.]', '_', name)}-{versions[name]}-py3-none-any.whl"
                self._send("text/html", f'<!DOCTYPE html><a href="/files/{wheel}">{wheel}</a>'.encode())
            else:
                self.send_error(404)

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
