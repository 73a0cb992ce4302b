"""The verbs that do not run a job: plan, doctor, schema, image; and how they speak."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, Cli

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("verb", ["", "run", "pack", "plan", "doctor", "schema", "image", "image build", "image import",
                                  "image micro", "image inspect", "image list", "image rm"])
def test_help_has_an_example(cli: Cli, verb: str) -> None:
    done = cli(*verb.split(), "--help")
    assert done.status == 0
    assert re.search(r"example|first minutes", done.out.decode())


def test_plan_shows_everything_and_starts_nothing(cli: Cli) -> None:
    shim = cli.cwd / "qemu"
    shim.write_text(f"#!/bin/sh\ntouch {cli.cwd}/started\nexec qemu-system-x86_64 \"$@\"\n")
    shim.chmod(0o755)
    done = cli("plan", "--image", "micro", "--cpus", "2", "--memory", "512MiB", "--json", "--", "echo", "hi",
               env={"VMJOB_QEMU": str(shim), "VMJOB_CACHE": str(cli.cwd / "cache")})
    assert done.status == 0, done.err
    plan = done.json
    assert not (cli.cwd / "started").exists() and cli.left_over() == []
    assert plan["payload"]["job"]["command"] == ["echo", "hi"]
    assert plan["limits"]["cpus"] == 2 and plan["limits"]["memory"] == 512 * 2**20
    argv = plan["qemu"]
    assert argv[argv.index("-m") + 1] == "512M" and argv[argv.index("-smp") + 1] == "2"
    assert "assumed" in plan["accelerator"]["reason"]
    assert plan["guest"].endswith("exec echo hi\n")


def test_plan_is_what_run_does(cli: Cli) -> None:
    """The same command line, but that a run hands over what the plan names as files that are open."""
    shim = cli.cwd / "qemu"
    shim.write_text("#!/bin/sh\nfor w; do case $w in /proc/self/fd/*) readlink \"$w\";; "
                    f"*) printf '%s\\n' \"$w\";; esac; done > {cli.cwd}/argv.new\n"
                    f"mv {cli.cwd}/argv.new {cli.cwd}/argv\nexec qemu-system-x86_64 \"$@\"\n")
    shim.chmod(0o755)
    words = ["--image", "micro", "--cpus", "2", "--network", "isolated", "--output", "x"]
    env = {"VMJOB_QEMU": str(shim)}
    assert cli("run", *words, "--accel", "tcg", "--", "touch", "x", env=env).status == 0
    plan = cli("plan", *words, "--accel", "tcg", "--json", "--", "touch", "x", env=env).json
    assert (cli.cwd / "argv").read_text().splitlines() == plan["qemu"][1:]


def test_plan_without_network_and_as_text(cli: Cli) -> None:
    done = cli("plan", "--image", "micro", "--", "true")
    assert done.status == 0
    for word in ("# payload", "# limits", "# QEMU", "-nodefaults", "-sandbox"):
        assert word in done.out.decode()


def test_doctor(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert done.status == 0, [check for check in done.json["checks"] if check["level"] != "ok"]
    checks = {check["name"]: check for check in done.json["checks"]}
    assert checks["qemu"]["level"] == "ok"
    for check in checks.values():
        assert check["level"] in ("ok", "warning", "failure") and check["text"]
        assert check["level"] == "ok" or check["action"]
    without = cli("doctor", env={"VMJOB_QEMU": "no-such-qemu"})
    assert without.status == 230 and "FAILURE" in without.out.decode() and "apt-get install" in without.out.decode()


@pytest.mark.parametrize("name", ["job", "recipe", "manifest", "payload", "result"])
def test_schemas_are_printed(cli: Cli, name: str) -> None:
    assert cli("schema", name).json["$schema"]


def test_images_by_name_digest_and_path(cli: Cli) -> None:
    env = {"VMJOB_HOME": str(cli.cwd / "store")}
    made = cli("image", "micro", "-o", "folder", "--json", env=env)
    assert made.status == 0, made.err
    digest = made.json["digest"]
    listed = json.loads(cli("image", "list", "--json", env=env).out)
    assert [one["digest"] for one in listed] == [digest] and listed[0]["name"] == "micro"
    for ref in ("micro", digest, digest[7:19], "folder", "folder/manifest.yaml"):
        shown = cli("image", "inspect", ref, env=env)
        assert yaml.safe_load(shown.out)["digest"] == digest, shown.err
    assert cli("run", "--image", digest[7:19], "-q", "--", "true", env=env).status == 0
    assert sum(p.stat().st_size for p in (cli.cwd / "folder").iterdir()) < 20_000_000
    assert cli("image", "rm", "micro", env=env).status == 0
    assert cli("image", "list", "--json", env=env).out.strip() == b"[]"
    assert cli("image", "rm", "micro", env=env).status == 211


def test_import_of_what_is_no_disk(cli: Cli) -> None:
    (cli.cwd / "text.qcow2").write_text("not a disk")
    done = cli("image", "import", "text.qcow2")
    assert 210 <= done.status < 220 and "text.qcow2" in done.err and "→" in done.err
    assert cli("image", "import", "nowhere.qcow2").status == 211


def test_pack_is_complete_and_small(cli: Cli) -> None:
    done = cli("pack", "--image", "micro", "-o", "payload", "--json", "--", "true")
    assert done.status == 0, done.err
    assert (cli.cwd / "payload/vmjob.pyz").stat().st_size <= 3 * 2**20
    names = {p.name for p in (cli.cwd / "payload").iterdir()}
    assert names == {"vmjob-wrapper.sh", "vmjob.pyz", "payload.json", "image"}


def test_no_program_after_the_dashes(cli: Cli) -> None:
    done = cli("run", "--image", "micro", "--")
    assert done.status == 200 and "after --" in done.err


def test_a_terminal_gets_a_bar_and_one_line_a_stage(cli: Cli) -> None:
    """On a pseudo-terminal: the boot takes more than a second under emulation, so its time is seen to run."""
    ours, theirs = pty.openpty()
    (cli.cwd / "scratch").mkdir(exist_ok=True)
    run = subprocess.Popen([sys.executable, "-m", "vmjob", "run", "--image", "micro", "--accel", "tcg", "--",
                            "sh", "-c", "echo 30 > $VMJOB_PROGRESS; sleep 6; echo out"], cwd=cli.cwd,
                           env=cli.environment(),
                           stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while run.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                said += os.read(ours, 65536)
            except OSError:
                break
    text = said.decode(errors="replace")
    assert run.wait() == 0
    assert "30%" in text and "\r" in text
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).replace("\r\n", "\n")
    for stage in ("stage", "verify", "probe", "boot", "payload", "collect", "teardown"):
        assert re.search(rf"vmjob: {stage} +[0-9.]+ s\n", lines), lines
    assert "out\n" in lines and "ok, exit status 0" in lines


def test_library_and_command_agree_on_the_version(cli: Cli) -> None:
    import vmjob

    first, commit, worker = cli("--version").out.decode().strip().splitlines()
    assert first == f"vmjob {vmjob.__version__}"
    assert re.fullmatch(r"commit ([0-9a-f]{12}\+?|unknown)", commit)
    assert re.match(r"worker's set: .*\bpyyaml [0-9.]+, qemu-qmp ", worker)
    assert Path(ROOT / "CHANGELOG.md").read_text().count(f"## {vmjob.__version__}") == 1
