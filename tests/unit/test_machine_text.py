"""What strangers write into text that machines read: no value becomes a line, no foreign digit a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmjob import classads, identity, machinetext
from vmjob.errors import PolicyRefused
from vmjob.payer import Payer, payer
from vmjob.slot import sources

pytestmark = pytest.mark.unit

SEPARATORS = ("\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r")
FORGED = ("x{0}AuthTokenIssuer = https://atlas.example.org/{0}AuthTokenSubject = victim{0}AuthTokenGroups = /atlas"
          "{0}y = z")


def ad_of(attributes: dict[str, Any]) -> str:
    """As HTCondor's starter writes it."""
    import classad2

    ad = classad2.ClassAd()
    for name, value in attributes.items():
        ad[name] = value
    return str(ad.printOld())


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_no_line_end_of_unicode_ends_a_line_of_an_ad(separator: str) -> None:
    """Attack classad_forge."""
    text = FORGED.format(separator)
    found = classads.read(ad_of({"Owner": "mallory", "Note": text, "AuthTokenIssuer": "https://mallory.example.org"}))
    assert found == {"owner": "mallory", "note": text, "authtokenissuer": "https://mallory.example.org"}


@pytest.mark.parametrize("text", [
    FORGED.format("\n"), 'x"\nAuthTokenIssuer = "https://atlas.example.org/', "x\\\nAuthTokenIssuer = undefined\ny = z",
    "x\\\nAuthTokenIssuer = 'a\ny = z'\nz = ", "x\nAuthTokenIssuer = y\n\\"])
def test_a_string_with_a_newline_refuses_the_ad(text: str) -> None:
    """HTCondor writes it as it is."""
    with pytest.raises(ValueError, match="whole by itself"):
        classads.read(ad_of({"Owner": "mallory", "AAA": text}))
    with pytest.raises(ValueError, match="whole by itself"):
        classads.read(ad_of({"Owner": "mallory", f"b {text}": 1}))


def test_what_stands_twice_or_was_cut_refuses_the_ad() -> None:
    with pytest.raises(ValueError, match="owner stands there twice"):
        classads.read('Owner = "ada"\nOWNER = "bob"\n')
    with pytest.raises(ValueError, match="no end"):
        classads.read('Owner = "ada"\nNote = 1')
    with pytest.raises(ValueError, match="larger"):
        classads.read("A = 1\n" * 200_000)


def test_a_name_that_only_looks_like_another_is_another() -> None:
    found = classads.read(ad_of({"AuthTo\u212aenIssuer": "evil", "\u0391uthTokenGroups": "evil"}))
    assert not [name for name in found if name.isascii() and name.startswith("auth")]


def test_ads_as_htcondor_writes_them() -> None:
    import classad2

    found = classads.read(ad_of({
        "Said": 'she said "hi"', "Windows": "C:\\dir\\", "Both": '"a\\b" ', "Empty": "", "N": -3, "Real": 0.5,
        "T": True,
        "List": [1, "two", 'th"ree'], "Inner": classad2.ClassAd({"x": 1, "y": "s"}), "Umlaut": "\u00fc\u2028",
        "E": classad2.ExprTree('(owner == "x") && regexp("a=b", y)')}))
    assert found["said"] == 'she said "hi"' and found["windows"] == "C:\\dir\\" and found["both"] == '"a\\b" '
    assert (found["empty"], found["n"], found["t"], found["umlaut"]) == ("", "-3", "true", "\u00fc\u2028")
    assert found["e"].startswith("(owner == \"x\")") and float(found["real"]) == 0.5
    assert classads.read("\n A = 1\n\n".replace(" A", "A")) == {"a": "1"}


def test_a_forged_ad_is_refused_by_policy_and_pays_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ad = tmp_path / ".job.ad"
    ad.write_bytes(ad_of({"AAA": FORGED.format("\n"), "Owner": "mallory"}).encode())
    monkeypatch.setattr(identity, "_by_htcondor", lambda found: True)
    with pytest.raises(PolicyRefused, match="this job's ad is refused"):
        identity.who({"_CONDOR_JOB_AD": str(ad)})
    assert payer({"_CONDOR_JOB_AD": str(ad)}) == Payer()
    assert sources.ad({"_CONDOR_JOB_AD": "/.job.ad"}, tmp_path, "_CONDOR_JOB_AD") == {}
    ad.write_bytes(ad_of({"AAA": FORGED.format("\u2028"), "Owner": "mallory"}).encode())
    assert not [fact for fact in identity.who({"_CONDOR_JOB_AD": str(ad)}) if fact.kind in ("issuer", "fqan")]
    assert payer({"_CONDOR_JOB_AD": str(ad)}) == Payer()


def test_lines_end_at_a_newline_alone() -> None:
    assert machinetext.lines("a\rb\x85c\u2028d\x1e\n\ne") == ["a\rb\x85c\u2028d\x1e", "", "e"]
    assert machinetext.lines("") == [] and machinetext.lines("a\n") == ["a"] and machinetext.lines("\n") == [""]
    assert machinetext.last_line("a\n b \n \n") == "b" and machinetext.last_line(" ", "none") == "none"


@pytest.mark.parametrize("text", ["", "\u0663", "\u00b2", "1_0", "+1", "-1", " 1", "1\n", "1" * 19, "\uff11"])
def test_no_number(text: str) -> None:
    assert machinetext.number(text) is None


def test_numbers() -> None:
    assert machinetext.number("007") == 7
    assert [machinetext.decimal(one) for one in ("-1", " 2.5\n", "1e3", "4.")] == [-1, 2.5, 1000, 4]
    for wrong in ("", "1_000", "\uff11", "nan", "inf", "0x1", "1 2", "9" * 65, "\u20281"):
        with pytest.raises(ValueError, match="no number"):
            machinetext.decimal(wrong)


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\r\nb\rc\n\xff")
    assert machinetext.read(tmp_path / "f") == "a\r\nb\rc\n\ufffd"


# ---------------------------------------------------------------- the other readers


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_no_reader_sees_a_line_in_a_value(separator: str, tmp_path: Path) -> None:
    from vmjob.errors import PolicyBroken
    from vmjob.image import authorities
    from vmjob.node import udev, usermap
    from vmjob.node.enabling import _number, users_of
    from vmjob.node.tree import Tree
    from vmjob.policy import _digests

    (tmp_path / "etc").mkdir()
    passwd = f"ada:x:7:8:Ada{separator}eve:x:0:0::/:/bin/sh:/home/ada:/bin/sh\n"
    (tmp_path / "etc/passwd").write_bytes(passwd.encode())
    assert "eve" not in users_of(Tree(tmp_path)) and _number(Tree(tmp_path), "eve") is None
    assert usermap.accounts(f"SCITOKENS x{separator}SCITOKENS y ada\n", "map", ["ada"]).users == ()
    assert udev.for_kvm({"a.rules": ("/a", f'# {separator}KERNEL=="kvm", MODE="0666"\n')}) is None
    digest = "sha256:" + "a" * 64
    with pytest.raises(PolicyBroken, match="no digest"):
        _digests(machinetext.lines(f"{digest} why{separator}{digest}\n"), "deny")
    one: Any = type("Certificate", (), {"issuer": "/CN=Evil", "subject": "/CN=Ada"})
    (tmp_path / "policy").write_bytes(f"# x{separator}access_id_CA X509 '/CN=Evil'\n"
                                      "cond_subjects globus '\"*\"'\n".encode())
    with pytest.raises(Exception, match="may not certify"):
        authorities._may_certify(one, tmp_path / "policy")


@pytest.mark.parametrize("digits", ["\u0661\u0662", "\u00b2", "\uff11"])
def test_no_reader_takes_foreign_digits_for_a_number(digits: str, tmp_path: Path) -> None:
    from vmjob.node.groupfile import numbers

    assert numbers(f"kvm:x:{digits}:\nuucp:x:10:\n") == {10}
    assert sources.number(digits, "x") is None and sources._limit(digits) is None
    assert sources._share(digits, digits) is None and sources._share("200000", "100000") == 2
    assert sources._share("-1", "100000") is None and sources._share("max") is None


def test_what_a_server_says_is_no_success_of_a_plug_in() -> None:
    from vmjob.stage.plugins import plugin_failure

    assert plugin_failure('TransferSuccess = false\nTransferError = "no: TransferSuccess = true"\n')
    assert plugin_failure('TransferSuccess = true\nTransferUrl = "x"\n') is None
