"""The wheel in a stranger's virtual environment, beside whatever releases the index of today has; what it packs runs on
the oldest Python."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bare import bare
from tests.conftest import ROOT
from tests.fresh.conftest import DEBIAN_13, Machine
from tests.integration.job.test_pythons import NODE

pytestmark = pytest.mark.fresh

DEBIAN_11 = "bullseye"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By way of the sdist, which has vmjob.pyz and needs nothing from an index."""
    out = tmp_path_factory.mktemp("built")
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_a_wheel_beside_newer_releases_packs_for_python_3_9(machines: Callable[[str], Machine], wheel: Path,
                                                            tmp_path: Path) -> None:
    root = machines(DEBIAN_13).root
    root.put(wheel, f"/home/ada/{wheel.name}", "ada")

    def ada(*words: str) -> str:
        return root.run(*words, user="ada", cwd="/home/ada").stdout

    ada("python3", "-m", "venv", "env")
    ada("env/bin/pip", "install", "--quiet", f"./{wheel.name}")
    assert ada("env/bin/python", "-c", "import sys; print(sys.version_info >= (3, 13))") == "True\n"
    ada("env/bin/vmjob", "image", "micro")
    ada("env/bin/vmjob", "pack", "--image", "micro", "-o", "p", "--", "uname", "-s")
    payload = root.path / "home/ada/p"
    with zipfile.ZipFile(wheel) as archive:
        carried = archive.read("vmjob/vmjob.pyz")
        assert json.loads(archive.read("vmjob/built.json"))["commit"]
    assert root.run("cat", "/home/ada/p/vmjob.pyz", user="ada").stdout  # it is hers to read
    assert (payload / "vmjob.pyz").read_bytes() == carried
    # it works too where a release is missing that it carries: packing copies a file
    ada("env/bin/pip", "uninstall", "--quiet", "--yes", "htchirp", "pycdlib")
    ada("env/bin/vmjob", "pack", "--image", "micro", "-o", "q", "--", "true")
    assert (root.path / "home/ada/q/vmjob.pyz").read_bytes() == carried

    with bare(DEBIAN_11, NODE, folder=tmp_path) as node:
        node.put(payload, "/srv/p")
        node.run("mkdir", "slot", user="bob", cwd="/home/bob")
        done = node.run("sh", "/srv/p/vmjob-wrapper.sh", user="bob", cwd="/home/bob/slot", network=False)
        assert done.stdout == "Linux\n" and node.run("python3", "--version").stdout.startswith("Python 3.9.")
        result = json.loads(node.run("cat", "/home/bob/slot/result.json").stdout)
        assert (result["outcome"], result["exit_status"]) == ("ok", 0)
