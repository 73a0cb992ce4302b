"""A web server on the machine that the site's hosts reach: serves a folder, takes what is PUT, and counts."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.site.layout import GATEWAY


@dataclass
class Web:
    """``sent``: bytes of each GET that came to its end."""

    url: str
    sent: list[int] = field(default_factory=list)


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object, web: Web, **more: object) -> None:
        self._web = web
        super().__init__(*args, **more)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        super().do_GET()
        path = Path(self.translate_path(self.path))
        self._web.sent.append(path.stat().st_size if path.is_file() else 0)

    def do_PUT(self) -> None:
        path = Path(self.translate_path(self.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """Until the end of the with block."""
    web = Web("")
    server = http.server.ThreadingHTTPServer((GATEWAY, 0), partial(_Handler, directory=str(folder), web=web))
    web.url = f"http://{GATEWAY}:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
