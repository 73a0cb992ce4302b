"""vmjob-publish with real signed lists and real policies, as cron starts it: what is published, and what no longer."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml

from tests.ca import Ca, Pair, entry, image_list
from tests.conftest import ROOT, Done
from vmjob.ads import node_ad
from vmjob.ads.site_ad import KVM, NodeAd
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.image.manifest import to_document
from vmjob.image.trust import subscriptions, verify

pytestmark = pytest.mark.integration

GIB = 2**30
NODE = NodeAd("n1.example.org", True, KVM, "", (), ("nat",), 16 * GIB, 8, "0.6", 10, 2, 5, "", 0, 16, 64 * GIB)


def image(name: str, number: int = 0, **changed: Any) -> Manifest:
    return Manifest(name, (ImageFile("disk", "disk.qcow2", "qcow2", 1000, f"{number + 1:064x}", 4096),), (Boot.DISK,),
                    sources=(f"https://images.example.org/{name}/",), **changed)


def listed(one: Manifest, **changed: Any) -> dict[str, Any]:
    return {**entry(one.name), "vmjob:manifest": to_document(one), **changed}


@dataclass
class Publisher:
    """A site in ``folder``: configuration, policy, lists, one node."""

    folder: Path
    ca: Ca
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "lists").mkdir()
        (self.folder / "nodes").mkdir()
        self.site(name="EXAMPLE", vos=["star", "atlas"], elements=[{"host": "ce.example.org"}],
                  nodes={"files": f"{self.folder}/nodes/*.json"})
        self.node(NODE)
        self.policy()

    def site(self, **body: Any) -> None:
        (self.folder / "site.yaml").write_text(yaml.safe_dump(body))

    def node(self, ad: NodeAd) -> None:
        (self.folder / "nodes" / f"{ad.machine}.json").write_text(json.dumps(node_ad.to_json(ad)))

    def policy(self, **changed: Any) -> None:
        body = {"endorsers": {"ada": {"dn": self.ca.ada.dn, "ca": self.ca.ada.ca}},
                "vos": {"star": {"groups": "star"}, "atlas": {"groups": "atlas"}},
                "rules": [{"allow": "STAR's own", "vo": "star", "endorser": "ada", "image": ["id-star*"]},
                          {"allow": "common ones", "endorser": "ada", "image": ["id-common*"]}],
                "subscriptions": str(self.folder / "lists"), "authorities": str(self.ca.certificates), **changed}
        path = self.folder / "policy.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in body.items() if value is not None}))
        path.chmod(0o644)

    def subscribe(self, *images: Mapping[str, Any], by: Optional[Pair] = None,
                  **changed: Any) -> subscriptions.Subscription:
        """As vmjob image subscribe does."""
        message = self.ca.sign(image_list(by or self.ca.ada, images, **changed), by)
        signed = verify.verify_list(message, self.ca.certificates, time.time(), expired=True)
        return subscriptions.follow(self.folder / "lists", "https://example.org/list", signed, message, time.time())

    def __call__(self, *words: Any) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "cemon_publisher", *map(str, words), "--config", self.folder / "site.yaml",
             "--policy", self.folder / "policy.yaml"], capture_output=True, timeout=120, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'ceMon-publisher'}", **self.environment})
        return Done(done.returncode, done.stdout, done.stderr.decode())

    @property
    def images(self) -> dict[str, list[str]]:
        """Names of what is published, with whose they are."""
        done = self("json")
        assert done.status == 0, done.err
        return {one["name"]: one["vos"] for one in done.json["images"]}


@pytest.fixture
def publisher(tmp_path: Path, ca: Ca) -> Publisher:
    return Publisher(tmp_path, ca)


STAR, COMMON = image("star_sl5", 1), image("common", 2)


def test_what_is_endorsed_and_allowed_is_published(publisher: Publisher) -> None:
    publisher.subscribe(listed(STAR, **{"sl:os": "Scientific Linux", "sl:osversion": "5.11", "hv:version": "3"}),
                        listed(COMMON), listed(image("other", 3)))
    done = publisher("json")
    assert (done.status, done.err) == (0, "")
    found = {one["name"]: one for one in done.json["images"]}
    assert {name: one["vos"] for name, one in found.items()} == {"common": ["star", "atlas"], "star_sl5": ["star"]}
    star = found["star_sl5"]
    assert star["digest"] == STAR.digest and star["endorser"] == publisher.ca.ada.dn and star["version"] == "3"
    assert (star["os"], star["os_version"], star["size"]) == ("Scientific Linux", "5.11", 1000)
    assert star["expires"] > time.time() and star["uri"] == "https://example.org/star_sl5.ova"
    body = done.json
    assert body["vos"] == ["star", "atlas"] and body["unlisted"] == [] and body["expires"] - body["created"] == 3600
    (kind,) = body["nodes"]
    assert (kind["accel"], kind["online"], kind["free"], kind["max_memory"]) == ("kvm", 1, 10, 16 * GIB)


def test_withdrawn_denied_and_expired_images_disappear_with_the_next_update(publisher: Publisher) -> None:
    publisher.subscribe(listed(STAR), listed(COMMON))
    assert sorted(publisher.images) == ["common", "star_sl5"]
    publisher.policy(deny=[f"{COMMON.digest} CVE-2026-1"])
    assert sorted(publisher.images) == ["star_sl5"]
    publisher.policy()
    publisher.subscribe(listed(COMMON), hv_version="2")  # without a word, and with one
    assert sorted(publisher.images) == ["common"]
    publisher.subscribe(hv_version="3", vmjob_withdrawn=[COMMON.digest])
    done = publisher("json")
    assert done.status == 0 and done.json["images"] == [] and "names no image" in done.err
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 10))
    publisher.subscribe(listed(image("common", 7), **{"dc:date:expires": soon}), hv_version="4")
    done = publisher("json")
    assert done.json["images"] == [] and "common" in done.err and "expired" in done.err


def test_a_list_that_does_not_count_publishes_nothing(publisher: Publisher) -> None:
    known = publisher.subscribe(listed(STAR), listed(COMMON), dc_date_expires="2026-01-01T00:00:00Z",
                                dc_date_created="2025-01-01T00:00:00Z")
    done = publisher("json")
    assert done.status == 0 and done.json["images"] == [] and "expired on 2026-01-01" in done.err
    assert [kind["online"] for kind in done.json["nodes"]] == [1]
    publisher.subscribe(listed(STAR), hv_version="2")
    assert publisher.images
    (message,) = (publisher.folder / "lists").glob("*.smime")
    good = message.read_bytes()
    message.write_bytes(good.replace(b"star_sl5", b"star_sl6"))
    done = publisher("json")
    assert done.status == 0 and done.json["images"] == [] and "does not count" in done.err
    message.write_bytes(good)
    publisher.policy(authorities=str(publisher.folder))
    assert publisher.images == {} and known


def test_what_hostile_lists_say_harms_nobody_else(publisher: Publisher) -> None:
    """Titles, descriptions and versions of an endorser cannot take the site off the air, nor begin an entry."""
    evil = {**listed(image("star_evil", 4, description="a\nb\u2028dn: o=grid\n\ndn: x\x1b[2J"), **{
        "dc:title": "x\ndn: y", "hv:version": "1\n\x00dn: z", "sl:os": "\ud800dn:", "sl:osversion": "9" * 5000})}
    broken = listed(image("star_broken", 5))
    broken["vmjob:manifest"] = {**broken["vmjob:manifest"], "name": "dn: o=grid", "digest": image("x", 5).digest}
    long = listed(image("star_long", 6, description="x" * 20000))
    publisher.subscribe(listed(STAR), evil, broken, long, listed(COMMON), entry("AppDB"))
    done = publisher("json")
    assert done.status == 0
    found = {one["name"]: one for one in done.json["images"]}
    assert sorted(found) == ["common", "star_evil", "star_long", "star_sl5"]
    assert found["star_evil"]["description"] == "a b dn: o=grid dn: x [2J"
    assert found["star_evil"]["version"] == "1 dn: z"
    assert len(found["star_long"]["description"]) == 1000
    assert "an image of the list Tests is left out" in done.err and "1 without a manifest" in done.err
    for rendering in ("prometheus", "json"):
        text = publisher(rendering).out.decode()
        assert not [line for line in text.splitlines() if line.lower().startswith("dn:")] and "\x1b" not in text


def test_two_images_of_one_name_keep_the_last_good(publisher: Publisher, tmp_path: Path) -> None:
    twin = image("star_sl5", 9)
    publisher.subscribe(listed(STAR))
    good = publisher("json", "--last-good", tmp_path / "cache")
    assert good.status == 0
    publisher.subscribe({**listed(twin), "dc:identifier": "id-star-2"}, dc_identifier="list-2")
    done = publisher("json")
    assert (done.status, done.out) == (204, b"") and STAR.digest in done.err and twin.digest in done.err
    done = publisher("json", "--last-good", tmp_path / "cache")
    assert (done.status, done.out) == (204, good.out) and "counts until" in done.err
    publisher.site(name="EXAMPLE", vos=["star"], nodes={"here": True}, names={twin.digest: "star_sl5-new"})
    assert sorted(publisher.images) == ["star_sl5", "star_sl5-new"]


def test_what_cannot_be_read_publishes_nothing(publisher: Publisher) -> None:
    publisher.subscribe(listed(STAR))
    (state,) = (publisher.folder / "lists").glob("*.json")
    before = state.read_text()
    state.write_text("{")  # what it withdrew is not known any more
    done = publisher("json")
    assert (done.status, done.out) == (227, b"") and str(state) in done.err
    state.write_text(before)
    (publisher.folder / "policy.yaml").chmod(0o666)
    done = publisher("json")
    assert (done.status, done.out) == (227, b"") and "policy.yaml" in done.err and "chmod" in done.err
    (publisher.folder / "policy.yaml").chmod(0o644)
    (publisher.folder / "site.yaml").write_text("name: [\n")
    done = publisher("json")
    assert (done.status, done.out) == (204, b"") and "site.yaml" in done.err and "Traceback" not in done.err
    (publisher.folder / "site.yaml").unlink()
    done = publisher("json")
    assert (done.status, done.out) == (204, b"") and "site.yaml" in done.err


def test_a_collector_that_is_down_or_silent_publishes_nothing(publisher: Publisher, tmp_path: Path) -> None:
    pytest.importorskip("htcondor2", reason="needs HTCondor's bindings: pip install htcondor")
    good = publisher("json", "--last-good", tmp_path / "cache")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        publisher.environment["CONDOR_CONFIG"] = "ONLY_ENV"
        publisher.site(name="EXAMPLE", vos=["star"], nodes={"collector": f"127.0.0.1:{port}"})
        done = publisher("json")
        assert (done.status, done.out) == (191, b"") and f"127.0.0.1:{port}" in done.err
        done = publisher("json", "--last-good", tmp_path / "cache")
        assert (done.status, done.out) == (191, good.out)


def test_nodes_that_say_that_they_are_off_are_believed(publisher: Publisher) -> None:
    publisher.node(replace(NODE, has=False, offline="2 runs failed"))
    done = publisher("json")
    assert done.status == 0 and "no node takes virtual machines now" in done.err
    assert [(kind["total"], kind["online"], kind["reason"]) for kind in done.json["nodes"]] == [(1, 0, "2 runs failed")]


def test_a_thousand_images(publisher: Publisher) -> None:
    publisher.subscribe(*(listed(image(f"common-{n}", n)) for n in range(1000)))
    for rendering in ("json", "prometheus"):
        done = publisher(rendering)
        assert done.status == 0 and done.out.count(b"common-999") >= 1, done.err


def test_metrics_as_prometheus_own_tool_wants_them(publisher: Publisher) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("needs promtool: apt-get install prometheus")
    publisher.subscribe(listed(STAR), listed(COMMON))
    text = publisher("prometheus").out
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert text and (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_without_a_policy_all_that_is_followed_may_run(publisher: Publisher) -> None:
    """Its file names only where the lists are."""
    publisher.policy(endorsers=None, vos=None, rules=None)
    publisher.subscribe(listed(STAR), listed(image("other", 3)))
    assert publisher.images == {"other": ["star", "atlas"], "star_sl5": ["star", "atlas"]}
    assert publisher("json").json["unlisted"] == ["star", "atlas"]


@pytest.mark.parametrize("kind", ["provider", "plugin"])
@pytest.mark.parametrize(("status", "printed"), [(0, True), (191, True), (199, True), (204, True), (143, False),
                                                 (137, False)])
def test_what_is_printed_on_a_failure_is_published(tmp_path: Path, kind: str, status: int, printed: bool) -> None:
    """The last good output, where a collector does not answer (191); of what a signal ended it may be half of one."""
    command, conf = tmp_path / "publish", tmp_path / "conf"
    value = "GlueHostApplicationSoftwareRunTimeEnvironment: vm_one"
    command.write_text(f"#!/bin/sh\nprintf 'dn: o=grid\\n{value}\\n'\nexit {status}\n")
    command.chmod(0o755)
    conf.write_text(f"PUBLISH={command} RENDERINGS=glue1 SUBCLUSTERS=o=grid\n")
    done = subprocess.run([ROOT / "ceMon-publisher/gip" / kind / "vmjob"], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "VMJOB_GIP_CONF": str(conf)})
    assert (value in done.stdout) is printed and bool(done.stdout) is printed
