"""``vmjob site check`` asks a real collector for every node's own word."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import Cli
from tests.site import hosts
from tests.site.jobs import eventually
from tests.site.layout import HOSTS, NODES
from tests.site.site import Site
from vmjob.ads.node_ad import node_ad_lines
from vmjob.ads.site_ad import NodeAd

pytestmark = [pytest.mark.site, pytest.mark.timeout(120)]


@pytest.fixture
def admin(cli: Cli, site: Site) -> Cli:
    return replace(cli, env=site.environment())


def test_every_node_of_the_pool_is_there(admin: Cli, site: Site) -> None:
    pool = admin("site", "check", "--pool", site.ce, "--json").json["pool"]
    names = sorted([one["machine"] for one in pool["nodes"]] + pool["silent"])
    assert names == sorted(node.full_name for node in NODES if HOSTS[node.pool].name == "ce")
    text = admin("site", "check", "--pool", site.ce).out.decode()
    assert all(name in text for name in names) and f"{len(names)} nodes in {site.ce}" in text


def test_a_node_says_what_is_wrong_with_it(admin: Cli, site: Site) -> None:
    """By an ad as the startd's hook makes it, at the VO's collector, which no job of these tests asks for nodes."""
    ad = NodeAd("n9.vmjob.test", False, offline="2 test guests failed", problems=("clock: not synchronised",),
                version="0.1.0", expires=int(time.time()) + 600)
    lines = ['MyType = "Machine"', 'Name = "slot1@n9.vmjob.test"', 'Machine = "n9.vmjob.test"', "TotalSlotCpus = 4",
             "TotalSlotMemory = 4096", 'State = "Unclaimed"', "PartitionableSlot = true", "Cpus = 4", "Memory = 4096",
             f'MyAddress = "<{HOSTS["vo"].address}:9618>"', *node_ad_lines(ad, 2**28, 2**29)[:-1]]
    told = hosts.execute(HOSTS["vo"], "root", ["condor_advertise", "UPDATE_STARTD_AD", "-"],
                         input="\n".join([*lines, ""]))
    assert told.returncode == 0, told.stderr

    def found() -> list[dict[str, Any]]:
        pool = admin("site", "check", "--pool", site.vo, "--json").json["pool"]
        return [one for one in pool["nodes"] if one["machine"] == ad.machine]

    try:
        eventually(lambda: bool(found()), 20)
        assert found()[0]["offline"] == ad.offline and found()[0]["problems"] == list(ad.problems)
        quiet = admin("site", "check", "--pool", site.vo, "--quiet").out.decode()
        row = next(line for line in quiet.splitlines() if line.startswith("n9.vmjob.test"))
        assert "offline" in row and "2 test guests failed; clock: not synchronised" in row
    finally:
        gone = 'MyType = "Query"\nTargetType = "Machine"\nRequirements = Machine == "n9.vmjob.test"\n'
        hosts.execute(HOSTS["vo"], "root", ["condor_advertise", "INVALIDATE_STARTD_ADS", "-"], input=gone)


def test_who_is_not_let_in_is_told(cli: Cli, site: Site) -> None:
    """The rest of the check is there all the same."""
    done = replace(cli, env={"CONDOR_CONFIG": "ONLY_ENV", "_CONDOR_SEC_TOKEN_DIRECTORY": str(cli.cwd)})(
        "site", "check", "--pool", site.ce, "--json")
    body = done.json
    assert done.status == 230 and body["pool"] is None and body["checks"][0]["name"] == "python"
    [pool] = [check for check in body["checks"] if check["name"] == "pool"]
    assert pool["level"] == "failure" and pool["action"]
