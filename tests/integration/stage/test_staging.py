"""Files of images from real servers, and from servers with every fault there is."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import pytest

from tests import servers
from tests.conftest import ROOT, Cli
from tests.servers import Authority, authority, faults, good, nginx, status, xrootd
from tests.ways import Way
from vmjob.core.errors import ChirpFailed, ImageCorrupt, ImageOutOfReach, Interrupted, VmjobError
from vmjob.core.model import Boot, Fetcher, ImageFile, Manifest
from vmjob.image.store.copy import receive_file
from vmjob.job.pyz import carried_pyz
from vmjob.stage.transfer.fetch import Changed, fetcher
from vmjob.stage.transfer.http import Web
from vmjob.stage.transfer.patience import Patience

pytestmark = pytest.mark.integration

BODY = random.Random(5).randbytes(700_000)
QUICK = Patience(connect=2, stall=2, window=2, pause=0.01, longest=0.1, tries=3, worth=10_000, tick=0.05)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "OSG_SQUID_LOCATION", "REQUESTS_CA_BUNDLE",
           "CURL_CA_BUNDLE", "SSL_CERT_FILE", "BEARER_TOKEN", "BEARER_TOKEN_FILE", "VMJOB_TOKEN_HOSTS")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("X509_CERT_DIR", str(tmp_path / "no-grid"))


@pytest.fixture
def folder() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vmjob-served-") as name:
        (Path(name) / "disk.raw").write_bytes(BODY)
        yield Path(name)


def image_file(body: bytes = BODY) -> ImageFile:
    return ImageFile("disk", "disk.raw", "raw", len(body), hashlib.sha256(body).hexdigest(), len(body))


@dataclass
class Got:
    """One image with sources; what was heard while it was fetched."""

    sources: tuple[str, ...]
    carried: Optional[Fetcher] = None
    timeout: float = 60
    rate: Optional[int] = None
    patience: Patience = QUICK
    body: bytes = BODY
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        manifest = Manifest("one", (image_file(self.body),), (Boot.DISK,), sources=self.sources)
        fetch = fetcher(manifest, carried=self.carried, timeout=self.timeout, rate=self.rate,
                        note=self.notes.append, patience=self.patience)
        assert fetch
        self.fetch: Fetcher = fetch

    def read(self, start: int = 0) -> bytes:
        return b"".join(self.fetch(image_file(self.body), start))


def get(*sources: str, **more: object) -> Got:
    """Fetch and compare."""
    got = Got(sources, **more)  # type: ignore[arg-type]
    assert got.read() == got.body
    return got


def refused(*sources: str, **more: object) -> ImageOutOfReach:
    with pytest.raises(ImageOutOfReach) as failure:
        Got(sources, **more).read()  # type: ignore[arg-type]
    return failure.value


# ---------------------------------------------------------------- what works


def test_from_a_web_server_from_any_offset_on(folder: Path) -> None:
    with nginx(folder) as server:
        got = get(server.url + "/")
        assert [got.read(start) for start in (1, 350_000, len(BODY) - 1)] == \
            [BODY[1:], BODY[350_000:], BODY[-1:]]
        assert got.read(len(BODY)) == b""
        assert [line.split("|")[0] for line in server.requests] == [
            "GET /disk.raw 200 -", "GET /disk.raw 206 bytes=1-", "GET /disk.raw 206 bytes=350000-",
            f"GET /disk.raw 206 bytes={len(BODY) - 1}-"]
        (folder / "disk.raw").rename(folder / image_file().sha256)
        get(server.url + "/{sha256}")
    assert got.notes == []


def test_from_a_shared_file_system(folder: Path, tmp_path: Path) -> None:
    got = get(f"file://{folder}/", "http://127.0.0.1:1/")
    assert got.read(5) == BODY[5:] and not got.notes  # the first of all, and nobody else is asked
    (tmp_path / "with space").mkdir()
    (tmp_path / "with space/disk.raw").write_bytes(BODY)
    get(f"file:{tmp_path}/with%20space/disk.raw")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(b"short")
    told = refused(f"file://{folder}/gone/", f"file://{tmp_path}/pipe", f"file://{tmp_path}/short",
                   "file://host/x").message
    for reason in ("No such file or directory", "this is no file", "wants an absolute path",
                   f"5 bytes are there, but the manifest says {len(BODY)}"):
        assert reason in told


def test_from_xrootd(tmp_path: Path) -> None:
    with xrootd() as server, faults(BODY) as spare:
        (server.folder / "images").mkdir()
        (server.folder / "images/disk.raw").write_bytes(BODY)
        (server.folder / "short").write_bytes(BODY[:1000])
        got = get(f"{server.url}/images/", spare.url + "/")
        assert got.read(123_456) == BODY[123_456:]
        # they are left for the next
        assert "no such file" in get(f"{server.url}/none/disk.raw", spare.url + "/").notes[0]
        assert Got((f"{server.url}/short", spare.url + "/")).read() == BODY
    assert no_child("xrdcp")


def test_a_silent_xrootd_is_left(folder: Path) -> None:
    if not servers.process.which("xrdcp"):
        pytest.skip("needs xrdcp: apt-get install xrootd-client")
    with socket.create_server(("127.0.0.1", 0)) as silent, faults(BODY) as spare:
        got = get(f"root://127.0.0.1:{silent.getsockname()[1]}//disk.raw", spare.url + "/",
                  patience=Patience(stall=1, pause=0.01, tick=0.05, window=9))
        assert "no byte came for 1 s" in got.notes[0]
    assert no_child("xrdcp")


def no_child(name: str) -> bool:
    """Whether no child of ours has this name; one that was told to end has a moment."""
    for _ in range(100):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if not any(name in Path(f"/proc/{child}/comm").read_text() for child in children
                   if Path(f"/proc/{child}/comm").exists()):
            return True
        time.sleep(0.05)
    return False


def test_from_a_federation_of_pelican(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = authority(tmp_path / "ca")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.bundle))
    with nginx(folder) as cache:
        own = """location ~ ^/vo/images/(?<rest>.*)$ { return 307 CACHE/$rest; }
            location = /.well-known/pelican-configuration {
                return 200 '{"director_endpoint": "https://$http_host", "jwks_uri": "x"}'; }"""
        own = own.replace("CACHE", cache.url)
        with nginx(folder, own=own, tls=made.certificate()) as there:
            host = there.url.partition("//")[2]
            get(f"pelican://{host}/vo/images/")
            monkeypatch.setenv("VMJOB_OSDF_FEDERATION", host)
            got = get("osdf:///vo/images/disk.raw")
            assert got.read(100) == BODY[100:]
            assert "404 Not Found" in refused(f"pelican://{host}/vo/images/none").message
        with nginx(folder, tls=made.certificate()) as other:
            (folder / ".well-known").mkdir()
            (folder / ".well-known/pelican-configuration").write_text("[]")
            assert "is no federation" in refused(other.url.replace("https", "pelican") + "/x").message


def plugin(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose HTCondor has one plug-in, which serves test:; the real one is in tests/site."""
    (place / "bin").mkdir()
    own = place / "test_plugin"
    own.write_text(f"""#!{sys.executable}
import re, shutil, sys
if sys.argv[1] == "-classad":
    print('MultipleFileSupport = true\\nPluginType = "FileTransfer"\\nSupportedMethods = "test, other"')
    sys.exit()
asked = open(sys.argv[2]).read()
url, target = (re.search(name + ' = "([^"]*)"', asked).group(1) for name in ("Url", "LocalFileName"))
answer = open(sys.argv[4], "w")
try:
    shutil.copyfile(url.partition("://")[2], target)
    answer.write('[ TransferSuccess = true; TransferUrl = "x" ]')
except OSError as wrong:
    answer.write('[ TransferError = "it said \\\\"%s\\\\""; TransferSuccess = false ]' % wrong.strerror)
    answer.close()
    sys.exit(1)
""")
    asker = place / "bin/condor_config_val"
    asker.write_text(f"#!/bin/sh\necho asked >>{place}/asked\necho {own}, /nowhere/plugin\n")
    for path in (own, asker):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}/bin:{os.environ['PATH']}")


def test_through_a_plugin_of_htcondor(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, monkeypatch)
    got = get(f"condor:test://{folder}/")
    assert got.read(17) == BODY[17:]
    assert (tmp_path / "asked").read_text() == "asked\n"  # once
    (folder / "short").write_bytes(b"x")
    told = refused(f"condor:test://{folder}/none", "condor:s3://bucket/", f"condor:test://{folder}/short").message
    assert 'it said "No such file or directory"' in told and "no plug-in of HTCondor here fetches s3:" in told
    assert "1 bytes are there" in told
    assert not list(tmp_path.glob("vmjob-stage-*"))


def test_a_plugin_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, monkeypatch)
    (tmp_path / "test_plugin").write_text(f"""#!/bin/sh
[ "$1" = -classad ] && {{ echo 'SupportedMethods = "test"'; exit; }}
sleep 0.3
head -c 9000000 /dev/zero >"$2"
stat -c %s "$2" >{tmp_path}/brought
""")
    assert "more bytes come than the manifest says" in refused("condor:test://x/").message
    assert int((tmp_path / "brought").read_text()) <= len(BODY) + 2**20


def test_a_node_without_htcondor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmjob.core.process.which", lambda name: None)
    assert "no HTCondor whose plug-ins" in refused("condor:s3://bucket/").message
    assert "neither xrdcp nor gfal-copy is installed" in refused("root://host//x").message


def test_from_within_the_pyz_over_https(folder: Path, tmp_path: Path) -> None:
    """What a bare node has: one file, no certifi on the disk."""
    made = authority(tmp_path / "ca")
    shutil.copy(carried_pyz(), tmp_path / "vmjob.pyz")
    code = """import hashlib, os, sys
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.stage.transfer import http as web
from vmjob.stage.transfer.fetch import fetcher
import certifi
assert ".pyz" in web.__file__ and ".pyz" in certifi.__file__
file = ImageFile("disk", "disk.raw", "raw", int(sys.argv[2]), "0" * 64)
fetch = fetcher(Manifest("one", (file,), (Boot.DISK,), sources=(sys.argv[1],)), timeout=30)
print(hashlib.sha256(b"".join(fetch(file, 0))).hexdigest())
import ssl, types
web._BUNDLES = ()  # a node without any authorities of its own has certifi's
ssl.get_default_verify_paths = lambda: types.SimpleNamespace(cafile=None, capath=None)
del os.environ["SSL_CERT_FILE"]
print(web.trust().cert_store_stats()["x509_ca"] > 50)
"""
    with nginx(folder, tls=made.certificate()) as server:
        done = subprocess.run([sys.executable, "-S", "-c", code, server.url + "/", str(len(BODY))], cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": str(tmp_path / "vmjob.pyz"),
                                   "SSL_CERT_FILE": str(made.bundle)}, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [image_file().sha256, "True"], done.stderr


# ---------------------------------------------------------------- faults of servers


def test_what_is_not_there_is_asked_for_once(folder: Path) -> None:
    with nginx(folder) as server:
        got = get(f"{server.url}/gone/", server.url + "/")
        assert got.notes == [f"{server.url}/gone/: 404 Not Found"]
        failure = refused(f"{server.url}/gone/", f"{server.url}/none/{{path}}?key=secret")
        assert [line.split()[:3] for line in server.requests].count(["GET", "/gone/disk.raw", "404"]) == 2
    assert failure.status == 218 and failure.transient and "secret" not in failure.message
    assert failure.message.splitlines() == ["disk.raw of the image one: none of its sources gave it:",
                                            f"  {server.url}/gone/: 404 Not Found",
                                            f"  {server.url}/none/{{path}}?key=…: 404 Not Found"]


def test_busy_then_fine() -> None:
    with faults(BODY, status(503, Retry_After="0"), status(429), good) as server:
        got = get(server.url + "/")
        assert len(server.asked) == 3 and "503 Service Unavailable" in got.notes[0]


def test_an_outage_is_sat_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than ``tries`` allow where there is another; a source that is gone for good is none."""
    with faults(BODY, *[status(503)] * 9, good) as server, faults(BODY, status(404)) as gone:
        got = get(gone.url + "/", server.url + "/")
        assert (len(gone.asked), len(server.asked)) == (1, 10)
        assert sum("trying on until VMJOB_STAGE_TIMEOUT is over" in note for note in got.notes) == 1
    with faults(BODY, *[status(503)] * 9, good) as first, faults(BODY, *[status(500)] * 9, good) as second:
        get(first.url + "/", second.url + "/")
        assert min(len(first.asked), len(second.asked)) > QUICK.tries


def test_busy_for_ever_and_for_longer_than_there_is_time() -> None:
    with faults(BODY, status(503)) as server:
        failure = refused(server.url + "/", timeout=1)
        assert "is not here after 1.00 s" in failure.message and "503" in failure.message
        assert len(server.asked) > QUICK.tries
    with faults(BODY, status(503, Retry_After="100")) as server:
        failure = refused(server.url + "/", timeout=30)
        assert len(server.asked) == 1 and "VMJOB_STAGE_TIMEOUT" in failure.hint


@pytest.mark.parametrize("count", [-1, 0, 300_000])
def test_a_stall_is_left(count: int) -> None:
    with faults(BODY, servers.stall_after(count)) as first, faults(BODY) as second:
        got = get(first.url + "/", second.url + "/")
        assert second.asked == [f"GET /disk.raw bytes={count}-" if count > 0 else "GET /disk.raw -"]
        assert f"{first.url}/: no byte came" in got.notes[0]


def test_a_broken_connection_goes_on_where_it_was() -> None:
    with faults(BODY, servers.reset_after(300_000), servers.reset_after(100_000), good) as server:
        get(server.url + "/")
        assert server.asked == ["GET /disk.raw -", "GET /disk.raw bytes=300000-", "GET /disk.raw bytes=400000-"]
        assert [h.get("If-Range") for h in server.headers] == [None, '"one"', '"one"']


def test_a_connection_that_breaks_for_ever_is_given_up() -> None:
    with faults(BODY, servers.reset_after(0)) as server:
        refused(server.url + "/", timeout=1)
        assert len(server.asked) > QUICK.tries
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "Connection refused" in refused(f"http://127.0.0.1:{port}/", timeout=0.2).message


def test_a_server_without_ranges() -> None:
    with faults(BODY, servers.reset_after(300_000), servers.without_ranges) as server:
        got = get(server.url + "/")
        assert got.read(699_000) == BODY[699_000:]


def test_a_file_that_changes_meanwhile_comes_from_elsewhere() -> None:
    def change(request: servers.Request) -> None:
        servers.reset_after(300_000)(request)
        request.faults.etag = '"two"'

    with faults(BODY, change, good) as first, faults(BODY) as second:
        get(first.url + "/", second.url + "/")
        assert second.asked == ["GET /disk.raw bytes=300000-"]


def test_a_file_that_changes_meanwhile_is_begun_anew(tmp_path: Path) -> None:
    old = b"y" + BODY[1:]

    def change(request: servers.Request) -> None:
        servers.reset_after(300_000)(request)
        request.faults.etag, request.faults.body = '"two"', BODY

    with faults(old, change, good) as server:
        got = Got((server.url + "/",))
        with pytest.raises(Changed):
            got.read()
        assert got.read() == BODY
    with faults(old, change, good) as server:
        receive_file(image_file(), Got((server.url + "/",)).fetch, tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == BODY


def test_a_wrong_length_is_refused_before_a_byte_is_taken() -> None:
    with faults(BODY, servers.longer) as first, faults(BODY[:-9]) as second, faults(BODY) as third:
        got = get(first.url + "/", second.url + "/", third.url + "/")
        assert third.asked == ["GET /disk.raw -"]
    assert f"{len(BODY) + 7} bytes are there, but the manifest says {len(BODY)}" in got.notes[0]
    assert f"{len(BODY) - 9} bytes are there" in got.notes[1]


def test_wrong_bytes_come_from_the_next_mirror_then(tmp_path: Path) -> None:
    with faults(BODY, servers.wrong_bytes) as first, faults(BODY) as second:
        got = Got((first.url + "/", second.url + "/"))
        receive_file(image_file(), got.fetch, tmp_path / "disk")
        assert (len(first.asked), len(second.asked)) == (1, 1)
    assert (tmp_path / "disk").read_bytes() == BODY
    with faults(BODY, servers.wrong_bytes) as alone, pytest.raises(ImageCorrupt):
        receive_file(image_file(), Got((alone.url + "/",)).fetch, tmp_path / "other")
    assert [h.get("Cache-Control") for h in alone.headers] == [None, "no-cache"]


def test_wrong_mirrors_do_not_hide_the_right_one(tmp_path: Path) -> None:
    with faults(BODY, servers.wrong_bytes) as first, faults(BODY, servers.wrong_bytes) as second, faults(BODY) as third:
        receive_file(image_file(), Got((first.url + "/", second.url + "/", third.url + "/")).fetch, tmp_path / "disk")
        assert (len(first.asked), len(second.asked), len(third.asked)) == (1, 1, 1)
    with faults(BODY, servers.wrong_bytes) as wrong, faults(b"", status(503)) as down, faults(b"", status(404)) as gone:
        with pytest.raises(ImageOutOfReach, match=f"nothing came:\n  {down.url}/: 503"):  # it may be right there
            receive_file(image_file(), Got((wrong.url + "/", down.url + "/")).fetch, tmp_path / "other")
        with pytest.raises(ImageCorrupt, match="expected sha256"):
            receive_file(image_file(), Got((wrong.url + "/", gone.url + "/")).fetch, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_packed_answer_and_strange_ranges_are_refused() -> None:
    def elsewhere(request: servers.Request) -> None:
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 7-{len(BODY) - 1}/{len(BODY)}")
        request.end_headers()

    plan = status(200, Content_Encoding="gzip", Content_Length=str(len(BODY)))
    with faults(BODY, plan) as packed, faults(BODY, elsewhere) as strange:
        told = refused(packed.url + "/", strange.url + "/").message
    assert "packed (gzip)" in told and "another part of the file" in told


def test_a_drip_is_left() -> None:
    with faults(BODY, servers.drip) as slow, faults(BODY) as quick:
        got = get(slow.url + "/", quick.url + "/")
        assert f"{slow.url}/: only " in got.notes[0] and len(quick.asked) == 1
        assert quick.asked[0].startswith("GET /disk.raw bytes=")


def test_what_cannot_be_here_in_time_is_left_while_there_is_another() -> None:
    def slow(request: servers.Request) -> None:
        data = request.begin(request.start, len(BODY))
        for position in range(0, len(data), 1000):
            if request.faults.over.wait(0.05):
                break
            request.wfile.write(data[position:position + 1000])

    patience = Patience(connect=2, stall=5, window=0.5, floor=1000, pause=0.01, tick=0.05)
    with faults(BODY, slow) as first, faults(BODY) as second:
        got = get(first.url + "/", second.url + "/", timeout=20, patience=patience)
        assert "too slow, and there are others" in got.notes[0]


def test_the_deadline() -> None:
    with faults(BODY, servers.stall_after(300_000)) as server:
        got = Got((server.url + "/",), timeout=0.5, patience=Patience(tick=0.05))
        pieces = []
        with pytest.raises(ImageOutOfReach) as failure:
            pieces += list(got.fetch(image_file(), 0))
        assert "is not here after 0.50 s" in failure.value.message
        assert "VMJOB_STAGE_TIMEOUT" in failure.value.hint and "walltime" in failure.value.hint
        with pytest.raises(ImageOutOfReach):  # the next file has no more time
            got.read()
        assert len(server.asked) == 1


def test_redirects() -> None:
    with faults(BODY) as target:
        with faults(BODY, status(302, Location=f"{target.url}/other"), good) as first:
            get(first.url + "/")
        assert target.asked == ["GET /other -"]
    with faults(b"", status(301, Location="/disk.raw")) as circle, \
            faults(b"", status(302, Location="file:///etc/passwd")) as strange, \
            faults(b"", *[status(302, Location=f"/{n}") for n in range(20)]) as endless, faults(BODY) as other, \
            faults(b"", status(302, Location=f"http://127.0.0.1:{other.port}\\@good.example.org/")) as odd:
        told = refused(circle.url + "/", strange.url + "/", endless.url + "/", odd.url + "/").message
        assert not other.asked and told.count("no address of http") == 2
        assert (len(circle.asked), len(strange.asked)) == (1, 1) and len(endless.asked) < 20
    assert "go round in a circle" in told and "more than 10 redirects" in told


# ---------------------------------------------------------------- trust


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


def test_an_expired_certificate_is_named_and_not_tried_again(ca: Authority, folder: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.bundle))
    with nginx(folder, tls=ca.certificate(faked="-30d")) as old, nginx(folder, tls=ca.certificate()) as good_one:
        got = get(old.url + "/", good_one.url + "/")
        assert got.notes == [f"{old.url}/: its certificate is not trusted: certificate has expired"]
        failure = refused(old.url + "/")
        assert "X509_CERT_DIR" in failure.hint


def test_whom_it_trusts(ca: Authority, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nginx(folder, tls=ca.certificate()) as server, nginx(folder, tls=ca.certificate("other")) as named_otherwise:
        assert "unable to get local issuer certificate" in refused(server.url + "/").message
        grid = tmp_path / "grid"
        grid.mkdir()
        (grid / "ca.pem").write_bytes(ca.bundle.read_bytes())
        servers.openssl("rehash", grid)
        monkeypatch.setenv("X509_CERT_DIR", str(grid))
        get(server.url + "/")
        told = refused(named_otherwise.url + "/").message
        assert "mismatch" in told.lower()
        monkeypatch.setenv("X509_CERT_DIR", str(tmp_path / "none"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca.bundle))
        get(server.url + "/")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
        assert "cannot be read" in refused(server.url + "/").message


def token(audience: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps({"aud": audience}).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{body}.c2ln"


def test_a_token_goes_to_whom_it_is_for_and_to_nobody_else(ca: Authority, folder: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.bundle))
    mine = token(["https://localhost:1094"])
    monkeypatch.setenv("BEARER_TOKEN", mine)
    asks = f'location / {{ if ($http_authorization != "Bearer {mine}") {{ return 401; }} }}'
    with nginx(folder, own=asks, tls=ca.certificate()) as server, nginx(folder, own=asks) as plain:
        get(server.url.replace("https", "davs") + "/")
        assert [line.rpartition("|")[2] for line in server.requests] == ["-", f"Bearer {mine}"]
        # never over plain http, though the name is the same
        assert "401" in refused(plain.url.replace("127.0.0.1", "localhost") + "/").message
        # nor where it is for somebody else, or for any
        for other in (token("https://elsewhere.example.org"), token("https://wlcg.cern.ch/jwt/v1/any"), "opaque"):
            monkeypatch.setenv("BEARER_TOKEN", other)
            assert "401" in refused(server.url + "/").message
        monkeypatch.setenv("VMJOB_TOKEN_HOSTS", "*.example.org, localhost")
        monkeypatch.delenv("BEARER_TOKEN")
        (tmp_path / "token").write_text(mine + "\n")
        monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "token"))
        get(server.url + "/")
        assert not any("Bearer" in line for line in plain.requests)


def test_an_address_that_can_be_read_in_two_ways_is_none(ca: Authority, folder: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom the token is for was read in one way, whom to connect to in another."""
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.bundle))
    monkeypatch.setenv("BEARER_TOKEN", token("good.example.org"))
    with nginx(folder, own="location / { return 401; }", tls=ca.certificate()) as server:
        for odd in (f"https://127.0.0.1:{server.port}\\@good.example.org/", f"davs://localhost:{server.port}?@x/"):
            assert "this is no address" in refused(odd).message
        assert server.requests == []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        listening.settimeout(0)
        for odd in (f"root://good.example.org?@127.0.0.1:{port}//", f"condor:https://127.0.0.1:{port}\\@x/"):
            assert "this is no address" in refused(odd).message
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_what_a_query_holds_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: servers.Request) -> None:
        request.wfile.write(b"HTTP/1.1 404 no\r\nbroken header\r\nContent-Length: 0\r\n\r\n")
        request.close_connection = True

    with faults(b"", broken) as server:
        assert "404" in refused(f"{server.url}/d?X-Signature=secret").message
    assert "secret" not in caplog.text


def test_a_token_is_not_taken_along_by_a_redirect(ca: Authority, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.bundle))
    monkeypatch.setenv("BEARER_TOKEN", token("localhost"))
    with nginx(folder, tls=ca.certificate()) as target:
        asks = ('location / { if ($http_authorization = "") { return 401; } return 307 TARGET$uri; }'
                .replace("TARGET", target.url.replace("localhost", "127.0.0.1")))
        with nginx(folder, own=asks, tls=ca.certificate()) as first:
            get(first.url + "/")
            assert first.requests[-1].rpartition("|")[2].startswith("Bearer")
        assert [line.rpartition("|")[2] for line in target.requests] == ["-"]


def test_what_https_may_not_gfal_may(ca: Authority, folder: Path, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: gfal2-util is not in Debian 12."""
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.bundle))
    tool = tmp_path / "gfal-copy"
    tool.write_text(f"#!/bin/sh\n[ $# = 5 ] && echo $4 >{tmp_path}/asked && cp {folder}/disk.raw ${{5#file://}}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with nginx(folder, own="location / { return 403; }", tls=ca.certificate()) as server:
        davs = server.url.replace("https", "davs")
        assert get(davs + "/").notes == [f"{davs}/: 403 Forbidden"]
        assert (tmp_path / "asked").read_text() == f"{davs}/disk.raw\n"
        assert "403" in refused(server.url + "/").message
    assert not list(tmp_path.glob("vmjob-stage-*"))


def test_a_proxy_certificate_is_shown_to_davs_alone(ca: Authority, folder: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.bundle))
    made, key = ca.certificate("ada")
    proxy = made.with_name("x509up")
    proxy.write_text(made.read_text() + key.read_text())
    monkeypatch.setenv("X509_USER_PROXY", str(proxy))
    asks = (f"ssl_client_certificate {ca.bundle}; ssl_verify_client optional;"
            "location / { if ($ssl_client_verify != SUCCESS) { return 403; } }")
    with nginx(folder, own=asks, tls=ca.certificate()) as server:
        davs = server.url.replace("https", "davs") + "/"
        assert "403 Forbidden" in refused(davs).message  # nobody but the manifest names this host
        monkeypatch.setenv("VMJOB_TOKEN_HOSTS", "*.example.org,localhost")
        get(davs)
        assert "403 Forbidden" in refused(server.url + "/").message
        leads = f"location / {{ return 307 {server.url.replace('localhost', '127.0.0.1')}$uri; }}"
        with nginx(folder, own=leads, tls=ca.certificate()) as first:
            davs = first.url.replace("https", "davs") + "/"
            assert "403 Forbidden" in refused(davs).message  # the other host is named by the redirect alone
            monkeypatch.setenv("VMJOB_TOKEN_HOSTS", "127.0.0.1,localhost")
            get(davs)


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize("variable", ["http_proxy", "OSG_SQUID_LOCATION"])
def test_through_a_proxy(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with faults(BODY) as proxy, faults(BODY) as server:
        monkeypatch.setenv(variable, proxy.url if variable == "http_proxy" else f"127.0.0.1:{proxy.port}")
        get(server.url + "/")
        assert (proxy.asked, server.asked) == ([f"GET {server.url}/disk.raw -"], [])
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        get(server.url + "/")
        assert len(server.asked) == 1


def dead(request: servers.Request) -> None:
    request.close_connection = True


@pytest.mark.parametrize("plan", [status(503, X_Squid_Error="ERR_CONNECT_FAIL 111"), dead, servers.stall_after(-1)])
def test_what_a_proxy_does_not_get_is_asked_for_without_it(plan: Callable[[servers.Request], None],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: the proxy may be fine."""
    with faults(BODY, plan, good) as proxy, faults(BODY) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        got = get(server.url + "/")
        got.read(100)
        assert (len(proxy.asked), len(server.asked), got.notes) == (2, 1, [])


def test_a_dead_server_costs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def squid(request: servers.Request) -> None:
        if ":1/" in request.path:
            status(503, X_Squid_Error="ERR_CONNECT_FAIL 111")(request)
        elif ":2/" in request.path:
            servers.stall_after(-1)(request)
        else:
            good(request)

    with faults(BODY, squid) as proxy:  # the third is not to be reached but through it
        monkeypatch.setenv("http_proxy", proxy.url)
        got = get("http://127.0.0.1:1/", "http://127.0.0.1:2/", "http://127.0.0.1:3/")
    assert len(got.notes) == 2 and "Connection refused (through the proxy: ERR_CONNECT_FAIL)" in got.notes[0]


def test_a_proxy_that_does_not_let_us_to_one_is_kept_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def squid(request: servers.Request) -> None:
        refused = f":{first.port}/" in request.path
        (status(403, X_Squid_Error="ERR_ACCESS_DENIED 0") if refused else good)(request)

    with faults(BODY, squid) as proxy, faults(BODY, status(404)) as first:
        monkeypatch.setenv("http_proxy", proxy.url)
        got = get(first.url + "/", "http://127.0.0.1:1/")
        assert len(first.asked) == 1 and len(proxy.asked) == 2 and "does not let us to" in got.notes[0]


@pytest.mark.parametrize("plan", [status(407), None])
def test_a_broken_proxy_is_gone_round(plan: Optional[Callable[[servers.Request], None]],
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    with faults(BODY, plan or good) as proxy, faults(BODY) as server:
        monkeypatch.setenv("http_proxy", f"http://ada:secret@127.0.0.1:{proxy.port if plan else 1}")
        got = get(server.url + "/")
        got.read(100)
        assert len(proxy.asked) == (1 if plan else 0) and len(server.asked) == 2
        assert len(got.notes) == 1 and "does not work" in got.notes[0] and "secret" not in got.notes[0]


def test_a_server_that_is_gone_is_noticed() -> None:
    """One that thinks may do so for long."""
    with faults(BODY) as server, (web := Web(QUICK)).request("GET", server.url, lambda _: {}):
        assert [c.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for c in web._opened] == [1]


# ---------------------------------------------------------------- which source


def test_what_the_job_carries_comes_last() -> None:
    calls = []

    @Way
    def carried(file: ImageFile, start: int) -> Iterator[bytes]:
        calls.append(start)
        yield BODY[start:]

    @Way
    def cut(file: ImageFile, start: int) -> Iterator[bytes]:
        yield BODY[start:300_000]
        raise ChirpFailed("cut", "hint")

    with faults(BODY) as server, faults(BODY, servers.reset_after(300_000), status(404)) as spoilt:
        get(server.url + "/", carried=carried)
        assert not calls
        get(spoilt.url + "/", carried=carried)
        assert calls == [300_000]
        get("http://127.0.0.1:1/", server.url + "/x", carried=cut)
    failure = refused("http://127.0.0.1:1/", carried=cut, timeout=1)
    assert "the submit side: cut" in failure.message
    with pytest.raises(ChirpFailed):  # it is all there is: its own words
        Got((), carried=cut).read()
    assert fetcher(Manifest("one", (image_file(),), (Boot.DISK,)), timeout=1) is None


def test_who_takes_the_slot_away_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not taken for a source that fails."""
    import signal

    @Way
    def carried(file: ImageFile, start: int) -> Iterator[bytes]:
        yield BODY[:10]
        raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        Got(("file:///nowhere/",), carried=carried).read()

    def handler(*_: object) -> None:
        raise Interrupted("SIGTERM")

    plugin(tmp_path, monkeypatch)
    (tmp_path / "test_plugin").write_text("#!/bin/sh\nkill -TERM $PPID; exec sleep 5\n")
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(Interrupted):
            Got(("condor:test://x/",)).read()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_faster_first_and_what_is_known_is_kept(tmp_path: Path) -> None:
    with faults(BODY) as first, faults(BODY) as second:
        speeds = tmp_path / "cache/speeds.json"
        speeds.parent.mkdir()
        hosts = [server.url.partition("//")[2] for server in (first, second)]
        speeds.write_text(json.dumps({hosts[0]: {"speed": 1e6, "at": time.time()},
                                      hosts[1]: {"speed": 1e9, "at": time.time()}}))
        get(first.url + "/", second.url + "/")
        assert (len(first.asked), len(second.asked)) == (0, 1)
        speeds.write_text(json.dumps({hosts[0]: {"speed": 1e6, "at": time.time()}}))
        get(first.url + "/", second.url + "/")  # one not met yet before a slow one
        assert (len(first.asked), len(second.asked)) == (0, 2)
        speeds.write_text("{garbage")
        get(first.url + "/", second.url + "/")
        assert (len(first.asked), len(second.asked)) == (1, 2)


def test_for_a_large_file_mirrors_are_measured_first(tmp_path: Path) -> None:
    body = BODY * 10

    def slow(request: servers.Request) -> None:
        request.faults.over.wait(0.4)
        request.wfile.write(request.begin(request.start, len(body)))

    patience = Patience(connect=2, stall=5, window=5, pause=0.01, tick=0.05, large=10**6)
    with faults(body, slow) as first, faults(body, status(500)) as second, faults(body) as third:
        got = get(first.url + "/", second.url + "/", third.url + "/", body=body, patience=patience)
        assert (len(first.asked), len(second.asked)) == (1, 1)
        assert third.asked == ["GET /disk.raw bytes=0-1048575", "GET /disk.raw -"]
        assert not got.notes
    known = json.loads((tmp_path / "cache/speeds.json").read_text())
    assert set(known) == {server.url.partition("//")[2] for server in (first, third)}


def test_what_a_person_sees(cli: Cli, folder: Path) -> None:
    (cli.cwd / "there").mkdir()
    with nginx(folder) as server:
        sources = [f"{server.url}/a/", f"{server.url}/b/?key=secret&x={{path}}"]
        (cli.cwd / "there/manifest.yaml").write_text(json.dumps({
            "name": "one", "boot": ["disk"], "sources": sources, "files": [
                {"role": "disk", "path": "disk.raw", "format": "raw", "size": 700_000, "sha256": "0" * 64,
                 "virtual_size": 700_000}]}))
        done = cli("run", "--image", "there", "--", "true")
    assert done.status == 218 and "secret" not in done.err
    assert done.err.splitlines()[-5:-1] == [
        "vmjob: verify: disk.raw of the image one: none of its sources gave it:",
        f"vmjob:   {server.url}/a/: 404 Not Found",
        f"vmjob:   {server.url}/b/?key=…&x=…: 404 Not Found",
        "vmjob: → see from this node what its sources answer; an image may also travel with the job"]


# ---------------------------------------------------------------- who takes the bytes


def test_a_consumer_that_fails_leaves_nothing_running() -> None:
    before = threading.active_count()
    with faults(BODY * 20) as server, pytest.raises(OSError, match="full"):
        pieces = Got((server.url + "/",), body=BODY * 20).fetch(image_file(BODY * 20), 0)
        for _ in pieces:
            pieces.close()  # type: ignore[attr-defined]
            raise OSError("full")
    for _ in range(100):
        if not any(t.name == "vmjob-stage" for t in threading.enumerate()):
            break
        time.sleep(0.05)
    assert threading.active_count() <= before + 1


def test_a_full_disk(tmp_path: Path) -> None:
    code = """import sys
from pathlib import Path
from vmjob.core.errors import ScratchFull
from vmjob.image.store.copy import receive_file
from vmjob.core.model import Boot, Fetcher, ImageFile, Manifest
from vmjob.stage.transfer.fetch import fetcher
file = ImageFile("disk", "disk.raw", "raw", int(sys.argv[2]), "0" * 64)
fetch = fetcher(Manifest("one", (file,), (Boot.DISK,), sources=(sys.argv[1],)), timeout=30)
class Filling(Fetcher):
    def __call__(self, file, start):
        for piece in fetch(file, start):
            Path("other").write_bytes(bytes(600_000))  # somebody else takes the room meanwhile
            yield piece
try:
    receive_file(file, Filling(), Path("disk"))
except ScratchFull as full:
    print(full.message)
"""
    (tmp_path / "small").mkdir()
    inside = f"mount -t tmpfs -o size=1m none {tmp_path}/small && cd {tmp_path}/small && exec \"$@\""
    with faults(BODY) as server:
        done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, "sh",
                               sys.executable, "-c", code, server.url + "/", str(len(BODY))],
                              env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
                              capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"needs user namespaces: {done.stderr.strip()}")
    assert "no space for disk.raw" in done.stdout, done.stderr


def test_a_bandwidth_cap_hands_on_small_pieces() -> None:
    with faults(BODY) as server:
        got = Got((server.url + "/",), rate=4_000_000)
        pieces = [len(piece) for piece in got.fetch(image_file(), 0)]
    assert sum(pieces) == len(BODY) and max(pieces) <= 1_000_000


def test_every_failure_is_one_of_ours() -> None:
    odd = ["http://[::1:secret@x", "http://ada:secret@127.0.0.1:99999/", "https://127.0.0.1:1/", "pelican://127.0.0.1:1/x",
           "http://ada:secret@*.example.org:x/", "http://secret\u2603@./",
           "http://user:secret@127.0.0.1:1/?token=secret", "osdf://", "davs://127.0.0.1:1/x"]
    with pytest.raises(VmjobError) as failure:
        Got(tuple(odd), timeout=1).read()
    assert "secret" not in failure.value.message and failure.value.message.count("\n") == len(odd)
