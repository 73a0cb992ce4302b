"""A packed payload in a slot: here, and on a bare node with an old QEMU, Python 3.9 and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BUILD, Cli, result_of

pytestmark = pytest.mark.integration

JOB = """
name: packed
image: micro
script: |
  #!/bin/sh
  cat in/greeting > out.txt
  id -u >> out.txt
  exit 3
inputs: [{from: greeting, to: in/greeting}]
outputs: [out.txt]
"""


@pytest.fixture
def slot(cli: Cli) -> Path:
    """An unpacked payload, as a batch system would lay it in a slot."""
    (cli.cwd / "greeting").write_text("hello\n")
    (cli.cwd / "job.yaml").write_text(JOB)
    done = cli("pack", "job.yaml", "-o", "payload.tar")
    assert done.status == 0, done.err
    folder = cli.cwd / "slot"
    folder.mkdir()
    subprocess.run(["tar", "xf", cli.cwd / "payload.tar", "-C", folder], check=True)
    return folder


def expected(slot: Path, status: int, err: str) -> None:
    assert status == 3, err
    result = result_of(slot)
    assert result["outcome"] == "program-failed" and result["exit_status"] == 3 and result["job"] == "packed"
    greeting, uid = (slot / "out.txt").read_text().split()
    assert greeting == "hello" and uid != "0"


def wrapper(slot: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the wrapper as a batch system does, with an environment of its own."""
    base = {"PATH": os.defpath, "VMJOB_CACHE": str(slot.parent / "cache"), "VMJOB_PYTHON": sys.executable}
    return subprocess.run(["sh", "vmjob-wrapper.sh"], cwd=slot, capture_output=True, text=True, timeout=120,
                          env={**base, **env})


def test_wrapper_does_the_job(slot: Path) -> None:
    done = wrapper(slot)
    expected(slot, done.returncode, done.stderr)
    left = {p.name for p in slot.iterdir()}
    assert left == {"vmjob-wrapper.sh", "vmjob.pyz", "payload.json", "input.tar", "image", "out.txt", "result.json",
                    "console.log"}


def test_htcondors_limits_bind(slot: Path) -> None:
    """A slot smaller than the image needs is refused by name before anything starts."""
    (slot / "machine.ad").write_text("Cpus = 1\nMemory = 100\nDisk = 4000000\n")
    done = wrapper(slot, _CONDOR_MACHINE_AD=str(slot / "machine.ad"), _CONDOR_SCRATCH_DIR=str(slot),
                   BATCH_SYSTEM="HTCondor")
    assert done.returncode == 221, done.stderr
    assert result_of(slot)["failure"]["kind"] == "SlotTooSmall" and result_of(slot)["slot"] == "htcondor"


def test_a_damaged_payload_is_told_in_the_result(slot: Path) -> None:
    (slot / "payload.json").write_text(json.dumps({"schema": 1}))
    done = wrapper(slot)
    assert done.returncode == 200 and "Traceback" not in done.stderr
    assert result_of(slot)["failure"]["kind"] == "JobError"


@pytest.fixture(scope="session")
def bare_node() -> Path:
    """The root of a Debian 11 node: Python 3.9 and QEMU 5.2; made once, a minute."""
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("bwrap", "bubblewrap")):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}: apt-get install {package}")
    root = BUILD / "test-images" / "debian-11-node"
    if not root.is_dir():
        spare = root.with_name("debian-11-node.new")
        shutil.rmtree(spare, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        (spare / "slot").mkdir(parents=True)
        # unpacked as whoever we are: the node's files need no owner, and its devices come from bwrap
        made = subprocess.run(["sh", "-c", "mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Languages none' "
                               "--include=python3-minimal,libpython3-stdlib,qemu-system-x86,qemu-utils bullseye - | "
                               f"tar -x --no-same-owner --exclude='./dev/*' -C '{spare}'"], timeout=500, check=False)
        if not (spare / "usr/bin/qemu-system-x86_64").exists():
            pytest.fail(f"the Debian 11 node was not made (status {made.returncode})")
        spare.rename(root)
    return root


@pytest.mark.image
def test_bare_node_with_python_3_9_and_an_old_qemu(slot: Path, bare_node: Path) -> None:
    """As an ordinary user (a user namespace maps no other), with nothing of this checkout in reach."""
    done = subprocess.run(
        ["bwrap", "--ro-bind", bare_node, "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",
         "--tmpfs", "/var/tmp", "--bind", slot, "/slot", "--chdir", "/slot", "--unshare-user", "--uid", "1000",
         "--gid", "1000", "--unshare-pid", "--die-with-parent",
         "--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/nonexistent",
         "sh", "vmjob-wrapper.sh"], capture_output=True, text=True, timeout=200)
    expected(slot, done.returncode, done.stderr)
    assert result_of(slot)["qemu_version"].startswith("5.2")
