"""What a glide-in's startd says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmjob.core.glideins import Glidein, Times
from vmjob.core.model import Slot
from vmjob.guest.glidein import configuration

pytestmark = pytest.mark.unit


def test_a_long_attribute_reaches_the_pool_whole() -> None:
    """It was shortened as Chirp's are, which a configuration has no need of."""
    text = "abcd " * 400 + "end"
    glidein = Glidein("cm.example.org", attributes=(("Software", text),))
    lines = configuration(glidein, 1, Slot("", Path(), 1, 0, 0), "n", Times(), 0).split("\n")
    assert f'Software = "{text}"' in lines
