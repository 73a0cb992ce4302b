"""Dataclasses to documents and back, by their fields alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional, Union

import pytest

from vmjob.core import codec
from vmjob.core.errors import ImageError, JobError

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
