"""Which inputs that fuzzing found are worth a place in the corpus: those that reach lines nothing kept reaches."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from tests.conftest import ROOT
from tests.fuzz.target import Target, run

_MOST = 8  # inputs of a target
_LARGE = 4096  # bytes of one; a parser that needs more has a seed for it
_PARSERS = (str(ROOT / "vmjob"), str(ROOT / "ceMon-publisher"))


def keep(one: Target, found: Iterable[Path]) -> int:
    """Copy the best of the files ``found`` into the target's corpus; how many that were."""
    seen: set[tuple[str, int]] = set()
    for data in (*one.seeds(), *(path.read_bytes() for path in one.corpus.glob("*"))):
        seen |= _lines(one, data)
    reached = {path: _lines(one, path.read_bytes()) for path in found if path.stat().st_size <= _LARGE}
    kept = 0
    while kept < _MOST and reached:
        best = max(reached, key=lambda path: (len(reached[path] - seen), -path.stat().st_size))
        if not reached[best] - seen:
            break
        one.corpus.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best, one.corpus / f"found-{best.name[:12]}")
        seen |= reached.pop(best)
        kept += 1
    return kept


def _lines(one: Target, data: bytes) -> set[tuple[str, int]]:
    """Files and lines of our own that an input reaches."""
    seen: set[tuple[str, int]] = set()

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PARSERS):
            return None
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return line

    with tempfile.TemporaryDirectory() as place, suppress(Exception):
        sys.settrace(line)
        try:
            run(one, data, Path(place))
        finally:
            sys.settrace(None)
    return seen
