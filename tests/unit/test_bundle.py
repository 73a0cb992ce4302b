"""vmjob.pyz and the payload as folder and file."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_payload import make
from vmjob import bundle
from vmjob import pyz as pyz_file
from vmjob.errors import FolderBusy, JobError, VmjobError
from vmjob.model import Payload
from vmjob.payload import read_payload
from vmjob.progress import Reporter
from vmjob.slot.scratch import claim

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyz") / "vmjob.pyz"
    pyz_file.build_pyz(path)
    return path


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    return make(tmp_path / "source")


def pythons() -> list[str]:
    names = ["python3.9", "python3.10", "python3.11", "python3.12", "python3.13"]
    found = [path for name in names if (path := shutil.which(name))
             and subprocess.run([path, "-c", "import asyncio, zlib"], capture_output=True).returncode == 0]
    return [sys.executable, *found]


def test_small_pure_and_reproducible(pyz: Path, tmp_path: Path) -> None:
    pyz_file.build_pyz(tmp_path / "again.pyz")
    assert pyz.read_bytes() == (tmp_path / "again.pyz").read_bytes()
    assert pyz.stat().st_size < 3 * 2**20 and pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    names = zipfile.ZipFile(pyz).namelist()
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.endswith((".so", ".pyc", ".pyi"))]
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert {"vmjob/schemas/payload.schema.json", "vmjob/wrappers/vmjob-wrapper.sh", "certifi/cacert.pem",
            "licences/requests/LICENSE"} <= set(names)


MODULES = ["vmjob.payload", "vmjob.slotrun", "vmjob.chirp", "vmjob.bundle", "vmjob.pyz",
           "vmjob.stage.archive", "vmjob.slot.limits", "vmjob.slot.scratch", "yaml",
           "qemu.qmp", "requests", "charset_normalizer", "tqdm", "pycdlib", "fastjsonschema", "htchirp"]


@pytest.mark.parametrize("python", pythons())
def test_everything_comes_from_it(pyz: Path, tmp_path: Path, python: str) -> None:
    code = (f"import sys; sys.path[:] = [{str(pyz)!r}] + [p for p in sys.path if 'site-packages' not in p and p]\n"
            f"import importlib\nfor name in {MODULES!r}:\n m = importlib.import_module(name)\n"
            f" assert m.__file__.startswith({str(pyz)!r}), m.__file__\n"
            "from vmjob.pyz import build_pyz; from pathlib import Path; build_pyz(Path('copy.pyz'))\n"
            "from vmjob.schema import check\n"
            "check({'name': 'x', 'boot': ['disk'], 'files': [{'role': 'disk', 'path': 'd', 'format': 'raw', 'size': 1,"
            " 'sha256': '0' * 64}]}, 'manifest', 'here')\n")
    done = subprocess.run([python, "-E", "-s", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.pyz").read_bytes() == pyz.read_bytes()


@pytest.mark.parametrize("python", pythons())
def test_it_starts(pyz: Path, python: str) -> None:
    done = subprocess.run([python, "-E", "-s", str(pyz), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "vmjob" in done.stdout, done.stderr


@pytest.mark.parametrize(("wanted", "fits"), [
    (">=3.9", True), (">=3.8, <4", True), ("", True), (">=3.10", False), (">3.9", False), (">=3.9,!=3.9.*", False),
    (">=2.7, !=3.0.*, !=3.9.1", True), ("~=3.8", True), ("<3.9", False), (">=3.9.0", True), ("nonsense", False),
    (">=4", False), ("==3.*", True),
])
def test_requires_python(wanted: str, fits: bool) -> None:
    assert pyz_file.runs_on(wanted, (3, 9)) is fits


def test_a_release_too_new_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.distribution

    def newer(name: str) -> metadata.Distribution:
        found = real(name)
        if name == "idna":
            words: Any = found.metadata
            words.replace_header("Requires-Python", ">=3.10")
            monkeypatch.setattr(type(found), "metadata", property(lambda _: words))
        return found

    monkeypatch.setattr(metadata, "distribution", newer)
    with pytest.raises(VmjobError, match=r"idna .* needs Python >=3\.10"):
        pyz_file.build_pyz(tmp_path / "x.pyz")
    assert not (tmp_path / "x.pyz").exists()


def test_pack_into_a_folder(tmp_path: Path, payload: Payload) -> None:
    target = tmp_path / "made" / "payload"
    size = bundle.pack(payload, target, Reporter())
    names = ["image", "input.tar", "payload.json", "vmjob-wrapper.sh", "vmjob.pyz"]
    assert sorted(p.name for p in target.iterdir()) == names
    assert size == sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    again = read_payload(target)
    assert again.job == payload.job and again.manifest == payload.manifest
    for role, path in again.image_files.items():
        assert path.read_bytes() == payload.image_files[role].read_bytes()
    assert (target / "vmjob-wrapper.sh").stat().st_mode & 0o111
    (target / "image" / "stale").touch()
    bundle.pack(payload, target, Reporter())  # an older payload is replaced as a whole
    assert not (target / "image" / "stale").exists() and list(target.parent.iterdir()) == [target]
    (target / "result.json").touch()  # of a run by hand: somebody's, and not ours to remove
    with pytest.raises(JobError, match="such as result"):
        bundle.pack(payload, target, Reporter())
    assert (target / "result.json").exists()


def test_pack_into_a_file(tmp_path: Path, payload: Payload) -> None:
    target = tmp_path / "p.tar"
    target.write_text("an older one")
    size = bundle.pack(payload, target, Reporter())
    assert size == target.stat().st_size
    with tarfile.open(target) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "x")
    assert names[0] == "vmjob-wrapper.sh" and "image" in names
    assert read_payload(tmp_path / "x").job == payload.job
    assert not list(tmp_path.glob(".vmjob*"))
    bundle.pack(payload, tmp_path / "again.tar", Reporter())
    with tarfile.open(tmp_path / "again.tar") as archive:
        assert archive.getnames() == names


def test_what_is_in_the_way_stays(tmp_path: Path, payload: Payload) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis").touch()
    (tmp_path / "file").touch()
    (tmp_path / "d.tar").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "full")
    before = sorted(tmp_path.rglob("*"))
    for name in ("full", "file", "d.tar", "link"):
        with pytest.raises(JobError) as caught:
            bundle.pack(payload, tmp_path / name, Reporter())
        assert caught.value.hint and name in caught.value.message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_payload_in_use_is_left(tmp_path: Path, payload: Payload) -> None:
    bundle.pack(payload, tmp_path / "p", Reporter())
    with claim(tmp_path / "p"), pytest.raises(FolderBusy):
        bundle.pack(payload, tmp_path / "p", Reporter())
    (tmp_path / "p/.vmjob.lock").write_text("1")  # of a run that was killed: nobody holds it
    bundle.pack(payload, tmp_path / "p", Reporter())


def test_failure_leaves_nothing(tmp_path: Path, payload: Payload) -> None:
    payload.image_files["kernel"].unlink()
    with pytest.raises(JobError):
        bundle.pack(payload, tmp_path / "p", Reporter())
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
