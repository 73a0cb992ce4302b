"""A packed payload in a slot of this machine; on bare nodes with Pythons and QEMUs of other ages: test_pythons.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli, result_of

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


def test_inputs_are_the_ones_that_were_verified(slot: Path) -> None:
    """Others are put in their place before QEMU starts."""
    qemu = slot.parent / "qemu"
    qemu.write_text(f"#!/bin/sh\nrm -f {slot}/input.tar\nprintf 'no tar' > {slot}/input.tar\n"
                    'exec qemu-system-x86_64 "$@"\n')
    qemu.chmod(0o755)
    done = wrapper(slot, VMJOB_QEMU=str(qemu))
    expected(slot, done.returncode, done.stderr)
    assert (slot / "input.tar").read_text() == "no tar"


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
