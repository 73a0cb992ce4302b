"""What fuzzing found, once more, without atheris: each input is accepted, or refused by name (tests/fuzz)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fuzz.target import CORPUS, LARGEST, Target, TooSlow, run
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


@pytest.mark.parametrize("one", [one for one in TARGETS.values() if one.corpus.is_dir()], ids=lambda one: one.name)
def test_the_inputs_of_the_corpus(one: Target, tmp_path: Path) -> None:
    faults = []
    for path in sorted(one.corpus.iterdir()):
        place = tmp_path / path.name
        place.mkdir()
        try:
            run(one, path.read_bytes(), place)
        except (Exception, TooSlow) as fault:
            faults.append(f"python -m tests.fuzz --repeat {path.relative_to(ROOT)}: {type(fault).__name__}: {fault}")
    assert not faults, "\n".join(faults)


def test_the_corpus_is_small_and_has_inputs_for_targets_alone() -> None:
    assert {path.parent.name for path in _INPUTS} <= set(TARGETS)
    assert sum(path.stat().st_size for path in _INPUTS) < _ROOM
    assert all(path.stat().st_size <= LARGEST for path in _INPUTS)
