"""The library, by its own doctest on a real guest."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import vmjob.api

pytestmark = pytest.mark.integration


def test_doctest(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMJOB_HOME", str(home / "store"))
    monkeypatch.setenv("VMJOB_CACHE", str(home / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    failed, tried = doctest.testmod(vmjob.api, optionflags=doctest.ELLIPSIS)
    assert tried > 5 and failed == 0
