"""Through real HTCondor (the test site): submitting ten thousand jobs, what the wrapper adds to a job, and how often an
image of 400 MB moves when twenty jobs of one node need it."""

from __future__ import annotations

import json
import os
import re
import secrets
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import Bench, Goal, Row, alternate, execute, seconds, tool
from tests.site import site as whole
from tests.site.layout import HOSTS
from tests.site.pool import Pool

_MANY = 10_000
_JOBS = 20
_IMAGE = 400 * 10**6  # bytes
_NODE = "n1"
_STAGES = ("stage", "verify", "probe", "boot", "payload", "collect", "teardown")


@dataclass(frozen=True)
class _Pool:
    bench: Bench
    site: whole.Site
    work: Path
    client: Pool

    def target(self, **more: Any) -> dict[str, str]:
        """The environment in which ``--to ce`` is the site's compute element; ``more``: keys of targets.yaml."""
        settings = self.work / "config/vmjob/targets.yaml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps({"targets": {"ce": {"url": f"condor-ce://{self.site.ce}", **more}}}))
        site = self.site.environment("alice")
        return {"CONDOR_CONFIG": site["CONDOR_CONFIG"], "PATH": site["PATH"],
                "XDG_CONFIG_HOME": str(self.work / "config")}

    def submit(self, env: dict[str, str], *args: Any) -> str:
        name = f"bench-{secrets.token_hex(4)}"  # one that was interrupted may have left its jobs there
        done = self.bench.vmjob("submit", "--to", "ce", "--json", "--name", name, *args, env=env, cwd=self.work)
        return str(json.loads(done.stdout)["id"])

    def remove(self, env: dict[str, str], cluster: str) -> None:
        self.bench.vmjob("rm", "--to", "ce", cluster, env=env, cwd=self.work)

    def ended(self, cluster: str, count: int) -> list[dict[str, Any]]:
        """The ads of a cluster's jobs when all have ended."""
        deadline = time.monotonic() + 1800
        while time.monotonic() < deadline:
            ads = self.client.query(f"ClusterId == {cluster}", "JobStatus", "JobDuration", "VmjobStageSeconds",
                                    "VmjobImageBytes", "HoldReason", "ExitCode")
            if len(ads) == count and all(ad["JobStatus"] in (4, 5) for ad in ads):
                wrong = [ad for ad in ads if ad["JobStatus"] == 5 or ad["ExitCode"]]
                if wrong:
                    raise RuntimeError(f"{len(wrong)} of {count} jobs failed: {wrong[0]}")
                return ads
            time.sleep(1)
        raise RuntimeError(f"the jobs of {cluster} did not end")


def measure(bench: Bench) -> list[Row]:
    reason = whole.why_not()
    if reason:
        raise RuntimeError(reason)
    ours = not whole.running()
    site = whole.up()
    try:
        with bench.folder() as work:
            pool = _Pool(bench, site, work, Pool(site))
            return [*_submit(pool), *_added(pool), *_image(pool)]
    finally:
        if ours:
            whole.down()


def _submit(pool: _Pool) -> list[Row]:
    """The same description, with the image there already: vmjob and all it does, and condor_submit."""
    env = pool.target(submit={"requirements": "false", "max_materialize": 10})
    words = ["--image", "micro", "--set", "SEED=$(Process)", "--", "true"]
    first = pool.submit(env, *words)
    payload = str(pool.client.query(f"ClusterId == {first}", "VmjobPayload")[0]["VmjobPayload"])
    plan = json.loads(pool.bench.vmjob("plan", "--to", "ce", "--json", "-n", _MANY, *words,
                                       env=env, cwd=pool.work).stdout)
    # condor_submit itself insists on an executable of this machine
    text = plan["submit"].replace("\nqueue ", "\nexecutable = /bin/true\ntransfer_executable = false\nqueue ")
    (pool.work / "bare.sub").write_text(text.replace("$(payload)", payload))
    found = Path(env["PATH"].split(":")[0]) / "condor_submit"
    around = statistics.median(seconds([found.with_name("condor_version")], env={**os.environ, **env})
                               for _ in range(pool.bench.rounds))

    def ours() -> float:
        start = time.perf_counter()
        cluster = pool.submit(env, "-n", _MANY, *words)
        took = time.perf_counter() - start
        pool.remove(env, cluster)
        return took

    def bare() -> float:
        start = time.perf_counter()
        done = execute([found, "-name", HOSTS["ce"].full_name, "-pool", pool.site.ce, pool.work / "bare.sub"],
                       env={**os.environ, **env}, cwd=pool.work)
        took = time.perf_counter() - start
        cluster = re.search(rb"submitted to cluster ([0-9]+)", done.stdout)
        assert cluster, done.stdout
        pool.client.act("Remove", f"ClusterId == {int(cluster[1])}")
        return took

    took, other = alternate(pool.bench.rounds, ours, bare)
    pool.remove(env, first)
    return [Row(f"submit {_MANY} jobs", took, other, goal=Goal("ratio", "<=", 1.2),
                peer="condor_submit, same description"),
            Row("of condor_submit's time: its start in the test site's root (condor_version)", around)]


def _added(pool: _Pool) -> list[Row]:
    """What is between a bare job and one in a guest, on the node, from the starter's own clock (JobDuration)."""
    env = pool.target(submit={"requirements": f'TARGET.Machine == "{HOSTS[_NODE].full_name}"'})
    count = max(3, pool.bench.rounds)
    cluster = pool.submit(env, "--image", "micro", "--memory", "256MiB", "--", "true")
    pool.ended(cluster, 1)
    pool.remove(env, cluster)
    # one at a time, as they would slow each other
    env = pool.target(submit={"requirements": f'TARGET.Machine == "{HOSTS[_NODE].full_name}"', "request_cpus": 4})
    words = ["--image", "micro", "--memory", "256MiB", "--", "true"]
    cluster = pool.submit(env, "-n", count, *words)
    ads = pool.ended(cluster, count)
    pool.remove(env, cluster)
    # the starter tells the duration of jobs that have its proxy only
    bare = pool.client.submit(f"""executable = /bin/true
+WantIOProxy = true
transfer_executable = false
initialdir = /
should_transfer_files = YES
request_memory = 100
request_cpus = 4
requirements = TARGET.Machine == "{HOSTS[_NODE].full_name}"
leave_in_queue = JobStatus == 4
queue {count}
""")
    other = statistics.median(float(ad["JobDuration"]) for ad in pool.ended(str(bare), count))
    pool.client.act("Remove", f"ClusterId == {bare}")
    whole_time = statistics.median(float(ad["JobDuration"]) for ad in ads)
    stages = {name: statistics.median(_stage(ad, name) for ad in ads) for name in _STAGES}
    rest = whole_time - other - sum(stages.values())
    return [Row("job `true` on the pool, on the node", whole_time, other, peer="/bin/true as a job"),
            *(Row(f"of that: {name}", seconds) for name, seconds in stages.items()),
            Row("of that: starting Python, packing results, telling HTCondor", rest)]


def _stage(ad: dict[str, Any], name: str) -> float:
    found = re.search(rf"\b{name}=([0-9.]+)", str(ad["VmjobStageSeconds"]))
    return float(found[1]) if found else 0.0


def _image(pool: _Pool) -> list[Row]:
    """Twenty jobs on one node whose cache lacks their image; HTCondor's own way is to send it with each of them."""
    with _large_image(pool) as (image, size):
        node, once, each = f'TARGET.Machine == "{HOSTS[_NODE].full_name}"', [], []
        words = ["-n", _JOBS, "--image", image, "--memory", "256MiB", "--", "true"]
        for places, more in ((once, {}), (each, {"image": "job"})):
            env = pool.target(submit={"requirements": node}, **more)
            start, before = time.perf_counter(), pool.site.traffic(_NODE)[0]
            cluster = pool.submit(env, *words)
            ads = pool.ended(cluster, _JOBS)
            places += [sum(float(ad["VmjobImageBytes"] or 0) for ad in ads), pool.site.traffic(_NODE)[0] - before,
                       time.perf_counter() - start]
            pool.remove(env, cluster)
    return [Row(f"{_JOBS} jobs of a {size / 10**6:.0f} MB image on one node: all bytes that came there", once[1] / size,
                each[1] / size, "images", Goal("ours", "<=", 1.05), "image in each job, by HTCondor's file transfer"),
            Row("of these: the image, as the jobs tell (the node had the micro image's 17 MB)", once[0] / size,
                unit="images"),
            Row("the same jobs, from submission until all had ended", once[2], each[2], peer="image in each job")]


@contextmanager
def _large_image(pool: _Pool) -> Iterator[tuple[Path, int]]:
    """The micro image with a disk of noise beside it, which no other run has seen."""
    folder = pool.work / "large"
    pool.bench.vmjob("image", "micro", "-o", folder)
    with (folder / "noise.raw").open("wb") as file:
        for _ in range(_IMAGE // 10**6):
            file.write(os.urandom(10**6))
    execute([tool("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", folder / "noise.raw", folder / "noise.qcow2"])
    (folder / "noise.raw").unlink()
    from vmjob.core.files import hash_file

    digest, size = hash_file(folder / "noise.qcow2")
    lines = [line for line in (folder / "manifest.yaml").read_text().splitlines() if not line.startswith("digest:")]
    at = lines.index("files:") + 1
    told = execute([tool("qemu-img"), "info", "--output=json", folder / "noise.qcow2"]).stdout
    virtual = json.loads(told)["virtual-size"]
    lines[at:at] = ["- role: disk", "  path: noise.qcow2", "  format: qcow2", f"  size: {size}", f"  sha256: {digest}",
                    f"  virtual_size: {virtual}"]
    (folder / "manifest.yaml").write_text("\n".join(lines) + "\n")
    yield folder, sum(file.stat().st_size for file in folder.iterdir() if file.name != "manifest.yaml")
