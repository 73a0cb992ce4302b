"""A new clone of this repository in a bare root, and the packages that its set-up asks for."""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Optional, TextIO

from tests.bare import Bare

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALL = re.compile(r"^\s*(apt-get update && apt-get install --no-install-recommends(?: [a-z0-9][a-z0-9.+-]+)+)$",
                     re.MULTILINE)


def new(made: Bare, user: str, place: str = "vmjob") -> str:
    """Clones what is committed here as ``user`` into ``place`` in her home; its path in the root."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "vmjob.git"
        subprocess.run(["git", "clone", "--quiet", "--bare", str(REPOSITORY), str(source)], check=True)
        made.put(source, "/srv/vmjob.git", user)  # git takes nothing from a repository of somebody else's
    home = "/root" if user == "root" else f"/home/{user}"
    made.run("git", "clone", "--quiet", "/srv/vmjob.git", place, user=user, cwd=home)
    return f"{home}/{place}"


def uncommitted() -> bool:
    """Whether there is something in this checkout that clones will not have."""
    done = subprocess.run(["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return bool(done.stdout)


def install_what_it_lists(made: Bare, checkout: str, command: str, user: str,
                          log: Optional[TextIO] = None) -> str:
    """Runs a set-up that lacks packages, and as root the very line that it prints; that line.

    Raises AssertionError where it does not fail, or prints no such line.
    """
    log = log or io.StringIO()
    lacking = made.run("bash", "-c", command, user=user, cwd=checkout, check=False)
    printed = lacking.stdout + lacking.stderr
    log.write(f"$ {command}\n{printed}")
    found = INSTALL.search(printed)
    assert lacking.returncode and found, f"'{command}' does not say what to install ({lacking.returncode}):\n{printed}"
    # whoever types it answers apt-get's question
    done = made.run("sh", "-c", found[1], env={"DEBIAN_FRONTEND": "noninteractive"}, input="y\n", timeout=1200)
    log.write(f"# {found[1]}\n{done.stdout}{done.stderr}")
    return found[1]
