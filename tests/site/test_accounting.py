"""Usage records of jobs that come through the compute element: for whom, and how long they stood still."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli
from tests.site.jobs import eventually, tool
from tests.site.layout import HOSTS, NODE_CACHE
from tests.site.site import Site
from tests.site.test_submit import Vmjob
from vmjob.accounting.spool import FOLDERS

pytestmark = [pytest.mark.site, pytest.mark.timeout(180)]

NODES = ("n1", "n2")


@pytest.fixture
def spools(broken: Site, tmp_path: Path) -> Iterator[list[Path]]:
    """The spool of each node. The nodes have no /etc/vmjob of their own, so their configuration names the site's file:
    what lies in the root is in other sites' nodes, too."""
    places = [HOSTS[node].folder / "cache" / tmp_path.name for node in NODES]
    inside = f"{NODE_CACHE}/{tmp_path.name}"
    for node, place in zip(NODES, places):
        for folder in FOLDERS:
            (place / folder).mkdir(parents=True)
            (place / folder).chmod(0o3777)
        place.chmod(0o755)
        (place / "site.yaml").write_text(yaml.safe_dump({
            "name": "TEST-SITE", "accounting": {"format": "json", "spool": inside}}))
        broken.config(node, f'STARTER_JOB_ENVIRONMENT = "VMJOB_NODE_CACHE={NODE_CACHE} '
                            f'VMJOB_SITE_CONFIG={inside}/site.yaml"\n')
    yield places
    for place in places:
        shutil.rmtree(place)


@pytest.fixture
def vmjob(cli: Cli, site: Site) -> Iterator[Vmjob]:
    made = Vmjob(cli, site)
    yield made
    made.clean()


def test_a_job_through_the_compute_element_is_recorded_with_its_owner_and_its_suspension(
        vmjob: Vmjob, site: Site, spools: list[Path]) -> None:
    cluster = vmjob.submit("counted", "--", "sh", "-c", "echo up; sleep 8")
    eventually(lambda: bool(vmjob.jobs(cluster)[0].get("stage") == "payload"), 90,
               lambda: vmjob.jobs(cluster))
    where = ("-pool", site.ce, "-name", "ce.vmjob.test")
    tool(site, "condor_suspend", *where, cluster)
    eventually(lambda: vmjob.jobs(cluster)[0]["state"] == "suspended", 30)
    time.sleep(6)
    tool(site, "condor_continue", *where, cluster)
    assert vmjob.wait(cluster).status == 0

    def record() -> list[dict[str, Any]]:
        found = [json.loads(path.read_text()) for place in spools for path in (place / "outgoing").iterdir()]
        return [one for one in found if one["job"] == vmjob.name("counted")]

    one, = record()
    assert one["machine"] in [f"{node}.vmjob.test" for node in NODES] and one["job_id"] == f"{cluster}.0"
    assert (one["user"], one["global_user"]) == ("alice", "ce.vmjob.test alice@ce.vmjob.test")
    assert one["said_by"] == "HTCondor's token" and one["vouched"] and one["ce_job"].startswith("ce.vmjob.test#")
    assert 4 < one["suspended"] < one["wall"] and one["cpu"] > 0 and one["outcome"] == "ok"
