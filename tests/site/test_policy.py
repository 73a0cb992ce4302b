"""A site's policy on real nodes: root's file in /etc, jobs that come through the compute element."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import Cli
from tests.site.jobs import eventually, running
from tests.site.layout import NODES
from tests.site.site import Site
from tests.site.test_submit import Vmjob
from vmjob.core import classads

pytestmark = [pytest.mark.site, pytest.mark.timeout(180)]

PLACE = "/etc/vmjob/policy.yaml"


@pytest.fixture
def policy(site: Site) -> Iterator[Path]:
    """Where the policy of all nodes is: in the root that they share. Other tests' jobs are under it as well, so it must
    let them run."""
    place = site.root / PLACE.lstrip("/")
    place.parent.mkdir(mode=0o755, exist_ok=True)
    yield place
    shutil.rmtree(place.parent)


@pytest.fixture
def vmjob(cli: Cli, site: Site) -> Iterator[Vmjob]:
    made = Vmjob(cli, site)
    yield made
    made.clean()


def another_micro(vmjob: Vmjob) -> tuple[str, str]:
    """An image that boots as micro does and that no other test runs; its name and digest."""
    folder = vmjob.cli.cwd / "another"
    assert vmjob("image", "micro", "-o", folder).status == 0
    place = folder / "manifest.yaml"
    body = yaml.safe_load(place.read_text())
    name = f"denied-{secrets.token_hex(4)}"
    body = {key: value for key, value in body.items() if key != "digest"} | {
        "name": name, "cmdline": f"{body.get('cmdline', '')} vmjob.test={name}".strip()}
    place.write_text(json.dumps(body))
    taken = vmjob("image", "import", place, "--json")
    assert taken.status == 0, taken.err
    return name, taken.json["digest"]


def test_a_node_refuses_what_its_admin_denied_and_knows_a_vo_by_its_token(vmjob: Vmjob, policy: Path) -> None:
    name, digest = another_micro(vmjob)
    rules = [{"allow": "token", "vo": "tokens", "unsigned": True}, {"allow": "rest", "unsigned": True}]
    policy.write_text(yaml.safe_dump({"vos": {"tokens": {"issuers": "ce.vmjob.test"}}, "rules": rules,
                                      "deny": [f"{digest} stolen key"]}))
    denied = vmjob.submit("denied", "--image", name, "--", "true")
    allowed = vmjob.submit("allowed", "--", "true")
    assert vmjob.wait(allowed).status == 0
    assert vmjob("fetch", allowed, "-o", "allowed").status == 0
    said = json.loads((vmjob.cli.cwd / "allowed/result.json").read_text())["policy"]
    assert "rule 1 (token): vo tokens by issuer ce.vmjob.test;" in said["reason"]
    eventually(lambda: vmjob.jobs(denied)[0]["state"] == "held", 90)
    assert "stolen key" in vmjob.jobs(denied)[0]["reason"]
    vmjob("fetch", denied, "--keep", "-o", "denied")
    body = json.loads((vmjob.cli.cwd / "denied/result.json").read_text())
    assert body["failure"]["kind"] == "PolicyRefused"
    assert body["policy"]["policies"] == [PLACE]
    assert body["policy"]["reason"] == body["failure"]["message"]
    assert "boot" not in [stage["name"] for stage in body["stages"]]


def test_what_a_submit_file_says_is_no_word_of_htcondors(site: Site, tmp_path: Path) -> None:
    """Ads as a real starter writes them: each is read, and a line separator of Unicode in a string ends no line. (The
    token is HTCondor's: the client submitted with one.)"""
    lines = ("x", "AuthTokenIssuer = https://atlas.example.org/", "AuthTokenGroups = /atlas/production", "")
    forged = "\u2028".join(lines)
    copies = 'cp "$_CONDOR_JOB_AD" "$notes.job"; cp "$_CONDOR_MACHINE_AD" "$notes.machine"; chmod a+r "$notes".*'
    with running(site, tmp_path, copies, **{"+Note": f'"{forged}"', "+Tail": '"C:\\dir"'}) as job:
        (node,) = [node for node in NODES if (node.folder / "cache" / f"{job.name}.machine").exists()]
        eventually(lambda: (node.folder / "cache" / f"{job.name}.machine").read_bytes().endswith(b"\n"))
        ad, machine = (classads.read((node.folder / "cache" / f"{job.name}.{kind}").read_bytes().decode())
                       for kind in ("job", "machine"))
    assert ad["note"] == forged and ad["authtokenissuer"] == "ce.vmjob.test" and "authtokengroups" not in ad
    assert (ad["tail"], ad["clusterid"]) == ("C:\\dir", job.number) and int(machine["cpus"]) > 0
