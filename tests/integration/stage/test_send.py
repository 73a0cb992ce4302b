"""Outputs sent to a storage: nginx with WebDAV and XRootD, both real, and a server that misbehaves."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from tests import servers
from tests.conftest import Cli
from tests.servers import Server
from vmjob.core.errors import StageOutFailed
from vmjob.core.result import Result, Staged
from vmjob.run.result_file import keep_result
from vmjob.stage.transfer import send as out
from vmjob.stage.transfer.patience import PATIENCE

pytestmark = pytest.mark.integration

QUICK = replace(PATIENCE, pause=0.02, longest=0.1, tries=3)
NAMES = ("big.bin", "d/ü b+1.txt", "empty")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    (folder / "d").mkdir(parents=True)
    (folder / "big.bin").write_bytes(os.urandom(5 << 20))
    (folder / "d/ü b+1.txt").write_text("x\n")
    (folder / "empty").touch()
    (folder / "link").symlink_to("big.bin")
    return folder


@pytest.fixture
def dav(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "dav").mkdir()
    with servers.nginx(tmp_path / "dav", dav=True) as server:
        yield server


def send(results: Path, to: str, **more: object) -> tuple[Staged, ...]:
    names = (*NAMES, "link", "d")
    return out.send(results, names, to, timeout=20, patience=QUICK, **more)  # type: ignore[arg-type]


def arrived(results: Path, place: Path) -> None:
    for name in NAMES:
        assert (place / name).read_bytes() == (results / name).read_bytes()
    assert not (place / "link").exists()  # links stay with the job


def test_webdav(results: Path, dav: Server) -> None:
    sent = send(results, f"{dav.url}/run/7/")
    arrived(results, dav.folder / "run/7")
    assert [one.name for one in sent] == list(NAMES)
    assert sent[1].url == f"{dav.url}/run/7/d/%C3%BC%20b+1.txt"
    for one in sent:
        data = (results / one.name).read_bytes()
        assert (one.size, one.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    (results / "empty").write_text("a job may run twice")
    send(results, f"{dav.url}/run/7")
    arrived(results, dav.folder / "run/7")


def test_folders_are_made_where_the_server_does_not(results: Path, tmp_path: Path) -> None:
    (tmp_path / "dav").mkdir()
    with servers.nginx(tmp_path / "dav", own="dav_methods PUT MKCOL;") as server:
        send(results, f"{server.url}/a/b/")
        arrived(results, server.folder / "a/b")


def test_xrootd(results: Path) -> None:
    with servers.xrootd() as server:
        assert len(send(results, f"{server.url}/run/7")) == len(NAMES)
        arrived(results, server.folder / "run/7")
        with pytest.raises(StageOutFailed, match="could not be sent"):
            out.send(results, ["big.bin"], f"{server.url}/run/7/empty/", timeout=5, patience=QUICK)


@pytest.mark.parametrize("name", ["a?b", "a#b"])
def test_names_that_are_more_than_names_elsewhere(results: Path, dav: Server, name: str) -> None:
    (results / name).write_text("x")
    out.send(results, [name], dav.url, timeout=20, patience=QUICK)
    assert (dav.folder / name).read_text() == "x"
    with pytest.raises(StageOutFailed, match="XRootD"):
        out.send(results, [name], "root://127.0.0.1:9//x", timeout=20, patience=QUICK)


def status(code: int) -> Callable[[servers.Request], None]:
    def answer(request: servers.Request) -> None:
        request.rfile.read(int(request.headers.get("Content-Length") or 0))
        servers.status(code)(request)

    return answer


def lost(request: servers.Request) -> None:
    request.rfile.read(int(request.headers["Content-Length"]))
    request.connection.close()
    request.close_connection = True


def one(results: Path, to: str) -> tuple[Staged, ...]:
    return out.send(results, ["d/ü b+1.txt"], to, timeout=20, patience=QUICK)


def test_busy_and_broken_for_a_while(results: Path) -> None:
    # longer than ``tries``; after the one that was lost it looks what has come
    with servers.faults(b"", *[status(503)] * 5, lost, status(404), status(201), status(405)) as server:
        assert len(one(results, server.url)) == 1
    assert [line.split()[0] for line in server.asked] == [*["PUT"] * 6, "HEAD", "PUT", "HEAD"]


def there(request: servers.Request, age: float = 0, **more: str) -> None:
    """Two bytes are there, for ``age`` seconds."""
    servers.status(200, Content_Length="2", Last_Modified=formatdate(time.time() - age, usegmt=True), **more)(request)


SHA256 = "sha-256=" + base64.b64encode(hashlib.sha256(b"x\n").digest()).decode()


@pytest.mark.parametrize("found, again", [
    (there, 0), (lambda request: there(request, 99, Digest=SHA256), 0), (lambda request: there(request, 99), 1),
    (lambda request: there(request, 0, Digest="sha-256=AAAA"), 1)])
def test_what_has_come_is_not_sent_again(results: Path, found: Callable[[servers.Request], None], again: int) -> None:
    """Its answer was lost. A file of the same size from an earlier run is no proof."""
    with servers.faults(b"", lost, found, status(201), status(405)) as server:
        assert len(one(results, server.url)) == 1
    assert [line.split()[0] for line in server.asked] == ["PUT", "HEAD", *["PUT", "HEAD"] * again]


def test_a_storage_may_think(results: Path) -> None:
    def thinks(request: servers.Request) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        request.faults.over.wait(1.5)  # longer than a source may be silent
        servers.status(201)(request)

    with servers.faults(b"", thinks, status(405)) as server:
        out.send(results, ["d/ü b+1.txt"], server.url, timeout=20, patience=replace(QUICK, stall=0.2))
    assert [line.split()[0] for line in server.asked] == ["PUT", "HEAD"]


def test_an_answer_that_never_ends(results: Path) -> None:
    def drips(request: servers.Request) -> None:
        request.wfile.write(b"HTTP/1.1 201 Created\r\nX-A: ")
        while not request.faults.over.wait(0.1):
            request.wfile.write(b"a")
        request.close_connection = True

    with servers.faults(b"", drips) as server, pytest.raises(StageOutFailed, match=r"1\.00 s, is over") as failure:
        out.send(results, ["d/ü b+1.txt"], server.url, timeout=1, patience=QUICK)
    assert "VMJOB_STAGE_TIMEOUT" in failure.value.hint and "walltime" in failure.value.hint
    assert not any(t.name == "vmjob-send" for t in threading.enumerate())


def test_names_that_are_no_text(results: Path, dav: Server) -> None:
    name = os.fsdecode(b"r\xe9sum\xe9")
    (results / name).write_text("x")
    sent = out.send(results, [name], dav.url, timeout=20, patience=QUICK)
    assert (dav.folder / name).read_text() == "x" and sent[0].url == f"{dav.url}/r%E9sum%E9"
    keep_result(Result("job", "ok", 0, staged=sent), results)
    assert json.loads((results / "result.json").read_text())["staged"][0]["name"] == name
    with pytest.raises(StageOutFailed, match="XRootD"):
        out.send(results, [name], "root://127.0.0.1:9//x", timeout=20, patience=QUICK)


@pytest.mark.parametrize("to", ["https://127.0.0.1:9\\@good.example.org/", "root://good?@127.0.0.1:9//x", "https:///x"])
def test_an_address_that_can_be_read_in_two_ways(results: Path, to: str) -> None:
    with pytest.raises(StageOutFailed, match="this is no address"):
        one(results, to)


@pytest.mark.parametrize("steps, said", [
    ([status(403)], "403"), ([status(503)], "503"), ([status(201), status(200)], "0 bytes have arrived of 2")])
def test_what_does_not_work_is_named(results: Path, steps: list[Callable[[servers.Request], None]], said: str) -> None:
    with servers.faults(b"", *steps * 30) as server, pytest.raises(StageOutFailed, match=said) as failure:
        out.send(results, ["d/ü b+1.txt"], server.url, timeout=1, patience=QUICK)
    assert "among the job's results" in failure.value.hint and server.url in failure.value.message
    assert (results / "d/ü b+1.txt").exists()


def test_a_token_goes_to_none_but_the_address(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEARER_TOKEN", "secret.token.x")
    with servers.faults(b"", status(201), status(405)) as server:
        one(results, server.url)  # plain http
    assert not any("Authorization" in headers for headers in server.headers)
    ca = servers.authority(tmp_path / "ca")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca.bundle))
    (tmp_path / "dav").mkdir()
    own = "location / { if ($http_authorization != 'Bearer secret.token.x') { return 403; } %s }"
    with servers.nginx(tmp_path / "dav", own=own % servers._DAV, tls=ca.certificate()) as safe:
        assert len(one(results, safe.url.replace("https:", "davs:"))) == 1
        monkeypatch.delenv("BEARER_TOKEN")
        with pytest.raises(StageOutFailed, match="403"):
            one(results, safe.url)


def test_the_time_is_over(results: Path, dav: Server) -> None:
    with pytest.raises(StageOutFailed, match=r"the time for it, 1\.00 s, is over"):
        out.send(results, ["big.bin"], dav.url, timeout=1, rate=100_000, patience=QUICK)


def test_a_job_whose_outputs_go_elsewhere(cli: Cli, dav: Server) -> None:
    (cli.cwd / "job.yaml").write_text(f"""
image: micro
script: |
  echo "$SEED" > n.txt; ln -s n.txt l; exit $CODE
outputs: {{files: [n.txt, l], to: "{dav.url}/${{SEED}}/"}}
environment: {{SEED: 5, CODE: 0}}
""")
    done = cli("run", "job.yaml", "--json")
    assert done.status == 0, done.err
    assert (dav.folder / "5/n.txt").read_text() == "5\n" and done.json["outputs"] == ["l"]
    assert [sent["url"] for sent in done.json["staged"]] == [f"{dav.url}/5/n.txt"]
    assert not (cli.cwd / "job.out/n.txt").exists()
    failed = cli("run", "job.yaml", "--json", "--env", "CODE=3", "--env", "SEED=6")
    assert failed.status == 3 and (cli.cwd / "job.out/n.txt").exists() and not (dav.folder / "6").exists()
    unset = cli("run", "job.yaml", "--outputs-to", f"{dav.url}/${{NOBODY}}/")
    assert unset.status == 200 and "NOBODY" in unset.err and "--env" in unset.err
    with servers.faults(b"", status(403)) as server:
        refused = cli("run", "job.yaml", "--json", "--outputs-to", server.url)
    assert refused.status == 228 and (cli.cwd / "job.out/n.txt").exists() and "n.txt" in refused.json["outputs"]
