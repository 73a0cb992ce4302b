"""A glide-in's token where no batch system of ours brings it: beside the payload, for as long as nobody has started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli, result_of
from tests.site.secrets import invented

pytestmark = pytest.mark.integration

JOB = "image: micro\nglidein: {pool: vo.example.org, token: secret, site: test}\nresources: {memory: 256MiB}\n"


@pytest.fixture
def token(cli: Cli) -> str:
    made = invented()
    (cli.cwd / "secret").write_text(made)
    (cli.cwd / "secret").chmod(0o600)
    (cli.cwd / "job.yaml").write_text(JOB)
    return made


def holders(folder: Path, token: str) -> list[str]:
    """Files with the token, but for the user's own."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(path.name for path in files if token[-40:].encode() in path.read_bytes() and path.name != "secret")


def wrapped(payload: Path, cli: Cli, **more: str) -> subprocess.CompletedProcess[str]:
    (cli.cwd / "slot").mkdir(exist_ok=True)
    return subprocess.run(["sh", payload / "vmjob-wrapper.sh", "--results", cli.cwd / "slot", "-vvv"],
                          cwd=cli.cwd / "slot", env={**cli.environment(), "VMJOB_PYTHON": sys.executable, **more},
                          capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["p", "p.tar"])
def test_a_packed_token_is_for_one_start(cli: Cli, token: str, name: str) -> None:
    packed = cli("pack", "job.yaml", "-o", name)
    assert packed.status == 0 and "will hold the glide-in's token" in packed.err, packed.err
    payload = cli.cwd / "p"
    if name == "p.tar":
        assert (cli.cwd / name).stat().st_mode & 0o777 == 0o600
        subprocess.run(["tar", "xf", name, "--one-top-level=p"], cwd=cli.cwd, check=True)
        (cli.cwd / name).unlink()
    assert (payload / "token").stat().st_mode & 0o777 == 0o600 and holders(cli.cwd, token) == ["token"]
    kept = cli.cwd / "kept"  # another name of the same file shows what was written over it
    os.link(payload / "token", kept)
    first = wrapped(payload, cli)
    assert result_of(cli.cwd / "slot")["failure"]["kind"] == "CondorMissing", first.stderr  # the guest had it, so far
    assert kept.read_bytes().strip(b"\0") == b"" and not (payload / "token").exists()
    assert holders(cli.cwd, token) == [] and token not in first.stderr + first.stdout
    assert wrapped(payload, cli).returncode == 203
    failure = result_of(cli.cwd / "slot")["failure"]
    assert failure["kind"] == "TokenRefused" and "single start" in failure["hint"]


def test_a_payload_that_cannot_start_loses_it_too(cli: Cli, token: str) -> None:
    assert cli("pack", "job.yaml", "-o", "p").status == 0
    (cli.cwd / "p/payload.json").write_text("{")
    assert wrapped(cli.cwd / "p", cli).returncode == 200 and holders(cli.cwd, token) == []
    assert cli("pack", "job.yaml", "-o", "p").status == 0
    shutil.rmtree(cli.cwd / "p/image")
    assert wrapped(cli.cwd / "p", cli).returncode == 211 and holders(cli.cwd, token) == []
    assert cli("pack", "job.yaml", "-o", "q").status == 0
    bare = cli.cwd / "bin"
    bare.mkdir()
    for tool in ("sh", "rm", "cat"):
        (bare / tool).symlink_to(str(shutil.which(tool)))
    # an absolute path of the system's Python would be found
    text = (cli.cwd / "q/vmjob-wrapper.sh").read_text().replace("/usr/", "/nonexistent/")
    (cli.cwd / "q/vmjob-wrapper.sh").write_text(text)
    assert wrapped(cli.cwd / "q", cli, PATH=str(bare), VMJOB_PYTHON="").returncode == 236
    assert holders(cli.cwd, token) == []


def test_each_slot_here_gets_one(cli: Cli, token: str) -> None:
    done = cli("submit", "--to", "local", "job.yaml", "--name", "few", "-n", 2, "-vv")
    assert done.status == 215 and token not in done.err + done.out.decode(), done.err
    for number in (0, 1):
        assert result_of(cli.cwd / f"few.out/{number}")["failure"]["kind"] == "CondorMissing"
    assert holders(cli.cwd, token) == [] and cli.left_over() == []
