"""Slot limits, from the words and files of each batch system in a made-up root."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from vmjob.core.model import Slot
from vmjob.slot.limits import detect

pytestmark = pytest.mark.unit

NOW = 1_700_000_000.0
MIB, GIB = 2**20, 2**30


class Node:
    """A root folder with 16 CPUs and 64 GiB free, and what a test adds."""

    def __init__(self, root: Path) -> None:
        self.root, self.environ = root, {"PATH": "/bin"}
        self.file("/proc/self/status", "Name:\tpython\nCpus_allowed_list:\t0-11,20-23\n")
        self.file("/proc/meminfo", "MemTotal: 131072000 kB\nMemAvailable:   67108864 kB\n")
        (root / "here").mkdir()

    def file(self, path: str, text: str) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def folder(self, path: str) -> str:
        (self.root / path.lstrip("/")).mkdir(parents=True)
        return path

    def detect(self) -> Slot:
        return detect(self.environ, self.root / "here", self.root, NOW)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_plain_machine(node: Node) -> None:
    slot = node.detect()
    assert (slot.kind, slot.batch, slot.cpus, slot.memory) == ("machine", False, 16, 64 * GIB)
    assert slot.scratch == node.root / "here" and slot.disk > 0 and slot.time_left is None
    assert slot.sources == ("cpus=machine", "memory=machine", "disk=disk")


def test_real_machine_answers(tmp_path: Path) -> None:
    slot = detect({}, tmp_path / "not" / "made" / "yet")
    assert slot.cpus >= 1 and slot.memory > MIB and slot.disk > 0


def test_htcondor(node: Node) -> None:
    scratch = node.folder("/var/lib/condor/execute/dir_1")
    node.file("/ads/machine", 'Cpus = 2\nMemory = 4096\nDisk = 1024\nName = "slot1@n"\nRank = 0.0\n'
                              'Start = (Cpus > 1) && (Memory = 3)\n')
    node.file("/ads/job", "ClusterId = 17\nProcId = 3\nAllowedJobDuration = 3600\n"
                          f"JobCurrentStartDate = {int(NOW) - 600}\n")
    node.environ.update(_CONDOR_MACHINE_AD="/ads/machine", _CONDOR_JOB_AD="/ads/job", _CONDOR_SCRATCH_DIR=scratch)
    slot = node.detect()
    assert (slot.kind, slot.batch, slot.job_id) == ("htcondor", True, "17.3")
    assert (slot.cpus, slot.memory, slot.disk, slot.time_left) == (2, 4 * GIB, MIB, 3000)
    assert slot.scratch == node.root / scratch.lstrip("/")


def test_htcondor_expressions_and_case(node: Node) -> None:
    node.file("/m", "CPUS = ifThenElse(x, 1, 2)\nmemory = 2048\nDisk = undefined\n")
    node.environ["_CONDOR_MACHINE_AD"] = "/m"
    slot = node.detect()
    assert (slot.cpus, slot.memory) == (16, 2 * GIB)


def test_slurm(node: Node) -> None:
    node.environ.update(SLURM_JOB_ID="99", SLURM_CPUS_ON_NODE="4", SLURM_MEM_PER_CPU="1500",
                        SLURM_JOB_END_TIME=str(int(NOW) + 7200), TMPDIR=node.folder("/tmp/99"))
    slot = node.detect()
    assert (slot.kind, slot.job_id, slot.cpus, slot.time_left) == ("slurm", "99", 4, 7200)
    assert slot.memory == 6000 * MIB and slot.scratch == node.root / "tmp/99"
    node.environ.update(SLURM_MEM_PER_NODE="2000", SLURM_TMPDIR=node.folder("/local/99"))
    assert node.detect().memory == 2000 * MIB
    assert node.detect().scratch == node.root / "local/99"
    node.environ.update(SLURM_MEM_PER_NODE="0", SLURM_MEM_PER_CPU="0")  # all of the node
    assert node.detect().memory == 64 * GIB


def test_pbs(node: Node) -> None:
    node.environ.update(PBS_JOBID="7.server", PBS_NUM_PPN="3", PBS_RESC_MEM=str(GIB), PBS_WALLTIME="900",
                        PBS_JOBDIR=node.folder("/home/u/7"))
    slot = node.detect()
    assert (slot.kind, slot.cpus, slot.memory, slot.time_left) == ("pbs", 3, GIB, 900)
    assert slot.scratch == node.root / "home/u/7"


def test_cgroup_v2_smallest_on_the_way_up(node: Node) -> None:
    node.file("/proc/self/cgroup", "0::/batch.slice/job_1\n")
    node.file("/sys/fs/cgroup/batch.slice/memory.max", f"{3 * GIB}\n")
    node.file("/sys/fs/cgroup/batch.slice/job_1/memory.max", "max\n")
    node.file("/sys/fs/cgroup/batch.slice/job_1/cpu.max", "250000 100000\n")
    node.file("/sys/fs/cgroup/batch.slice/cpu.max", "max 100000\n")
    slot = node.detect()
    assert (slot.memory, slot.cpus, slot.kind) == (3 * GIB, 2, "machine")
    assert "memory=cgroup" in slot.sources


def test_cgroup_v1(node: Node) -> None:
    node.file("/proc/self/cgroup", "5:cpu,cpuacct:/slurm/job\n4:memory:/slurm/job\n1:name=systemd:/x\n")
    node.file("/sys/fs/cgroup/memory/slurm/job/memory.limit_in_bytes", str(2 * GIB))
    node.file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    node.file("/sys/fs/cgroup/cpu,cpuacct/slurm/job/cpu.cfs_quota_us", "50000")
    node.file("/sys/fs/cgroup/cpu,cpuacct/slurm/job/cpu.cfs_period_us", "100000")
    node.file("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1")
    slot = node.detect()
    assert (slot.memory, slot.cpus) == (2 * GIB, 1)


def test_machine_job_features(node: Node) -> None:
    for name, value in {"allocated_cpu": "8", "max_rss_bytes": str(GIB), "wall_limit_secs": "1000",
                        "jobstart_secs": str(int(NOW) - 100), "scratch_limit_bytes": str(MIB)}.items():
        node.file(f"/jf/{name}", value + "\n")
    node.file("/mf/shutdowntime", str(int(NOW) + 500))
    node.environ.update(JOBFEATURES="/jf", MACHINEFEATURES="/mf")
    slot = node.detect()
    assert (slot.cpus, slot.memory, slot.disk, slot.time_left, slot.batch) == (8, GIB, MIB, 500, False)


def test_features_by_address_are_noted(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.environ["JOBFEATURES"] = "http://169.254.169.254/jf"
    with caplog.at_level(logging.WARNING):
        assert node.detect().cpus == 16
    assert "http://169.254.169.254/jf" in caplog.text


def test_smallest_of_all_wins(node: Node) -> None:
    node.file("/m", "Cpus = 8\nMemory = 8192\n")
    node.file("/proc/self/cgroup", "0::/\n")
    node.file("/sys/fs/cgroup/memory.max", str(GIB))
    node.environ.update(_CONDOR_MACHINE_AD="/m", SLURM_JOB_ID="1", SLURM_CPUS_ON_NODE="6")
    slot = node.detect()
    assert (slot.kind, slot.cpus, slot.memory) == ("htcondor", 6, GIB)
    assert slot.sources[:2] == ("cpus=slurm", "memory=cgroup")


@pytest.mark.parametrize("environ", [
    {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "many"},
    {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "-4"},
    {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "nan"},
    {"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": "soon"},
    {"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": "12"},
    {"PBS_JOBID": "1", "PBS_WALLTIME": "1e999", "NCPUS": "9" * 400},
    {"PBS_JOBID": "1", "PBS_RESC_MEM": "²"},
    {"_CONDOR_MACHINE_AD": "/nothing/here"},
    {"_CONDOR_SCRATCH_DIR": "/nothing/here"},
    {"SLURM_JOB_ID": "1", "SLURM_TMPDIR": "relative"},
])
def test_garbage_is_ignored_with_a_warning(node: Node, caplog: pytest.LogCaptureFixture,
                                           environ: dict[str, str]) -> None:
    node.environ.update(environ)
    with caplog.at_level(logging.WARNING):
        slot = node.detect()
    assert (slot.cpus, slot.memory, slot.time_left, slot.scratch) == (16, 64 * GIB, None, node.root / "here")
    assert "ignored" in caplog.text


def test_broken_kernel_files_do_not_crash(node: Node) -> None:
    node.file("/proc/self/cgroup", "\nnonsense\n0::/../../..\n4:memory\n")
    node.file("/sys/fs/cgroup/cpu.max", " \n")
    node.file("/sys/fs/cgroup/memory.max", "lots")
    node.file("/proc/self/status", "Cpus_allowed_list:\t7-3,,-\n")
    node.file("/proc/meminfo", "")
    assert node.detect().cpus >= 1


def test_time_that_is_over_is_zero(node: Node) -> None:
    node.environ.update(SLURM_JOB_ID="1", SLURM_JOB_END_TIME=str(int(NOW) - 50))
    assert node.detect().time_left == 0
