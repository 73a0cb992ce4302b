"""vmjob submit and what comes after it, through the test site's compute element and through the VO's own schedd."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.conftest import Cli, Done
from tests.site.jobs import eventually
from tests.site.layout import NET
from tests.site.pool import Pool
from tests.site.site import Site

pytestmark = [pytest.mark.site, pytest.mark.timeout(240)]

TARGETS = """
default: ce
targets:
  ce: {{url: "condor-ce://{ce}", avoid: 5s}}
  vo: {{url: "condor-ce://ce.vmjob.test:9619", through: "condor://{vo}"}}
  everywhere: {{url: "condor-ce://{ce}", image: job}}
  few: {{url: "condor-ce://{ce}", submit: {{max_idle: 1}}}}
  wrong: {{url: "condor-ce://{ce}", submit: {{request_memory: foo bar}}}}
"""


class Vmjob:
    """vmjob as a user of the site has it. Other tests may use the site at the same time: each calls its jobs by names
    of its own."""

    def __init__(self, cli: Cli, site: Site, user: str = "alice") -> None:
        self.site, self.user, self.tag = site, user, f"t{secrets.token_hex(4)}"
        settings = cli.cwd / "config/vmjob"
        settings.mkdir(parents=True, exist_ok=True)
        (settings / "targets.yaml").write_text(TARGETS.format(ce=site.ce, vo=site.vo))
        self.cli = replace(cli, env={**site.environment(user), "XDG_CONFIG_HOME": str(settings.parent)})

    def __call__(self, *args: Any, timeout: float = 150, env: Optional[dict[str, str]] = None) -> Done:
        return self.cli(*args, timeout=timeout, env=env)

    def name(self, word: str) -> str:
        return f"{self.tag}-{word}"

    def try_submit(self, word: str, *args: Any, image: Any = "micro", **more: Any) -> Done:
        return self("submit", "--json", "--image", image, "--memory", "256MiB", "--name", self.name(word), *args,
                    **more)

    def submit(self, word: str, *args: Any, to: str = "ce") -> str:
        """The cluster's number."""
        done = self.try_submit(word, "--to", to, *args)
        assert done.status == 0, done.err
        return str(done.json["id"])

    def jobs(self, cluster: str, to: str = "ce") -> list[dict[str, Any]]:
        done = self("status", "--to", to, cluster, "--json")
        assert done.status == 0, done.err
        found: list[dict[str, Any]] = done.json[0]["jobs"]  # type: ignore[index]
        return found

    def wait(self, cluster: str, to: str = "ce") -> Done:
        return self("wait", "--to", to, "--timeout", "2m", cluster)

    def queue(self) -> list[dict[str, Any]]:
        """Everything of this test in the queue of the compute element: jobs and payloads."""
        return Pool(self.site, self.user).query(f"JobStatus != 3 && VmjobFetched =!= true && ({self.ours})",
                                                "ClusterId", "VmjobName", "VmjobHolds", "JobStatus")

    @property
    def ours(self) -> str:
        return f'regexp("^{self.tag}", VmjobName ?: "") || regexp("^{self.tag}", VmjobWhat ?: "")'

    def clean(self) -> None:
        Pool(self.site, self.user).act("Remove", self.ours)


@pytest.fixture
def vmjob(cli: Cli, site: Site) -> Iterator[Vmjob]:
    made = Vmjob(cli, site)
    yield made
    made.clean()


def result(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return body


def test_many_jobs_through_a_compute_element_and_their_results(vmjob: Vmjob) -> None:
    cluster = vmjob.submit("many", "-n", 3, "--set", "SEED=$(Process)", "--output", "o.txt", "--",
                           "sh", "-c", "echo seed $SEED | tee o.txt; exit $SEED")
    waited = vmjob.wait(cluster)
    assert waited.status == 1, waited.err  # the first that is not 0 is the second job's
    jobs = vmjob.jobs(cluster)
    assert [(job["state"], job["status"], job["parameters"]) for job in jobs] == [
        ("done", n, f"SEED={n}") for n in range(3)]
    assert all(job["accelerator"] in ("tcg", "kvm") and job["boot_seconds"] > 0 and "boot=" in job["stage_seconds"]
               and job["image"] == "micro" and job["node"] for job in jobs)
    said = vmjob("logs", f"{cluster}.2")
    assert said.out == b"seed 2\n"
    assert "payload" in vmjob("logs", f"{cluster}.2", "--stderr").out.decode()
    fetched = vmjob("fetch", cluster)
    assert fetched.status == 1, fetched.err
    out = vmjob.cli.cwd / f"{vmjob.name('many')}-{cluster}.out"
    for number in range(3):
        assert (out / f"{number}/o.txt").read_text() == f"seed {number}\n" == (out / f"{number}/stdout.txt").read_text()
        assert result(out / str(number))["status"] == number
    assert vmjob.queue() == []  # payload and jobs are gone


def test_an_image_is_sent_once_and_moves_once_to_a_node(vmjob: Vmjob) -> None:
    first = vmjob.submit("first", "-n", 4, "--", "true")
    second = vmjob.try_submit("second", "-n", 4, "--", "true")
    assert second.status == 0 and "goes to" not in second.err
    vmjob.wait(first)
    vmjob.wait(second.json["id"])
    moved: dict[str, int] = {}
    for cluster in (first, second.json["id"]):
        for job in vmjob.jobs(cluster):
            moved[job["node"]] = moved.get(job["node"], 0) + job["image_bytes"]
    size = vmjob("image", "inspect", "micro", "--json").json
    whole = sum(file["size"] for file in size["files"])
    assert all(amount <= whole for amount in moved.values()), moved


def test_where_a_site_has_no_chirp_the_image_travels_with_the_job(vmjob: Vmjob) -> None:
    cluster = vmjob.submit("withjob", "--", "sh", "-c", "exit 3", to="everywhere")
    assert vmjob.wait(cluster, "everywhere").status == 3
    assert vmjob.jobs(cluster)[0]["image_bytes"] in (0, None)


def test_through_the_vos_own_schedd(vmjob: Vmjob) -> None:
    cluster = vmjob.submit("grid", "-n", 2, "--set", "SEED=$(Process)", "--", "sh", "-c", "echo $SEED; id -un",
                           to="vo")
    waited = vmjob.wait(cluster, "vo")
    assert waited.status == 0, waited.err
    assert vmjob("fetch", "--to", "vo", cluster).status == 0
    out = vmjob.cli.cwd / f"{vmjob.name('grid')}-{cluster}.out"
    assert (out / "1/stdout.txt").read_text().startswith("1\n")
    assert result(out / "1")["slot"] == "htcondor"


def test_all_jobs_are_made_though_nobody_fetches_the_ended_ones(vmjob: Vmjob) -> None:
    cluster = vmjob.submit("made", "-n", 5, "--", "true", to="few")
    waited = vmjob.wait(cluster)
    assert waited.status == 0 and len(vmjob.jobs(cluster)) == 5, waited.err


def test_single_jobs_of_a_submission_are_fetched_side_by_side(vmjob: Vmjob) -> None:
    cluster = vmjob.submit("parts", "-n", 3, "--set", "N=$(Process)", "--",
                           "sh", "-c", "echo $N; sleep $((N / 2 * 60))")
    eventually(lambda: [job["state"] for job in vmjob.jobs(cluster)][:2] == ["done", "done"], 120)
    pending = vmjob("fetch", cluster, "--keep", "-o", "all")
    assert pending.status == 199 and "1 job without results" in pending.err
    done: list[Done] = []
    threads = [threading.Thread(target=lambda n=n: done.append(  # type: ignore[misc]
        vmjob("fetch", f"{cluster}.{n}", "-o", "out"))) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.status for one in done] == [0, 0], [one.err for one in done]
    assert [(vmjob.cli.cwd / f"out/{n}/stdout.txt").read_text() for n in range(2)] == ["0\n", "1\n"]
    late = vmjob("wait", cluster, "--timeout", "1s")
    assert late.status == 199 and "had not ended" in late.err
    held = Pool(vmjob.site)
    held.act("Hold", f"ClusterId == {cluster} && ProcId == 2")  # somebody else did: nothing comes back, and others do
    eventually(lambda: vmjob.jobs(f"{cluster}.2")[0]["state"] == "held")
    assert vmjob("logs", f"{cluster}.2").status == 0
    assert vmjob("fetch", cluster, "-o", "again").status == 199
    assert vmjob("rm", cluster).status == 0 and vmjob.queue() == []


def test_a_mistake_in_the_targets_lines_is_told_as_such(vmjob: Vmjob) -> None:
    done = vmjob.try_submit("wrong", "--to", "wrong", "--", "true")
    assert done.status == 200 and "targets.yaml" in done.err and "Parse error" in done.err, done.err
    assert vmjob.queue() == []


def test_rows_of_a_table_are_jobs(vmjob: Vmjob) -> None:
    (vmjob.cli.cwd / "t.csv").write_text('WORD,N\n"two words, $HOME",1\nö&=%,2\n')
    cluster = vmjob.submit("table", "--from", "t.csv", "--", "sh", "-c", 'echo "$N $WORD"')
    assert vmjob.wait(cluster).status == 0
    assert vmjob("logs", f"{cluster}.0").out == b"1 two words, $HOME\n"
    assert vmjob("logs", f"{cluster}.1").out.decode() == "2 ö&=%\n"


def test_rm_release_and_history(vmjob: Vmjob) -> None:
    cluster = vmjob.submit("gone", "-n", 2, "--", "sleep", 60)
    removed = vmjob("rm", cluster)
    assert removed.status == 0 and b"removed 2 jobs" in removed.out
    assert vmjob.queue() == []
    assert vmjob("status", cluster).status == 196
    past = vmjob("history", cluster, "--json").json
    assert {job["state"] for job in past} == {"removed"}  # type: ignore[index]
    assert vmjob("release", cluster).status == 196


# ---------------------------------------------------------------- what bad input gets


@pytest.mark.parametrize("args, status, tells", [
    (["--to", f"condor-ce://{NET}.99", "--image", "micro"], 191, "cannot be reached"),
    (["--to", "condor-ce://no-such-host.invalid", "--image", "micro"], 191, "cannot be reached"),
    (["--to", "ce", "--image", "no-such-image"], 211, "no image"),
    (["--to", "ce", "--image", "micro", "--memory", "20GiB"], 194, "would wait for ever"),
    (["--to", "nowhere", "--image", "micro"], 200, "no target 'nowhere'"),
    (["--to", "ce", "--image", "micro", "-n", "0"], 200, "1 to"),
    (["--to", "ce", "--image", "micro", "--input", "missing.dat"], 201, "missing.dat")])
def test_what_can_be_known_before_is_told_before(vmjob: Vmjob, args: list[str], status: int, tells: str) -> None:
    done = vmjob("submit", *args, "--name", vmjob.name("wrong"), "--", "true")
    assert done.status == status and tells in done.err and "→" in done.err and "Traceback" not in done.err
    assert vmjob.queue() == []


def test_a_token_that_is_not_accepted(vmjob: Vmjob, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir(mode=0o700)
    own = Path(vmjob.cli.env["CONDOR_CONFIG"]).read_text()
    (tmp_path / "condor_config").write_text(f"{own}\nSEC_TOKEN_DIRECTORY = {tokens}\n")
    for to in ("ce", "vo"):
        done = vmjob("submit", "--to", to, "--image", "micro", "--", "true",
                     env={"CONDOR_CONFIG": str(tmp_path / "condor_config")})
        assert done.status == 192 and "does not accept who we are" in done.err and "token" in done.err


def test_two_of_one_name(vmjob: Vmjob) -> None:
    cluster = vmjob.submit("twin", "--", "sleep", "60")
    second = vmjob.try_submit("twin", "--", "true")
    assert second.status == 195 and cluster in second.err and "--name" in second.err
    assert {str(ad["ClusterId"]) for ad in vmjob.queue() if ad.get("VmjobName")} <= {cluster}
    assert len([ad for ad in vmjob.queue() if ad.get("VmjobHolds")]) == 1


def test_two_of_one_name_at_once_leave_one(vmjob: Vmjob) -> None:
    vmjob.submit("warm", "--", "true")  # the image is there
    done: list[Done] = []
    threads = [threading.Thread(target=lambda: done.append(
        vmjob.try_submit("race", "--", "sleep", "60"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.status for one in done) in ([0, 195], [195, 195]), [one.err for one in done]
    names = [ad for ad in vmjob.queue() if ad.get("VmjobName") == vmjob.name("race")]
    assert len({ad["ClusterId"] for ad in names}) == sum(one.status == 0 for one in done)


def test_kvm_for_a_user_who_may_not_is_held_with_what_to_do(cli: Cli, site: Site) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("this machine has no /dev/kvm that a user could be kept from")
    bob = Vmjob(cli, site, "bob")
    cluster = bob.submit("kvm", "--accel", "kvm", "--", "true")
    try:
        waited = bob.wait(cluster)
        assert waited.status == 198 and "KvmUnavailable" in waited.err and "group kvm" in waited.err, waited.err
        job = bob.jobs(cluster)[0]
        assert job["state"] == "held" and job["failure"] == "KvmUnavailable" and job["starts"] == 4
    finally:
        bob.clean()


def test_an_image_that_is_spoilt_at_the_submit_side(vmjob: Vmjob, tmp_path: Path) -> None:
    other = tmp_path / "other"
    made = vmjob("image", "micro", "-o", other, env={"VMJOB_HOME": str(tmp_path / "store")})
    assert made.status == 0, made.err
    manifest = other / "manifest.yaml"
    # another image than the other tests': its kernel gets an argument more
    lines = [line for line in manifest.read_text().splitlines(True) if not line.startswith(("cmdline:", "digest:"))]
    manifest.write_text("".join(lines) + f"cmdline: vmjob.test={vmjob.tag}\n")
    document = vmjob("plan", "--to", "ce", "--image", manifest, "--json", "--", "true").json
    digest = re.search("vmjob_digest = (.*)", document["submit"])[1]  # type: ignore[index]
    first = vmjob.try_submit("spoilt", "--", "sleep", "1", image=manifest)
    assert first.status == 0, first.err
    vmjob("rm", first.json["id"])
    carrier, = Pool(vmjob.site).query(f'VmjobHolds == "image" && VmjobWhat == "{digest}" && JobStatus != 3', "Iwd")
    spoil = f"cd {carrier['Iwd']} && for f in [0-9a-f]*; do printf spoilt | dd of=$f bs=1 seek=5000 conv=notrunc; done"
    done = vmjob.site.exec("ce", "root", ["sh", "-c", spoil])
    assert done.returncode == 0, done.stderr
    sums = [file["sha256"] for file in document["payload"]["image"]["files"]]
    for node in ("n1", "n2"):  # the files are the micro image's, which other jobs have brought there
        vmjob.site.exec(node, "root", ["sh", "-c", "cd /var/lib/vmjob/cache && rm -f " + " ".join(
            f"uid-*/blobs/sha256/{sum}" for sum in sums)])
    second = vmjob.try_submit("spoilt", "--", "true", image=manifest)
    waited = vmjob.wait(second.json["id"])
    assert waited.status == 198 and "ImageCorrupt" in waited.err and "--images" in waited.err, waited.err
    cleaned = vmjob("rm", "--images", second.json["id"])  # those that other tests' jobs need stay
    assert cleaned.status == 0, cleaned.err
    assert not Pool(vmjob.site).query(f'VmjobWhat == "{digest}" && JobStatus != 3', "Iwd")


def test_a_schedd_that_is_full(cli: Cli, broken: Site) -> None:
    vmjob = Vmjob(cli, broken)
    broken.config("ce", "MAX_JOBS_PER_OWNER = 1")
    done = vmjob.try_submit("full", "-n", 50, "--", "true")
    assert done.status == 193 and "→" in done.err, (done.status, done.err)
    assert vmjob.queue() == []
