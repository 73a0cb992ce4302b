"""``vmjob image sign``, ``verify`` and ``subscribe``, as an endorser and a user type them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.ca import Ca, Pair, entry, image_list
from tests.conftest import Cli, Done
from vmjob.cli.image import lists
from vmjob.cli.main import main
from vmjob.core.errors import EndorsementRefused, ImageOutOfReach, Interrupted
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.core.progress import Reporter
from vmjob.image import manifest as manifests
from vmjob.image.trust import smime, subscriptions, verify
from vmjob.image.trust.endorsement import Endorser
from vmjob.image.trust.imagelist import ImageList
from vmjob.image.trust.verify import SignedList
from vmjob.stage.transfer import flow
from vmjob.stage.transfer.flow import Patience

pytestmark = pytest.mark.integration


class Inside(Cli):
    """The command line in this process: what is tried here is what it does, not that it starts."""

    def __call__(self, *args: Any, env: Optional[dict[str, str]] = None, timeout: float = 120) -> Done:
        (self.cwd / "scratch").mkdir(exist_ok=True)
        out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), \
                Path(os.devnull).open() as nobody:
            patch.chdir(self.cwd)
            patch.setattr(sys, "stdin", nobody)
            for key, value in self.environment(env).items():
                patch.setenv(key, value)
            try:
                status = main([*map(str, args)])
            except SystemExit as end:  # --help
                status = int(end.code or 0)
            out.flush()
        return Done(status, out.buffer.getvalue(), err.getvalue())


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Serves the folder ``www`` of the test."""
    (tmp_path / "www").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0),
                                         functools.partial(_Quiet, directory=str(tmp_path / "www"))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def cli(ca: Ca, tmp_path: Path) -> Cli:
    """With a store of its own, which has nothing in it."""
    return Inside(tmp_path, tmp_path / "home", {"X509_CERT_DIR": str(ca.certificates), "no_proxy": "*"})


@pytest.fixture
def others(ca: Ca, tmp_path: Path) -> Cli:
    """Somebody else's machine."""
    (tmp_path / "there").mkdir()
    return Inside(tmp_path / "there", tmp_path / "there/home", {"X509_CERT_DIR": str(ca.certificates), "no_proxy": "*"})


def image(folder: Path, name: str) -> Manifest:
    """A disk that nothing boots, but of which all is right."""
    (folder / name).mkdir()
    data = bytearray(2**20)
    data[510:512], data[:9] = b"\x55\xaa", name.encode().ljust(9)
    data[446:462] = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 99, 0, 0, 0])
    (folder / name / "disk.raw").write_bytes(data)
    disk = ImageFile("disk", "disk.raw", "raw", len(data), hashlib.sha256(data).hexdigest(), len(data))
    made = Manifest(name, (disk,), (Boot.DISK,))
    (folder / name / "manifest.yaml").write_text(manifests.dump(made))
    return made


def sign(cli: Cli, ca: Ca, *words: Any, by: str = "ada", **more: Any) -> Done:
    one: Pair = getattr(ca, by)
    return cli("image", "sign", "--cert", one.cert, "--key", one.key, *words, **more)


def trusting(ca: Ca) -> tuple[str, ...]:
    return ("--endorser", ca.ada.dn, "--ca", ca.root.dn)


@pytest.mark.parametrize("verb", ["sign", "verify", "subscribe"])
def test_help_has_an_example(cli: Cli, verb: str) -> None:
    assert b"examples:" in cli("image", verb, "--help").out


def test_from_endorser_to_user(cli: Cli, others: Cli, ca: Ca, web: str, tmp_path: Path) -> None:
    www, others = tmp_path / "www", Cli(others.cwd, others.home, others.env)  # in processes of its own
    one, two = image(www, "one"), image(www, "two")
    words = ("--uri", f"{web}/images.list", "--source", f"{web}/{{name}}/", "-o", www / "images.list", "--title", "T")
    done = sign(cli, ca, www / "one", www / "two", *words)
    assert done.status == 0 and b"version 1, 2 images" in done.out, done.err
    there = others("image", "subscribe", f"{web}/images.list", *trusting(ca), "--json").json["lists"][0]
    assert there["images"] == {"one": one.digest, "two": two.digest} and there["version"] == "1"
    assert others("image", "inspect", "one", "--json").json["sources"] == [f"{web}/one/"]
    assert b"endorsed by " + ca.ada.dn.encode() in others("image", "verify", "one").out

    done = sign(cli, ca, "--add-to", www / "images.list", "-o", www / "images.list", "--withdraw", "two")
    assert done.status == 0 and b"version 2, 1 image, 1 withdrawn" in done.out, done.err
    done = others("image", "subscribe", "--refresh")
    assert done.status == 0 and f"withdrawn: {two.digest[:19]}" in done.err
    assert others("image", "inspect", "two").status == 211
    folder = others.home / "store/lists"
    assert "version 2, withdrew it" in (subscriptions.withdrawn(two.digest, [folder]) or "")
    assert others("image", "verify", two.digest).status == 217
    assert others("image", "verify", "one").status == 0
    assert others("image", "subscribe", "--remove", "T").status == 0
    assert others("image", "inspect", "one").status == 211 and subscriptions.listed(folder) == []


def test_a_dry_run_signs_and_changes_nothing(cli: Cli, ca: Ca, tmp_path: Path) -> None:
    image(tmp_path, "one")
    words = ("--title", "T", "--uri", "https://example.org/l", "--source", "https://example.org/", "-o", "out")
    told = sign(cli, ca, "./one", *words, "--dry-run").json["hv:imagelist"]
    assert told["hv:endorser"]["hv:x509"]["hv:dn"] == ca.ada.dn and not (tmp_path / "out").exists()
    data = (tmp_path / "one/disk.raw").read_bytes()
    assert told["hv:images"][0]["hv:image"]["sl:checksum:sha512"] == hashlib.sha512(data).hexdigest()
    assert sign(cli, ca, "./one", *words).status == 0
    assert cli("image", "subscribe", "out", "--dry-run").status == 0
    assert not (cli.home / "store").exists()


def test_settings_from_a_file_and_a_test_outcome(cli: Cli, ca: Ca, tmp_path: Path) -> None:
    one = image(tmp_path, "one")
    (tmp_path / "list.yaml").write_text(json.dumps({
        "title": "From a file", "identifier": "urn:x", "uri": "https://example.org/l", "expires": "10d",
        "group": "pheno", "sources": ["https://example.org/{name}/"], "cert": str(ca.ada.cert),
        "key": str(ca.ada.key)}))
    outcome = {"vmjob": "1", "schema": 1, "image": "one", "digest": one.digest, "time": 1700000000, "passed": True,
               "qemu_version": "7.2", "accelerator": "tcg", "boots": [{"boot": "disk", "passed": True, "checks": []}]}
    (tmp_path / "test.json").write_text(json.dumps(outcome))
    done = cli("image", "sign", "--from", "list.yaml", "./one", "--test", "test.json", "-o", "l")
    assert done.status == 0, done.err
    told = cli("image", "verify", "l", "--json").json
    assert (told["list"], told["images"][0]["group"], told["images"][0]["tested"]) == ("urn:x", "pheno", 1700000000.0)
    assert told["expires"] < time.time() + 11 * 86400
    (tmp_path / "test.json").write_text(json.dumps({**outcome, "digest": "sha256:" + "0" * 64}))
    done = cli("image", "sign", "--from", "list.yaml", "./one", "--test", "test.json", "-o", "m")
    assert done.status == 200 and "is none of the images given" in done.err


@pytest.mark.parametrize("words, said", [
    (("one",), "--title is missing"), (("one", "--title", "T", "--uri", "u"), "-o is missing"),
    (("none", "--title", "T", "--uri", "u", "-o", "x"), "there is no image 'none'"),
    (("./one", "--title", "T", "--uri", "u", "-o", "x"), "needs an address"),
    (("./one", "--title", "T", "--uri", "u", "-o", "x", "--source", "file:/x/"), "needs an address"),
    (("--title", "T", "--uri", "u", "-o", "x"), "a list of no images"),
    (("--withdraw", "one", "--title", "T", "--uri", "u", "-o", "x"), "from which list"),
    (("./one", "--title", "T", "--uri", "u", "-o", "one/disk.raw"), "one/disk.raw exists"),
    (("./one", "--title", "T", "--uri", "u", "-o", "x", "--expires", "soon"), "is not a duration"),
    (("--add-to", "one/disk.raw", "-o", "x"), "no signed message")])
def test_what_is_not_signed(cli: Cli, ca: Ca, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    image(tmp_path, "one")
    done = sign(cli, ca, *words)
    assert done.status in (200, 211, 217) and said in done.err and "→" in done.err, done.err
    assert not (tmp_path / "x").exists()


def test_somebody_elses_list_is_not_added_to(cli: Cli, ca: Ca, tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(ca.sign(image_list(ca.ada, [entry()])))
    done = sign(cli, ca, "--add-to", "l", "-o", "l", by="middle")
    assert done.status == 200 and f"this list is {ca.ada.dn}'s" in done.err
    for version in ("1", "0.9"):
        assert "is not after 1" in sign(cli, ca, "--add-to", "l", "-o", "l", "--version", version).err


def test_wrong_bytes_here(cli: Cli, ca: Ca, tmp_path: Path) -> None:
    one = image(tmp_path, "one")
    assert cli("image", "import", "one").status == 0
    words = ("--title", "T", "--uri", "https://example.org/l", "--source", "https://example.org/", "-o", "l")
    assert sign(cli, ca, "one", *words).status == 0
    assert b"right" in cli("image", "verify", "l").out
    blob = cli.home / "store/blobs/sha256" / one.files[0].sha256
    blob.chmod(0o644)
    blob.write_bytes(b"x" * one.size)
    done = cli("image", "verify", "l")
    assert done.status == 217 and "the bytes here are not what the list says" in done.err
    assert sign(cli, ca, "one", *words[:-1], "m").status == 212


def test_a_disk_by_a_list_without_manifests(cli: Cli, ca: Ca, tmp_path: Path) -> None:
    image(tmp_path, "one")
    data = (tmp_path / "one/disk.raw").read_bytes()
    right = entry(sl_checksum_sha512=hashlib.sha512(data).hexdigest().upper(), hv_size=str(len(data)))
    escape = {"dc_title": "Image one\x1b]0;x\x07\n"}
    (tmp_path / "l").write_bytes(ca.sign(image_list(ca.ada, [{**right, "dc:title": escape["dc_title"]}], **escape)))
    done = cli("image", "verify", "one/disk.raw", "--list", "l")
    assert done.status == 0 and b", endorsed by /DC=org" in done.out and b"\x1b" not in done.out
    listed = cli("image", "verify", "l").out
    assert b"no manifest" in listed and b"\x1b" not in listed and b"\x07" not in listed
    (tmp_path / "one/disk.raw").write_bytes(data + b"x")
    done = cli("image", "verify", "one/disk.raw", "--list", "l")
    assert done.status == 217 and "no list names a file with these bytes" in done.err


# ---------------------------------------------------------------- subscribe


def publish(ca: Ca, tmp_path: Path, version: int = 1, by: str = "ada", **changed: Any) -> None:
    one: Pair = getattr(ca, by)
    (tmp_path / "www/l").write_bytes(ca.sign(image_list(one, [entry()], hv_version=str(version), **changed), one))


def test_nobody_is_trusted_silently(cli: Cli, ca: Ca, web: str, tmp_path: Path) -> None:
    publish(ca, tmp_path)
    done = cli("image", "subscribe", f"{web}/l")
    assert done.status == 217 and f"signed by {ca.ada.dn}" in done.err and "--endorser '" in done.err
    for words in (("--endorser", ca.ada.dn, "--ca", "/CN=Other"), ("--endorser", "/CN=Eve", "--ca", ca.root.dn)):
        done = cli("image", "subscribe", f"{web}/l", *words)
        assert done.status == 217 and "not by" in done.err
    assert cli("image", "subscribe", f"{web}/l", "--endorser", ca.ada.dn).status == 200
    assert not list((cli.home / "store").glob("lists/*.json"))


@pytest.mark.parametrize("answer, status", [("y", 0), ("n", 217), ("", 217)])
def test_a_person_is_asked(cli: Cli, ca: Ca, web: str, tmp_path: Path, answer: str, status: int) -> None:
    publish(ca, tmp_path)
    (tmp_path / "scratch").mkdir()
    mine, its = pty.openpty()
    child = subprocess.Popen([sys.executable, "-m", "vmjob", "image", "subscribe", f"{web}/l"], cwd=tmp_path,
                             env=cli.environment(), stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(its)
    os.write(mine, answer.encode() + b"\n")
    _, said = child.communicate(timeout=60)
    os.close(mine)
    assert child.returncode == status and f"signed by {ca.ada.dn}".encode() in said and b"Trust it?" in said
    assert len(list((cli.home / "store").glob("lists/*.json"))) == (status == 0)


def test_refresh_refuses_and_tells(cli: Cli, ca: Ca, web: str, tmp_path: Path) -> None:
    publish(ca, tmp_path, 2, dc_date_created="2026-01-02T00:00:00Z")
    assert cli("image", "subscribe", f"{web}/l", *trusting(ca)).status == 0
    bad: list[tuple[dict[str, Any], str]] = [
        ({"version": 1, "dc_date_created": "2026-01-01T00:00:00Z"}, "came in an older version"),
        ({"version": 3, "dc_date_created": "2026-01-01T00:00:00Z"}, "came in an older version"),
        ({"version": 2, "dc_title": "Changed"}, "again, with other content"),
        ({"version": 3, "dc_identifier": "another"}, "is another one now: another"),
        ({"version": 3, "by": "middle"}, "was followed as /DC=org/DC=example/CN=Ada"),
        ({"version": 3, "by": "eve"}, "the authority is not known here"),
        ({"version": 3, "dc_date_expires": "2026-01-01T00:00:00Z"}, "expired on 2026-01-01")]
    for changed, said in bad:
        publish(ca, tmp_path, **changed)
        done = cli("image", "subscribe", "--refresh")
        assert done.status == 217 and said in done.err, (changed, done.err)
        (state,) = subscriptions.listed(cli.home / "store/lists")
        assert state.version == "2" and said in state.trouble
    (tmp_path / "www/l").unlink()
    assert cli("image", "subscribe", "--refresh").status == 218
    publish(ca, tmp_path, 3)
    assert cli("image", "subscribe", "--refresh", "list-1").status == 0
    assert cli("image", "subscribe", "--list", "--json").rows[0]["trouble"] == ""


def test_every_list_is_tried(cli: Cli, ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another one is or does, and whatever fault it finds in us."""
    (tmp_path / "www").mkdir()
    names = ("a gone", "b odd", "c refused", "d good", "e unread")
    for name in names:
        publish(ca, tmp_path, 1, dc_identifier=name, dc_title=name)
        (tmp_path / "www/l").rename(tmp_path / name)
        assert cli("image", "subscribe", name, *trusting(ca)).status == 0
    folder = cli.home / "store/lists"
    (tmp_path / "a gone").unlink()
    for name in names[1:4]:
        publish(ca, tmp_path, 2, by="eve" if name == "c refused" else "ada", dc_identifier=name, dc_title=name)
        (tmp_path / "www/l").rename(tmp_path / name)
    stem = hashlib.sha256(b"e unread").hexdigest()[:32]
    (folder / f"{stem}.json").write_text("{")
    read = subscriptions.renewed

    def odd(old: Any, url: str, *more: Any) -> Any:
        if url.endswith("b odd"):
            raise ZeroDivisionError("odd")
        return read(old, url, *more)

    monkeypatch.setattr(subscriptions, "renewed", odd)
    done = cli("image", "subscribe", "--refresh", "--json")
    notes = " ".join(json.loads(done.out.splitlines()[0])["notes"])
    assert done.status == 217
    for said in ("a gone: cannot be read", "b odd: what came cannot be read: ZeroDivisionError",
                 "the authority is not known here", f"{stem}.json: what is known of an image list cannot be read"):
        assert said in notes, (said, notes)
    (folder / f"{stem}.json").unlink()
    assert [(one.version, bool(one.trouble)) for one in subscriptions.listed(folder)] == [
        ("1", True), ("1", True), ("1", True), ("2", False)]


def test_a_refresh_that_is_stopped_stops(cli: Cli, ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "www").mkdir()
    publish(ca, tmp_path)
    assert cli("image", "subscribe", "www/l", *trusting(ca)).status == 0

    def stopped(*words: Any) -> None:
        raise Interrupted("stopped by SIGTERM")

    monkeypatch.setattr(subscriptions, "renewed", stopped)
    done = cli("image", "subscribe", "--refresh")
    assert done.status == 225 and subscriptions.listed(cli.home / "store/lists")[0].trouble == ""


ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize("first, again, pause, said", [
    (ENDLESS, b"a", 0.05, "only .* came"), (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.05, "no byte came"),
    (b"", b"", 0.05, "no byte came"), (ENDLESS, b"a" * 4096, 0.001, "not here after 1 s"),
    (ENDLESS, b"a" * 2**20, 0, "larger than"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b"", 1, "larger than"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", None, 0, "the connection broke"),
    (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nabc", None, 0, "comes packed"),
    (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", None, 0, "no address of http")],
    ids=["body drips", "head drips", "silence", "slow", "endless", "says it is large", "cut", "packed", "leads away"])
def test_servers_that_keep_us_busy(first: bytes, again: Optional[bytes], pause: float, said: str,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("VMJOB_STAGE_TIMEOUT", "1s")
    monkeypatch.setattr(smime, "LARGEST", 16 * 2**20)
    monkeypatch.setattr(flow, "_END", 0.1)
    over = threading.Event()

    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError), listening.accept()[0] as one:
            one.recv(65536)
            one.sendall(first)
            while again is not None and not over.wait(pause):
                one.sendall(again)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        ends = threading.Timer(20, over.set)  # the connection ends, and with it what hangs: the wrong error
        ends.start()
        try:
            with pytest.raises((ImageOutOfReach, EndorsementRefused), match=said):
                lists.fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/l", Reporter(),
                                 Patience(connect=5, stall=0.3, window=0.3, floor=1000, tick=0.05))
        finally:
            ends.cancel()
            over.set()
            thread.join()


def test_images_that_are_not_here_yet(cli: Cli, ca: Ca, tmp_path: Path) -> None:
    one = image(tmp_path, "one")
    words = ("--title", "T", "--uri", "https://example.org/l", "--source", "https://example.org/", "-o", "l")
    assert sign(cli, ca, "./one", *words).status == 0
    assert cli("image", "subscribe", "l", *trusting(ca)).status == 0
    assert cli("image", "list", "--json").rows[0]["here"] is False
    assert b"(not here yet: fetched when used)" in cli("image", "list").out
    blob = cli.home / "cache/blobs/sha256" / one.files[0].sha256  # where a job has fetched it to
    blob.parent.mkdir(parents=True)
    blob.write_bytes((tmp_path / "one/disk.raw").read_bytes())
    assert cli("image", "list", "--json").rows[0]["here"] is True
    assert b"not here" not in cli("image", "list").out
    blob.unlink()
    assert cli("image", "import", "one").status == 0
    assert cli("image", "list", "--json").rows[0]["here"] is True


def test_an_expired_list_says_so(cli: Cli, ca: Ca, tmp_path: Path) -> None:
    listing = ImageList("list-1", "1", 1.0, 2.0, Endorser(ca.ada.dn, ca.root.dn))
    subscriptions.follow(cli.home / "store/lists", "u", SignedList(listing, 9e9, "0" * 64), b"", 1.0)
    assert cli("image", "subscribe", "--list", "--json").rows[0]["expired"] is True
    assert b"EXPIRED" in cli("image", "subscribe", "--list").out


def test_a_name_that_means_another_image_is_not_taken(cli: Cli, others: Cli, ca: Ca, tmp_path: Path) -> None:
    image(tmp_path, "one")
    words = ("--title", "T", "--uri", "https://example.org/l", "--source", "https://example.org/", "-o", "l")
    assert sign(cli, ca, "./one", *words).status == 0
    (tmp_path / "there/one").mkdir()
    (tmp_path / "there/one/disk.raw").write_bytes((tmp_path / "one/disk.raw").read_bytes())
    assert others("image", "import", "one/disk.raw", "--name", "one", "--firmware", "bios").status in (0, 236)
    mine = others("image", "inspect", "one", "--json").json["digest"]
    done = others("image", "subscribe", tmp_path / "l", *trusting(ca), "--json")
    names = done.json["lists"][0]["images"]
    assert others("image", "inspect", "one", "--json").json["digest"] == mine
    assert list(names) == [f"one-{names[next(iter(names))][7:15]}"]
    assert "means another image here" in done.json["notes"][0]
    assert others("image", "subscribe", "--remove", "T").status == 0
    assert others("image", "inspect", "one", "--json").json["digest"] == mine


def test_for_a_site(cli: Cli, ca: Ca, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    publish(ca, tmp_path)
    done = cli("image", "subscribe", "www/l", "--at", "site", *trusting(ca))
    assert done.status == 0 and not (cli.home / "store").exists()
    for path in (tmp_path / "site").iterdir():
        assert path.stat().st_mode & 0o044 == 0o044 or path.name == "lock"
    assert cli("image", "subscribe", "--at", "site", "--refresh").status == 0


def test_kill_at_any_instant_leaves_a_list_as_it_was_or_as_it_is(ca: Ca, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    every = {}
    for version in range(1, 13):
        message = ca.sign(image_list(ca.ada, [entry()], hv_version=str(version)))
        every[str(version)] = (message, verify.verify_list(message, ca.certificates, time.time()))
    folder = tmp_path / "lists"
    subscriptions.follow(folder, "u", every["1"][1], every["1"][0], 1.0)

    def work() -> None:
        for message, signed in every.values():
            with contextlib.suppress(EndorsementRefused):
                subscriptions.follow(folder, "u", signed, message, 1.0)

    last = 1
    for n in range(12):
        child = fork.Process(target=work)
        child.start()
        time.sleep(0.002 + n * 0.002)
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        (now,) = subscriptions.listed(folder)
        assert subscriptions.message_of(folder, now).read_bytes() == every[now.version][0]
        assert int(now.version) >= last
        last = int(now.version)
