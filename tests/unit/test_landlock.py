"""The fence around a program, held by this kernel."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vmjob import fences, landlock, process
from vmjob.errors import CommandFailed
from vmjob.landlock import Fence

pytestmark = [pytest.mark.unit, pytest.mark.skipif(not landlock.abi(), reason="needs a kernel with Landlock")]


def test_only_what_is_named_is_opened(tmp_path: Path) -> None:
    for name in ("named", "other"):
        (tmp_path / name).write_text(f"{name}\n")
    fence = fences.fence("/bin/cat", [str(tmp_path / "named")])
    assert process.run(["/bin/cat", tmp_path / "named"], fence=fence).stdout == b"named\n"
    for secret in (tmp_path / "other", Path("/etc/passwd"), Path("/proc/self/environ")):
        with pytest.raises(CommandFailed, match="Permission denied"):
            process.run(["/bin/cat", secret], fence=fence)
    (tmp_path / "link").symlink_to("other")
    with pytest.raises(CommandFailed, match="Permission denied"):
        process.run(["/bin/cat", tmp_path / "link"], fence=fence)


def test_nothing_secret_is_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that has taken QEMU over reads the memory of its process: the user's tokens are not there."""
    for name in ("BEARER_TOKEN", "X509_USER_PROXY", "_CONDOR_CREDS", "https_proxy", "LD_PRELOAD", "MY_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LC_MESSAGES", "C")
    said = process.run(["/usr/bin/env"], fence=fences.fence("/usr/bin/env")).stdout.decode()
    assert "PATH=" in said and "LC_MESSAGES=C" in said and "secret" not in said
    assert "secret" in process.run(["/usr/bin/env"]).stdout.decode()  # a program of the user's own


def test_a_file_in_the_place_of_one_that_was_named_is_another(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("verified\n")
    with landlock.ruleset(fences.fence("/bin/cat", [str(tmp_path / "disk")])) as rules:
        assert rules is not None
        (tmp_path / "new").write_text("swapped\n")
        (tmp_path / "new").rename(tmp_path / "disk")
        done = subprocess.run(["/bin/cat", tmp_path / "disk"], preexec_fn=lambda: landlock.restrict(rules),
                              capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "Permission denied" in done.stderr


def test_writing_is_for_its_folder(tmp_path: Path) -> None:
    for name in ("mine", "yours"):
        (tmp_path / name).mkdir()
    (tmp_path / "yours/file").write_text("as it was")
    fence = fences.fence("/bin/sh", [str(tmp_path / "yours")], [str(tmp_path / "mine")])
    done = process.run(["/bin/sh", "-c", 'echo a >mine/new; for to in yours/new yours/file; do echo b >"$to"; done; '
                                         "rm -f yours/file mine/new; ls yours"], cwd=tmp_path, fence=fence, check=False)
    assert done.stderr.count(b"Permission denied") == 3 and done.stdout == b"file\n"
    assert (tmp_path / "yours/file").read_text() == "as it was" and not list((tmp_path / "mine").iterdir())


@pytest.mark.skipif(landlock.abi() < 4, reason="needs Landlock's rules for TCP: Linux 6.7")
def test_no_tcp_but_where_it_is_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        python = (sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent))
        process.run([sys.executable, "-c", code], fence=Fence(programs=("/usr", "/lib", "/lib64", *python), tcp=True,
                                                              read=("/etc", "/proc")))
        with pytest.raises(CommandFailed, match="PermissionError"):
            process.run([sys.executable, "-c", code], fence=Fence(programs=("/usr", "/lib", "/lib64", *python),
                                                                  read=("/etc", "/proc")))


def test_a_program_of_the_users_own_is_not_fenced(tmp_path: Path) -> None:
    own = tmp_path / "qemu"
    own.symlink_to("/bin/cat")
    assert fences.of_system(str(own)) and fences.of_system("cat")  # what it is counts, not what it is called
    own.unlink()
    own.write_text("#!/bin/sh\n")
    assert not fences.of_system(str(own)) and fences.fence(str(own)) is None
