"""Bare Debian systems that the tests share, with what set-up itself asked for; and what set-up printed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.bare import Bare, bare, why_not
from tests.fresh import clone

PACKAGES = ("make", "git", "ca-certificates")
DEBIAN_12, DEBIAN_13 = "bookworm", "trixie"


@dataclass
class Machine:
    """A Debian system with an ordinary user, ada, for whom root installed what set-up listed."""

    root: Bare
    installed: str  # the command with which root did

    def clone(self, place: str) -> str:
        """A new clone of the repository in ada's home; its path."""
        return clone.new(self.root, "ada", place)

    def setup(self, checkout: str, *, user: str = "ada", env: dict[str, str] | None = None,
              network: bool = True) -> SetUp:
        done = self.root.run(".ci/setup", "demo", user=user, cwd=checkout, env=env, network=network, check=False)
        return SetUp(done)

    def works(self, checkout: str) -> None:
        """A whole set-up made of it: vmjob has all that it imports, and the micro image."""
        self.root.run(".venv/bin/vmjob", "image", "inspect", "micro", user="ada", cwd=checkout)
        self.root.run(".venv/bin/python", "-c", "import vmjob.api, ldap3, pycdlib, qemu.qmp", user="ada", cwd=checkout)


class SetUp:
    """What became of a set-up."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status = done.returncode
        self.printed = done.stdout + done.stderr

    def succeeded(self) -> SetUp:
        assert self.status == 0, self.printed
        return self

    def refused(self, *why: str) -> SetUp:
        """It failed, said each of ``why`` and a next action, as a person would want it."""
        assert self.status not in (0, 126, 127), self.printed
        for words in why:
            assert words in self.printed, self.printed
        assert "setup: → " in self.printed, self.printed
        assert "Traceback" not in self.printed, self.printed
        return self


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Machine]]:
    """Gives the machine with a suite; it is made when a test first asks for it."""
    made: dict[str, Machine] = {}
    with ExitStack() as stack:
        def machine(suite: str) -> Machine:
            if suite not in made:
                need()
                root = stack.enter_context(bare(suite, PACKAGES, folder=tmp_path_factory.mktemp("bare")))
                asked = clone.new(root, "ada", "asked")
                made[suite] = Machine(root, clone.install_what_it_lists(root, asked, ".ci/setup demo", "ada"))
            return made[suite]

        yield machine


@pytest.fixture
def machine(machines: Callable[[str], Machine]) -> Machine:
    """Debian 12's."""
    return machines(DEBIAN_12)


def need() -> None:
    if cannot := why_not():
        pytest.skip(cannot)
