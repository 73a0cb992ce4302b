"""The slot's side in real slots: the image comes once to a node, HTCondor hears what happens, signals end in order."""

from __future__ import annotations

import io
import json
import secrets
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.site.hosts import of_jobs
from tests.site.layout import HOSTS, NODE_CACHE
from tests.site.pool import Pool
from tests.site.site import Site

pytestmark = [pytest.mark.site, pytest.mark.timeout(180)]

RESULTS = "vmjob-results.tar"
TOLD = ["ExitCode", "VmjobStage", "VmjobRetry", "VmjobHold", "VmjobHoldReason", "VmjobAvoid", "VmjobOutcome",
        "VmjobStatus", "VmjobFailure", "VmjobAccel", "VmjobAccelReason", "VmjobImage", "VmjobImageDigest",
        "VmjobImageBytes", "VmjobBootSeconds", "VmjobStageSeconds", "NumJobStarts"]
PROGRAM = 'echo "seed $SEED" > out.txt; mkdir d; ln -s ../out.txt d/link; sleep ${PAUSE:-0}; exit ${CODE:-0}'


@dataclass(frozen=True)
class Farm:
    """One image and one payload at the schedd, and a cache on the nodes that no other test uses."""

    pool: Pool
    folder: Path  # the payload, here
    image: str  # folders at the schedd
    payload: str
    cache: str

    def submit(self, *parameters: str, payload: str = "", image: str = "", node: str = "n1", more: str = "",
               environment: str = "") -> int:
        place = payload or self.payload
        inputs = ",".join(f"{place}/{path.name}" for path in self.folder.iterdir()
                          if path.is_file() and path.suffix != ".sh")
        return self.pool.submit(f"""\
universe = vanilla
initialdir = /
skip_filechecks = true
executable = {place}/vmjob-wrapper.sh
arguments = --pack {RESULTS} --image-at {image or self.image} --parameters=$(parameters)
environment = "VMJOB_NODE_CACHE={self.cache} {environment}"
requirements = Machine == "{HOSTS[node].full_name}"
request_cpus = 1
request_memory = 700
request_disk = 100MB
should_transfer_files = YES
when_to_transfer_output = ON_EXIT
transfer_input_files = {inputs}
transfer_output_files = {RESULTS}
transfer_output_remaps = "{RESULTS}={place}/$(Cluster)-$(Process).tar"
output = {place}/$(Cluster)-$(Process).out
error = {place}/$(Cluster)-$(Process).err
leave_in_queue = JobStatus == 4
want_graceful_removal = true
job_max_vacate_time = 60
+WantIOProxy = true
{more}
queue parameters from (
""" + "".join(f"{one}\n" for one in parameters or ("SEED=0",)) + ")\n")

    def ended(self, cluster: int, jobs: int = 1) -> list[dict[str, Any]]:
        """The ads of the jobs when all have ended or are held."""
        deadline = time.monotonic() + 90
        while True:
            ads = self.pool.query(f"ClusterId == {cluster}", "JobStatus", "HoldReason", *TOLD)
            if len(ads) == jobs and all(ad["JobStatus"] in (4, 5) for ad in ads):
                return ads
            assert time.monotonic() < deadline, ads
            time.sleep(0.3)

    def file(self, path: str) -> bytes:
        """A file in one of our folders at the CE."""
        return (HOSTS["ce"].folder / "spool" / path.split("/spool/condor/")[1]).read_bytes()

    def results(self, cluster: int, process: int = 0) -> tarfile.TarFile:
        return tarfile.open(fileobj=io.BytesIO(self.file(f"{self.payload}/{cluster}-{process}.tar")))

    def result(self, cluster: int, process: int = 0) -> dict[str, Any]:
        found = self.results(cluster, process)
        assert found.getnames()[0] == "result.json"
        document = found.extractfile("result.json")
        assert document
        return dict(json.load(document))

    def processes(self, node: str) -> dict[str, str]:
        """Programs and states of what our jobs run on a node."""
        found = {}
        for process in of_jobs(self.pool.site.processes(node), self.cache, set()):
            with suppress(OSError):
                state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
                found[process.program] = state
        return found


@pytest.fixture(scope="module")
def farm(site: Site, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    cwd, pool = tmp_path_factory.mktemp("farm"), Pool(site)
    done = Cli(cwd, home)("pack", "--image", "micro", "--output", "out.txt", "--output", "d", "--disk", "20MB",
                          "--memory", "256MiB", "-o", "p", "--", "sh", "-c", PROGRAM)
    assert done.status == 0, done.err
    cache = f"{NODE_CACHE}/test-{secrets.token_hex(4)}"
    for node in ("n1", "n2"):
        site.exec(node, "root", ["mkdir", "-m", "1777", cache]).check_returncode()
    folder = cwd / "p"
    try:
        yield Farm(pool, folder, pool.carry(*sorted((folder / "image").iterdir())),
                   pool.carry(*sorted(path for path in folder.iterdir() if path.is_file())), cache)
    finally:
        pool.act("Remove", f'regexp("{cache}", Environment ?: "") '
                           f'|| regexp("{cwd.parent}/", SUBMIT_TransferInput ?: "")')
        for node in ("n1", "n2"):
            site.exec(node, "root", ["rm", "-rf", cache])


def test_an_image_moves_once_and_each_job_has_its_own_parameters(farm: Farm) -> None:
    size = sum(path.stat().st_size for path in (farm.folder / "image").iterdir())
    cluster = farm.submit("SEED=1", "SEED=2%263", "SEED=4&CODE=5")
    ads = farm.ended(cluster, 3)
    assert [ad["ExitCode"] for ad in ads] == [0, 0, 5], [farm.file(f"{farm.payload}/{cluster}-0.err")]
    assert sum(ad["VmjobImageBytes"] for ad in ads) == size
    assert sorted(farm.result(cluster, n)["bytes_image"] for n in range(3)) == sorted(a["VmjobImageBytes"] for a in ads)
    for number, (ad, seed) in enumerate(zip(ads, ("1", "2&3", "4"))):
        with farm.results(cluster, number) as results:
            out = results.extractfile("out.txt")
            assert out and out.read().decode() == f"seed {seed}\n"
            assert results.getmember("d/link").linkname == "../out.txt"
        assert ad["VmjobOutcome"] == ("program-failed" if number == 2 else "ok") and ad["VmjobStatus"] == ad["ExitCode"]
        assert ad["VmjobAccel"] == "tcg" and ad["VmjobAccelReason"] and ad["VmjobBootSeconds"] > 0
        assert ad["VmjobImage"] == "micro" and ad["VmjobImageDigest"].startswith("sha256:")
        assert "verify=" in ad["VmjobStageSeconds"] and not ad.get("VmjobHold") and not ad.get("VmjobRetry")
    again = farm.submit("SEED=6")
    assert farm.ended(again)[0]["VmjobImageBytes"] == 0 and farm.result(again)["outcome"] == "ok"


def test_a_damaged_payload_is_held(farm: Farm, tmp_path: Path) -> None:
    spoilt = tmp_path / "p"
    shutil.copytree(farm.folder, spoilt)
    (spoilt / "payload.json").write_text((spoilt / "payload.json").read_text()[:100])
    place = farm.pool.carry(*sorted(path for path in spoilt.iterdir() if path.is_file()))
    cluster = farm.submit(payload=place, more="on_exit_hold = VmjobHold =?= true\n"
                                              "on_exit_hold_reason = VmjobHoldReason")
    [ad] = farm.ended(cluster)
    assert ad["JobStatus"] == 5 and not ad.get("VmjobRetry")
    assert ad["HoldReason"].startswith("JobError: ") and "corrupted payload" in ad["HoldReason"]
    assert "→" in ad["HoldReason"]


def test_an_image_that_is_gone_is_held(farm: Farm) -> None:
    [ad] = farm.ended(farm.submit(image=f"{farm.image}.gone", environment=f"VMJOB_CACHE={farm.cache}/other"))
    assert ad["VmjobHold"] is True and ad["VmjobHoldReason"].startswith("ImageMissing: "), ad


def test_a_failure_of_the_node_is_tried_elsewhere(farm: Farm) -> None:
    cluster = farm.submit(environment="VMJOB_QEMU=/nonexistent", more='+VmjobAvoid = "n9.vmjob.test"')
    [ad] = farm.ended(cluster)
    assert (ad["VmjobRetry"], ad["VmjobFailure"], ad["ExitCode"]) == (True, "QemuMissing", 231)
    assert ad["VmjobAvoid"] == "n9.vmjob.test,n1.vmjob.test" and ad["VmjobHoldReason"].startswith("QemuMissing: ")
    assert farm.result(cluster)["failure"]["transient"] is True


def test_a_slot_without_chirp_says_what_to_do(farm: Farm) -> None:
    cluster = farm.submit(environment=f"VMJOB_CACHE={farm.cache}/another", more="+WantIOProxy = false")
    [ad] = farm.ended(cluster)
    failure = farm.result(cluster)["failure"]
    assert ad["ExitCode"] == 237 and failure["kind"] == "ChirpFailed" and "ENABLE_CHIRP" in failure["hint"]


def test_suspended_vacated_and_removed(farm: Farm) -> None:
    """All processes stand still and go on; the guest is told to end; the job begins anew; nothing is left."""
    cluster = farm.submit("PAUSE=100", node="n2")
    job = f"ClusterId == {cluster}"

    def working(starts: int) -> None:
        farm.pool.until(job, lambda ad: ad.get("VmjobStage") == "payload" and ad["NumJobStarts"] == starts,
                        "VmjobStage", "NumJobStarts")

    working(1)
    running = farm.processes("n2")
    assert "qemu-system-x86_64" in running and any(name.startswith("python3") for name in running)
    farm.pool.act("Suspend", job)
    farm.pool.until(job, lambda ad: ad["JobStatus"] == 7)
    assert set(farm.processes("n2").values()) == {"T"}
    farm.pool.act("Continue", job)
    farm.pool.until(job, lambda ad: ad["JobStatus"] == 2)
    assert farm.processes("n2").keys() == running.keys() and "T" not in farm.processes("n2").values()
    farm.pool.act("Vacate", job)
    ad = farm.pool.until(job, lambda ad: "VmjobStageSeconds" in ad, *TOLD)
    assert ad["VmjobFailure"] in ("Interrupted", "") and "collect=" in ad["VmjobStageSeconds"]
    assert not ad.get("VmjobRetry") and not ad.get("VmjobAvoid")
    farm.pool.until(job, lambda ad: ad["NumJobStarts"] == 2, "NumJobStarts")
    farm.pool.until(job, lambda ad: ad.get("VmjobStage") == "payload" and not ad.get("VmjobFailure"), "VmjobStage",
                    "VmjobFailure")
    farm.pool.act("Remove", job)
    deadline = time.monotonic() + 60
    while farm.processes("n2"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
