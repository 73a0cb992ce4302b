"""What the startd's hook prints, whatever goes wrong; and runs that a node's hook counts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli
from vmjob.ads.node_ad import from_json
from vmjob.slot.register import Seen, survey

pytestmark = pytest.mark.integration

HOOK = ROOT / "wrappers/vmjob-startd.sh"
SHELLS = [shell for shell in (["dash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]


def until(what: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def node(cli: Cli) -> Cli:
    """A node of its own."""
    (cli.cwd / "runs").mkdir()
    cli.env = {"VMJOB_RUNS": str(cli.cwd / "runs"), "VMJOB_CACHE": str(cli.cwd / "cache")}
    return cli


def seen(node: Cli) -> Seen:
    return survey(node.cwd / "runs", time.time())


def said(text: str) -> dict[str, str]:
    """Whole, or nothing of it counts."""
    lines = text.splitlines()
    assert lines[-1] == "-" and lines.count("-") == 1
    return dict(line.split(" = ", 1) for line in lines[:-1])


def test_a_run_is_counted_while_it_lives_and_not_after_kill_9(node: Cli) -> None:
    run = node.start("run", "--image", "micro", "--", "sleep", "60")
    try:
        until(lambda: seen(node).running == 1)
        ad = from_json(node("site", "advertise", "--json").json, "it")
        assert ad.has and ad.running == 1 and ad.checked and ad.accel in ("kvm", "tcg")
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    until(lambda: seen(node).running == 0)


def test_a_node_without_a_sound_qemu_is_offline_until_it_has_one(node: Cli) -> None:
    qemu = node.cwd / "qemu"
    broken = node.cwd / "broken"
    qemu.write_text(f'#!/bin/sh\n[ ! -e {broken} ] || exit 1\nexec qemu-system-x86_64 "$@"\n')
    qemu.chmod(0o755)
    env = {"VMJOB_QEMU": str(qemu)}

    def has() -> str:
        return said(node("site", "advertise", env=env).out.decode())["HasVmjob"]

    assert has() == "time() < VmjobExpires"
    broken.touch()
    assert has() == "time() < VmjobExpires"  # nobody had a reason to test it
    assert node.micro("--", "true", env=env).status == 234
    assert [one.kind for one in seen(node).failed] == ["QemuFailed"]
    assert has() == has() == "false"
    broken.unlink()
    assert has() == "time() < VmjobExpires"
    for _ in range(2):  # it cannot be one user's fault
        assert node.micro("--", "true", env={"VMJOB_QEMU": "/nowhere/qemu"}).status == 231
    missing = node("site", "advertise", "--json", env={"VMJOB_QEMU": "/nowhere/qemu"}).json
    assert not missing["has"] and "/nowhere/qemu" in missing["offline"] and missing["max_memory"]
    back = node("site", "advertise", "--json", env=env).json
    assert back["has"] and back["failing"] == [] and back["checked"] >= missing["checked"]


def test_who_takes_too_long_is_offline_and_leaves_nothing_running(node: Cli) -> None:
    qemu = node.cwd / "qemu"
    qemu.write_text(f"#!/bin/sh\necho $$ >{node.cwd}/pid\nexec sleep 100\n")
    qemu.chmod(0o755)
    done = node("site", "advertise", "--deadline", "1", env={"VMJOB_QEMU": str(qemu)})
    ad = said(done.out.decode())
    assert ad["HasVmjob"] == "false" and "more than 1 s" in ad["VmjobOfflineReason"] and done.status == 0
    pid = int((node.cwd / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_broken_policy_takes_the_node_offline_and_limits_are_told(node: Cli) -> None:
    policy = node.cwd / "policy.yaml"
    policy.write_text(json.dumps({"limits": {"memory": "1GiB", "cpus": 1, "networks": "none"}}))
    ad = node("site", "advertise", "--json", env={"VMJOB_POLICY": str(policy)}).json
    assert (ad["max_memory"], ad["max_cpus"], ad["networks"]) == (2**30, 1, ["none"])
    policy.write_text("rules: 7")
    ad = node("site", "advertise", "--json", env={"VMJOB_POLICY": str(policy)}).json
    assert not ad["has"] and str(policy) in ad["offline"]


def test_images_of_the_shared_cache_are_told_while_they_are_whole(node: Cli) -> None:
    shared = node.cwd / "shared"
    assert node("image", "cache", "warm", "micro", "--to", shared).status == 0
    env = {"VMJOB_SHARED_CACHE": str(shared)}
    digest = node("image", "inspect", "micro", "--json").json["digest"]
    for _ in range(2):  # the second time from memory
        assert node("site", "advertise", "--json", env=env).json["images"] == [digest]
    next((shared / "blobs/sha256").iterdir()).unlink()
    assert node("site", "advertise", "--json", env=env).json["images"] == []
    shared.chmod(0o777)
    ad = node("site", "advertise", "--json", env=env).json
    assert ad["has"] and "can be written by others" in ad["problems"][0]


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize("program, tells", [
    ("print('HasVmjob = true'); print('-')", ""),
    ("print('HasVmjob = true')", "status 0"),
    ("print('HasVmjob = true\\n-'); sys.exit(3)", "status 3"),
    ("print('HasVmjob = true', flush=True); os.kill(os.getpid(), 9)", "status 137"),
    ("print('Traceback\\n-')", "status 0"), ("", "status 0")])
def test_the_hook_passes_on_what_is_whole_and_nothing_else(tmp_path: Path, shell: list[str], program: str,
                                                           tells: str) -> None:
    for name in ("vmjob-startd.sh", "vmjob-wrapper.sh"):
        shutil.copy(HOOK.parent / name, tmp_path)
    with zipfile.ZipFile(tmp_path / "vmjob.pyz", "w") as archive:
        archive.writestr("__main__.py", "import os, sys\nassert sys.argv[1:] == ['site', 'advertise', '--users', '1'], "
                                        f"sys.argv\n{program}\n")
    done = subprocess.run([*shell, str(tmp_path / HOOK.name), "--users", "1"], capture_output=True, text=True,
                          timeout=60, cwd="/")
    ad = said(done.stdout)
    assert done.returncode == 0 and ad["HasVmjob"] == ("false" if tells else "true")
    assert tells in ad.get("VmjobOfflineReason", "")


def test_a_node_without_vmjob_or_python_says_so(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "timeout", "cat"):
        (tools / name).symlink_to(shutil.which(name) or "")
    shutil.copy(HOOK, tmp_path)
    words = [str(tools / "sh"), str(tmp_path / HOOK.name)]
    done = subprocess.run(words, capture_output=True, text=True, env={"PATH": str(tools)}, timeout=60)
    assert "no vmjob on this node" in said(done.stdout)["VmjobOfflineReason"]
    text = (HOOK.parent / "vmjob-wrapper.sh").read_text()
    (tmp_path / "vmjob-wrapper.sh").write_text(text.replace("/usr/libexec/platform-python", "").replace(
        "/usr/bin/python3", ""))
    (tmp_path / "vmjob.pyz").touch()
    done = subprocess.run(words, capture_output=True, text=True, env={"PATH": str(tools)}, timeout=60, cwd=tmp_path)
    assert said(done.stdout)["HasVmjob"] == "false" and "no Python 3.9" in done.stderr
    assert not (tmp_path / "result.json").exists()


def test_the_hooks_files_are_written_and_work(node: Cli) -> None:
    folder = node.cwd / "hook"
    assert node("site", "hook", folder / "deeper").status == 200  # it makes one folder, not a way to it
    folder.mkdir()
    assert "would write" in node("site", "hook", folder, "--dry-run").out.decode() and not list(folder.iterdir())
    names = [Path(name).name for name in node("site", "hook", folder, "--json").rows]
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    assert f"STARTD_CRON_VMJOB_EXECUTABLE = {folder}/vmjob-startd.sh" in (folder / "99-vmjob-node.conf").read_text()
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | node.env
    done = subprocess.run([str(folder / "vmjob-startd.sh")], capture_output=True, text=True, timeout=60, env=env)
    assert said(done.stdout)["HasVmjob"] == "time() < VmjobExpires", done.stderr
