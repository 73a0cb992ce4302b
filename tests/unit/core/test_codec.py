"""Dataclasses to documents and back, by their fields alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Optional, Union

import pytest

from vmjob.core import codec, schema
from vmjob.core.errors import ImageError, JobError
from vmjob.core.model import Boot, ImageFile, Job, Manifest, Payload
from vmjob.job import file, payload

pytestmark = pytest.mark.unit


class Colour(Enum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Wheel:
    inches: int
    tyre: str = field(default="", metadata=codec.SPARSE)


@dataclass(frozen=True)
class Car:
    name: str
    colour: Optional[Colour] = None
    wheels: tuple[Wheel, ...] = ()
    spare: Optional[Wheel] = None
    labels: tuple[tuple[str, Union[str, int]], ...] = ()
    boot: int = field(default=0, metadata=codec.SIZE | codec.key("room.boot"))
    seats: int = field(default=4, metadata=codec.key("room.seats"))
    service: Optional[int] = field(default=None, metadata=codec.DURATION | codec.SPARSE)
    code: str = field(default="", metadata=codec.SECRET)
    notes: tuple[str, ...] = field(default=(), metadata=codec.SPARSE)


CAR = Car("c", Colour.GREEN, (Wheel(15), Wheel(16, "slick")), Wheel(3), (("b", 1), ("a", "x")), 3 * 2**29, 2, 5400,
          "1234", ("n",))


def test_all_kinds_of_fields_there_and_back() -> None:
    document = codec.write(CAR)
    assert document == {
        "name": "c", "colour": "green", "wheels": [{"inches": 15}, {"inches": 16, "tyre": "slick"}],
        "spare": {"inches": 3}, "labels": {"b": 1, "a": "x"}, "room": {"boot": 3 * 2**29, "seats": 2},
        "service": 5400, "notes": ["n"]}
    assert [*document] == ["name", "colour", "wheels", "spare", "labels", "room", "service", "notes"]
    again = codec.read(Car, {**json.loads(json.dumps(document)), "code": "1234", "later": 1}, "x")
    assert again == CAR and [*again.labels] == [("b", 1), ("a", "x")]


def test_defaults_stay_but_for_sparse_ones() -> None:
    document = codec.write(Car("c"))
    assert document == {"name": "c", "colour": None, "wheels": [], "spare": None, "labels": {},
                        "room": {"boot": 0, "seats": 4}}
    assert codec.read(Car, document, "x") == codec.read(Car, {"name": "c"}, "x") == Car("c")


def test_people_write_units() -> None:
    document = codec.write(CAR, units=True)
    assert document["room"]["boot"] == "1536MiB" and document["service"] == "5400s"
    assert codec.read(Car, {**document, "code": "1234"}, "x", units=True) == CAR
    assert codec.read(Car, {"name": "c", "service": "1h30m"}, "x", units=True).service == 5400
    assert codec.read(Car, {"name": "c", "service": None}, "x", units=True).service is None
    assert codec.read(Car, {"name": "c", "room": {"boot": 7}}, "x").boot == 7  # a program's bytes need no unit


@pytest.mark.parametrize(("document", "message"), [
    ({"name": "c", "room": {"boot": "much"}}, "car.yaml: room.boot: 'much' is not a size"),
    ({"name": "c", "room": {"boot": 7}}, "car.yaml: room.boot: 7 has no unit"),
    ({"name": "c", "service": "soon"}, "car.yaml: service: 'soon' is not a duration"),
    ({"name": "c", "colour": "blue"}, "car.yaml: colour: 'blue' is not one of red, green"),
    ({"name": "c", "wheels": [{"inches": 1}, {}]}, "car.yaml: wheels.1: the key 'inches' is missing"),
    ({}, "car.yaml: the key 'name' is missing"),
])
def test_refusals_name_file_and_key(document: dict[str, Any], message: str) -> None:
    for error in (JobError, ImageError):
        with pytest.raises(error) as refused:
            codec.read(Car, document, "car.yaml", units=True, error=error)
        assert refused.value.message == message


# ---------------------------------------------------------------- the promise: a field of a job is one line


@dataclass(frozen=True)
class Nicer(Job):
    """A job with two fields more, and nothing else said of them anywhere but in the schemas."""

    patience: Optional[int] = field(default=None, metadata=codec.DURATION | codec.SPARSE)
    flavours: tuple[tuple[str, str], ...] = field(default=(), metadata=codec.SPARSE)


@pytest.fixture
def nicer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shipped = schema.schema_text

    def schema_text(name: str) -> str:
        document = json.loads(shipped(name))
        properties = {"job": document, "payload": document.get("properties", {}).get("job", {})}.get(name, {})
        if properties:
            properties["properties"]["patience"] = {"type": ["string", "integer"]}
            properties["properties"]["flavours"] = {"type": "object", "additionalProperties": {"type": "string"}}
        return json.dumps(document)

    monkeypatch.setattr(schema, "schema_text", schema_text)
    for module in (file, payload):
        monkeypatch.setattr(module, "Job", Nicer)
    schema._checker.cache_clear()
    yield
    schema._checker.cache_clear()


@pytest.mark.usefixtures("nicer")
def test_a_new_field_of_a_job_is_a_line_in_the_dataclass_and_in_the_schema(tmp_path: Path) -> None:
    """Job file -> Job -> payload.json -> Job."""
    image = Manifest("i", (ImageFile("disk", "d", "raw", 4, "a" * 64),), (Boot.DISK,), sources=("https://h.example/",))

    def travelled(text: str) -> tuple[Job, Job, dict[str, Any]]:
        (tmp_path / "job.yaml").write_text(text)
        job = file.load_job(tmp_path / "job.yaml")
        written = payload.write_payload(tmp_path, Payload(job, image, {}))
        return job, payload.read_payload(tmp_path).job, json.loads(written.read_text())["job"]

    plain = "name: j\nimage: i\ncommand: [sleep, 1s]\nresources: {memory: 2GiB, walltime: 1h}\n"
    job, there, document = travelled(plain + "patience: 1h30m\nflavours: {b: x, a: y}\n")
    assert isinstance(job, Nicer) and there == job
    assert job.patience == 5400 and dict(job.flavours) == {"b": "x", "a": "y"}
    assert document["patience"] == 5400 and document["flavours"] == {"b": "x", "a": "y"}
    job, there, document = travelled(plain)
    assert there == job and [*document] == [one.name for one in fields(Job)]  # as before, so older versions read it
    (tmp_path / "job.yaml").write_text(plain + "patience: soon\n")
    with pytest.raises(JobError, match=r"job\.yaml: patience: 'soon' is not a duration"):
        file.load_job(tmp_path / "job.yaml")
