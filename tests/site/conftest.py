"""The running test site, shared by all tests of a session, and by sessions at the same time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest

from tests.site import site as whole
from tests.site.layout import SITE


@pytest.fixture(scope="session")
def site() -> Iterator[whole.Site]:
    """The site, up. One that was running is used and left running."""
    reason = whole.why_not()
    if reason:
        pytest.skip(reason)
    SITE.mkdir(parents=True, exist_ok=True)
    with (SITE / "users.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        ours = not whole.running()
        running = whole.up()
        if ours:
            whole.MARK.touch()
        yield running
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another session still uses it
        if whole.MARK.exists():
            whole.down()


@pytest.fixture
def broken(site: whole.Site) -> Iterator[whole.Site]:
    """The site for a test that breaks it: whole again afterwards."""
    yield site
    site.mend()
