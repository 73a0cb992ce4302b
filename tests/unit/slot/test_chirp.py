"""HTCondor's Chirp: what is said to it, against a small server that speaks its protocol and has its moods."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmjob.core.errors import ChirpFailed, ImageMissing
from vmjob.slot import chirp
from vmjob.slot.chirp import Chirp, literal

pytestmark = pytest.mark.unit

BODY = bytes(range(256)) * 64


class Starter:
    """Files by path; ``moods``: what it does to the next reads ("hang up", "half", an error's number)."""

    def __init__(self) -> None:
        self.files = {"/spool/f": BODY}
        self.moods: list[str] = []
        self.attributes: dict[str, str] = {}
        self._half = False
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._door.accept()
            except OSError:
                return
            with peer, peer.makefile("rwb") as stream:
                for line in stream:
                    answer = self._answer(line.decode())
                    stream.write(answer or b"")
                    stream.flush()
                    if not answer or self._half:
                        self._half = False
                        break

    def _answer(self, line: str) -> bytes | None:
        words = [re.sub(r"\\(.)", r"\1", word, flags=re.S) for word in re.findall(r"(?:\\.|[^ \n])+", line, re.S)]
        verb = words.pop(0)
        if verb == "cookie":
            return b"0\n" if words == ["secret"] else b"-1\n"
        if verb == "open":
            self._open = self.files.get(words[0], b"")
            return b"3\n1 2 3\n" if words[0] in self.files else b"-3\n"
        if verb == "unlink":
            mood = self.moods.pop(0) if self.moods else ""
            return mood.encode() + b"\n" if mood else b"0\n" if self.files.pop(words[0], None) else b"-3\n"
        if verb == "pread":
            mood = self.moods.pop(0) if self.moods else ""
            data = self._open[int(words[2]):int(words[2]) + int(words[1])]
            if mood == "hang up":
                return None
            if mood == "half":
                self._half = True
                return b"%d\n" % len(data) + data[:5]
            return mood.encode() + b"\n" if mood else b"%d\n" % len(data) + data
        if verb == "set_job_attr":
            self.attributes[words[0]] = words[1]
        return b"0\n"


@pytest.fixture
def starter() -> Iterator[Starter]:
    server = Starter()
    yield server
    server.close()


@pytest.fixture
def client(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chirp]:
    monkeypatch.setattr(chirp, "PIECE", 1000)
    monkeypatch.setattr(chirp, "_PAUSES", (0.01,))
    one = Chirp("127.0.0.1", starter.port, "secret")
    yield one


def test_a_file_comes_in_pieces(client: Chirp) -> None:
    pieces = list(client.pieces("/spool/f", len(BODY)))
    assert b"".join(pieces) == BODY and max(map(len, pieces)) == 1000


def test_a_short_file_ends_where_it_ends(client: Chirp) -> None:
    assert b"".join(client.pieces("/spool/f", len(BODY) + 5000)) == BODY


@pytest.mark.parametrize("mood", ["hang up", "half", "-127", "-11"])
def test_it_goes_on_where_it_was(client: Chirp, starter: Starter, mood: str) -> None:
    found = b""
    for piece in client.pieces("/spool/f", len(BODY)):
        if not found:
            starter.moods = [mood, mood]
        found += piece
    assert found == BODY and not starter.moods


def test_a_cut_that_lasts_is_told(client: Chirp, starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chirp, "PATIENCE", 0.05)
    starter.moods = ["-127"] * 1000
    with pytest.raises(ChirpFailed, match="/spool/f cannot be read"):
        list(client.pieces("/spool/f", 10))


def test_what_is_not_there_is_missing_and_what_is_refused_is_refused(client: Chirp, starter: Starter) -> None:
    with pytest.raises(ImageMissing, match="/spool/other"):
        list(client.pieces("/spool/other", 10))
    starter.moods = ["-2"]
    with pytest.raises(ChirpFailed) as refused:
        list(client.pieces("/spool/f", 10))
    assert "ENABLE_CHIRP" in refused.value.hint and refused.value.transient
    with pytest.raises(ChirpFailed):
        Chirp("127.0.0.1", starter.port, "guessed").set("A", 1)
    assert b"".join(client.pieces("/spool/f", len(BODY))) == BODY


def test_a_small_file_is_read_at_once_and_removed(client: Chirp, starter: Starter) -> None:
    starter.files["/spool/token"] = b"abc"
    starter.moods = ["-127"]
    assert client.read("/spool/token", 1000) == b"abc"
    starter.moods = ["-127"]
    client.remove("/spool/token", 5)
    assert "/spool/token" not in starter.files
    client.remove("/spool/token", 5)  # it is gone: fine
    with pytest.raises(FileNotFoundError):
        client.read("/spool/token", 1000)
    starter.moods = ["-127"] * 1000
    with pytest.raises(ChirpFailed, match="cannot be removed"):
        client.remove("/spool/f", 0.05)


def test_attributes(client: Chirp, starter: Starter) -> None:
    client.set("VmjobMessage", 'a "b"\nc')
    client.set("VmjobStatus", 7)
    assert starter.attributes == {"VmjobMessage": '"a \\"b\\" c"', "VmjobStatus": "7"}
    with pytest.raises(ValueError):
        client.set("A B", 1)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with pytest.raises(ConnectionError):
        Chirp("127.0.0.1", port, "secret").set("A", 1)


def test_found_where_the_starter_left_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Chirp.find({}) is None
    environ = {"_CONDOR_SCRATCH_DIR": str(tmp_path)}
    assert Chirp.find(environ) is None
    (tmp_path / ".chirp.config").write_text("127.0.0.1 99 cookie\n")
    assert Chirp.find(environ) is not None
    (tmp_path / ".chirp.config").write_text("nonsense\n")
    assert Chirp.find(environ) is None and "nonsense" not in caplog.text and ".chirp.config" in caplog.text


@pytest.mark.parametrize("value, text", [
    (True, "true"), (False, "false"), (3, "3"), (1.5, "1.5"), (float("nan"), "undefined"), ("", '""'),
    ('say "hi"', '"say \\"hi\\""'), ("C:\\x\\", '"C:/x/"'), ("a\r\nb\tc  d", '"a b c d"'), ("\x1b[0m", '"\ufffd[0m"'),
    ("→ é", '"→ é"')])
def test_literals(value: chirp.Value, text: str) -> None:
    assert literal(value) == text


@pytest.mark.parametrize("text", ['"' * 5000, "x y " * 5000, "\u00e9" * 5000, "a" * 5000])
def test_long_text_is_cut_for_the_starters_line(text: str) -> None:
    found = literal(text)
    assert len(found.replace(" ", "\\ ").encode()) < 1000 and found.endswith('…"') and found.count('"', 1, -1) == \
        found.count('\\"')


def test_bindings_read_what_we_write() -> None:
    classad2 = pytest.importorskip("classad2")
    for text in ('a "b" c', "x" * 5000, 'end"', "\u2192"):
        assert classad2.ExprTree(literal(text)).eval() == literal(text)[1:-1].replace('\\"', '"')
