"""Strangers' names on a terminal: shown, never obeyed; one function, and every way to print goes through it."""

from __future__ import annotations

import io
import os
import sys

import pytest

from tests.conftest import ROOT
from vmjob.cli import report, tables
from vmjob.core.escapes import shown

pytestmark = pytest.mark.unit

EVIL = "\x1b]0;x\x07\r\n\t\x7f\x9b31m\u202e\u2066\u200f\u2028\u2029\ufeff\xad" + os.fsdecode(b"\xff\xfe")


@pytest.mark.parametrize(("text", "escaped"), [
    ("plain ü☃ 日本", "plain ü☃ 日本"), ("\x1b[2J", r"\x1b[2J"), ("a\nb\r", r"a\nb\r"),
    ("\u202egpj.exe", r"\u202egpj.exe"),
    ("\x9b", r"\x9b"), (os.fsdecode(b"\xff"), r"\xff"), ("\U000e0001", r"\U000e0001"), ("\u2028", r"\u2028"),
    ("\ud800", r"\ud800"), ("back\\slash", "back\\slash")])
def test_shown(text: str, escaped: str) -> None:
    assert shown(text) == escaped and shown(escaped) == escaped and shown(escaped).isprintable()


def test_bytes_and_what_is_kept() -> None:
    assert shown(b"a\xffb\xc3\xbc\n") == "a\\xffbü\\n"
    assert shown("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def clean(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def test_every_way_to_print(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report.say(f"an error about {EVIL}")
    assert clean(capsys.readouterr().err)
    assert tables.table(["NAME"], [[EVIL]]).count("\n") == 1 and clean(tables.table(["NAME"], [[EVIL]]))
    assert clean(report.tame(EVIL.replace("\t", "").encode("utf-8", "surrogateescape")).decode())
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", report.Tame(stream))
    print(EVIL.replace("\t", ""))
    report.show(EVIL.replace("\t", ""))
    assert clean(stream.getvalue()) and stream.getvalue()


def test_no_module_has_a_way_of_its_own() -> None:
    """Each that shows text asks the one function; documents have their formats' own escapes."""
    allowed = {
        "core/escapes.py", "core/classads.py", "core/tokens.py", "accounting/record.py", "sites/glue.py",
        "sites/collector.py", "sites/sources.py", "guest/channel.py", "batch/jobs.py", "ads/site_ad.py",
        "node/enable/usermap.py",
        "policy/file.py", "stage/transfer/condor_plugins.py", "stage/transfer/http.py", "stage/transfer/programs.py",
        "stage/transfer/credentials.py", "stage/transfer/send.py", "slot/readers.py"}
    package = ROOT / "vmjob"
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if "isprintable" in path.read_text()}
    assert found <= allowed, f"vmjob.core.escapes.shown is for this: {found - allowed}"
