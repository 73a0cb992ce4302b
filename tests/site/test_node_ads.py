"""The startd hook on real startds: what nodes say of their VMs, that they stop when VMs fail, and that jobs heed it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT, Cli
from tests.site.hosts import passwd_numbers
from tests.site.jobs import eventually
from tests.site.layout import DAEMON_USER, HOSTS, NODE_CACHE
from tests.site.site import Site
from tests.site.test_submit import TARGETS, Vmjob
from vmjob.ads.node_ad import from_json
from vmjob.ads.site_ad import NodeAd

pytestmark = [pytest.mark.site, pytest.mark.timeout(180)]

NODES = ("n1", "n2")
HOOK, RUNS = f"{NODE_CACHE}/hook", f"{NODE_CACHE}/runs"  # of all that a node can write, what the test can, too
# which a test breaks, for jobs and the hook alike
QEMU = f"""#!/bin/sh
if [ -e {HOOK}/broken ]; then
    echo "qemu: broken by the test" >&2
    exit 1
fi
exec /usr/bin/qemu-system-x86_64 "$@"
"""
# a process of its own, as the bindings read CONDOR_CONFIG once
ASK = """
import json, sys
import htcondor2
from vmjob.ads.node_ad import ADVERTISED, PROJECTION, nodes_of, to_json
ads = htcondor2.Collector(sys.argv[1]).query(htcondor2.AdType.Startd, ADVERTISED, list(PROJECTION))
print(json.dumps(list(map(to_json, nodes_of(ads)))))
"""
ENV = f"VMJOB_NODE_CACHE={NODE_CACHE} VMJOB_RUNS={RUNS} VMJOB_QEMU={HOOK}/qemu"


def hooked(site: Site, cli: Cli, node: str) -> None:
    """As docs/site-admin.md says, in folders of the test's own."""
    folder, runs = (HOSTS[node].folder / "cache" / name for name in ("hook", "runs"))
    folder.mkdir()
    folder.chmod(0o755)
    runs.mkdir()
    shutil.chown(runs, *passwd_numbers(site.root, DAEMON_USER))
    runs.chmod(0o1777)
    done = cli("site", "hook", folder)
    assert done.status == 0, done.err
    (folder / "qemu").write_text(QEMU)
    (folder / "qemu").chmod(0o755)
    text = (folder / "99-vmjob-node.conf").read_text()
    for here, there in ((str(folder), HOOK), ("PERIOD = 60s", "PERIOD = 2s"), (f"VMJOB_NODE_CACHE={NODE_CACHE}", ENV)):
        assert here in text
        text = text.replace(here, there)
    site.config(node, text)


def told(site: Site) -> dict[str, NodeAd]:
    """What the collector has of the nodes that say something, by name."""
    done = subprocess.run([sys.executable, "-c", ASK, site.ce], env=site.environment(), cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {one["machine"].split(".")[0]: from_json(one, "the collector") for one in json.loads(done.stdout)}


def online(site: Site) -> list[str]:
    return sorted(name for name, node in told(site).items() if node.has)


@pytest.fixture
def hooks(broken: Site, cli: Cli) -> Iterator[Any]:
    """Puts the hook on a node. At the end no node says anything any more: other tests' jobs would heed it."""
    yield lambda node: hooked(broken, cli, node)
    for node in NODES:
        broken.config(node, "")
    eventually(lambda: not told(broken))
    for node in NODES:
        for name in ("hook", "runs"):
            shutil.rmtree(HOSTS[node].folder / "cache" / name, ignore_errors=True)


@pytest.fixture
def vmjob(cli: Cli, site: Site) -> Iterator[Vmjob]:
    made = Vmjob(cli, site)
    more = "".join(f"  {name}: {{url: 'condor-ce://{site.ce}', avoid: 5s, submit: {{{key}: 'Machine == "
                   f"\"n1.vmjob.test\"'}}}}\n" for name, key in (("n1", "requirements"), ("n1first", "rank")))
    (cli.cwd / "config/vmjob/targets.yaml").write_text(TARGETS.format(ce=site.ce, vo=site.vo) + more)
    yield made
    made.clean()


def nodes_of(vmjob: Vmjob, cluster: str) -> set[str]:
    jobs = vmjob.jobs(cluster)
    assert [job["status"] for job in jobs] == [0] * len(jobs)
    return {str(job["node"]).split(".")[0].rpartition("@")[2] for job in jobs}


def test_a_node_whose_vms_fail_goes_offline_and_comes_back(vmjob: Vmjob, hooks: Any) -> None:
    site = vmjob.site
    for node in NODES:
        hooks(node)
    eventually(lambda: online(site) == ["n1", "n2"])
    node = told(site)["n1"]
    assert (node.networks, node.cpus, node.os) == (("nat", "isolated", "none"), 4, "debian") and node.version
    assert node.free >= 1 and node.running == node.occupied == 0 and node.checked
    assert 3000 < node.max_memory / 2**20 < 4096  # of the slot's 4096 QEMU takes its part
    bad = HOSTS["n1"].folder / "cache/hook/broken"
    bad.touch()
    digest = vmjob("image", "inspect", "micro", "--json").json["digest"]
    cluster = vmjob.submit("meets", "-n", 2, "--", "sleep", "15", to="n1first")
    eventually(lambda: online(site) == ["n2"])
    assert re.search("a test guest does not run: .*broken by the test", told(site)["n1"].offline)
    eventually(lambda: told(site)["n2"].running >= 1, instead=lambda: told(site))
    pinned = vmjob.submit("pinned", "--", "true", to="n1")
    grid = vmjob.submit("grid", "--", "true", to="vo")
    assert vmjob.wait(cluster).status == 0
    assert nodes_of(vmjob, cluster) == {"n2"} and digest in told(site)["n2"].images
    assert any(job["starts"] > 1 for job in vmjob.jobs(cluster))  # n1 was tried
    assert vmjob.wait(grid, "vo").status == 0
    assert vmjob("fetch", "--to", "vo", grid, "-o", "grid").status == 0
    assert json.loads((vmjob.cli.cwd / "grid/result.json").read_text())["host"] == "n2.vmjob.test"
    assert vmjob.jobs(pinned)[0]["state"] == "idle"
    bad.unlink()
    eventually(lambda: online(site) == ["n1", "n2"])
    assert vmjob.wait(pinned).status == 0
    assert nodes_of(vmjob, pinned) == {"n1"} and not told(site)["n1"].failing


def test_where_nodes_speak_jobs_go_to_no_others(vmjob: Vmjob, hooks: Any) -> None:
    site = vmjob.site
    hooks("n2")
    eventually(lambda: online(site) == ["n2"])
    cluster = vmjob.submit("speaks", "--", "true", to="n1first")
    refused = vmjob.try_submit("kvm", "--accel", "kvm", "--", "true")
    assert (refused.status, refused.json["failure"]["kind"]) == (194, "NoSlotFits")
    assert "none of the 1 nodes" in refused.err and "/dev/kvm" in refused.err
    assert vmjob.wait(cluster).status == 0
    assert nodes_of(vmjob, cluster) == {"n2"}
