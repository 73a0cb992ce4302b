"""vmjob.pyz and the payload as folder and file."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.unit.test_payload import make
from vmjob import bundle, pyz_build
from vmjob import pyz as pyz_file
from vmjob.errors import FolderBusy, HostError, JobError
from vmjob.model import Payload
from vmjob.payload import read_payload
from vmjob.progress import Reporter
from vmjob.slot.scratch import claim

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def pyz() -> Path:
    return pyz_file.carried_pyz()


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    return make(tmp_path / "source")


def pythons() -> list[str]:
    names = [f"python3.{minor}" for minor in range(9, 20)]
    found = [path for name in names if (path := shutil.which(name))
             and subprocess.run([path, "-c", "import asyncio, zlib"], capture_output=True).returncode == 0]
    return [sys.executable, *found]


def test_small_pure_and_reproducible(pyz: Path, tmp_path: Path) -> None:
    pyz_build.write(tmp_path / "again.pyz", ROOT, pyz_build.built_from(ROOT))
    assert members(pyz) == members(tmp_path / "again.pyz")
    assert pyz.stat().st_size < 3 * 2**20 and pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    names = zipfile.ZipFile(pyz).namelist()
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.endswith((".so", ".pyc", ".pyi", ".pyz"))]
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name or ".dist-info" in name]
    assert {"vmjob/schemas/payload.schema.json", "vmjob/wrappers/vmjob-wrapper.sh", "certifi/cacert.pem",
            "licences/requests/license", "licences/pyyaml/license"} <= {name.lower() for name in names}


def members(pyz: Path) -> dict[str, str]:
    """Name → digest; but for the commit, which somebody else may have changed meanwhile."""
    with zipfile.ZipFile(pyz) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()
                if name != pyz_build.BUILT}


def test_the_worker_set_is_locked_by_hash_for_the_oldest_python(pyz: Path) -> None:
    """Whatever this environment has installed: what is in it is what locks/worker.txt names."""
    lock = (ROOT / "locks/worker.txt").read_text()
    pins = re.findall(r"^(\S+)==(\S+) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.M)
    assert dict((name, version) for name, version, _ in pins) == pyz_build.locked(ROOT)
    assert len(pins) == len([line for line in lock.splitlines() if line and not line.startswith((" ", "#"))])
    wheels = list(pyz_build.worker_set(ROOT).iterdir())
    for name, version, hashes in pins:
        beginning = f"{name.replace('-', '_').replace('.', '_')}-{version}-"
        (wheel,) = [wheel for wheel in wheels if wheel.name.lower().startswith(beginning)]
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() in hashes
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
            python = message_from_string(archive.read(metadata).decode())["Requires-Python"] or ""
        assert SpecifierSet(python).contains("3.9"), f"{name} {version} needs Python {python}"
    with zipfile.ZipFile(pyz) as archive:
        assert json.loads(archive.read(pyz_build.BUILT))["worker"] == pyz_build.locked(ROOT)
        assert f'__version__ = \'{pyz_build.locked(ROOT)["pyyaml"]}\'' in archive.read("yaml/__init__.py").decode()


@pytest.mark.parametrize("lock", ["worker", "dev", "dist", "bench", "fuzz"])
def test_every_lock_holds_what_pyproject_asks_for(lock: str) -> None:
    """A new dependency is in the lock too (make lock), with hashes, and within its range."""
    text = (ROOT / f"locks/{lock}.txt").read_text()
    pinned: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.M):
        pinned.setdefault(canonicalize_name(name), []).append(version)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["dependency-groups"][lock] + (project["project"]["dependencies"] if lock == "dev" else [])
    for one in map(Requirement, wanted):
        versions = pinned.get(canonicalize_name(one.name), [])
        fits = any if one.marker else all  # for some Pythons another version
        assert versions and fits(map(one.specifier.contains, versions)), f"{one}: {versions} in the lock: make lock"
    assert "http" not in text  # the index is whatever pip is told


def test_cut_short_is_said_in_one_line(pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (100, 70_000, pyz.stat().st_size - 1):
        (tmp_path / "vmjob.pyz").write_bytes(pyz.read_bytes()[:size])
        done = subprocess.run([sys.executable, str(tmp_path / "vmjob.pyz"), "--help"], capture_output=True, text=True)
        assert done.returncode == 1 and "cut-short" in done.stderr and "Traceback" not in done.stderr, done.stderr
    monkeypatch.setattr(pyz_file, "_OWN", tmp_path)  # an installation with a damaged one
    with pytest.raises(HostError, match="cut short"):
        pyz_file.carried_pyz()
    (tmp_path / "vmjob.pyz").unlink()
    with pytest.raises(HostError, match="missing"):
        pyz_file.carried_pyz()


MODULES = ["vmjob.payload", "vmjob.slotrun", "vmjob.chirp", "vmjob.bundle", "vmjob.pyz",
           "vmjob.stage.archive", "vmjob.slot.limits", "vmjob.slot.scratch", "yaml",
           "qemu.qmp", "requests", "charset_normalizer", "tqdm", "pycdlib", "fastjsonschema", "htchirp"]


@pytest.mark.parametrize("python", pythons())
def test_everything_comes_from_it(pyz: Path, tmp_path: Path, python: str) -> None:
    code = (f"import sys; sys.path[:] = [{str(pyz)!r}] + [p for p in sys.path if 'site-packages' not in p and p]\n"
            f"import importlib\nfor name in {MODULES!r}:\n m = importlib.import_module(name)\n"
            f" assert m.__file__.startswith({str(pyz)!r}), m.__file__\n"
            "from vmjob.pyz import carried_pyz; import shutil; shutil.copy(carried_pyz(), 'copy.pyz')\n"
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
