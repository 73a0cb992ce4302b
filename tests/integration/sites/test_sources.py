"""``vmjob sites`` and sources that are down, slow, or lie."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cemon_publisher.example import example

from tests.conftest import Cli
from tests.servers import faults, good, status
from vmjob.ads import site_ad
from vmjob.core.site_errors import SitesRefused, SitesUnreachable

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

Talk = Callable[[socket.socket, Callable[[], int]], None]  # the second reads a request and gives its number


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Without an image, and with a cache of its own."""
    return Cli(tmp_path, tmp_path, {"XDG_CONFIG_HOME": str(tmp_path)})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.json"
    path.write_text(json.dumps(site_ad.to_json(example(int(time.time())))))
    return path


def settings(cli: Cli, *urls: str, timeout: str = "1s") -> None:
    (cli.cwd / "vmjob").mkdir(exist_ok=True)
    (cli.cwd / "vmjob/sites.yaml").write_text(json.dumps({"timeout": timeout, "sources": list(urls)}))


# ---------------------------------------------------------------- a server that speaks LDAP as a test wants it


def ber(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    length = len(body).to_bytes(4, "big")
    return bytes((tag, 0x84)) + length + body


def number(value: int, tag: int = 2) -> bytes:
    return ber(tag, value.to_bytes(4, "big"))


def message(request: int, operation: bytes, *controls: bytes) -> bytes:
    return ber(0x30, number(request), operation, *controls)


def ended(tag: int, result: int = 0, *more: bytes) -> bytes:
    return ber(tag, ber(10, bytes((result,))), ber(4), ber(4), *more)


BOUND, DONE = 0x61, 0x65


def found(dn: bytes, *values: tuple[bytes, bytes]) -> bytes:
    """An entry; each attribute has one value."""
    return ber(0x64, ber(4, dn), ber(0x30, *(ber(0x30, ber(4, key), ber(0x31, ber(4, one))) for key, one in values)))


def page(cookie: bytes) -> bytes:
    return ber(0xA0, ber(0x30, ber(4, b"1.2.840.113556.1.4.319"), ber(4, ber(0x30, number(0), ber(4, cookie)))))


@contextmanager
def bdii(talk: Talk) -> Iterator[str]:
    """Its address; ``talk`` has each connection after the bind."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError, IndexError):
                    def heard() -> int:
                        data = connection.recv(65536)  # noqa: B023
                        at = data.index(2) if data[0] == 0x30 else 0  # the first integer is the message's number
                        return int.from_bytes(data[at + 2:at + 2 + data[at + 1]], "big")

                    connection.sendall(message(heard(), ended(BOUND)))
                    talk(connection, heard)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"ldap://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


def answers(*operations: bytes, controls: bytes = b"") -> Talk:
    """The same to every search."""
    def talk(connection: socket.socket, heard: Callable[[], int]) -> None:
        while True:
            request = heard()
            connection.sendall(b"".join(message(request, one) for one in operations[:-1])
                               + message(request, operations[-1], controls))
    return talk


def silent(connection: socket.socket, heard: Callable[[], int]) -> None:
    while connection.recv(65536):
        pass


def dripping(connection: socket.socket, heard: Callable[[], int]) -> None:
    for byte in message(heard(), found(b"x" * 2**16)):
        connection.sendall(bytes((byte,)))
        time.sleep(0.1)


def endless(connection: socket.socket, heard: Callable[[], int]) -> None:
    request = heard()
    one = message(request, found(b"a", (b"b", b"c" * 9000))) * 100
    while True:
        connection.sendall(one)


def garbage(connection: socket.socket, heard: Callable[[], int]) -> None:
    heard()
    connection.sendall(b"\x30\x84\x00\x00\x00\x09" + b"\xff" * 9)


def closing(connection: socket.socket, heard: Callable[[], int]) -> None:
    heard()


def huge(connection: socket.socket, heard: Callable[[], int]) -> None:
    heard()
    connection.sendall(b"\x30\x88\x7f\xff\xff\xff\xff\xff\xff\xff")  # 8 EiB follow
    while True:
        connection.sendall(b"\0" * 2**16)


SERVICE = (b"GLUE2ServiceID=s,o=glue", (b"objectClass", b"GLUE2Service"), (b"GLUE2EntityOtherInfo", b"VmjobSite=LIAR"))


@pytest.mark.parametrize("talk, kind, why", [
    (silent, SitesUnreachable, "no whole answer within 1 s"),
    (dripping, SitesUnreachable, "no whole answer within 1 s"),
    (closing, SitesUnreachable, "it ended the connection"),
    (garbage, SitesRefused, "is no LDAP"),
    (answers(found(b"a"), ended(DONE), controls=page(b"more")), SitesRefused, "more than 20000 entries"),
    (answers(ended(DONE, 4)), SitesRefused, "does not give all its entries"),
    (answers(ended(DONE, 51)), SitesRefused, "it refuses: busy"),
], ids=["silent", "dripping", "closing", "garbage", "pages for ever", "sizelimit", "busy"])
def test_a_bdii_that_is_bad_is_named(cli: Cli, talk: Talk, kind: type[SitesRefused], why: str) -> None:
    slow = why.startswith("no whole")
    with bdii(talk) as url:
        settings(cli, url, timeout="1s" if slow else "50s")
        done = cli("sites", "--json")
    assert done.status == kind.status, done.err
    assert done.json["failure"]["kind"] == kind.__name__
    assert done.json["failure"]["message"].startswith(url)
    assert why in done.json["failure"]["message"]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("talk", [endless, huge])
def test_a_bdii_without_an_end_is_left(cli: Cli, talk: Talk) -> None:
    with bdii(talk) as url:
        settings(cli, url, timeout="50s")
        done = cli("sites")
    assert done.status == SitesRefused.status
    assert "more than 64.0 MiB" in done.err


@pytest.mark.parametrize("talk", [
    answers(ber(0x73, ber(4, b"ldap://127.0.0.1:1/o=glue")), ended(DONE)),
    answers(ended(DONE, 10, ber(0xA3, ber(4, b"ldap://127.0.0.1:1/o=glue"))))], ids=["reference", "result"])
def test_where_it_points_to_is_not_followed(cli: Cli, talk: Talk) -> None:
    with bdii(talk) as url:
        done = cli("sites", "--from", url)
    assert done.status == 0, done.err
    assert "points to another server" in done.err
    assert done.out == b"no site is known that runs virtual machines\n"


def test_what_would_steer_a_terminal_and_what_is_binary_is_left_out_with_a_note(cli: Cli) -> None:
    lies = ((b"GLUE2EntityCreationTime", b"\x1b]0;x\x07"), (b"GLUE2EntityName", b"\xff\xfe"),
            (b"GLUE2EntityValidity", b"x" * 2**20))
    with bdii(answers(found(SERVICE[0], *SERVICE[1:], *lies), ended(DONE))) as url:
        done = cli("sites", "--from", url)
    assert done.status == 0, done.err
    assert b"LIAR" in done.out
    assert "\x1b" not in done.err + done.out.decode()
    assert "left out: a binary value in GLUE2EntityName of GLUE2ServiceID=s,o=glue" in done.err
    assert "a value of 1.0 MiB" in done.err


# ---------------------------------------------------------------- several sources


def test_one_that_is_down_does_not_keep_the_others_back(cli: Cli, site: Path) -> None:
    with bdii(silent) as slow:
        settings(cli, slow, "ldap://127.0.0.1:1", "condor-ce://127.0.0.1:1", str(site), "nothing.json")
        done = cli("sites", "--json")
        assert done.status == 0, done.err
        assert [one["site"]["name"] for one in done.json["sites"]] == ["EXAMPLE-T2"]
        assert [one["kind"] for one in done.json["troubles"]] == ["SitesUnreachable"] * 4
        shown = cli("sites")
    assert f"{slow}: no whole answer within 1 s" in shown.err
    assert "nothing.json: cannot be read: No such file or directory" in shown.err
    settings(cli, "ldap://127.0.0.1:1", "nothing.json")
    none = cli("sites")
    assert none.status == SitesUnreachable.status
    assert "none of 2 sources tells of sites" in none.err


def test_a_collector_that_hangs_does_not_either(cli: Cli, site: Path) -> None:
    """HTCondor's bindings stand still, with all threads of their process, while one does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as mute, bdii(answers(found(*SERVICE), ended(DONE))) as other:
        slow = f"condor://127.0.0.1:{mute.getsockname()[1]}"
        (cli.cwd / "vmjob").mkdir()
        (cli.cwd / "vmjob/sites.yaml").write_text(json.dumps(
            {"sources": [{"url": slow, "timeout": "1s"}, {"url": other, "timeout": "30s"}, str(site)]}))
        done = cli("sites", "--json", env={"CONDOR_CONFIG": "ONLY_ENV"})
    assert done.status == 0, done.err
    assert [one["site"]["name"] for one in done.json["sites"]] == ["EXAMPLE-T2", "LIAR"]
    assert [one["message"] for one in done.json["troubles"]] == [f"{slow}: no whole answer within 1 s"]


def test_what_a_source_said_last_serves_while_it_is_down(cli: Cli, site: Path) -> None:
    ad = example(int(time.time()))
    with faults(json.dumps(site_ad.to_json(ad)).encode(), good) as server:
        first = cli("sites", "--from", server.url, "--json")
        assert [one["stale"] for one in first.json["sites"]] == [False]
        assert cli("sites", "--from", server.url).status == 0
        assert len(server.asked) == 1  # of less than a minute ago
    again = cli("sites", "--from", server.url, "--json", "--fresh")
    assert again.status == 0, again.err
    assert [one["stale"] for one in again.json["sites"]] == [True]
    assert "counts until it expires" in again.json["troubles"][0]["message"]
    text = cli("sites", "--from", server.url, "--fresh")
    assert b"stale" in text.out


def test_what_has_expired_is_left_out(cli: Cli, site: Path) -> None:
    now = int(time.time())
    site.write_text(json.dumps(site_ad.to_json(replace(example(now), created=now - 7200, expires=now - 3600))))
    done = cli("sites", "--from", site)
    assert done.status == 0
    assert b"no site is known" in done.out
    assert "what it says of EXAMPLE-T2 expired 1h00m0" in done.err


def test_documents_over_http_that_are_bad(cli: Cli) -> None:
    with faults(b"{", good, status(404), status(500)) as server:
        assert "this is no JSON" in (one := cli("sites", "--from", server.url)).err
        assert one.status == SitesRefused.status
        assert (two := cli("sites", "--from", server.url)).status == SitesUnreachable.status
        assert "404" in two.err
    with faults(b"[" + b" " * 2**25 + b"]", good) as server:
        large = cli("sites", "--from", server.url)
    assert large.status == SitesRefused.status
    assert "larger than 32.0 MiB" in large.err


# ---------------------------------------------------------------- the verb


def test_sites_are_listed_for_a_vo_and_told_of_one_by_one(cli: Cli, site: Path) -> None:
    table = cli("sites", "--from", site, "--vo", "star")
    assert table.out.decode().splitlines()[1].split()[:4] == [
        "EXAMPLE-T2", "condor-ce://ce01.example.org:9619", "+1", "kvm"]
    none = cli("sites", "--from", site, "--vo", "lhcb")
    assert none.out == b"no site is known that runs virtual machines of the VO lhcb; 1 take others' jobs\n"
    one = cli("sites", "EXAMPLE-T2", "--from", site)
    assert b"images    4, and what jobs of star bring" in one.out
    assert b"star_sl5         3        sha256:1ddfe673d797  sl 5.11" in one.out
    mine = cli("sites", "example-t2", "--from", site, "--vo", "atlas")
    assert b"images    2, and" in mine.out and b"atlas-athena" in mine.out and b"star_sl5" not in mine.out
    lost = cli("sites", "EXAMPLE-T3", "--from", site)
    assert lost.status == 205
    assert "did you mean 'EXAMPLE-T2'?" in lost.err


def test_without_sources_one_is_told_how_to_name_them(cli: Cli) -> None:
    done = cli("sites")
    assert done.status == 200
    assert "sites.yaml is not there" in done.err
    assert "ldap://HOST:2170" in done.err
