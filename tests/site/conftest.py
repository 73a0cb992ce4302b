"""The running test site, shared by all tests of a session, and by sessions at the same time."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.conftest import ROOT, Cli
from tests.site import inside, root
from tests.site import site as whole
from tests.site.layout import SITE


def pytest_collection_finish(session: pytest.Session) -> None:
    """An ordinary user's session of nothing but site tests goes on where she is root."""
    here = Path(__file__).parent
    ours = bool(session.items) and all(here in item.path.parents for item in session.items)
    if inside.needed() and ours and not session.config.option.collectonly and whole.why_not() is None:
        session.config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
        root.ensure()
        status = inside.run(sys.executable, "-m", "pytest", *map(str, session.config.invocation_params.args))
        sys.stdout.flush()
        os._exit(status)


@pytest.fixture(scope="session")
def site() -> Iterator[whole.Site]:
    """The site, up. One that was running is used and left running."""
    reason = whole.why_not()
    if reason or inside.needed():
        pytest.skip(reason or "not root: run these by themselves, pytest tests/site")
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


@pytest.fixture(scope="session")
def worker(home: Path) -> str:
    """An image with HTCondor, for glide-ins."""
    images.need({"qemu-system-x86_64": "qemu-system-x86"})
    return images.register(Cli(home, home), images.built(ROOT / "tests/site/worker.yaml"))


@pytest.fixture
def broken(site: whole.Site) -> Iterator[whole.Site]:
    """The site for a test that breaks it: whole again afterwards."""
    yield site
    site.mend()
