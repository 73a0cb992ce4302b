"""A frozen dataclass <-> its document (what JSON and YAML hold), by the fields of the dataclass.

A field stands under its name, and its type says what stands there: an Enum its value; a dataclass a mapping;
``tuple[X, ...]`` a list; ``tuple[tuple[str, X], ...]`` a mapping; Optional also null; any other type the value itself.
``field(metadata=...)`` has what a type cannot say: SIZE, DURATION, SPARSE, SECRET, ``key``; several of them with |.
Whether the document has the right types is the schema's matter (core.schema.check), and comes first. Keys that are no
fields are passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, Optional, TypeVar, Union, get_args, get_origin, get_type_hints

from vmjob.core.errors import JobError, VmjobError
from vmjob.core.units import parse_duration, parse_size, size_text

T = TypeVar("T")
# Numbers that people write with a unit (2GiB, 1h30m), and programs as bytes and seconds: read from text, and back.
SIZE: dict[str, Any] = {"unit": (parse_size, size_text)}
DURATION: dict[str, Any] = {"unit": (parse_duration, lambda seconds: f"{seconds}s")}
SPARSE = {"sparse": True}  # left out of the document where it has its default, so that older versions read the others
SECRET = {"secret": True}  # read, and never written


def key(name: str) -> dict[str, Any]:
    """The field stands under ``name``; ``a.b``: under b in the mapping a."""
    return {"key": name}


def read(kind: type[T], document: Mapping[str, Any], where: str, *, units: bool = False,
         error: type[VmjobError] = JobError) -> T:
    """The value that ``document`` stands for; ``where`` names it in messages. ``units``: people wrote it. Raises
    ``error`` naming ``where`` and the key for no size, no duration, an unknown word and a missing key."""
    found: T = _read(kind, document, _At(where, ": ", units, error))
    return found


def write(value: Any, *, units: bool = False) -> dict[str, Any]:
    """What ``read`` reads back as an equal value; keys in the order of the fields, plain types only."""
    document: dict[str, Any] = {}
    for name, above, last, _, writes, _, absent in _fields(value.__class__):
        here = getattr(value, name)
        if writes and here != absent:
            place = document.setdefault(above, {}) if above else document
            place[last] = writes(here, units)
    return document


class _At:
    """A place in a document, for messages, and how it is read."""

    def __init__(self, text: str, joint: str, units: bool, error: type[VmjobError]) -> None:
        self.text, self.joint, self.units, self.error = text, joint, units, error

    def below(self, name: object) -> _At:
        return _At(f"{self.text}{self.joint}{name}", ".", self.units, self.error) if name != "" else self


_Way = Callable[[Any, Any], Any]  # reads a value at an _At, or writes it with units or without
_same: _Way = lambda value, _: value  # noqa: E731
# Of a field: its name, and of its key a.b: a (else empty), and b; how it is read; how it is written, if it is; is it
# required; the value that is not written. Plain tuples: a class costs each start of vmjob more than all that is read.
_Field = tuple[str, str, str, _Way, Optional[_Way], bool, Any]


@cache
def _fields(kind: Any) -> list[_Field]:
    found: list[_Field] = []
    hints, missing = get_type_hints(kind), dataclasses.MISSING
    for one in dataclasses.fields(kind):
        default, more = one.default if one.default_factory is missing else one.default_factory(), one.metadata
        above, _, last = more.get("key", one.name).rpartition(".")
        reads, writes = _optional(*_amount(*more["unit"])) if "unit" in more else _ways(hints[one.name])
        found.append((one.name, above, last, reads, None if "secret" in more else writes, default is missing,
                      default if "sparse" in more else missing))
    return found


def _read(kind: Any, document: Mapping[str, Any], at: _At) -> Any:
    values = {}
    for name, above, last, reads, _, required, _ in _fields(kind):
        place = document.get(above, {}) if above else document
        if last in place:
            values[name] = reads(place[last], at if reads is _same else at.below(above).below(last))
        elif required:
            raise at.error(f"{at.text}: the key '{last}' is missing", "")
    return kind(**values)


def _ways(hint: Any) -> tuple[_Way, _Way]:
    """How a value of this type is read and written."""
    outer, args = get_origin(hint), get_args(hint)
    if outer is Union and type(None) in args:
        return _optional(*_ways(Union[tuple(arg for arg in args if arg is not type(None))]))
    if outer is tuple:
        pairs = get_origin(args[0]) is tuple
        return (_mapping if pairs else _list)(*_ways(get_args(args[0])[1] if pairs else args[0]))
    if dataclasses.is_dataclass(hint):
        return lambda value, at: _read(hint, value, at), lambda value, units: write(value, units=units)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value, at: _word(hint, value, at), lambda value, _: value.value
    return _same, _same


def _optional(reads: _Way, writes: _Way) -> tuple[_Way, _Way]:
    return (lambda value, at: None if value is None else reads(value, at),
            lambda value, units: None if value is None else writes(value, units))


def _list(reads: _Way, writes: _Way) -> tuple[_Way, _Way]:
    if reads is _same:
        return lambda value, _: tuple(value), lambda value, _: list(value)
    return (lambda value, at: tuple([reads(one, at.below(n)) for n, one in enumerate(value)]),
            lambda value, units: [writes(one, units) for one in value])


def _mapping(reads: _Way, writes: _Way) -> tuple[_Way, _Way]:
    return (lambda value, at: tuple([(name, reads(one, at.below(name))) for name, one in value.items()]),
            lambda value, units: {name: writes(one, units) for name, one in dict(value).items()})


def _word(kind: type[Enum], value: Any, at: _At) -> Enum:
    known: dict[Any, Enum] = {one.value: one for one in kind}
    if value not in known:
        raise at.error(f"{at.text}: {value!r} is not one of {', '.join(map(str, known))}", "")
    return known[value]


def _amount(parse: Callable[[Any, str], int], text: Callable[[int], str]) -> tuple[_Way, _Way]:
    def parsed(value: Any, at: _At) -> Any:
        try:
            return parse(value, at.text) if at.units else value
        except JobError as wrong:
            raise at.error(wrong.message, wrong.hint) from wrong

    return parsed, lambda value, units: text(value) if units else value
