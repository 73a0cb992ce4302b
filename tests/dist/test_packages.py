"""The packages as files: the same bytes from the same commit, whatever the folder; what is in them; what Debian's and
RPM's own checkers say; examples that are valid once their # is taken off."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pkg import legal
from pkg.contents import TIMERS
from pkg.release import DistError
from tests.conftest import ROOT
from tests.dist.conftest import make
from vmjob.policy import file
from vmjob.core import schema
from vmjob.ads import site_yaml
from vmjob.core.site_errors import SiteBroken

pytestmark = pytest.mark.image
ETC = ROOT / "pkg/etc"


def ran(*words: str | Path, cwd: Path | None = None) -> str:
    if not shutil.which(str(words[0])):
        pytest.skip(f"needs {words[0]}: apt-get install {words[0]}")
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120, cwd=cwd)
    return done.stdout + done.stderr


def checkout(folder: Path) -> Path:
    """The files of this checkout, in another folder."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if names.returncode:
        pytest.skip("not a git checkout")
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for wheels in (ROOT / "build").glob("worker-set-*"):  # as fetched already
        shutil.copytree(wheels, folder / "build" / wheels.name)
    return folder


def test_the_same_bytes_in_another_folder_at_another_time(tmp_path: Path) -> None:
    made = []
    for name, mask, zone in (("one", 0o022, "UTC"), ("another folder", 0o077, "Asia/Tokyo")):
        before = os.umask(mask)
        try:
            out = make(tmp_path / f"{name} out", checkout=checkout(tmp_path / name),
                       env={"SOURCE_DATE_EPOCH": "1795212000", "TZ": zone, "LC_ALL": "C.UTF-8"})
        finally:
            os.umask(before)
        made.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()})
    assert made[0] == made[1]
    assert sorted(re.sub(r"\d+(\.\d+)+", "V", name) for name in made[0]) == [
        "SHA256SUMS", "vmjob-V-1.noarch.rpm", "vmjob-V-py3-none-any.whl", "vmjob-V.tar.gz",
        "vmjob-site-V-1.noarch.rpm", "vmjob-site_V_all.deb", "vmjob_V_all.deb"]
    assert ran("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=tmp_path / "one out").count(": OK") == 6


def test_debs_and_rpms_have_the_same_files(built: Path) -> None:
    moved = {"usr/share/zsh/vendor-completions": "usr/share/zsh/site-functions",
             "usr/share/doc/vmjob/licences": "usr/share/licenses/vmjob"}
    only_debian = re.compile(r"usr/share/(lintian/|doc/[^/]+/(changelog\.gz|copyright)$)")
    for package in ("vmjob", "vmjob-site"):
        [deb] = built.glob(f"{package}_*.deb")
        [rpm] = built.glob(f"{package}-[0-9]*.rpm")
        listed = [line.split(None, 5) for line in ran("dpkg-deb", "-c", deb).splitlines()]
        assert {line[1] for line in listed} == {"root/root"}
        here = {line[5][2:]: line[0] for line in listed if not line[0].startswith("d")}
        for before, after in moved.items():
            here = {name.replace(before, after): mode for name, mode in here.items()}
        there = {line.split()[-1][1:]: line.split()[0] for line in ran("rpm", "-qplv", "--nosignature", rpm).splitlines()
                 if not line.startswith("d")}
        assert {name: mode for name, mode in here.items() if not only_debian.match(name)} == {
            name: mode for name, mode in there.items() if name != f"usr/share/licenses/{package}/LICENSE"}


def test_lintian_has_nothing_to_say(built: Path) -> None:
    said = ran("lintian", "--no-cfg", "--allow-root", *sorted(built.glob("*.deb")))
    assert [line for line in said.splitlines() if re.match(r"[EW]:", line)] == []


def test_rpmlint_has_nothing_to_say(built: Path) -> None:
    said = ran("rpmlint", "-c", ROOT / "pkg/rpmlint.toml", *sorted(built.glob("*.rpm")))
    assert re.search(r"2 packages and 0 specfiles checked; 0 errors, 0 warnings", said), said


def test_a_package_in_the_pyz_without_a_known_licence_is_no_release(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pyz", "w") as archive:
        archive.writestr("vmjob/core/version.py", "")
        archive.writestr("strange/__init__.py", "")
    with pytest.raises(DistError, match="strange, of whose licence"):
        legal.texts(tmp_path / "x.pyz")


def bare_of_marks(path: Path) -> str:
    """An example with the # taken off the lines that are to be taken into use."""
    return "".join(line[1:] if re.match(r"#[^ ]|#  +[^ ]", line) else line
                   for line in path.read_text().splitlines(keepends=True))


def test_the_examples_of_etc_are_valid_once_they_are_taken_into_use(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(bare_of_marks(ETC / "site.yaml.example"))
    site = site_yaml.load(path)
    assert site.latitude and site.accounting and site.nodes and len(site.elements) == 2
    path.write_text(bare_of_marks(ETC / "policy.yaml.example").replace("/etc/vmjob/deny.d", str(tmp_path)))
    assert len(file.load(path).rules) == 3
    for name, kind in (("site", SiteBroken), ("policy", SiteBroken)):  # as they are they say nothing at all
        path.write_text((ETC / f"{name}.yaml.example").read_text())
        with pytest.raises(SiteBroken):
            schema.load_yaml(path, name, kind)
    names = dict(line.split("=", 1) for line in bare_of_marks(ETC / "services.conf.example").splitlines()
                 if not line.startswith("#") and line)
    units = "".join(path.read_text() for path in (ROOT / "pkg/systemd").iterdir())
    scripts = units + (ROOT / "pkg/files/cache-verify.sh").read_text() + (ROOT / "vmjob/core/config.py").read_text()
    assert all(name in scripts for name in names if name.startswith("VMJOB_")) and "https_proxy" in names


def test_every_service_has_a_timer_and_the_docs_name_it() -> None:
    names = {path.name for path in (ROOT / "pkg/systemd").iterdir()}
    assert names == {*TIMERS, *(timer.replace(".timer", ".service") for timer in TIMERS)}
    told = (ROOT / "docs/site-admin.md").read_text()
    assert [timer for timer in TIMERS if timer.removesuffix(".timer") not in told] == []


def test_the_hash_run_looks_at_each_cache_as_its_user(tmp_path: Path) -> None:
    """cache-verify.sh: links and folders that bear another's number are left alone; the worst status is its own."""
    node, uid = tmp_path / "cache", os.getuid()
    for name in (f"uid-{uid}", f"uid-{uid + 1}"):
        (node / name).mkdir(parents=True)
    (node / "uid-7").symlink_to(node / f"uid-{uid}")
    told = tmp_path / "vmjob"
    told.write_text(f"#!/bin/sh\necho \"$VMJOB_CACHE $*\" >>{shlex.quote(str(tmp_path / 'asked'))}\nexit 212\n")
    told.chmod(0o755)
    done = subprocess.run(["sh", ROOT / "pkg/files/cache-verify.sh"], capture_output=True, text=True, env={
        "PATH": os.environ["PATH"], "VMJOB_NODE_CACHE": str(node), "VMJOB_COMMAND": str(told),
        "VMJOB_SHARED_CACHE": str(tmp_path)})
    assert done.returncode == 212 and done.stderr.count("exit status 212") == 2
    assert (tmp_path / "asked").read_text() == (f"{node}/uid-{uid} image cache verify\n"
                                                f" image cache verify --in {tmp_path}\n")
