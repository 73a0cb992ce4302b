"""vmjob.pyz on bare nodes of Debian's releases, from the oldest Python that is supported to the newest that there is:
each is a root with Python and QEMU alone, in which an ordinary user packs a job and runs it. No network."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests import images
from tests.bare import root
from tests.conftest import Cli, result_of
from tests.integration.run.test_payload_runs import JOB
from vmjob.job.pyz import carried_pyz

pytestmark = [pytest.mark.integration, pytest.mark.image]

NODE = ("python3", "qemu-system-x86", "qemu-utils")
EVERY_PYTHON = r"?and(?name(^python3\.[0-9]+$),?not(?virtual))"  # of a suite, beside its python3
# Debian's suite -> its Python (where it is known) and what a qemu_version begins with
NODES = {"bullseye": ((3, 9), "5.2"), "bookworm": ((3, 11), "7.2"), "trixie": ((3, 13), "10.0"), "sid": (None, "")}
VERSION = "import json, sys; print(json.dumps(sys.version_info[:2]))"
# Our modules are imported, as are the parts of others' that ours import; all else is compiled.
IMPORT = r"""
import importlib, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
sys.path.insert(0, sys.argv[1])
names = [name for name in archive.namelist() if name.endswith(".py")]
for name in names:
    compile(archive.read(name), name, "exec")
ours = [name[:-3].replace("/", ".").removesuffix(".__init__") for name in names if name.startswith("vmjob/")]
for name in ours + ["yaml", "requests", "urllib3", "tqdm", "pycdlib", "fastjsonschema", "htchirp", "qemu.qmp"]:
    if not name.endswith("__main__"):
        assert importlib.import_module(name).__file__.startswith(sys.argv[1]), name
print(len(names), len(ours))
"""


@pytest.fixture(params=NODES)
def node(request: pytest.FixtureRequest, cli: Cli) -> Iterator[tuple[str, root.Bare, str]]:
    """Suite, root, and the newest Python in it."""
    images.need({"mmdebstrap": "mmdebstrap", "unshare": "util-linux"})
    if root.why_not():
        pytest.skip(root.why_not() or "")
    include = (*NODE, EVERY_PYTHON) if request.param == "sid" else NODE
    try:
        root.kept(request.param, include)
    except RuntimeError as failed:
        if request.param != "sid":
            raise
        pytest.skip(f"Debian unstable cannot be installed today: {failed}")
    with root.bare(request.param, include, folder=cli.cwd) as bare:
        found = bare.run("sh", "-c", r"ls /usr/bin | grep -E '^python3\.[0-9]+$'").stdout.split()
        newest = max(found, key=lambda name: int(name.partition(".")[2]))
        # every warning is an error, also in what the wrapper starts
        bare.write("/usr/local/bin/strict-python", f'#!/bin/sh\nexec /usr/bin/{newest} -W error "$@"\n')
        bare.run("chmod", "755", "/usr/local/bin/strict-python")
        yield request.param, bare, "strict-python"


def test_vmjob_pyz_packs_and_runs_a_job(node: tuple[str, root.Bare, str], cli: Cli) -> None:
    suite, bare, python = node
    wanted, qemu = NODES[suite]
    home = "/home/ada"
    assert cli("image", "micro", "-o", "micro").status == 0
    (cli.cwd / "job.yaml").write_text(JOB)
    (cli.cwd / "greeting").write_text("hello\n")
    for name in ("micro", "job.yaml", "greeting"):
        bare.put(cli.cwd / name, f"{home}/{name}", "ada")
    bare.put(carried_pyz(), f"{home}/vmjob.pyz", "ada")

    def ada(*words: str, cwd: str = home, status: int = 0, **env: str) -> str:
        done = bare.run(*words, user="ada", cwd=cwd, env=env, check=False, network=False, timeout=200)
        said = done.stdout + done.stderr
        assert done.returncode == status and "Warning" not in said and "Traceback" not in said, (words, said)
        return done.stdout

    found = tuple(json.loads(ada(python, "-c", VERSION)))
    assert found == wanted if wanted else found >= (3, 14), found
    assert ada(python, "vmjob.pyz", "--version").startswith("vmjob ")
    for words in ((), ("run",), ("pack",), ("image", "build")):
        assert ada(python, "vmjob.pyz", *words, "--help").startswith("usage: ")
    assert ada(python, "-c", IMPORT, f"{home}/vmjob.pyz")

    ada(python, "vmjob.pyz", "image", "import", "micro")
    ada(python, "vmjob.pyz", "pack", "job.yaml", "-o", "p")
    ada("sh", "vmjob-wrapper.sh", cwd=f"{home}/p", status=3, VMJOB_PYTHON=python)

    def slot(name: str) -> str:
        return bare.run("cat", f"{home}/p/{name}").stdout

    assert json.loads(slot("payload.json"))["job"]
    (cli.cwd / "result.json").write_text(slot("result.json"))
    result = result_of(cli.cwd)
    assert (result["outcome"], result["exit_status"], result["job"]) == ("program-failed", 3, "packed")
    assert result["qemu_version"].startswith(qemu)
    greeting, uid = slot("out.txt").split()
    assert greeting == "hello" and uid != "0"
