"""Images made for real: from Debian's packages, without root where that can be, twice the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vmjob
from vmjob.core.errors import BuildFailed, CommandFailed, ImageCorrupt, ImageError, ImageRefused
from vmjob.core.model import Boot
from vmjob.core.progress import Reporter
from vmjob.image import formats, manifest
from vmjob.image.build import from_recipe, micro, recipe

pytestmark = pytest.mark.integration

QUIET = Reporter()


def need(*tools: str) -> None:
    for tool in tools:
        if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            pytest.skip(f"the program {tool} is missing: see vmjob doctor")


def micro_image(folder: Path) -> manifest.Manifest:
    need("apt-get", "dpkg-deb")
    try:
        return micro.build_micro(folder, QUIET)
    except CommandFailed as failed:
        pytest.skip(f"no packages from a Debian mirror here: {failed.message}")


def test_micro_is_small_and_twice_the_same(tmp_path: Path) -> None:
    one, two = micro_image(tmp_path / "1"), micro_image(tmp_path / "2")
    assert one == two == manifest.load(tmp_path / "1")
    assert one.size < 20 * 2**20 and one.boot == (Boot.JOB,)
    for file in one.files:
        assert (tmp_path / "1" / file.path).read_bytes() == (tmp_path / "2" / file.path).read_bytes()


def test_micro_needs_no_root(tmp_path: Path) -> None:
    """As an ordinary user: whoever runs the tests, or nobody's account where root does."""
    if os.getuid():
        micro_image(tmp_path / "1")
        return
    micro_image(tmp_path / "root")
    need("setpriv")
    # that account sees neither this folder nor perhaps this Python: give it copies, and the system's Python
    packages = tmp_path / "packages"
    for name in ("vmjob", "yaml", "fastjsonschema"):
        source = Path(vmjob.__file__).parent if name == "vmjob" else Path(__import__(name).__file__ or "").parent
        shutil.copytree(source, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = ("import sys; from pathlib import Path; from vmjob.image.build import micro\n"
            "from vmjob.core.progress import Reporter\n"
            "print(micro.build_micro(Path(sys.argv[1]), Reporter()).digest)")
    out = tmp_path / "out"
    out.mkdir()
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        if folder.stat().st_uid == 0 and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    os.chown(out, 65534, 65534)
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", code, str(out)],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HOME": str(out), "PYTHONPATH": str(packages),
                                             "PYTHONDONTWRITEBYTECODE": "1"}, cwd=out, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == manifest.load(tmp_path / "root").digest


@pytest.mark.parametrize(("options", "suffix"), [
    (["-O", "qcow2"], "qcow2"), (["-c", "-O", "qcow2"], "qcow2"), (["-O", "vdi"], "vdi"), (["-O", "vhdx"], "vhdx"),
    (["-O", "vmdk"], "vmdk"), (["-O", "vmdk", "-o", "subformat=streamOptimized"], "vmdk")])
def test_real_disks_whole_and_cut_short(tmp_path: Path, options: list[str], suffix: str) -> None:
    need("qemu-img")
    raw = bytearray(os.urandom(2**20) * 24)
    raw[446:512] = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 99, 0, 0, 0]) + bytes(48) + b"\x55\xaa"
    (tmp_path / "raw").write_bytes(raw)
    disk = tmp_path / f"disk.{suffix}"
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, tmp_path / "raw", disk], check=True)
    assert formats.inspect_disk(disk) == formats.DiskInfo(suffix, len(raw), "bios")
    os.truncate(disk, disk.stat().st_size * 2 // 3)
    with pytest.raises(ImageCorrupt, match="cut short"):
        formats.inspect_disk(disk)


@pytest.mark.parametrize("options", [
    ["-f", "qcow2", "-b", "raw", "-F", "raw"], ["-f", "qcow2", "-o", "data_file=other"],
    ["-f", "vmdk", "-o", "subformat=monolithicFlat"], ["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
    ["-f", "qcow2", "--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s"]])
def test_real_disks_with_references_are_refused(tmp_path: Path, options: list[str]) -> None:
    need("qemu-img")
    (tmp_path / "raw").write_bytes(bytes(2**20))
    subprocess.run(["qemu-img", "create", "-q", *options, "disk", "1M"], check=True, cwd=tmp_path)
    with pytest.raises(ImageRefused):
        formats.inspect_disk(tmp_path / "disk")


@pytest.mark.parametrize(("text", "said"), [
    ("name: x\npackage: [file]\n", "unknown key 'package'"), ("name: x\nsize: 4 gigs\n", "size"),
    ("name: x\npip: [numpy]\n", "pip"), ("name: x\nfiles: [{path: /a, from: nothere}]\n", "files.0.from"),
    ("name: x\nfiles: [{path: /../etc/x, content: a}]\n", "files.0.path"), ("name: x\nusers: [Root]\n", "users.0")])
def test_recipe_errors_name_the_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ImageError) as caught:
        recipe.load(tmp_path / "r.yaml")
    assert said in caught.value.message and "r.yaml" in caught.value.message


RECIPE = """\
name: small
packages: [python3-minimal]
files:
  - {path: /home/ana/hello, content: "#!/bin/sh\\necho hello\\n", mode: "0755"}
commands:
  - echo "$(id -u)" >/etc/made
  - env | sort >/etc/environment-of-commands
  - head -c 100000 /dev/urandom >/var/tmp/deleted
users: [ana, ben]
size: 2GiB
"""


@pytest.mark.image
def test_debian_twice_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever environment it is built in: Debian's tools are Perl's, and fail with that option."""
    need("mmdebstrap", "qemu-img", "mkfs.ext4", "debugfs")
    (tmp_path / "r.yaml").write_text(RECIPE)
    one = from_recipe.build(tmp_path / "r.yaml", tmp_path / "1", QUIET)
    monkeypatch.setenv("PERL5OPT", "-Mof_this_machine")
    monkeypatch.setenv("CONDOR_CONFIG", "/nonexistent")
    two = from_recipe.build(tmp_path / "r.yaml", tmp_path / "2", QUIET)
    assert one == two == manifest.load(tmp_path / "1")
    assert one.user == "ana" and set(one.boot) == {Boot.JOB, Boot.SYSTEM}
    assert formats.inspect_disk(tmp_path / "1/disk.qcow2").virtual_size == 2 * 2**30
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "1/disk.qcow2", raw], check=True)
    look = "stat /home/ana/hello\ncat /etc/made\ncat /etc/passwd\nls /var/tmp\nstat /usr/lib/vmjob/agent\n"
    seen = subprocess.run(["debugfs", "-f", "-", raw], input=look, capture_output=True, text=True, check=True).stdout
    assert "Mode:  0755" in seen and "User:  1000" in seen and "ben:x:1001:1001" in seen and "deleted" not in seen
    assert subprocess.run(["e2fsck", "-fn", raw], capture_output=True).returncode == 0


@pytest.mark.image
def test_failing_command_is_a_build_failure(tmp_path: Path) -> None:
    need("mmdebstrap", "qemu-img", "mkfs.ext4")
    (tmp_path / "r.yaml").write_text("name: x\ncommands: [echo doomed >&2, exit 3]\n")
    with pytest.raises(BuildFailed) as caught:
        from_recipe.build(tmp_path / "r.yaml", tmp_path / "o", QUIET)
    assert "commands" in caught.value.message and "doomed" in caught.value.hint
    assert not (tmp_path / "o/manifest.yaml").exists()
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if "vmjob-build" in line]
