"""``vmjob image test`` and ``scan`` on real guests; images that are broken on purpose fail the right check."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests import images
from tests.ca import Ca, entry, image_list
from tests.conftest import ROOT, Cli, Done
from tests.integration.run.test_failures import failed
from vmjob.image.manifest import to_document
from vmjob.image.store.images import Store
from vmjob.image.trust.imagelist import MANIFEST

pytestmark = pytest.mark.integration


def changed(cli: Cli, before: bytes = b"", after: bytes = b"", **keys: Any) -> Path:
    """The micro image with other keys in its manifest, and with bytes of its initramfs replaced by as many others."""
    manifest, files = Store(cli.home / "store").resolve("micro")
    document = {**to_document(manifest), "name": "broken", **keys}
    document.pop("digest", None)
    folder = cli.cwd / "image"
    folder.mkdir()
    for file in document["files"]:
        data = files[file["role"]].read_bytes()
        if before and file["role"] == "initrd":
            assert data.count(before) == 1
            data = data.replace(before, after.ljust(len(before)))
            file["sha256"] = hashlib.sha256(data).hexdigest()
        (folder / file["path"]).write_bytes(data)
    (folder / "manifest.yaml").write_text(json.dumps(document))
    return folder


def outcome(done: Done) -> dict[str, dict[str, Any]]:
    """The checks by name, of an image that boots by one method; its document fits the schema."""
    body = done.json
    jsonschema.validate(body, json.loads((ROOT / "vmjob/schemas/test.schema.json").read_text()))
    (boot,) = body["boots"]
    assert body["passed"] == boot["passed"] == (done.status == 0), done.err
    return {check["name"]: check for check in boot["checks"]}


def wrong(done: Done) -> list[str]:
    return [name for name, check in outcome(done).items() if check["outcome"] == "failed"]


def test_the_micro_image_passes(cli: Cli) -> None:
    done = cli("image", "test", "micro", "--out", "outcome.json")
    assert done.status == 0, done.out.decode() + done.err
    assert b"micro: passed: 16 passed" in done.out or b"15 passed, 1 skipped" in done.out  # a host without a network
    body = json.loads((cli.cwd / "outcome.json").read_text())
    assert body["passed"] and body["digest"] == cli("image", "inspect", "micro", "--json").json["digest"]
    assert not wrong(Done(0, json.dumps(body).encode(), ""))
    assert cli.left_over() == []


def test_a_manifest_that_names_a_user_who_is_not_there(cli: Cli) -> None:
    done = cli("image", "test", changed(cli, user="nobody-knows"), "--json")
    assert done.status == 244 and wrong(done) == ["user"], done.err
    assert "no user nobody-knows" in outcome(done)["user"]["text"]


def test_an_image_without_tar(cli: Cli) -> None:
    # its shell has tar built in, so it is not found under this name alone
    done = cli("image", "test", changed(cli, b"exec tar -xf", b"exec tax -xf"), "--json")
    assert done.status == 244 and wrong(done) == ["inputs"], done.out.decode()
    assert "tax: not found" in outcome(done)["inputs"]["text"] and outcome(done)["outputs"]["outcome"] == "skipped"


def test_an_agent_that_tells_another_status(cli: Cli) -> None:
    done = cli("image", "test", changed(cli, b'say "exit $status"', b'say "exit 0"'), "--json")
    assert done.status == 244 and wrong(done) == ["agent"], done.out.decode()
    assert "42 came back as 0" in outcome(done)["agent"]["text"]


def test_an_image_that_does_not_boot(cli: Cli) -> None:
    done = cli("image", "test", changed(cli, cmdline="rdinit=/bin/false"), "--json")
    assert done.status == 241 and wrong(done) == ["boot"]
    assert "KernelPanic" in outcome(done)["boot"]["text"]


def test_what_was_asked_wrongly(cli: Cli) -> None:
    failed(cli("image", "test", "micro", "--boot", "disk"), 200, "JobError", "cannot be booted by 'disk'")
    failed(cli("image", "test", "micro", "--out", "no/such/folder/x.json"), 200, "JobError", "no/such/folder/x.json")
    failed(cli("image", "test", "mircro"), 211, "ImageMissing", "mircro")
    feed(cli, "x", ["*"])
    failed(cli("image", "scan", "--deny", "feed.json"), 200, "JobError", "which images")
    failed(cli("image", "scan", "mircro", "--deny", "feed.json"), 211, "ImageMissing", "mircro")
    failed(cli("image", "scan", "micro"), 200, "JobError", "--deny")
    failed(cli("image", "scan", "micro", "--deny", "none.yaml"), 200, "JobError", "none.yaml")


# ---------------------------------------------------------------- scan


def feed(cli: Cli, name: str, bad: list[str]) -> Path:
    path = cli.cwd / "feed.json"
    path.write_text(json.dumps({"title": "ours", "packages": [{"name": name, "bad": bad, "reference": "CVE-1"}]}))
    return path


def test_an_image_without_package_system_is_not_called_clean(cli: Cli) -> None:
    done = cli("image", "scan", "micro", "--deny", feed(cli, "openssl", ["*"]))
    assert done.status == 0 and b"no package system" in done.out and b"clean" not in done.out, done.err
    # asked once: from now on nothing is started
    nothing = {"VMJOB_QEMU": "/nowhere/qemu"}
    found = cli("image", "scan", "micro", "--deny", feed(cli, "busybox-static", ["*"]), "--json", env=nothing)
    assert found.status == 1, found.err
    (image,) = found.json["images"]
    assert image["verdict"] == "bad"
    assert [(one["name"], one["reference"]) for one in image["findings"]] == [("busybox-static", "CVE-1")]


def test_an_image_that_cannot_be_asked(cli: Cli) -> None:
    path = changed(cli, cmdline="rdinit=/bin/false", made_from=["bad=1.0"])
    done = cli("image", "scan", path, "micro", "--deny", feed(cli, "bad", ["< 2"]), "--json")
    assert done.status == 241, done.err
    broken, micro = done.json["images"]
    assert broken["failure"]["kind"] == "KernelPanic" and [one["name"] for one in broken["findings"]] == ["bad"]
    assert micro["verdict"] == "unknown"


def test_the_images_of_a_signed_list(cli: Cli) -> None:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl: apt-get install openssl")
    ca = Ca(cli.cwd / "ca")
    absent = changed(cli, b'say "exit $status"', b'say "exit 5"')
    micro, other = (cli("image", "inspect", one, "--json").json for one in ("micro", absent))
    images_ = [entry("here", **{MANIFEST: micro}), entry("gone", **{MANIFEST: other}), entry("foreign")]
    (cli.cwd / "list").write_bytes(ca.sign(image_list(ca.ada, images_)))
    trusted = {"X509_CERT_DIR": str(ca.certificates)}
    done = cli("image", "scan", "--list", "list", "--deny", feed(cli, "busybox-static", ["*"]), "--json", env=trusted)
    assert "1 of its images" in done.err
    here, gone = done.json["images"]
    assert here["verdict"] == "bad" and here["digest"] == micro["digest"]
    # nobody has its bytes, and it names no source; what its maker says is in it counts all the same
    assert gone["failure"]["kind"] == "ImageMissing" and gone["findings"] and done.status == 211
    failed(cli("image", "scan", "--list", "list", "--deny", "feed.json", env={"X509_CERT_DIR": str(cli.cwd)}),
           217, "EndorsementRefused", "list")


@pytest.mark.image
def test_a_debian_image(cli: Cli) -> None:
    name = images.register(cli, images.built(ROOT / "tests/debian.yaml"))
    done = cli("image", "scan", name, "--deny", feed(cli, "glibc", ["< 9"]), "--json")
    assert done.status == 1, done.err
    (image,) = done.json["images"]
    assert image["packages"] > 50 and image["os"].startswith("debian-")
    assert "libc6" in [one["name"] for one in image["findings"]]
    clean = cli("image", "scan", name, "--deny", feed(cli, "glibc", ["< 1"]))
    assert clean.status == 0 and b"clean: " in clean.out, clean.err
