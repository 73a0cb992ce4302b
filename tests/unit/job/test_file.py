"""Units, job files and what their mistakes are told as."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmjob.core import errors, pool_errors, schema
from vmjob.core.errors import JobError
from vmjob.core.model import Accel, Boot, Input, Network
from vmjob.core.units import format_duration, format_size, parse_duration, parse_size
from vmjob.job.file import job_from, load_job

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("text", "size"), [
    ("2GiB", 2**31), ("500MB", 500_000_000), ("1.5 GiB", 3 * 2**29), ("10 kib", 10240), (2**30, 2**30), ("7B", 7)])
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text, "here") == size  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "2", "x", "2 GX", "-1GiB", "0B", "1e3MB", 512])
def test_bad_sizes_name_the_place_and_the_way_out(text: object) -> None:
    with pytest.raises(JobError, match="here: ") as caught:
        parse_size(text, "here")  # type: ignore[arg-type]
    assert caught.value.hint


@pytest.mark.parametrize(("text", "seconds"), [
    ("90s", 90), ("1h30m", 5400), ("2d", 172800), ("45min", 2700), (60, 60), ("01:30:00", 5400), ("1:30", 5400)])
def test_durations(text: object, seconds: int) -> None:
    assert parse_duration(text, "here") == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "soon", "5 parsecs", "-3s", "0", "1h x"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(JobError, match="here: "):
        parse_duration(text, "here")


def test_formats() -> None:
    assert (format_size(1536), format_size(5), format_size(2**34)) == ("1.5 KiB", "5 B", "16.0 GiB")
    assert (format_duration(1.75), format_duration(95), format_duration(3700)) == ("1.75 s", "1m35s", "1h01m40s")


def test_whole_job_file(tmp_path: Path) -> None:
    path = tmp_path / "my job.yaml"
    path.write_text("""
image: micro
command: sh -c 'exit 7'
inputs: [a, {from: b*, to: c}]
outputs: ['*.root']
environment: {N: 5, "ON": true, X: text}
resources: {cpus: 2, memory: 2GiB, disk: 1GB, walltime: 1h}
accel: tcg
network: none
user: alice
boot: system
""")
    job = load_job(path)
    assert job.name == "my-job" and job.command == ("sh", "-c", "exit 7")
    assert job.inputs == (Input("a"), Input("b*", "c")) and job.outputs == ("*.root",)
    assert dict(job.environment) == {"N": "5", "ON": "true", "X": "text"}
    assert (job.resources.cpus, job.resources.memory, job.resources.walltime) == (2, 2**31, 3600)
    assert (job.accel, job.network, job.user, job.boot) == (Accel.TCG, Network.NONE, "alice", Boot.SYSTEM)


@pytest.mark.parametrize(("document", "words"), [
    ({"image": "x", "comand": "a"}, ["unknown key 'comand'", "command"]),
    ({"image": "x", "command": "a", "resources": {"mem": "1GiB"}}, ["resources: unknown key 'mem'"]),
    ({"command": "a"}, ["'image' is missing"]),
    ({"image": "x", "command": "a", "accel": "fast"}, ["accel", "fast", "kvm"]),
    ({"image": "x", "command": False}, ["command", "quotes"]),
    ({"image": "x", "command": "a", "resources": {"cpus": 0}}, ["resources.cpus"]),
    ({"image": "x", "command": "a", "outputs": ["../up"]}, ["outputs", "../up"]),
    ({"image": "x", "command": "a", "outputs": ["a\nb"]}, ["outputs"]),
    ({"image": "x", "command": "a", "inputs": [{"form": "a"}]}, ["inputs[0]", "form"]),
    ({"image": "x", "command": "a", "inputs": [{"from": "a", "to": "/etc"}]}, ["/etc"]),
    ({"image": "x", "command": "a 'b"}, ["command"]),
    ({"image": "x", "command": ["a\0"]}, ["NUL"]),
    ({"image": "x", "command": "a", "script": "b"}, ["not both command and script"]),
    ({"image": "x", "command": "a", "environment": {True: "x"}}, ["True", "quotes"]),
    ([1], ["j.yaml"]),
])
def test_mistakes_name_file_key_and_next_action(document: object, words: list[str]) -> None:
    with pytest.raises(JobError) as caught:
        job_from(schema.check(document, "job", "j.yaml"), "j.yaml")
    text = f"{caught.value.message} {caught.value.hint}"
    assert "j.yaml" in text and caught.value.hint
    for word in words:
        assert word in text


def test_shipped_schemas_are_schemas_and_agree_with_a_second_implementation() -> None:
    import jsonschema

    for name in schema.NAMES:
        jsonschema.Draft7Validator.check_schema(json.loads(schema.schema_text(name)))
    job = json.loads(schema.schema_text("job"))
    for document, fits in [({"image": "x", "command": ["a"]}, True), ({"image": "x", "nope": 1}, False)]:
        assert jsonschema.Draft7Validator(job).is_valid(document) is fits


def test_every_error_has_a_status_in_its_band_and_no_two_leaves_share_one() -> None:
    def leaves(kind: type[errors.VmjobError]) -> list[type[errors.VmjobError]]:
        below = kind.__subclasses__()
        return [kind] if not below else [leaf for one in below for leaf in leaves(one)]

    found = [leaf for leaf in leaves(errors.VmjobError) if leaf.__module__ in (errors.__name__, pool_errors.__name__)]
    assert len(found) > 30
    statuses = [leaf.status for leaf in found]
    assert len(set(statuses)) == len(statuses)
    assert all(190 <= leaf.status <= 199 if issubclass(leaf, pool_errors.PoolError) else 200 <= leaf.status <= 250
               for leaf in found)
    assert all(f"{leaf.__name__}" in (errors.__doc__ or "") for leaf in found)
