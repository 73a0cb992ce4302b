"""What is asked of the host, how often, and what is said about it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from vmjob.core import config
from vmjob.core.errors import HostError, KvmUnavailable, QemuMissing
from vmjob.core.model import Accel, QemuInfo
from vmjob.node import doctor
from vmjob.vm import firmware, probe, probe_guest

pytestmark = pytest.mark.unit

QEMU = QemuInfo("/bin/sh", (8, 0, 0), ("q35",), ())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tests_run(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers of the test guest, taken from the end; what is left was not asked."""
    answers: list[Any] = []
    monkeypatch.setattr(probe_guest, "run_test_guest", lambda path, accel: answers.pop())
    return answers


def device(tmp_path: Path) -> Path:
    (tmp_path / "kvm").touch()
    return tmp_path / "kvm"


def test_no_device(tmp_path: Path) -> None:
    choice = probe.choose_accel(Accel.AUTO, QEMU, tmp_path / "none")
    assert choice.name == "tcg" and "there is no" in choice.reason
    with pytest.raises(KvmUnavailable, match="there is no"):
        probe.choose_accel(Accel.KVM, QEMU, tmp_path / "none")


@pytest.mark.skipif(os.getuid() == 0, reason="root may open everything: run the tests as an ordinary user too")
def test_no_permission(tmp_path: Path) -> None:
    device(tmp_path).chmod(0)
    assert "belongs to group" in probe.choose_accel(Accel.AUTO, QEMU, tmp_path / "kvm").reason


def test_tcg_asks_nothing(tests_run: list[Any], tmp_path: Path) -> None:
    assert probe.choose_accel(Accel.TCG, QEMU, device(tmp_path)).name == "tcg"


def test_a_good_answer_is_kept(tests_run: list[Any], tmp_path: Path) -> None:
    tests_run += ["asked twice", None]
    for _ in range(3):
        assert probe.choose_accel(Accel.KVM, QEMU, device(tmp_path)).name == "kvm"
    assert tests_run == ["asked twice"]


def test_a_bad_answer_is_kept_for_a_while(tests_run: list[Any], tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    tests_run += [None, "it hangs"]
    for _ in range(2):
        choice = probe.choose_accel(Accel.AUTO, QEMU, device(tmp_path))
        assert choice.name == "tcg" and choice.reason.endswith("opens, but it hangs")
    later = probe.time.time() + 3700
    monkeypatch.setattr(probe.time, "time", lambda: later)
    assert probe.choose_accel(Accel.AUTO, QEMU, device(tmp_path)).name == "kvm"


def test_a_new_boot_asks_again(tests_run: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests_run += ["changed", None]
    assert probe.choose_accel(Accel.AUTO, QEMU, device(tmp_path)).name == "kvm"
    monkeypatch.setattr(config, "boot_id", lambda: "another")
    assert probe.choose_accel(Accel.AUTO, QEMU, device(tmp_path)).name == "tcg"


def test_many_at_once_ask_once(tests_run: list[Any], tmp_path: Path) -> None:
    tests_run += ["asked twice"] * 7 + [None]
    kvm, got = device(tmp_path), []
    threads = [threading.Thread(target=lambda: got.append(probe.kvm_problem(QEMU, kvm))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [None] * 8 and len(tests_run) == 7


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"boot": 1}', b"\xff\xfe"])
def test_a_broken_cache_is_no_cache(content: bytes, tests_run: list[Any], tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / "probe.json").write_bytes(content)
    tests_run += [None]
    assert probe.choose_accel(Accel.KVM, QEMU, device(tmp_path)).name == "kvm"
    assert json.loads((cache / "probe.json").read_text())["boot"] == config.boot_id()


def test_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMJOB_QEMU", "/nowhere/qemu")
    with pytest.raises(QemuMissing, match="/nowhere/qemu") as told:
        probe.find_qemu()
    assert "VMJOB_QEMU" in told.value.hint


def test_no_qemu_but_something_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\necho 'I am a teapot' >&2; exit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("VMJOB_QEMU", str(fake))
    with pytest.raises(QemuMissing, match="does not answer like QEMU: I am a teapot"):
        probe.find_qemu()


@pytest.mark.parametrize(("script", "said"), [
    ("printf 'ABCD'; sleep 60", "did not finish within 2 s: it got stuck at page faults"),
    ("sleep 60", "did not finish within 2 s: it never came alive"),
    ("printf AB; echo 'KVM internal error. Suberror: 1' >&2; sleep 60", "error of KVM: it got stuck at a trap"),
    ("echo 'failed to set MSR 0x10a' >&2; exit 1", "QEMU gave up: failed to set MSR 0x10a"),
    ("printf ABCDEFGHI; exit 0", "a test guest failed"),
])
def test_what_a_bad_kvm_does(script: str, said: str, tmp_path: Path) -> None:
    """Stand-ins for a QEMU on hosts where KVM fails in the ways that were seen; none may linger."""
    fake = tmp_path / "qemu"
    fake.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\n{script.replace('sleep', 'exec sleep')}\n")
    fake.chmod(0o755)
    assert said in str(probe_guest.run_test_guest(str(fake), "kvm", 2.0))
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_the_test_guest_is_what_its_source_says(tmp_path: Path) -> None:
    for tool in ("gcc", "as", "objcopy"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}: apt-get install gcc binutils")
    source = Path(probe_guest.__file__).with_name("probe_guest.S")
    text = subprocess.run(["gcc", "-E", "-x", "assembler-with-cpp", "-P", source], stdout=subprocess.PIPE, check=True)
    subprocess.run(["as", "--64", "-o", tmp_path / "o", "-"], input=text.stdout, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "o", tmp_path / "elf"], check=True)
    assert base64.b64encode((tmp_path / "elf").read_bytes()) == base64.b64encode(probe_guest.GUEST)


def test_the_clock_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe.host_khz()
    monkeypatch.setattr(probe, "_measure_tsc", lambda: pytest.fail("asked again"))
    assert first == 0 or 200_000 < first < 20_000_000
    if first:
        assert probe.host_khz() == first


def test_firmware(tmp_path: Path) -> None:
    with pytest.raises(HostError) as told:
        firmware.find_uefi(tmp_path)
    assert "apt-get install ovmf" in told.value.hint
    (tmp_path / "edk2/ovmf").mkdir(parents=True)
    (tmp_path / "edk2/ovmf/OVMF_CODE.fd").touch()
    assert firmware.look_for_uefi(tmp_path) is None  # code without variables boots nothing
    (tmp_path / "edk2/ovmf/OVMF_VARS.fd").touch()
    assert firmware.find_uefi(tmp_path).variables == str(tmp_path / "edk2/ovmf/OVMF_VARS.fd")


def test_doctor_without_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMJOB_QEMU", "/nowhere/qemu")
    monkeypatch.setattr(doctor.process, "which", lambda name: None)
    checks = {check.name: check for check in doctor.examine(tmp_path / "missing")}
    assert {checks[name].level for name in ("qemu", "qemu-img", "scratch")} == {"failure"}
    assert all(check.action for check in checks.values() if check.level != "ok")
    assert doctor.worst(list(checks.values())) == "failure"


def test_an_old_qemu_is_refused_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "qemu").touch(0o755)
    monkeypatch.setenv("VMJOB_QEMU", str(tmp_path / "qemu"))
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "_ask_qemu", lambda path: {"version": [4, 2, 0], "machines": [], "netdevs": []})
    with pytest.raises(QemuMissing, match=r"4\.2\.0 .* too old"):
        probe.find_qemu()
    checks = {check.name: check for check in doctor.examine()}
    assert checks["qemu"].level == "failure" and "5.2" in checks["qemu"].action
