"""manifest.yaml from strangers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmjob.core.errors import ImageError
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.image import manifest as manifests

pytestmark = pytest.mark.unit

MANIFEST = Manifest(
    "deb", (ImageFile("kernel", "vmlinuz", "bzimage", 10, "a" * 64), ImageFile("initrd", "i.img", "cpio", 20, "b" * 64),
            ImageFile("disk", "disk.qcow2", "qcow2", 30, "c" * 64, 2**32)),
    (Boot.JOB, Boot.SYSTEM), cmdline="net.ifnames=0", needs_memory=300 * 2**20, needs_cpus=2, description="Größe: 1",
    made_from=("linux=6.1",))


def write(folder: Path, text: str) -> Path:
    file = folder / "manifest.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_round_trip(tmp_path: Path) -> None:
    file = write(tmp_path, manifests.dump(MANIFEST))
    assert manifests.load(file) == manifests.load(tmp_path) == MANIFEST
    assert f"digest: {MANIFEST.digest}" in file.read_text()
    assert manifests.from_document(manifests.to_document(MANIFEST), "x") == MANIFEST


@pytest.mark.parametrize("size", [1, 2**20 + 1, 3 * 2**30, 1536 * 1024])
def test_memory_survives_exactly(tmp_path: Path, size: int) -> None:
    made = replace(MANIFEST, needs_memory=size)
    assert manifests.load(write(tmp_path, manifests.dump(made))).needs_memory == size


@pytest.mark.parametrize(("old", "new", "said"), [
    ("path: i.img", "path: ../i.img", "files.1.path"),
    ("path: i.img", "path: /etc/passwd", "files.1.path"),
    ("path: i.img", "path: a/b", "files.1.path"),
    ("path: i.img", "path: vmlinuz", "same role or path"),
    ("role: initrd", "role: kernel", "format"),
    ("memory: 300MiB", "memory: 300Mb it", "needs.memory"),
    ("memory: 300MiB", "memory: 300", "needs.memory"),
    ("format: qcow2", "format: cpio", "files.2.format"),
    ("cmdline: net.ifnames=0", "cmdline: net.ifnames=1", "digest"),
    ("size: 30\n", "size: 31\n", "digest"),
    ("size: 30\n", "size: many\n", "files.2.size"),
    ("name: deb", "name: ../deb", "name"),
    ("cmdline: net.ifnames=0", "cmdlin: x", "unknown key 'cmdlin'"),
    ("- system", "- disc", "boot.1"),
    ("schema: 1", "schema: [", "YAML"),
])
def test_refused_naming_file_and_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = manifests.dump(MANIFEST)
    assert old in text
    with pytest.raises(ImageError) as caught:
        manifests.load(write(tmp_path, text.replace(old, new)))
    assert said in caught.value.message and "manifest.yaml" in caught.value.message and caught.value.hint


def test_boot_method_needs_its_files() -> None:
    document = manifests.to_document(MANIFEST)
    del document["digest"], document["files"][2]
    with pytest.raises(ImageError, match="'system' needs a file with the role disk"):
        manifests.from_document(document, "x")


def test_name_and_description_leave_the_digest() -> None:
    assert replace(MANIFEST, name="other", description="", needs_cpus=9).digest == MANIFEST.digest
    assert replace(MANIFEST, firmware="uefi").digest != MANIFEST.digest
