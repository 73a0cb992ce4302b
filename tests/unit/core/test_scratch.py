"""Run folders and output claims: locks, sweeping, kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmjob.core.errors import FolderBusy, ScratchFull, SlotError
from vmjob.core.scratch import claim, scratch, sweep

pytestmark = pytest.mark.unit


def child(code: str) -> subprocess.Popen[bytes]:
    """A Python that prints a line when it has done ``code``, and then hangs."""
    code += "\nprint('ready', flush=True)\nimport time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


ENTER = ("from pathlib import Path; from vmjob.core.scratch import *\n"
         "held = {0}(Path({1!r})); inside = held.__enter__(); (inside / 'left').touch()")


def test_fresh_private_and_gone(tmp_path: Path) -> None:
    with scratch(tmp_path) as first, scratch(tmp_path) as second:
        assert first != second and first.parent == tmp_path and first.name.startswith("vmjob-run-")
        assert first.stat().st_mode & 0o777 == 0o700
        (first / "deep/er").mkdir(parents=True)
        (first / "deep/er/file").write_text("x")
        (first / "deep/er/file").chmod(0o400)
        (first / "deep/er").chmod(0o500)
        (first / "out").symlink_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_dead_runs_are_swept_and_living_ones_not(tmp_path: Path) -> None:
    dead, alive = child(ENTER.format("scratch", str(tmp_path))), child(ENTER.format("scratch", str(tmp_path)))
    try:
        kill(dead)
        assert len(list(tmp_path.iterdir())) == 2
        with scratch(tmp_path) as mine:
            assert len(list(tmp_path.iterdir())) == 2 and mine.exists()
        assert [path.name for path in next(tmp_path.iterdir()).iterdir() if path.name == "left"] == ["left"]
    finally:
        kill(alive)
    assert len(sweep(tmp_path)) == 1 and list(tmp_path.iterdir()) == []


def test_sweep_follows_no_links(tmp_path: Path) -> None:
    victim, slot = tmp_path / "victim", tmp_path / "slot"
    (victim / "inner").mkdir(parents=True)
    (victim / "file").touch()
    slot.mkdir()
    (slot / "vmjob-run-aaaa").symlink_to(victim)
    (slot / "vmjob-run-bbbb").mkdir()
    (slot / "vmjob-run-bbbb/down").symlink_to(victim)
    (slot / "vmjob-run-cccc").mkdir()
    (slot / "vmjob-run-cccc/.lock").symlink_to(victim / "file")
    (slot / "other-run").mkdir()
    sweep(slot)
    assert sorted(path.name for path in slot.iterdir()) == ["other-run", "vmjob-run-aaaa", "vmjob-run-cccc"]
    assert (victim / "file").exists() and (victim / "inner").exists()


def test_a_run_about_to_be_born_is_left(tmp_path: Path) -> None:
    young, old = tmp_path / ".vmjob-new-young", tmp_path / ".vmjob-new-old"
    for folder in (young, old):
        folder.mkdir()
        (folder / ".lock").touch()
    os.utime(old, (time.time() - 3600,) * 2)
    assert sweep(tmp_path) == [old] and young.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a folder of another user: run the tests as root")
def test_other_users_folders_are_left(tmp_path: Path) -> None:
    (tmp_path / "vmjob-run-xxxx").mkdir()
    os.chown(tmp_path / "vmjob-run-xxxx", 12345, 12345)
    assert sweep(tmp_path) == []


def test_many_start_at_once(tmp_path: Path) -> None:
    code = ("from pathlib import Path; from vmjob.core.scratch import scratch\n"
            f"for n in range(40):\n with scratch(Path({str(tmp_path)!r})) as f:\n"
            "  (f / 'mine').mkdir(); (f / 'mine/x').touch(); assert (f / 'mine/x').exists()\n")
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    told = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, told
    assert list(tmp_path.iterdir()) == []


def test_no_space_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ScratchFull) as caught, scratch(tmp_path, 2**60):
        pass
    assert "1024.0 TiB" in caught.value.message or "1048576" in caught.value.message
    with pytest.raises(SlotError), scratch(tmp_path / "none"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_claim_names_the_holder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    holder = child(ENTER.format("claim", str(folder)))
    try:
        with pytest.raises(FolderBusy) as caught, claim(folder):
            pass
        assert f"process {holder.pid}" in caught.value.message and caught.value.hint
    finally:
        kill(holder)
    with claim(folder):
        assert (folder / ".vmjob.lock").read_text().strip() == str(os.getpid())
        with pytest.raises(FolderBusy), claim(folder):
            pass
    assert sorted(path.name for path in folder.iterdir()) == ["left"]


def test_claim_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.vmjob.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(SlotError), claim(tmp_path / "out"):
        pass
    assert (tmp_path / "precious").read_text() == "keep"


def test_claims_in_turn_never_overlap(tmp_path: Path) -> None:
    code = ("import os; from pathlib import Path; from vmjob.core.errors import FolderBusy\n"
            "from vmjob.core.scratch import claim\n"
            f"got, f = 0, Path({str(tmp_path)!r})\n"
            "while got < 50:\n"
            " try:\n"
            "  with claim(f):\n"
            "   os.close(os.open(f / 'one', os.O_CREAT | os.O_EXCL)); os.unlink(f / 'one'); got += 1\n"
            " except FolderBusy: pass\n")
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    told = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 3, told
    assert list(tmp_path.iterdir()) == []
