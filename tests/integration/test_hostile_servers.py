"""Servers, name servers and addresses that lead a fetch, or outputs, to where they do not belong."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Authority, authority, faults, good, status
from vmjob.errors import StageOutFailed
from vmjob.model import ImageFile
from vmjob.stage import addresses, commands, credentials
from vmjob.stage.flow import Failed
from vmjob.stage.out import send
from vmjob.stage.patience import Patience
from vmjob.stage.places import Place
from vmjob.stage.plugins import Plugins
from vmjob.stage.web import Web

pytestmark = pytest.mark.integration

BODY = b"what only this machine should know"
QUICK = Patience(connect=2, stall=2, window=2, pause=0.01, longest=0.1, tries=1, worth=10_000, tick=0.05)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "OSG_SQUID_LOCATION", "REQUESTS_CA_BUNDLE",
                 "CURL_CA_BUNDLE", "SSL_CERT_FILE", "BEARER_TOKEN", "BEARER_TOKEN_FILE", "VMJOB_TOKEN_HOSTS",
                 "X509_USER_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("X509_CERT_DIR", str(tmp_path / "no-grid"))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def outside() -> Iterator[str]:
    """An address of this machine that is not its loopback: a server there is as far away as any."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("needs a network interface besides the loopback")
        yield probe.getsockname()[0]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What a hostile name server says: for each name the answers, one after the other, the last for ever."""
    said: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **more: Any) -> Any:
        answers = said.get(str(host), [])
        return real((answers.pop(0) if len(answers) > 1 else answers[0]) if answers else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return said


def ask(url: str, **more: Any) -> bytes:
    answer = Web(QUICK).request("GET", url, lambda _: {}, **more)
    with answer:
        return answer.content


def refused(url: str, **more: Any) -> str:
    with pytest.raises(Failed) as failure:
        ask(url, **more)
    return str(failure.value)


# ---------------------------------------------------------------- where a redirect leads


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1:1/_x", "unix:/run/x",
                                   "data:,x", "http://a b/", "javascript:1"])
def test_a_redirect_to_another_scheme_or_to_no_address(place: str) -> None:
    with faults(b"", status(302, Location=place)) as server:
        assert "no address of http" in refused(server.url + "/x") and len(server.asked) == 1


@pytest.mark.parametrize("form", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "127.1",
                                  "2130706433", "0x7f.0.0.1", "0177.0.0.1", "0.0.0.0", "[::]", "LOCALHOST.",
                                  "x.localhost", "[64:ff9b::7f00:1]", "[::127.0.0.1]", "user:pw@127.0.0.1"])
def test_a_redirect_from_elsewhere_to_this_machine(form: str, outside: str) -> None:
    with faults(BODY) as local, faults(b"", status(307, Location=f"http://{form}:{local.port}/secret"),
                                       address=outside) as evil:
        said = refused(f"http://{outside}:{evil.port}/image")
        assert local.asked == [] and said
        assert "this machine itself" in said or "leaves no network" in said or "no address" in said \
            or "not known" in said, said


def test_a_redirect_on_this_machine_is_as_good_as_any() -> None:
    with faults(BODY) as target, faults(b"", status(302, Location=f"http://localhost:{target.port}/x")) as first:
        assert ask(first.url + "/") == BODY


def test_a_redirect_to_a_clouds_own_services(outside: str) -> None:
    for form in ("169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]"):
        assert addresses.refused(form.strip("[]"), form)
        for first in (outside, "127.0.0.1"):
            with faults(b"", status(302, Location=f"http://{form}/latest/meta-data/"), address=first) as evil:
                assert refused(f"http://{first}:{evil.port}/")
    assert addresses.refused("fe80::1%eth0", "printer.example.org")


def test_outputs_do_not_go_on_in_the_clear(ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.bundle))
    monkeypatch.setenv("BEARER_TOKEN", "opaque")
    (tmp_path / "result").write_bytes(b"x" * 100)
    with faults(b"") as plain, faults(b"", status(307, Location=f"{plain.url}/result"), tls=ca.certificate()) as first:
        with pytest.raises(StageOutFailed, match="everybody on the way could read"):
            send(tmp_path, ["result"], f"https://localhost:{first.port}/out/", timeout=20, patience=QUICK)
        assert plain.asked == [] and "Authorization" in first.headers[0]


def test_a_redirect_to_plain_http_takes_no_credentials_along(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.bundle))
    monkeypatch.setenv("BEARER_TOKEN", "opaque")
    monkeypatch.setenv("VMJOB_TOKEN_HOSTS", "localhost")
    with faults(BODY) as plain:
        leads = status(302, Location=f"http://localhost:{plain.port}/x")
        with faults(b"", status(401), leads, tls=ca.certificate()) as first:
            assert ask(f"https://localhost:{first.port}/x") == BODY  # bytes of an image are verified, however they come
            assert first.headers[1]["Authorization"] == "Bearer opaque"
        assert "Authorization" not in plain.headers[0]


def test_user_and_password_of_an_address_go_to_its_host_alone() -> None:
    with faults(BODY) as target, faults(b"", status(302, Location=f"{target.url}/x")) as first:
        assert ask(first.url.replace("//", "//ada:secret@") + "/") == BODY
        assert first.headers[0]["Authorization"].startswith("Basic ") and "Authorization" not in target.headers[0]


# ---------------------------------------------------------------- what name servers say


def test_a_name_that_leads_to_this_machine(names: dict[str, list[str]]) -> None:
    with faults(BODY, address="0.0.0.0") as local:
        for number in ("127.0.0.1", "127.9.9.9", "0.0.0.0"):
            names["images.example.org"] = [number]
            said = refused(f"http://images.example.org:{local.port}/x")
            assert "no server of images" in said, said
        assert local.asked == []


def test_a_name_that_leads_elsewhere_the_second_time(names: dict[str, list[str]], outside: str) -> None:
    """A first answer that is good, and a second one for the connection that counts."""
    names["images.example.org"] = [outside, "127.0.0.1"]
    with faults(BODY) as local, faults(BODY[::-1], address=outside) as far:
        assert ask(f"http://images.example.org:{far.port}/x") == BODY[::-1]
        assert "no server of images" in refused(f"http://images.example.org:{local.port}/x")
        assert local.asked == []


def test_a_proxy_may_be_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with faults(BODY, good) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert ask("http://images.example.org/x") == BODY and proxy.asked == ["GET http://images.example.org/x -"]


def test_ipv6() -> None:
    try:
        with faults(BODY, address="::1") as server:
            assert ask(f"http://[::1]:{server.port}/x") == BODY
    except OSError:
        pytest.skip("needs IPv6 on the loopback")


@pytest.mark.parametrize(("host", "own"), [
    ("localhost", True), ("LocalHost.", True), ("a.localhost", True), ("127.0.0.1", True), ("127.255.0.1", True),
    ("::1", True), ("[::1]", True), ("::ffff:127.0.0.1", True), ("::ffff:7f00:1", True), ("::1%lo", True), ("::", True),
    ("64:ff9b::7f00:1", True), ("2002:7f00:1::", True), ("0.0.0.0", True), ("localhost.example.org", False),
    ("10.0.0.1", False), ("2001:db8::1", False), ("se.example.org", False), ("::ffff:10.0.0.1", False)])
def test_who_is_this_machine(host: str, own: bool) -> None:
    assert addresses.is_own(host) is own


# ---------------------------------------------------------------- other programs


@pytest.mark.parametrize("source", ["http://169.254.169.254/x/", "root://169.254.169.254//x/", "davs://[fe80::1]/x/",
                                    "condor:https://0.0.0.0/x/", "https://224.0.0.1/", "gsiftp://[::]/"])
def test_no_source_is_where_no_storage_can_be(source: str) -> None:
    place = Place(source, Web(QUICK), QUICK, Plugins())
    assert "leaves no network" in place.broken
    with pytest.raises(Failed):
        place.begin(ImageFile("disk", "disk.raw", 1, "a" * 64, "raw"), 0, 1)


def test_programs_show_no_certificate_to_whom_only_a_manifest_names() -> None:
    """Attack proxy_shown."""
    mine = {"X509_USER_PROXY": "/tmp/x509up_u1", "X509_USER_CERT": "/c", "X509_USER_KEY": "/k", "KRB5CCNAME": "FILE:/k",
            "BEARER_TOKEN": "opaque", "PATH": "/bin"}
    env = commands.environment("evil.example.org", mine, QUICK)
    assert env["X509_USER_PROXY"] == env["BEARER_TOKEN_FILE"] == os.devnull and env["PATH"] == "/bin"
    assert env["XrdSecPROTOCOL"] == "unix,host" and env["KRB5CCNAME"] == f"FILE:{os.devnull}"
    assert not {"X509_USER_CERT", "X509_USER_KEY", "BEARER_TOKEN"} & set(env)
    env = commands.environment("se.example.org", {**mine, "VMJOB_TOKEN_HOSTS": "se.example.org"}, QUICK)
    assert mine.items() <= env.items() and "XrdSecPROTOCOL" not in env
    aud = "e30.eyJhdWQiOiAic2UuZXhhbXBsZS5vcmcifQ.c2ln"  # {"aud": "se.example.org"}
    env = commands.environment("se.example.org", {**mine, "BEARER_TOKEN": aud}, QUICK)
    assert (env["BEARER_TOKEN"], env["X509_USER_PROXY"], env["XrdSecPROTOCOL"]) == (aud, os.devnull, "ztn,unix,host")


def test_a_neighbours_link_chooses_no_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pem"
    other.write_text("key")
    link = Path(f"/tmp/x509up_u{os.getuid()}")
    if link.exists() or link.is_symlink():
        pytest.skip("there is a proxy of this user here")
    link.symlink_to(other)
    try:
        assert credentials.user_proxy({}) is None
        assert credentials.user_proxy({"X509_USER_PROXY": str(other)}) == other
    finally:
        link.unlink()
