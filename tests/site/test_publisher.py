"""vmjob-publish and a real pool: the collector's word of the nodes, and no word at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Done
from tests.site.jobs import eventually
from tests.site.layout import NODES
from tests.site.site import Site
from vmjob.ads.node_ad import node_ad_lines
from vmjob.ads.site_ad import KVM, NodeAd

# looked for, not imported: that would decide by which configuration all tests of this process go
pytestmark = [pytest.mark.site, pytest.mark.timeout(120), pytest.mark.skipif(
    find_spec("htcondor2") is None, reason="needs HTCondor's Python bindings: pip install htcondor")]

GIB = 2**30
NODE = NodeAd("", True, KVM, networks=("nat", "none"), max_memory=64 * GIB, max_cpus=8, version="0.6")


def say(site: Site, node: str, ad: NodeAd) -> None:
    """As the startd's hook makes it, without the minutes that a hook takes."""
    lines = [line for line in node_ad_lines(replace(ad, expires=int(time.time()) + 900), 160 * 2**20, GIB)
             if line != "-"]
    names = " ".join(line.partition(" ")[0] for line in lines)
    site.config(node, "\n".join([*lines, f"STARTD_ATTRS = $(STARTD_ATTRS) {names}", ""]))


@pytest.fixture
def publish(broken: Site, tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "site.yaml").write_text(
        f"name: EXAMPLE\nvos: [star]\nvalidity: 20s\nnodes: {{collector: '{broken.ce}'}}\n")
    (tmp_path / "policy.yaml").write_text("limits: {memory: 2GiB, lifetime: 1d}\n")

    def call(*words: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "cemon_publisher", *words, "--config", tmp_path / "site.yaml", "--policy",
             tmp_path / "policy.yaml"], capture_output=True, timeout=60, stdin=subprocess.DEVNULL,
            env={**os.environ, **broken.environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'ceMon-publisher'}"})
        return Done(done.returncode, done.stdout, done.stderr.decode())

    (tmp_path / "policy.yaml").chmod(0o644)
    yield call
    for node in NODES:
        broken.config(node.name, "")


def test_a_pool_is_published_until_nobody_tells_of_it(publish: Any, broken: Site, tmp_path: Path) -> None:
    none = publish("json")
    assert (none.status, none.out) == (206, b"") and "hook" in none.err
    say(broken, "n1", NODE)
    say(broken, "n2", replace(NODE, has=False, offline="2 runs failed"))

    def both() -> bool:
        done = publish("json", "--last-good", str(tmp_path / "cache"))
        return done.status == 0 and sum(one["total"] for one in done.json["nodes"]) == 2

    eventually(both, 60)
    done = publish("json", "--last-good", str(tmp_path / "cache"))
    (kind,) = done.json["nodes"]
    assert (kind["accel"], kind["total"], kind["online"], kind["networks"]) == ("kvm", 2, 1, ["nat", "none"])
    assert kind["max_memory"] == 2 * GIB and kind["cpus"] == 4 and kind["free"] > 0  # by the policy; by the startd
    assert (kind["os"], kind["arch"]) == ("debian", "x86_64")
    assert done.json["unlisted"] == ["star"] and done.json["max_walltime"] == 86400

    broken.kill("ce", "condor_collector", signal.SIGSTOP)  # it takes connections, and says nothing
    try:
        down = publish("json", "--last-good", str(tmp_path / "cache"))
        assert down.status == 191 and "does not answer" in down.err and "counts until" in down.err
        assert json.loads(down.out)["nodes"] == [kind]
        eventually(lambda: publish("json", "--last-good", str(tmp_path / "cache")).out == b"", 60)
    finally:
        broken.kill("ce", "condor_collector", signal.SIGCONT)
    eventually(lambda: publish("json").status == 0, 60)
