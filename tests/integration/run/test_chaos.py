"""A minute of ``make chaos``: the faults that need no luck, with a seed that is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.chaos.faults import FAULTS
from tests.conftest import ROOT

pytestmark = pytest.mark.integration

QUICK = ("SIGTERM in the first 0.6 s", "kill -9 of vmjob in the first 0.6 s", "signals once the result is there",
         "SIGTERM while the program runs", "the scratch folder is removed", "16 descriptors")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", QUICK)
def test_each_run_tells_the_outcome_that_it_had(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.chaos", "--only", name, "--runs", "2"], cwd=ROOT,
                          capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr + done.stdout


def test_forty_faults() -> None:
    names = [one.name for one in FAULTS]
    assert len(names) == len(set(names)) >= 40 and set(QUICK) <= set(names)
