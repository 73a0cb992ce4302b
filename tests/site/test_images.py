"""Images that nodes fetch by themselves, and outputs that they send away, in jobs of a real compute element."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.site import web
from tests.site.pool import Pool
from tests.site.site import Site
from tests.site.test_submit import Vmjob
from vmjob.core.files import hash_file
from vmjob.core.model import Manifest
from vmjob.image import manifest as manifests
from vmjob.image.build.cpio import Tree

pytestmark = [pytest.mark.site, pytest.mark.timeout(240)]


@pytest.fixture
def vmjob(cli: Cli, site: Site) -> Iterator[Vmjob]:
    made = Vmjob(cli, site)
    yield made
    made.clean()


def unique(vmjob: Vmjob, folder: Path, source: str) -> Manifest:
    """The micro image with an initrd and a kernel that no node has met, and one source; its manifest in ``folder``."""
    made = vmjob("image", "micro", "-o", folder, env={"VMJOB_HOME": str(folder.parent / "store")})
    assert made.status == 0, made.err
    one = manifests.load(folder)
    pad = Tree()
    pad.file("pad", os.urandom(3 << 20))
    initrd, kernel = one.file("initrd"), one.file("kernel")
    assert initrd and kernel
    with (folder / initrd.path).open("ab") as file:  # the kernel unpacks one archive after the other
        file.write(pad.pack())
    with (folder / kernel.path).open("ab") as file:
        file.write(os.urandom(64))
    files = []
    for part in one.files:
        sha256, size = hash_file(folder / part.path)
        files.append(replace(part, sha256=sha256, size=size))
    changed = replace(one, name=vmjob.name("img"), files=tuple(files), sources=(source,))
    (folder / "manifest.yaml").write_text(manifests.dump(changed))
    return changed


def test_an_image_is_fetched_once_by_each_node_and_outputs_are_sent(vmjob: Vmjob, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    with web.serving(tmp_path / "served") as server:
        one = unique(vmjob, tmp_path / "served/image", f"{server.url}image/")
        done = vmjob("submit", "--json", "--image", tmp_path / "served/image", "--memory", "256MiB", "--name",
                     vmjob.name("many"), "-n", 6, "--set", "N=$(Process)", "--output", "*.txt",
                     "--outputs-to", f"{server.url}out/${{N}}/", "--", "sh", "-c", "echo $N > n.txt; sleep 2")
        assert done.status == 0, done.err
        cluster = done.json["id"]
        assert not Pool(vmjob.site).query(f'VmjobWhat == "{one.digest}"', "ClusterId")  # nothing carries it
        assert vmjob.wait(cluster).status == 0
        fetched = vmjob("fetch", "--json", cluster, "-o", tmp_path / "results")
        assert fetched.status == 0, fetched.err
    results = [(tmp_path / f"results/{n}/result.json").read_text() for n in range(6)]
    told = [json.loads(text) for text in results]
    nodes = {result["host"] for result in told}
    assert sum(result["bytes_image"] for result in told) == len(nodes) * one.size == sum(server.sent)
    for n in range(6):
        assert (tmp_path / f"served/out/{n}/n.txt").read_text() == f"{n}\n"
        assert told[n]["outputs"] == [] and [sent["name"] for sent in told[n]["staged"]] == ["n.txt"]


def test_a_source_that_is_gone_is_told_and_the_job_tried_again(vmjob: Vmjob, tmp_path: Path) -> None:
    with web.serving(tmp_path) as server:
        unique(vmjob, tmp_path / "image", f"{server.url}elsewhere/")
        done = vmjob("submit", "--json", "--image", tmp_path / "image", "--memory", "256MiB", "--name",
                     vmjob.name("gone"), "--", "true")
        waited = vmjob.wait(done.json["id"])
    assert waited.status == 198 and "ImageOutOfReach" in waited.err and "404" in waited.err, waited.err
    assert vmjob.jobs(str(done.json["id"]))[0]["starts"] > 1
