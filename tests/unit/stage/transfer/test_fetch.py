"""Which source is asked, what it is asked with, and how long it is borne: the parts without a server."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path

import pytest

from vmjob.core.model import ImageFile
from vmjob.stage.transfer import condor_plugins, credentials, flow, programs
from vmjob.stage.transfer.addresses import origin
from vmjob.stage.transfer.attempt import Try
from vmjob.stage.transfer.fetch import _rank
from vmjob.stage.transfer.flow import Clock, Failed, Throttle, Watch
from vmjob.stage.transfer.http_file import Seen, federation
from vmjob.stage.transfer.patience import Patience
from vmjob.stage.transfer.source import file_path, located
from vmjob.stage.transfer.speeds import FORGET, Speeds

pytestmark = pytest.mark.unit

FILE = ImageFile("disk", "my disk#1.raw", "raw", 5, "ab" * 32)
WAIT = Patience(stall=30, window=30, floor=1000, tick=1)


@pytest.mark.parametrize(("source", "address"), [
    ("https://host/images/", "https://host/images/my%20disk%231.raw"),
    ("https://host/{sha256}?sig=a%2Fb", f"https://host/{'ab' * 32}?sig=a%2Fb"),
    ("file:///mnt/{path}", "file:///mnt/my%20disk%231.raw"),
    ("root://host//store/", "root://host//store/my disk#1.raw"),
    ("condor:osdf:///vo/", "condor:osdf:///vo/my%20disk%231.raw"),
])
def test_addresses(source: str, address: str) -> None:
    assert located(source, FILE) == address


def test_paths_of_a_shared_file_system() -> None:
    assert file_path("file:///mnt/a%20b") == file_path("file:/mnt/a%20b") == file_path("file://localhost/mnt/a%20b") \
        == "/mnt/a b"
    for wrong in ("file://host/mnt", "file:mnt", "file:///mnt%00"):
        with pytest.raises(Failed, match="absolute path"):
            file_path(wrong)


@pytest.mark.parametrize(("url", "whom"), [
    ("https://Host.example.org:8443/x?y#z", ("https", "host.example.org", 8443, "Host.example.org:8443")),
    ("root://ada:pass@host//store", ("root", "host", None, "host")), ("http://host", ("http", "host", None, "host")),
    ("davs://[::1]:1/@x", ("davs", "::1", 1, "[::1]:1")), ("https://host/a\\@b", ("https", "host", None, "host"))])
def test_whom_an_address_names(url: str, whom: tuple[object, ...]) -> None:
    assert tuple(origin(url)) == whom


@pytest.mark.parametrize("odd", [
    "https://evil:1\\@good/", "root://good?@evil:1//", "root://good#@evil//", "https://a@b@good/", "https://go od/",
    "https://good\t/", "https://good:99999/", "https://good:/", "https:/good/", "https:///good/", "https://good%2f@evil%2e/",
    "https://g\u00f6od/", "https://[::1/", "//good/", "", "\thttps://good/", "https://good?x", "https://{path}/"])
def test_what_could_be_read_in_two_ways_is_no_address(odd: str) -> None:
    with pytest.raises(Failed, match="this is no address"):
        origin(odd)
    with pytest.raises(Failed, match="this is no address"):
        credentials.token_for(odd, {"BEARER_TOKEN": "x", "VMJOB_TOKEN_HOSTS": "*"}, trusted=True)


def test_federations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMJOB_OSDF_FEDERATION", raising=False)
    assert federation("pelican://fed.example.org:8444/vo/x") == ("fed.example.org:8444", "/vo/x")
    assert federation("osdf:///vo/x") == federation("osdf://vo/x") == ("osg-htc.org", "/vo/x")
    monkeypatch.setenv("VMJOB_OSDF_FEDERATION", "fed.example.org")
    assert federation("osdf:///vo/x") == ("fed.example.org", "/vo/x")


def test_only_a_strong_validator_is_held_against_a_range() -> None:
    assert Seen("u", '"one"', "yesterday").validator == '"one"'
    assert Seen("u", 'W/"one"', "yesterday").validator == ""
    assert Seen("u", "", "yesterday").validator == "yesterday"


# ---------------------------------------------------------------- commands


def test_command_lines() -> None:
    assert programs.xrdcp_argv("/usr/bin/xrdcp", "root://host//x") == \
        ["/usr/bin/xrdcp", "--nopbar", "--silent", "root://host//x", "-"]
    # gfal2-util is not in Debian 12: this is all that is tested of it
    assert programs.gfal_argv("gfal-copy", "davs://host/x", Path("/scratch/data"), 59.6) == \
        ["gfal-copy", "--force", "--timeout", "60", "davs://host/x", "file:///scratch/data"]


def test_a_grid_command_finds_a_token_only_where_it_belongs() -> None:
    mine = {"BEARER_TOKEN": "opaque", "BEARER_TOKEN_FILE": "/t", "XDG_RUNTIME_DIR": "/run/user/1", "HOME": "/h",
            "_CONDOR_CREDS": "/creds", "XRD_REQUESTTIMEOUT": "7"}
    foreign = programs.environment("host", mine, WAIT)
    assert "BEARER_TOKEN" not in foreign and "_CONDOR_CREDS" not in foreign and "ztn" not in foreign["XrdSecPROTOCOL"]
    assert foreign["HOME"] == "/h" and foreign["XRD_REQUESTTIMEOUT"] == "7" and foreign["XRD_CONNECTIONWINDOW"] == "10"
    own = programs.environment("host", {**mine, "VMJOB_TOKEN_HOSTS": "host"}, WAIT)
    assert own["BEARER_TOKEN"] == "opaque" and "XrdSecPROTOCOL" not in own
    sending = programs.xrootd_times(WAIT, 600)  # a storage may think
    assert (sending["XRD_REQUESTTIMEOUT"], sending["XRD_STREAMTIMEOUT"]) == ("600", "60")


@pytest.mark.parametrize(("said", "final"), [
    ("The requested URL returned error: 404 Not Found", True), ("HTTP/1.1 403", True), ("status=410", True),
    ("no such file or directory", True), ("[3011] Unable to open", True), ("(3010)", True), ("Auth failed", True),
    ("[3005] Unable to create /x/y; not a directory", True),
    ("Connection to https://host:404/x timed out", False), ("http://404.example.org: unreachable", False),
    ("got 404 bytes", False), ("1404 Not Found", False), ("error: 503 Service Unavailable", False),
    ("Operation expired after 30100 ms", False), ("[3012] Internal server error", False)])
def test_what_no_second_try_mends(said: str, final: bool) -> None:
    assert programs.is_final(said) is final


def test_what_plugins_of_htcondor_say_and_are_asked() -> None:
    said = 'MultipleFileSupport = true\nPluginType = "FileTransfer"\nSupportedMethods = "http,https, FTP"\n'
    assert condor_plugins.plugin_methods(said) == ({"http", "https", "ftp"}, True)
    assert condor_plugins.plugin_methods('SupportedMethods = "data"') == ({"data"}, False)
    assert condor_plugins.plugin_methods("Segmentation fault") == (set(), False)
    assert condor_plugins.plugin_request('s3://b/a"b\\c', Path("/s/data")) == \
        '[ Url = "s3://b/a\\"b\\\\c"; LocalFileName = "/s/data"; ]\n'
    assert condor_plugins.plugin_failure("[ TransferSuccess = true; TransferFileBytes = 5 ]") is None
    assert condor_plugins.plugin_failure('[ TransferSuccess = false; TransferError = "no \\"x\\"\n" ]') == 'no "x"'
    assert "does not say" in (condor_plugins.plugin_failure("") or "")


# ---------------------------------------------------------------- who may know what


def jwt(**claims: object) -> str:
    return "e30." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".c2ln"


@pytest.mark.parametrize(("token", "hosts", "may"), [
    (jwt(aud="https://se.example.org:2880"), "", True), (jwt(aud=["x", "se.example.org"]), "", True),
    (jwt(aud="https://SE.example.org/"), "", True), (jwt(aud="https://other.example.org"), "", False),
    (jwt(aud="https://wlcg.cern.ch/jwt/v1/any"), "", False), (jwt(aud="ANY"), "", False), (jwt(), "", False),
    (jwt(aud=["http://[::1"]), "", False), (jwt(aud={"a": 1}), "", False), ("e30.!!.x", "", False),
    ("opaque", "", False), ("opaque", "*.example.net, *.Example.org", True), ("opaque", "example.org", False),
    (jwt(aud="https://se.example.org.evil.example"), "", False)])
def test_whom_a_token_is_for(token: str, hosts: str, may: bool) -> None:
    assert credentials.meant_for(token, "se.example.org", {"VMJOB_TOKEN_HOSTS": hosts}) is may


def test_tokens_are_found_as_wlcg_says(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from-file\n")
    runtime = tmp_path / f"bt_u{os.getuid()}"
    runtime.write_text("from-runtime")
    surroundings = {"BEARER_TOKEN": " direct ", "BEARER_TOKEN_FILE": str(tmp_path / "file"),
                    "XDG_RUNTIME_DIR": str(tmp_path)}
    found = []
    for name in surroundings.copy():
        found.append(credentials.bearer_token(surroundings))
        del surroundings[name]
    assert found == ["direct", "from-file", "from-runtime"]
    assert credentials.bearer_token({"BEARER_TOKEN": "two words\r\nX: y"}) == ""
    runtime.unlink()
    runtime.symlink_to(tmp_path / "file")
    assert credentials.bearer_token({"XDG_RUNTIME_DIR": str(tmp_path)}) != "from-file"
    assert credentials.bearer_token({"BEARER_TOKEN_FILE": os.devnull}) == ""


def test_never_over_plain_http() -> None:
    mine = {"BEARER_TOKEN": "x", "VMJOB_TOKEN_HOSTS": "*"}
    assert credentials.token_for("https://host/x", mine) == credentials.token_for("davs://host/x", mine) == "x"
    assert credentials.token_for("http://host/x", mine, trusted=True) == ""
    assert credentials.token_for("https://host/x", {"BEARER_TOKEN": "x"}) == ""
    assert credentials.token_for("https://host/x", {"BEARER_TOKEN": "x"}, trusted=True) == "x"


@pytest.mark.parametrize(("url", "text"), [
    ("https://ada:secret@host:1/a%20b?authz=secret&x=1#f", "https://host:1/a b?authz=…&x=…"),
    ("https://host/a?secret", "https://host/a?secret=…"), ("condor:https://u:secret@host/x", "condor:https://host/x"),
    ("root://host//store/", "root://host//store/"), ("file:///mnt/", "file:///mnt/"),
    ("http://host/a%1B[2J%0a", "http://host/a\ufffd[2J\ufffd"), ("http://[::1", "an address that cannot be read")])
def test_addresses_are_shown_without_secrets(url: str, text: str) -> None:
    assert credentials.shown(url) == text


# ---------------------------------------------------------------- time


def test_pauses_grow_and_end_with_the_time() -> None:
    usual = Patience()
    for strikes, least, most in ((1, 0.5, 1.5), (4, 4, 12), (7, 32, 60), (5000, 60, 60)):
        pauses = [usual.rest(strikes, 3600) for _ in range(50)]
        assert least <= min(pauses) and max(pauses) <= most
    assert max(usual.rest(9, 20) for _ in range(50)) <= 10 and usual.rest(9, 0.1) == usual.pause


def test_standing_still_and_dripping() -> None:
    for seconds in (29, 31):
        watch, told = Watch(WAIT), ""
        try:
            for _ in range(seconds):
                watch.waited(1, 0)
        except Failed as failure:
            told = str(failure)
        assert told == ("" if seconds == 29 else "no byte came for 30 s")
    drip, fine = Watch(WAIT), Watch(WAIT)
    with pytest.raises(Failed, match=r"only 9.* B/s"):
        for second in range(1, 100):
            drip.waited(1, second * 900)
    for second in range(1, 100):
        fine.waited(1, second * 1100)


def test_slower_than_the_others() -> None:
    watch = Watch(WAIT, need=1e6)
    with pytest.raises(Failed, match="others") as failure:
        for second in range(1, 100):
            watch.waited(1, second * 500_000)
    assert failure.value.left and not failure.value.final


def test_a_job_that_was_suspended_has_waited_for_nothing() -> None:
    watch = Watch(WAIT)
    for _ in range(7):
        watch.waited(3600, 0)
    with pytest.raises(Failed):
        for _ in range(7):
            watch.waited(3600, 0)


def test_a_cap_is_even(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr(flow.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(flow.interrupt, "sleep", sleep)
    with Clock(1000) as clock:
        cap = Throttle(1_000_000, clock)
        assert cap.piece == 250_000
        for _ in range(3):
            cap.passed(250_000)
        now[0] += 60  # nothing is saved up
        cap.passed(250_000)
        assert slept == [0.25] * 4 and round(clock.left, 3) == 939
    assert Throttle(None, clock).piece == flow.PIECE and Throttle(1000, clock).piece == 16 * 2**10
    now[0] += 500
    assert round(clock.left, 3) == 939  # between two files no time is taken


# ---------------------------------------------------------------- speeds


def test_speeds_are_kept_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    Speeds(path).learn("a", 4e6)
    Speeds(path).learn("a", 2e6)
    Speeds(path).learn("b", 1e6)
    Speeds(path).learn("", 1e6)
    assert [Speeds(path).of(host) for host in ("a", "b", "c", "")] == [3e6, 1e6, None, None]
    assert list(tmp_path.iterdir()) == [path]
    old = json.loads(path.read_text())
    old["a"]["at"] = time.time() - FORGET - 1
    path.write_text(json.dumps(old))
    assert Speeds(path).of("a") is None and Speeds(path).of("b") == 1e6


@pytest.mark.parametrize("text", [
    b"", b"{", b"[1]", b'{"a": 1}', b'{"a": {"speed": "x", "at": 1}}', b"\xff\xfe", b"[" * 5000,
    b'{"a": {"speed": NaN, "at": 1e99}}', b'{"a": {"speed": -1, "at": 9e9}}'])
def test_garbage_is_nothing(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "speeds.json"
    path.write_bytes(text)
    assert Speeds(path).of("a") is None
    Speeds(path).learn("a", 1e6)
    assert Speeds(path).of("a") == 1e6


def test_a_place_for_speeds_that_cannot_be_written(tmp_path: Path) -> None:
    here = Speeds(tmp_path / "none" / "speeds.json")
    here.learn("a", 1e6)
    assert here.of("a") == 1e6


def test_the_submit_side_is_last() -> None:
    assert _rank(Try(None, 0)) == 2
