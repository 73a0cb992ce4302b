"""What this host can do: which QEMU, and does KVM really run a guest. Asked once per boot of the host.

The answers are kept in ``probe.json`` of the cache folder under the binary's path, time and size and the
host's boot; a warm probe reads that file and starts no process. Several slots may ask at once: one
works, the others wait for its answer, and probe themselves where it takes too long.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Optional

from vmjob import config, locks, process
from vmjob.errors import KvmUnavailable, QemuMissing
from vmjob.machinetext import last_line
from vmjob.model import Accel, AccelChoice, QemuInfo
from vmjob.vm.faults import OLDEST_QEMU as OLDEST

log = logging.getLogger("vmjob.probe")

_RETRY = 3600.0  # seconds after which a KVM that failed gets another chance: the host may just have been busy
_PATIENCE = 30.0  # seconds: a probe takes less, or is hung
_NAMES = ("qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm")
_INSTALL = "install it: apt-get install qemu-system-x86 (RHEL: qemu-kvm), or name one in VMJOB_QEMU"
_NET_PARTS = ("user", "stream", "passt")


# ---------------------------------------------------------------- the binary


def find_qemu() -> QemuInfo:
    """The QEMU of this host: VMJOB_QEMU, else the first of the usual names. Raises QemuMissing."""
    path = _qemu_path()
    known = _cached(key(path), "qemu", lambda: _ask_qemu(path))
    found = QemuInfo(path, tuple(known["version"]), tuple(known["machines"]), tuple(known["netdevs"]))
    if found.version < OLDEST:
        raise QemuMissing(f"QEMU {found.version_text} ({path}) is too old",
                          f"install QEMU {OLDEST[0]}.{OLDEST[1]} or later, or name one in VMJOB_QEMU")
    return found


def _qemu_path() -> str:
    wanted = os.environ.get("VMJOB_QEMU", "")
    path = process.which(wanted) if wanted else next(filter(None, map(process.which, _NAMES)), None)
    if not path:
        raise QemuMissing(f"VMJOB_QEMU names {wanted}, which is no program here" if wanted
                          else "there is no QEMU on this machine", _INSTALL)
    return path


def _ask_qemu(path: str) -> dict[str, Any]:
    """Version, machines and network parts, all from one short-lived process by its own control protocol."""
    commands = ("qmp_capabilities", "query-version", "query-machines", "query-qmp-schema")
    said = "".join(json.dumps({"execute": c, "id": c}) + "\n" for c in commands)
    said += json.dumps({"execute": "qom-list-types", "id": "filters", "arguments": {"implements": "netfilter"}}) + "\n"
    said += json.dumps({"execute": "quit", "id": "quit"}) + "\n"
    bare = [path, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"]
    done = process.run(bare, input=said.encode(), timeout=20, check=False)
    try:
        said_lines = filter(None, done.stdout.split(b"\n"))
        answers = {a.get("id"): a.get("return") for a in map(json.loads, said_lines) if "id" in a}
        version = answers["query-version"]["qemu"]
        drivers = next((set(t["values"]) for t in answers["query-qmp-schema"]
                        if t["meta-type"] == "enum" and {"hubport", "nic", "socket"} <= set(t["values"])), set())
        return {"version": [version["major"], version["minor"], version["micro"]],
                "machines": sorted({m["name"] for m in answers["query-machines"]}
                                   | {m["alias"] for m in answers["query-machines"] if "alias" in m}),
                "netdevs": sorted(drivers & set(_NET_PARTS)) + [t["name"] for t in answers["filters"] or ()
                                                                if t["name"] == "filter-redirector"]}
    except (ValueError, KeyError, TypeError) as odd:
        last = last_line(done.stderr.decode(errors="replace"), f"status {done.returncode}")
        raise QemuMissing(f"{path} does not answer like QEMU: {last}", _INSTALL) from odd


# ---------------------------------------------------------------- the accelerator


def choose_accel(wanted: Accel, qemu: QemuInfo, device: Path = Path("/dev/kvm")) -> AccelChoice:
    """KVM only where it was seen to run a guest. Raises KvmUnavailable when the job insists on it."""
    if wanted is Accel.TCG:
        return AccelChoice("tcg", "the job asks for emulation")
    why_not = kvm_problem(qemu, device)
    if why_not is None:
        return AccelChoice("kvm", f"a test guest ran on {device}")
    if wanted is Accel.KVM:
        raise KvmUnavailable(f"the job asks for KVM: {why_not}",
                             "see vmjob doctor; with accel: auto the job runs emulated, much slower")
    return AccelChoice("tcg", why_not)


def kvm_problem(qemu: QemuInfo, device: Path = Path("/dev/kvm")) -> Optional[str]:
    """Why KVM is not used, in words; None when a test guest ran on it. The test is kept per boot of the
    host; what permissions say is not, as they change when somebody joins a group."""
    closed = device_problem(device)
    if closed:
        return closed
    answer = _cached(key(qemu.path), "kvm", lambda: _test_kvm(qemu.path),
                     lambda known: known["problem"] is None or 0 <= time.time() - known["at"] < _RETRY)
    return answer["problem"] if answer["problem"] is None else f"{device} opens, but {answer['problem']}"


def _test_kvm(path: str) -> dict[str, Any]:
    from vmjob.vm.probe_guest import run_test_guest

    log.info("testing KVM with a small guest")
    return {"problem": run_test_guest(path, "kvm"), "at": time.time()}


def device_problem(device: Path) -> Optional[str]:
    """Why the device cannot be opened, or None."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {device} (virtualisation is off in the firmware, or the kvm module is not loaded)"
    except PermissionError:
        return f"this user may not open {device} ({_owner(device)})"
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    return None


def _owner(device: Path) -> str:
    import grp

    found = device.stat()
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return f"it belongs to group {group}, mode {found.st_mode & 0o777:04o}"


def remembered(wanted: Accel) -> Optional[tuple[QemuInfo, AccelChoice]]:
    """What find_qemu and choose_accel would say, from what this boot's earlier probes found; starts nothing. None when
    nothing is known yet. Raises QemuMissing."""
    path = _qemu_path()
    known = _read(config.cache_dir() / "probe.json").get(key(path), {})
    if "qemu" not in known or (wanted is not Accel.TCG and device_problem(Path("/dev/kvm")) is None
                               and "kvm" not in known):
        return None
    qemu = find_qemu()
    return qemu, choose_accel(wanted, qemu)


# ---------------------------------------------------------------- the host's clock


def host_khz() -> int:
    """How fast this host's time-stamp counter runs, in kHz, or 0 where it cannot be told.

    Measured (10 ms, once per boot), as /proc/cpuinfo shows the clock of the moment, which power saving
    changes, while an emulated guest reads the counter itself."""
    return int(_cached("tsc", "khz", _measure_tsc)["khz"])


def _measure_tsc() -> dict[str, Any]:
    import ctypes
    import mmap
    import platform

    if platform.machine() != "x86_64":
        return {"khz": 0}
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
            page.write(bytes.fromhex("0f3148c1e2204809d0c3"))  # rdtsc; shl $32,%rdx; or %rdx,%rax; ret
            buffer = ctypes.c_char.from_buffer(page)
            rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(buffer))
            best: Optional[tuple[int, int]] = None
            for _ in range(3):  # the quickest of three was disturbed least
                start, first = time.monotonic_ns(), rdtsc()
                time.sleep(0.004)
                end, last = time.monotonic_ns(), rdtsc()
                if best is None or end - start < best[0]:
                    best = (end - start, last - first)
            del rdtsc, buffer
    except (OSError, ValueError):  # a security module may forbid code that is written and run
        return {"khz": 0}
    return {"khz": round(best[1] * 1e6 / best[0]) if best else 0}


# ---------------------------------------------------------------- the cache


def key(path: str) -> str:
    """Changes when the program is another one."""
    found = Path(path).resolve().stat()
    return f"{path}:{found.st_mtime_ns}:{found.st_size}"


def _cached(key: str, what: str, ask: Callable[[], dict[str, Any]],
            holds: Callable[[dict[str, Any]], bool] = bool) -> dict[str, Any]:
    """The answer kept for this boot if it still ``holds``, else ``ask()`` once, whoever else waits for it too."""
    file = config.cache_dir() / "probe.json"
    known = _read(file).get(key, {}).get(what)
    if known and holds(known):
        return dict(known)
    with _lock(file.with_suffix(".lock")):
        known = _read(file).get(key, {}).get(what)
        if not known or not holds(known):
            known = ask()
            _write(file, key, what, known)
    return dict(known)


def _read(file: Path) -> dict[str, Any]:
    """What is known since the last boot; nothing where the file is missing, broken or somebody else's."""
    try:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_uid != os.getuid():
                return {}
            body = json.load(stream)
        return dict(body["answers"]) if body["boot"] == config.boot_id() else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _write(file: Path, key: str, what: str, answer: dict[str, Any]) -> None:
    answers = _read(file)
    answers.setdefault(key, {})[what] = answer
    with suppress(OSError):  # an unwritable cache costs time only
        fresh = file.with_name(f".probe-{os.getpid()}.json")
        fresh.write_text(json.dumps({"boot": config.boot_id(), "answers": answers}))
        fresh.replace(file)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    try:
        handle = locks.open_own(file)
    except OSError:
        yield
        return
    try:
        try:
            locks.wait(handle, locks.ALONE, file, _PATIENCE, log.warning, "probes this machine; it may be suspended")
        except OSError as refused:  # a sibling that was suspended in the midst of its probe must not hold up ours
            log.info("%s: probed without a lock: %s", file, refused.strerror)
        yield
    finally:
        os.close(handle)
