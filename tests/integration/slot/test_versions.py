"""Payloads of vmjob 0.1.0 on a node of today, and of today on a node whose hook is 0.1.0's: what stands between them is
the cache, the folder of runs, the policy, and the spool of usage records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import vmjob
from tests.conftest import ROOT, Cli, result_of
from vmjob.accounting import spool

pytestmark = pytest.mark.integration

OLD = ROOT / "tests/data/vmjob-0.1.0.pyz"
VERSIONS = {"0.1.0": [sys.executable, str(OLD)], "today": [sys.executable, "-m", "vmjob"]}


@pytest.fixture
def node(cli: Cli) -> Cli:
    """A node as today's docs prepare it; ``cli`` with its environment."""
    for name, mode in (("scratch", 0o700), ("cache", 0o1777), ("runs", 0o1777), ("spool", 0o755), *(
            (f"spool/{folder}", 0o3777) for folder in spool.FOLDERS)):
        (cli.cwd / name).mkdir()
        (cli.cwd / name).chmod(mode)
    policy = {"limits": {"memory": "200MiB"}, "rules": [{"allow": "all", "unsigned": True}]}
    site = {"name": "EXAMPLE-T2", "accounting": {"format": "json", "spool": str(cli.cwd / "spool")}}
    for name, body in (("policy", policy), ("site", site)):
        path = cli.cwd / f"{name}.yaml"
        path.write_text(json.dumps(body))
        path.chmod(0o644)
    cli.env = {"VMJOB_NODE_CACHE": str(cli.cwd / "cache"), "VMJOB_RUNS": str(cli.cwd / "runs"),
               "VMJOB_POLICY": str(cli.cwd / "policy.yaml"), "VMJOB_SITE_CONFIG": str(cli.cwd / "site.yaml")}
    return cli


def packed(node: Cli, version: str, command: Sequence[str]) -> Path:
    """A payload of this version, unpacked in a slot."""
    slot = node.cwd / f"slot-{version}-{len(list(node.cwd.iterdir()))}"
    done = subprocess.run([*VERSIONS[version], "pack", "--image", "micro", "-o", slot, "--", *command], cwd=node.cwd,
                          env=node.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ((slot / "vmjob.pyz").read_bytes() == OLD.read_bytes()) == (version == "0.1.0")
    return slot


def start(node: Cli, slot: Path) -> subprocess.Popen[bytes]:
    """Its wrapper, as a batch system starts it on this node."""
    return subprocess.Popen(["sh", "vmjob-wrapper.sh"], cwd=slot, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            env={"PATH": os.defpath, "VMJOB_PYTHON": sys.executable, **node.env})


def ran(node: Cli, slot: Path) -> dict[str, Any]:
    process = start(node, slot)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err.decode(errors="replace")
    return result_of(slot)


def advertised(node: Cli, version: str) -> dict[str, Any]:
    """What this version's hook says of the node."""
    done = subprocess.run([*VERSIONS[version], "site", "advertise", "--json"], cwd=node.cwd, capture_output=True,
                          text=True, timeout=100, env={**node.environment(), "VMJOB_CACHE": str(node.cwd / "hook")})
    assert done.returncode == 0, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)
    return body


@pytest.mark.parametrize("versions", [("0.1.0", "today"), ("today", "0.1.0")], ids="-".join)
def test_one_uses_the_cache_that_the_other_has_filled(node: Cli, versions: tuple[str, str]) -> None:
    first, second = (packed(node, version, ["sh", "-c", "head -n 1 /proc/meminfo"]) for version in versions)
    results = [ran(node, first)]
    for path in (second / "image").iterdir():  # so it comes out of the cache, or not at all
        garbage = b"x" * path.stat().st_size
        path.unlink()  # the cache may have it by a link
        path.write_bytes(garbage)
    results.append(ran(node, second))
    for result in results:
        assert result["memory"] == 200 * 2**20 and "rule 1 (all)" in result["policy"]["reason"]
    assert [one.name for one in (node.cwd / "cache").iterdir()] == [f"uid-{os.getuid()}"]
    listed = node("image", "cache", "verify", "--in", node.cwd / f"cache/uid-{os.getuid()}")
    assert listed.status == 0, listed.err
    records = [json.loads(path.read_text()) for path in (node.cwd / "spool/outgoing").iterdir()]
    assert sorted(one["version"] for one in records) == sorted(result["vmjob"] for result in results)
    assert [one["outcome"] for one in records] == ["ok", "ok"] and not list((node.cwd / "spool/open").iterdir())
    for words in VERSIONS.values():
        report = subprocess.run([*words, "account", "report", "--csv"], cwd=node.cwd, env=node.environment(),
                                capture_output=True, text=True, timeout=60)
        assert report.returncode == 0 and ",2," in report.stdout, report.stderr + report.stdout
    for version in VERSIONS:
        said = advertised(node, version)
        assert said["images"] == [results[0]["image_digest"]] and said["running"] == 0 and said["has"], version


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_is_seen_while_it_lives_and_accounted_when_it_was_killed(node: Cli, version: str) -> None:
    run = start(node, packed(node, version, ["sh", "-c", "echo up; sleep 600"]))
    try:
        assert run.stdout is not None and run.stdout.readline() == b"up\n"
        assert [advertised(node, other)["running"] for other in VERSIONS] == [1, 1]
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert [advertised(node, other)["running"] for other in VERSIONS] == [0, 0]
    other = next(one for one in VERSIONS if one != version)
    swept = subprocess.run([*VERSIONS[other], "account", "sweep"], cwd=node.cwd, env=node.environment(),
                           capture_output=True, text=True, timeout=60)
    assert swept.returncode == 0, swept.stderr
    [record] = (node.cwd / "spool/outgoing").iterdir()
    assert json.loads(record.read_text())["outcome"] == "killed"


def test_a_policy_of_today_keeps_out_a_payload_of_0_1_0(node: Cli) -> None:
    slot = packed(node, "0.1.0", ["true"])
    digest = node("image", "inspect", "micro", "--json").json["digest"]
    policy = json.loads((node.cwd / "policy.yaml").read_text())
    (node.cwd / "policy.yaml").write_text(json.dumps({**policy, "deny": [digest]}))
    run = start(node, slot)
    err = run.communicate(timeout=60)[1].decode()
    assert result_of(slot)["failure"]["kind"] == "PolicyRefused" and run.returncode == 226, err


@pytest.mark.parametrize(("name", "kind", "status"), [("policy", "PolicyBroken", 227),
                                                      ("site", "RecordSpoolFull", 229)])
def test_a_word_that_0_1_0_does_not_know_stops_its_payloads(node: Cli, name: str, kind: str, status: int) -> None:
    """So it is not passed over, and an admin writes it when no such payloads come any more."""
    path = node.cwd / f"{name}.yaml"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of-tomorrow": 1}))
    slot = packed(node, "0.1.0", ["true"])
    run = start(node, slot)
    err = run.communicate(timeout=60)[1].decode()
    assert run.returncode == status and result_of(slot)["failure"]["kind"] == kind, err


def test_a_hook_of_0_1_0_is_upgraded_in_place(node: Cli) -> None:
    """What the startd runs is today's, whole, after ``site hook`` in the folder of 0.1.0, and the other way round."""
    folder = node.cwd / "hook"
    for version in ("0.1.0", "today", "0.1.0"):
        done = subprocess.run([*VERSIONS[version], "site", "hook", folder], cwd=node.cwd, env=node.environment(),
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        told = subprocess.run(["sh", folder / "vmjob-startd.sh"], capture_output=True, text=True, timeout=100,
                              env={"PATH": os.defpath, "VMJOB_PYTHON": sys.executable, "HOME": str(node.cwd),
                                   **node.env})
        assert 'VmjobVersion = "' in told.stdout and told.stdout.endswith("-\n"), told.stderr + told.stdout
        assert (f'VmjobVersion = "{"0.1.0" if version == "0.1.0" else vmjob.__version__}"') in told.stdout
