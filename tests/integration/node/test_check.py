"""``vmjob site check`` on this machine, and with authorities that are in time, or not."""

from __future__ import annotations

import time
from pathlib import Path

from tests.ca import Ca
from tests.conftest import Cli
from vmjob.node import check as nodecheck
from vmjob.node.doctor import FAILURE, OK, WARNING, Check


def authorities(place: Path, needed: bool = True) -> list[Check]:
    return list(nodecheck._certificates(place, needed))


def test_this_machine(cli: Cli) -> None:
    done = cli("site", "check", "--no-pool", "--json")
    body = done.json
    assert done.status == (0 if body["ok"] else 230) and body["pool"] is None
    names = [check["name"] for check in body["checks"]]
    assert {"python", "qemu", "kvm", "passt", "namespaces", "cgroup", "cache", "node cache", "runs",
            "clock"} <= set(names)
    assert names.index("udev rule" if "udev rule" in names else "passt") < names.index("clock") == len(names) - 1
    assert all(check["action"] for check in body["checks"] if check["level"] != "ok")
    quiet = cli("site", "check", "--no-pool", "--quiet").out.decode()
    assert "\nok " not in f"\n{quiet}"


def test_no_pool_there(cli: Cli) -> None:
    done = cli("site", "check", "--pool", "127.0.0.1:1", "--quiet")
    assert done.status == 230
    assert b"FAILURE  pool" in done.out and b"127.0.0.1:1" in done.out


def test_without_qemu_the_status_says_so(cli: Cli, tmp_path: Path) -> None:
    done = cli("site", "check", "--no-pool", "-q", env={"VMJOB_QEMU": "/nowhere/qemu"})
    assert done.status == 230 and b"FAILURE  qemu" in done.out


def test_authorities(tmp_path: Path) -> None:
    place = tmp_path / "certificates"
    assert [c.level for c in authorities(place)] == [FAILURE]
    assert [c.level for c in authorities(place, needed=False)] == [WARNING]
    ca = Ca(tmp_path / "ca", bits=0)
    ca.revocations(ca.root)
    [fine] = authorities(ca.certificates)
    assert fine.level == OK and "1 authorities, 1 revocation lists" in fine.text
    # one that is about to end, one that has ended
    for name, end in (("Soon", 86400.0), ("Gone", -60.0)):
        ca.trust(ca.issue(f"/DC=org/DC=example/CN={name}", ca.root, extensions="ca", ends=time.time() + end))
    (ca.certificates / "0badbad0.r0").write_text("what is this")
    found = authorities(ca.certificates)
    assert [c.level for c in found] == [WARNING] * 3
    assert "CN=Gone: expired" in found[0].text and "CN=Soon: expire within" in found[1].text
    assert "0badbad0.r0" in found[2].text and all(c.action for c in found)


def test_an_old_revocation_list(tmp_path: Path) -> None:
    ca = Ca(tmp_path / "ca", bits=0)
    ca.revocations(ca.root)
    ca.openssl("ca", "-config", ca.folder / "config", "-name", "issuing", "-cert", ca.root.cert, "-keyfile",
               ca.root.key, "-gencrl", "-crl_lastupdate", "20200101000000Z", "-crl_nextupdate", "20200201000000Z",
               "-out", ca.certificates / f"{ca.hash(ca.root)}.r0")
    [old] = authorities(ca.certificates)
    assert old.level == WARNING and "out of date" in old.text and old.action == "fetch-crl"
