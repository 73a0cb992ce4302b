"""payload.json there and back, and what damage gets."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmjob.errors import ImageCorrupt, ImageMissing, JobError
from vmjob.model import Accel, Boot, ImageFile, Input, Job, Manifest, Network, Payload, Resources
from vmjob.payload import image_place, read_payload, write_payload

pytestmark = pytest.mark.unit

DISK, KERNEL = b"disk" * 300, b"kernel"
JOB = Job("j", "deb", ("sh", "-c", "exit 7"), inputs=(Input("a*", "d"),), outputs=("*.root",),
          environment=(("A", "1"), ("B", "x\ny")), resources=Resources(2, 2**30, 2**31, 3600), accel=Accel.KVM,
          network=Network.NONE, user="me", boot=Boot.SYSTEM)


def make(folder: Path, job: Job = JOB, inputs: bool = True) -> Payload:
    """An unpacked payload in ``folder``."""
    files = []
    (folder / "image").mkdir(parents=True)
    paths = {}
    for role, form, data in (("disk", "qcow2", DISK), ("kernel", "elf", KERNEL), ("initrd", "cpio", b"i")):
        digest = hashlib.sha256(data).hexdigest()
        files.append(ImageFile(role, f"{role}.img", form, len(data), digest, 4096 if role == "disk" else 0))
        paths[role] = folder / image_place(digest)
        paths[role].write_bytes(data)
    archive = folder / "input.tar"
    archive.write_bytes(b"tar" * 1000)
    manifest = Manifest("deb", tuple(files), (Boot.SYSTEM,), cmdline="root=x", needs_memory=300 * 2**20 + 1,
                        made_from=("a", "b"))
    payload = Payload(job, manifest, paths, archive if inputs else None)
    write_payload(folder, payload)
    return payload


def change(folder: Path, **values: object) -> None:
    body = json.loads((folder / "payload.json").read_text())
    for path, value in values.items():
        *above, key = path.split("__")
        place = body
        for step in above:
            place = place[step]
        place[key] = value
    (folder / "payload.json").write_text(json.dumps(body))


@pytest.mark.parametrize("job", [JOB, Job("s", "i", script="#!/bin/sh\necho ☃\n")])
def test_round_trip(tmp_path: Path, job: Job) -> None:
    payload = make(tmp_path, job)
    assert read_payload(tmp_path) == payload


def test_without_inputs(tmp_path: Path) -> None:
    assert read_payload(make(tmp_path, inputs=False).image_files["disk"].parent.parent).input_archive is None


def test_a_second_implementation_accepts_it(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install vmjob[dev]")
    from vmjob.schema import schema_text

    make(tmp_path)
    body = json.loads((tmp_path / "payload.json").read_text())
    jsonschema.validate(body, json.loads(schema_text("payload")))
    jsonschema.validate(body["image"], json.loads(schema_text("manifest")))


@pytest.mark.parametrize(("key", "value", "word"), [
    ("schema", 2, "schema"), ("job__cpus", 3, "cpus"), ("job__resources", {"memory": "2G"}, "job.resources.memory"),
    ("job__accel", "hvf", "job.accel"), ("job__command", [], "command, script and glidein"),
    ("job__boot", "floppy", "job.boot"),
    ("places__disk", "/etc/passwd", "places.disk"), ("places__disk", "image/../../x", "places.disk"),
    ("input__name", "../x", "input.name"), ("input__size", 1, "3000 bytes"),
    ("places__disk", "image/\0", "places.disk"), ("places__disk", "image/\ud800", "places.disk"),
    ("input__name", "x\0", "input.name"), ("input__size", 2**70, "18 digits"),
    ("image__digest", "sha256:" + "0" * 64, "digest"), ("image__boot", [], "image"), ("image__name", "other\n", "name"),
])
def test_damage_names_file_and_key(tmp_path: Path, key: str, value: object, word: str) -> None:
    """Attack nesting."""
    make(tmp_path)
    change(tmp_path, **{key: value})
    with pytest.raises((JobError, ImageCorrupt)) as caught:
        read_payload(tmp_path)
    assert word in caught.value.message and str(tmp_path) in caught.value.message and caught.value.hint


def test_corrupted_input(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "input.tar").write_bytes(b"rat" * 1000)
    with pytest.raises(JobError, match="corrupted payload"):
        read_payload(tmp_path)
    assert read_payload(tmp_path, verify=False)
    (tmp_path / "input.tar").unlink()
    with pytest.raises(JobError, match=r"input\.tar"):
        read_payload(tmp_path)


def test_the_archive_that_was_verified_is_the_one_that_is_used(tmp_path: Path) -> None:
    payload = make(tmp_path)
    assert payload.input_archive
    right = payload.input_archive.read_bytes()
    with ExitStack() as keep:
        archive = read_payload(tmp_path, keep=keep).input_archive
        (tmp_path / "input.tar").unlink()
        (tmp_path / "input.tar").write_bytes(b"rat" * 1000)
        assert archive and archive.read_bytes() == right
    assert not archive.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\udcff", "[" * 100_000,
                                  '{"a":' * 100_000, '{"schema": ' + "9" * 5000 + "}", '{"schema": 1e999}',
                                  '{"schema": NaN}', '"\\ud800"'])
def test_not_a_payload(tmp_path: Path, text: str) -> None:
    """Attack nesting."""
    (tmp_path / "payload.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(JobError, match=r"payload\.json"):
        read_payload(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no such file"):
        read_payload(tmp_path)
    payload = make(tmp_path / "p")
    payload.image_files["kernel"].unlink()
    with pytest.raises(ImageMissing, match="kernel"):
        read_payload(tmp_path / "p")
