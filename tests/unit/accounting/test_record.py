"""Usage records as values."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vmjob.accounting.record import UsageRecord, changes

pytestmark = pytest.mark.unit


def test_changes_are_whole_json_however_long_the_texts() -> None:
    """They were cut at 4,095 bytes, which left no JSON, and with it nothing of what the run had used."""
    before = UsageRecord("0" * 8 + "-0000" * 3 + "-" + "0" * 12, "", "", "", 0, "", 0.0)
    now = replace(before, wall=7.5, vo="pheno", said_by="\u20ac" * 3000, accelerator="kvm")
    body = changes(before, now, 4095)
    assert len(body) <= 4095
    assert json.loads(body) == {"wall": 7.5, "vo": "pheno", "accelerator": "kvm"}
    assert json.loads(changes(before, replace(now, said_by="x"), 4095))["said_by"] == "x"
