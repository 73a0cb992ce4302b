"""What several of these files share."""

from __future__ import annotations

import pytest

from tests.ca import Ca


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    """For tests that change nothing of what it is trusted for; others make one of their own."""
    return Ca(tmp_path_factory.mktemp("ca"))
