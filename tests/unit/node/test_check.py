"""vmjob site check: known faults, what a node's ad tells of them, revocation lists, open folders."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vmjob.image.trust import x509
from vmjob.node import check
from vmjob.node.doctor import FAILURE, OK, WARNING, Check
from vmjob.vm import faults

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("text", "version"), [
    ("passt 2024_06_07.8a83b53", (20240607,)), ("passt 0.0~git20230309.7c7625d-1", (20230309,)),
    ("passt 0^20240607.g8a83b53", (20240607,)), ("passt unknown version", ()), ("", ())])
def test_passt_tells_a_date(text: str, version: tuple[int, ...]) -> None:
    assert faults.passt_version(text) == version


@pytest.mark.parametrize(("program", "version", "count"), [
    ("qemu", (5, 1, 9), 1), ("qemu", (5, 2, 0), 1), ("qemu", (6, 0, 0), 0), ("qemu", (7, 0, 0), 1),
    ("qemu", (7, 2, 22), 2), ("qemu", (8, 0, 0), 0), ("qemu", (), 0), ("passt", (20230309,), 1),
    ("passt", (20250503,), 0),
    ("passt", (), 0), ("other", (1,), 0)])
def test_known_faults(program: str, version: tuple[int, ...], count: int) -> None:
    assert len(faults.known(program, version)) == count


def test_the_admin_reads_of_every_fault() -> None:
    """The table in docs/site-admin.md and the data are of one mind."""
    table = (ROOT / "docs/site-admin.md").read_text().split("## Versions with faults")[1].split("\n## ")[0]
    words = {"too old": "QEMU < 5.2", "6.12": "`cmpxchg16b`", "QMP quit": "QMP `quit`", "loopback": "--no-map-gw"}
    for fault in faults.FAULTS:
        word = next(word for key, word in words.items() if key in fault.text)
        assert word in table, fault


def test_problems_are_short_lines_with_failures_first() -> None:
    checks = [Check("a", OK, "fine"), Check("b", WARNING, "x; y" * 100), Check("c", FAILURE, "broken")]
    found = check.problems(checks)
    assert found[0] == "c: broken" and len(found) == 2
    assert len(found[1]) == 200 and ";" not in found[1]  # which separates them in the ad


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = bytes([len(body)]) if len(body) < 128 else b"\x82" + len(body).to_bytes(2, "big")
    return bytes([tag]) + size + body


def crl(*times: bytes, revoked: int = 0) -> bytes:
    name = tlv(0x30, tlv(0x31, tlv(0x30, tlv(0x06, b"\x55\x04\x03"), tlv(0x0C, b"CA"))))
    entries = [tlv(0x30, *(tlv(0x30, tlv(0x02, b"\x01"), tlv(0x17, b"200101000000Z")) for _ in range(revoked)))]
    body = tlv(0x30, tlv(0x02, b"\x01"), tlv(0x30, tlv(0x06, b"\x2a")), name, *(tlv(0x17, one) for one in times),
               *entries)
    return tlv(0x30, body, tlv(0x30), tlv(0x03, b"\x00"))


def test_when_a_revocation_list_is_out_of_date() -> None:
    der = crl(b"260101000000Z", b"260201000000Z", revoked=900)
    due = time.mktime((2026, 2, 1, 0, 0, 0, 0, 0, 0)) - time.timezone
    assert x509.crl_expires(der) == due
    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"
    assert x509.crl_expires(b"text before\n" + pem) == due
    assert x509.crl_expires(crl(b"260101000000Z")) == float("inf")
    for broken in (b"", b"text", der[:30], b"-----BEGIN X509 CRL-----\nAAA\n-----END X509 CRL-----"):
        with pytest.raises((ValueError, IndexError)):
            x509.crl_expires(broken)


@pytest.mark.parametrize(("mode", "level"), [(0o1777, OK), (0o777, WARNING), (0o755, WARNING)])
def test_a_folder_that_all_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, level: str) -> None:
    place = tmp_path / "runs"
    place.mkdir()
    place.chmod(mode)
    monkeypatch.setenv("VMJOB_RUNS", str(place))
    monkeypatch.setenv("VMJOB_NODE_CACHE", str(place))
    assert [one.level for one in (*check._runs(), *check._node_cache())] == [level, level]
    if mode == 0o755:  # an admin may make the folders of the cache herself
        (place / "uid-1000").mkdir()
        assert [one.level for one in (*check._runs(), *check._node_cache())] == [WARNING, OK]
        (place / "uid-1000").rmdir()
    if os.getuid() == 0:
        os.chown(place, 52001, -1)
        assert "belongs to uid 52001" in next(check._runs()).text
    place.rmdir()
    assert [one.level for one in (*check._runs(), *check._node_cache())] == [WARNING, WARNING]
