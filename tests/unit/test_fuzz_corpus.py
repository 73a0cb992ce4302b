"""What fuzzing found, once more, without atheris: each input is accepted, or refused by name (tests/fuzz)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.target import CORPUS, LARGEST, Target, run
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.unit
_ROOM = 500 * 1024  # bytes of all inputs together
_INPUTS = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("one", TARGETS.values(), ids=lambda one: one.name)
def test_a_target_accepts_the_valid_inputs_it_begins_with(one: Target, tmp_path: Path) -> None:
    """One that refuses them would look at nothing behind the first line of its parser."""
    for number, data in enumerate(one.seeds()):
        place = tmp_path / str(number)
        place.mkdir()
        assert run(one, data, place), f"{one.name}: the seed {number} is refused"


@pytest.mark.parametrize("path", _INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_input_of_the_corpus(path: Path, tmp_path: Path) -> None:
    run(TARGETS[path.parent.name], path.read_bytes(), tmp_path)


def test_the_corpus_is_small_and_has_inputs_for_targets_alone() -> None:
    assert {path.parent.name for path in _INPUTS} <= set(TARGETS)
    assert sum(path.stat().st_size for path in _INPUTS) < _ROOM
    assert all(path.stat().st_size <= LARGEST for path in _INPUTS)
