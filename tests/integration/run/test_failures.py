"""What bad input, bad images, bad guests and bad moments get: a named failure, its status, and nothing left behind."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml

from tests.conftest import Cli, Done, qemus, result_of

pytestmark = pytest.mark.integration


def failed(done: Done, status: int, kind: str, *words: str) -> None:
    """One line that says what and where, one that says what to do; no traceback."""
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err
    assert "→" in done.err


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


# ---------------------------------------------------------------- the user's input


@pytest.mark.parametrize(("text", "words"), [
    ("image: micro\ncommand: echo\nresorces: {}\n", ["unknown key 'resorces'", "did you mean 'resources'"]),
    ("image: micro\ncommand: echo\nresources: {memory: 2 apples}\n", ["resources.memory", "2 apples", "512MiB"]),
    ("image: micro\ncommand: echo\nresources: {walltime: soon}\n", ["resources.walltime", "soon"]),
    ("image: micro\n", ["no program is named"]),
    ("image: micro\ncommand: echo\nscript: echo\n", ["not both"]),
    ("image: [\n", ["j.yaml:", "YAML"]),
    ("image: micro\ncommand: echo\noutputs: [/etc/passwd]\n", ["outputs", "/etc/passwd"]),
    ("image: micro\ncommand: echo\ninputs: [missing.dat]\n", ["missing.dat"]),
])
def test_job_file(cli: Cli, text: str, words: list[str]) -> None:
    (cli.cwd / "j.yaml").write_text(text)
    done = cli("run", "j.yaml")
    failed(done, 201 if "missing.dat" in text else 200, "JobError", *words)


def test_missing_image_names_what_there_is(cli: Cli) -> None:
    failed(cli("run", "--image", "mircro", "--", "true"), 211, "ImageMissing", "mircro", "micro")


def test_missing_job_file(cli: Cli) -> None:
    failed(cli("run", "nowhere.yaml"), 200, "JobError", "nowhere.yaml: no such file")


# ---------------------------------------------------------------- images


def variant(cli: Cli, **changes: Any) -> Path:
    """The micro image in a folder of its own, with a changed manifest; its digest is left out."""
    folder = cli.cwd / "image"
    assert cli("image", "micro", "-o", folder).status == 0
    path = folder / "manifest.yaml"
    document = yaml.safe_load(path.read_text())
    document.pop("digest", None)
    document.update(changes)
    path.write_text(yaml.safe_dump(document))
    return path


def elsewhere(cli: Cli) -> dict[str, str]:
    """Another store and cache: the usual ones hold these files whole, and would rightly use their own."""
    return {"VMJOB_HOME": str(cli.cwd / "other-store"), "VMJOB_CACHE": str(cli.cwd / "other-cache")}


def test_truncated_image(cli: Cli) -> None:
    path = variant(cli, name="cut")
    kernel = path.parent / "vmlinuz"
    os.truncate(kernel, kernel.stat().st_size - 1000)
    failed(cli("run", "--image", path, "--", "true", env=elsewhere(cli)), 212, "ImageCorrupt", "vmlinuz")


def test_corrupt_image(cli: Cli) -> None:
    path = variant(cli, name="bent")
    kernel = path.parent / "vmlinuz"
    data = bytearray(kernel.read_bytes())
    data[len(data) // 2] ^= 1
    kernel.write_bytes(data)
    failed(cli("run", "--image", path, "--", "true", env=elsewhere(cli)), 212, "ImageCorrupt", "vmlinuz")


def test_manifest_with_another_digest(cli: Cli) -> None:
    path = variant(cli, digest="sha256:" + "0" * 64)
    failed(cli("run", "--image", path, "--", "true"), 212, "ImageCorrupt", "manifest.yaml")


def test_manifest_that_names_a_file_elsewhere(cli: Cli) -> None:
    path = variant(cli)
    document = yaml.safe_load(path.read_text())
    document["files"][0]["path"] = "../../../../etc/passwd"
    path.write_text(yaml.safe_dump(document))
    done = cli("run", "--image", path, "--", "true")
    assert 210 <= done.status < 220 and "Traceback" not in done.err and "path" in done.err, done.err


@pytest.mark.parametrize("how", ["backing", "json", "data"])
def test_qcow2_that_points_outside_is_refused(cli: Cli, how: str) -> None:
    target = cli.cwd / "secret.raw"
    target.write_bytes(b"\0" * 2**20)
    image = cli.cwd / "evil.qcow2"
    if how == "data":
        options = ["-o", f"data_file={target},data_file_raw=on", str(image), "1M"]
    elif how == "backing":
        options = ["-b", str(target), "-F", "raw", str(image)]
    else:
        options = ["-u", "-F", "raw", "-b", 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
                   str(image), "1M"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options], check=True)
    failed(cli("image", "import", image), 213, "ImageRefused", "evil.qcow2")
    assert "evil" not in cli("image", "list").out.decode()


@pytest.mark.parametrize("way", ["run", "import"])
def test_a_manifest_is_no_way_round_the_check(cli: Cli, way: str) -> None:
    """The digest is right, the disk points at a file of the node: it is refused before anything opens it."""
    (cli.cwd / "secret.raw").write_bytes(b"SECRET".ljust(2**20, b"\0"))
    disk = cli.cwd / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={cli.cwd}/secret.raw,data_file_raw=on",
                    disk, "1M"], check=True)
    entry = {"role": "disk", "path": "disk.qcow2", "format": "qcow2", "size": disk.stat().st_size,
             "sha256": hashlib.sha256(disk.read_bytes()).hexdigest(), "virtual_size": 2**20}
    (cli.cwd / "manifest.yaml").write_text(yaml.safe_dump({"name": "evil", "boot": ["disk"], "files": [entry]}))
    words = ["run", "--image", "manifest.yaml", "--", "true"] if way == "run" else ["image", "import", "manifest.yaml"]
    failed(cli(*words), 213, "ImageRefused", "disk.qcow2")
    assert "evil" not in cli("image", "list").out.decode()


def test_image_that_does_not_boot(cli: Cli) -> None:
    disk = cli.cwd / "empty.raw"
    partition = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0]) + (64).to_bytes(4, "little") + (1024).to_bytes(4, "little")
    first = (b"\xeb\xfe".ljust(446, b"\0") + partition).ljust(510, b"\0") + b"\x55\xaa"  # jumps to itself for ever
    disk.write_bytes(first.ljust(2**20, b"\0"))
    assert cli("image", "import", disk, "--name", "noboot", "--firmware", "bios").status == 0
    try:
        done = cli("run", "--image", "noboot", "--results", "res", "--", "true", env={"VMJOB_BOOT_TIMEOUT": "4s"})
    finally:
        cli("image", "rm", "noboot")
    failed(done, 240, "BootFailed", "did not say hello", "trying once more")
    result = result_of(cli.cwd / "res")
    assert result["boot_attempts"] == 2 and result["failure"]["stage"] == "boot"


def test_kernel_panic_is_told_at_once(cli: Cli) -> None:
    path = variant(cli, cmdline="rdinit=/bin/false")
    done = cli("run", "--image", path, "--results", "res", "--", "true")
    failed(done, 241, "KernelPanic", "Attempted to kill init")
    assert any("panic" in line for line in result_of(cli.cwd / "res")["console_tail"])


def test_guest_that_never_says_hello_gets_one_retry(cli: Cli) -> None:
    path = variant(cli, cmdline="rdinit=/bin/cat")
    done = cli("run", "--image", path, "--", "true", env={"VMJOB_BOOT_TIMEOUT": "5s"})
    failed(done, 240, "BootFailed", "trying once more")
    assert cli.left_over() == []


# ---------------------------------------------------------------- guests


def test_panic_while_the_program_runs(cli: Cli) -> None:
    done = cli.micro("--user", "root", "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100")
    failed(done, 241, "KernelPanic", "panic")


def test_guest_that_powers_off_has_no_result(cli: Cli) -> None:
    done = cli.micro("--user", "root", "--", "sh", "-c", "poweroff -f; sleep 100")
    failed(done, 243, "GuestVanished", "without telling a result")


def test_guest_that_hangs(cli: Cli) -> None:
    done = cli.micro("--user", "root", "--", "sh", "-c", "kill -STOP -1; sleep 1000",
                     env={"VMJOB_SILENCE_TIMEOUT": "6s"})
    failed(done, 242, "GuestHung", "no sign of life for 6 s")


def other_agent(cli: Cli, before: bytes, after: bytes) -> Path:
    """The micro image with a few bytes of its agent replaced, as an image from a hostile maker could have."""
    path = variant(cli, name="hostile")
    document = yaml.safe_load(path.read_text())
    entry = next(f for f in document["files"] if f["role"] == "initrd")
    data = (path.parent / entry["path"]).read_bytes()
    assert data.count(before) == 1 and len(after) <= len(before)
    data = data.replace(before, after.ljust(len(before)))
    (path.parent / entry["path"]).write_bytes(data)
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    path.write_text(yaml.safe_dump(document))
    return path


def test_agent_that_talks_nonsense(cli: Cli) -> None:
    path = other_agent(cli, b'say "exit $status"', b'say "exit 0 0 0 0"')
    failed(cli("run", "--image", path, "--", "true"), 244, "AgentFailed", "exit")


def test_output_that_is_missing_fails_a_job_that_says_it_is_fine(cli: Cli) -> None:
    done = cli.micro("--output", "here", "--output", "*.root", "--results", "res", "--", "touch", "here")
    failed(done, 246, "OutputMissing", "*.root")
    result = result_of(cli.cwd / "res")
    assert result["exit_status"] == 0 and result["outcome"] == "failed"
    assert (cli.cwd / "res/here").exists()


def test_the_programs_own_failure_stands_before_a_missing_output(cli: Cli) -> None:
    done = cli.micro("--output", "*.root", "--results", "res", "--", "false")
    assert done.status == 1
    assert result_of(cli.cwd / "res")["failure"]["kind"] == "OutputMissing"


def test_outputs_larger_than_the_cap(cli: Cli) -> None:
    done = cli.micro("--memory", "512MiB", "--disk", "10MiB", "--output", "big", "--results", "res", "--",
                     "dd", "if=/dev/urandom", "of=big", "bs=1M", "count=30")
    failed(done, 247, "OutputTooLarge", "10.0 MiB")
    assert not (cli.cwd / "res/big").exists()


def evil_archive(kind: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        def add(name: str, content: Optional[bytes] = b"evil", **fields: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content) if content and "type" not in fields else 0
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content) if content and info.size else None)

        if kind == "dotdot":
            add("../escaped")
        elif kind == "absolute":
            add("/escaped")
        elif kind == "symlink":
            add("link", type=tarfile.SYMTYPE, linkname="../..")
            add("link/escaped")
        elif kind == "hardlink":
            add("hard", type=tarfile.LNKTYPE, linkname="../../escaped")
        elif kind == "device":
            add("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        elif kind == "bomb":
            for number in range(3):
                info = tarfile.TarInfo(f"bomb{number}")
                info.pax_headers = {"comment": "x" * (3 * 2**20)}
                archive.addfile(info)
    return data.getvalue() if kind != "garbage" else b"\x01" * 20480


@pytest.mark.parametrize("kind", ["dotdot", "absolute", "symlink", "hardlink", "device", "bomb", "garbage"])
def test_hostile_output_archive(cli: Cli, kind: str) -> None:
    (cli.cwd / "evil.tar").write_bytes(evil_archive(kind))
    path = other_agent(cli, b'tar -cf - "$@" 2>"$run/tar.log"', b"cat ./evil.tar")
    done = cli("run", "--image", path, "--input", "evil.tar", "--output", "out", "--results", "res/ults", "--",
               "touch", "out")
    failed(done, 248, "OutputRefused")
    found = {p.name for p in (cli.cwd / "res").rglob("*")}
    assert found == {"ults", "result.json", "console.log"}
    assert not (cli.cwd / "escaped").exists() and not Path("/escaped").exists()


# ---------------------------------------------------------------- the machine


def test_no_qemu(cli: Cli) -> None:
    failed(cli.micro("--", "true", env={"VMJOB_QEMU": "no-such-qemu"}), 231, "QemuMissing", "no-such-qemu")


def test_kvm_insisted_on_where_it_does_not_work(cli: Cli) -> None:
    done = cli.micro("--accel", "kvm", "--json", "--", "true")
    if done.status == 0:
        assert done.json["accelerator"]["name"] == "kvm"
        pytest.skip("KVM works here, so nothing fails")
    failure = done.json["failure"]
    assert done.status == 232 and "the job asks for KVM" in failure["message"]
    assert failure["kind"] == "KvmUnavailable" and failure["transient"] and failure["hint"]


def test_more_memory_than_there_is_fails_before_qemu_starts(cli: Cli) -> None:
    done = cli.micro("--memory", "4TiB", "--", "true")
    failed(done, 221, "SlotTooSmall", "4.0 TiB")
    assert "boot" not in done.err.split("the VM takes")[0]


def test_a_full_disk_under_the_outputs(cli: Cli) -> None:
    """A scratch folder of 12 MiB: the guest is stopped when it is full, not handed an error."""
    (cli.cwd / "small").mkdir()
    script = (f"mount -t tmpfs -o size=12m tmpfs {cli.cwd}/small && exec {sys.executable} -m vmjob run --image micro "
              f"--scratch {cli.cwd}/small --memory 512MiB --disk 11MiB --output big --results {cli.cwd}/res -- "
              "dd if=/dev/urandom of=big bs=1M count=11")
    filler = f"dd if=/dev/zero of={cli.cwd}/small/filler bs=1M count=8 2>/dev/null; "
    late = script.replace("&& exec", f"&& ( sleep 1.5; {filler} ) & sleep 0.2; exec", 1)
    done = subprocess.run(["unshare", *([] if os.getuid() == 0 else ["-r"]), "-m", "sh", "-c", late], cwd=cli.cwd,
                          env=cli.environment(), capture_output=True, timeout=100)
    if b"unshare failed" in done.stderr or b"mount:" in done.stderr:
        pytest.skip("this machine does not let us mount: needs root or user namespaces")
    failed(Done(done.returncode, done.stdout, done.stderr.decode()), 222, "ScratchFull", "full")


def test_two_runs_in_one_folder(cli: Cli) -> None:
    first = cli.start("run", "--image", "micro", "--results", "res", "-q", "--", "sh", "-c", "echo up; sleep 60")
    try:
        assert first.stdout and first.stdout.readline() == b"up\n"
        done = cli.micro("--results", "res", "--", "true")
        failed(done, 223, "FolderBusy", "res", str(first.pid))
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
    assert result_of(cli.cwd / "res")["failure"]["kind"] == "Interrupted"


def test_walltime_over_returns_what_there_is(cli: Cli) -> None:
    done = cli.micro("--walltime", "25s", "--output", "part", "--results", "res", "--",
                     "sh", "-c", "trap 'echo noticed > part; exit 0' TERM; sleep 100 & wait")
    failed(done, 224, "WalltimeOver", "walltime")
    assert (cli.cwd / "res/part").read_text() == "noticed\n"
    assert result_of(cli.cwd / "res")["outcome"] == "failed"


def test_sigterm_returns_what_there_is(cli: Cli) -> None:
    run = cli.start("run", "--image", "micro", "--output", "part", "--results", "res", "--", "sh", "-c",
                    "echo half > part; echo up; sleep 100")
    assert run.stdout and run.stdout.readline() == b"up\n"
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    failed(Done(run.returncode, b"", err.decode()), 225, "Interrupted", "SIGTERM")
    assert (cli.cwd / "res/part").read_text() == "half\n"
    assert result_of(cli.cwd / "res")["failure"]["transient"]
    assert cli.left_over() == []


def test_sigint_while_it_boots_ends_it_at_once(cli: Cli) -> None:
    path = variant(cli, cmdline="rdinit=/bin/cat")
    before = set(qemus())
    run = cli.start("run", "--image", path, "--", "true")
    wait_for(lambda: set(qemus()) - before)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=30)
    failed(Done(run.returncode, b"", err.decode()), 225, "Interrupted", "SIGINT")
    assert set(qemus()) <= before


def test_pause_and_resume(cli: Cli) -> None:
    """While it is paused the guest's CPUs stand still, and its silence is not held against it."""
    run = cli.start("run", "--image", "micro", "-q", "--", "sh", "-c",
                    "i=0; while [ $i -lt 40 ]; do echo $i; i=$((i + 1)); sleep 0.2; done",
                    env={"VMJOB_SILENCE_TIMEOUT": "6s"})
    assert run.stdout
    assert run.stdout.readline() == b"0\n"
    run.send_signal(signal.SIGUSR1)
    time.sleep(1)
    os.set_blocking(run.stdout.fileno(), False)
    run.stdout.read()
    time.sleep(8)
    assert not run.stdout.read()
    run.send_signal(signal.SIGUSR2)
    os.set_blocking(run.stdout.fileno(), True)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and out.endswith(b"39\n")


def test_ctrl_z_stops_us_and_the_guest(cli: Cli) -> None:
    run = cli.start("run", "--image", "micro", "-q", "--", "sh", "-c", "echo up; sleep 4; echo end")
    assert run.stdout and run.stdout.readline() == b"up\n"
    run.send_signal(signal.SIGTSTP)
    wait_for(lambda: Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    time.sleep(2)
    run.send_signal(signal.SIGCONT)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and out == b"end\n"


def test_kill_9_leaves_no_qemu_and_the_next_run_cleans_up(cli: Cli) -> None:
    before = set(qemus())
    run = cli.start("run", "--image", "micro", "--results", "res", "-q", "--", "sh", "-c", "echo up; sleep 100")
    assert run.stdout and run.stdout.readline() == b"up\n"
    assert set(qemus()) - before
    run.kill()
    run.wait()
    wait_for(lambda: set(qemus()) <= before, 10)
    assert cli.left_over() != []
    assert cli.micro("--results", "res", "-q", "--", "true").status == 0
    assert cli.left_over() == []
    assert not (cli.cwd / "res/.vmjob.lock").exists()


def test_results_folder_that_cannot_be_made(cli: Cli) -> None:
    (cli.cwd / "file").write_text("")
    failed(cli.micro("--results", "file/res", "--", "true"), 200, "JobError", "file/res")


def test_scratch_folder_that_is_not_there(cli: Cli) -> None:
    done = cli.micro("--scratch", "nowhere", "--", "true")
    assert 200 <= done.status < 250 and "nowhere" in done.err and "Traceback" not in done.err
    shutil.rmtree(cli.cwd / "scratch", ignore_errors=True)


def test_walltime_over_before_the_guest_has_booted(cli: Cli) -> None:
    path = variant(cli, cmdline="rdinit=/bin/cat")
    done = cli("run", "--image", path, "--walltime", "8s", "--results", "res", "--", "true")
    failed(done, 224, "WalltimeOver", "walltime")
    result = result_of(cli.cwd / "res")
    assert result["failure"]["stage"] == "boot" and result["boot_attempts"] == 1


def test_results_folder_that_cannot_be_written(cli: Cli) -> None:
    """As an ordinary user; a result that nobody can read is no success, whatever the program said."""
    folder = cli.cwd / "closed"
    folder.mkdir(mode=0o555)
    (cli.cwd / "scratch").mkdir()
    argv = [sys.executable, "-m", "vmjob", "run", "--image", "micro", "--results", str(folder), "--", "true"]
    if os.getuid() == 0:
        pytest.skip("root writes everywhere: run the tests as an ordinary user too")
    done = subprocess.run(argv, cwd=cli.cwd, env=cli.environment(), capture_output=True, text=True, timeout=100)
    failed(Done(done.returncode, b"", done.stderr), done.returncode, "", "closed")
    assert 200 <= done.returncode < 250


def test_an_option_that_does_not_exist(cli: Cli) -> None:
    failed(cli.micro("--bogus", "--", "true"), 200, "JobError", "--bogus")


def test_a_result_named_like_ours(cli: Cli) -> None:
    done = cli.micro("--output", "*.json", "--results", "res", "--", "sh", "-c", "echo '{}' > result.json")
    failed(done, 248, "OutputRefused", "result.json", "keeps for itself")
    assert result_of(cli.cwd / "res")["outcome"] == "failed"


def test_a_slots_disk_limit_holds_for_all_the_guest_writes(cli: Cli) -> None:
    """HTCondor grants 30 MB; the guest writes more than that onto its output disk."""
    (cli.cwd / "machine.ad").write_text("Cpus = 1\nMemory = 2000\nDisk = 30000\n")
    env = {"_CONDOR_MACHINE_AD": str(cli.cwd / "machine.ad"), "_CONDOR_SCRATCH_DIR": str(cli.cwd / "scratch")}
    script = ("dd if=/dev/zero bs=1M count=80 2>/dev/null | tr '\\0' x > /tmp/x; "
              "for d in /sys/block/vd*; do dd if=/tmp/x of=/dev/${d##*/} bs=1M 2>/dev/null; done; sleep 30")
    done = cli.micro("--user", "root", "--memory", "512MiB", "--disk", "29MB", "--output", "x", "--results", "res",
                     "--", "sh", "-c", script, env=env)
    failed(done, 221, "SlotTooSmall", "has written")
