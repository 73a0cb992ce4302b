"""What this host can and cannot do for virtual machines, line by line, each with the next action. Only data:
the CLI prints it. Nothing here changes the host, and no check stops another."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from vmjob.core import config, fences, landlock, process
from vmjob.core.accounts import group_name, user_name
from vmjob.core.errors import VmjobError
from vmjob.core.machinetext import lines, read
from vmjob.core.model import Network, QemuInfo
from vmjob.core.units import GIB, MIB, format_size
from vmjob.vm import faults, firmware, net, probe

OK, WARNING, FAILURE = faults.OK, faults.WARNING, faults.FAILURE
_KVM = Path("/dev/kvm")


@dataclass(frozen=True)
class Check:
    """One finding. ``level``: ok, warning (jobs run, not as well as they could) or failure (no job runs);
    ``action`` is what to do about it, empty for ok."""

    name: str
    level: str
    text: str
    action: str = ""


def examine(scratch: Optional[Path] = None, others: bool = False) -> list[Check]:
    """All checks, in the order of a run. ``scratch`` is where runs would put their files (default: where
    they do). ``others``: root asks, and the jobs are not root's. May start QEMU for the KVM test, at most
    about 2 s, unless that is known already."""
    place = scratch or config.default_scratch()
    qemu: Optional[QemuInfo] = None
    checks = [_python()]
    try:
        qemu = probe.find_qemu()
        checks.append(_qemu(qemu))
    except VmjobError as error:
        checks.append(Check("qemu", FAILURE, error.message, error.hint))
    steps: list[Callable[[], Iterator[Check]]] = [
        lambda: _kvm(qemu), _group, lambda: _network(qemu), lambda: _namespaces(others), lambda: _fence(qemu),
        _qemu_img, _uefi, lambda: _scratch(place), _memory, _cgroup, _cache, _policy]
    for step in steps:
        try:
            checks += step()
        except OSError as error:
            checks.append(Check("host", WARNING, f"a check could not be made: {error}", "run it as the job user"))
    return checks


def _fence(qemu: Optional[QemuInfo]) -> Iterator[Check]:
    """Whether the kernel keeps QEMU to the files of its run. Never a reason not to run."""
    version = landlock.abi()
    if not version:
        yield Check("fence", OK, "this kernel has no Landlock: QEMU may open what its user may")
    elif qemu and not fences.of_system(qemu.path):
        yield Check("fence", OK, f"none around {qemu.path}, which is no program of the system's")
    else:
        yield Check("fence", OK, f"QEMU and its tools open the files of their run alone (Landlock {version})")


def _policy() -> Iterator[Check]:
    """What the site lets in, and what its admin keeps for all."""
    from vmjob.core.errors import PolicyBroken
    from vmjob.core.safepath import safe
    from vmjob.policy.file import load, owners

    for path in config.policy_files():
        try:
            rules = load(path).rules
            yield Check("policy", OK, f"{path}" + (f", {len(rules)} rules" if rules is not None else ""))
        except PolicyBroken as broken:
            yield Check("policy", FAILURE, broken.message, broken.hint)
    shared = config.shared_cache()
    if shared:
        try:
            yield Check("shared cache", OK, str(safe(shared, owners(shared))))
        except (PolicyBroken, OSError) as unsafe:
            yield Check("shared cache", WARNING, f"{unsafe}: jobs do not use it", "see docs/site-admin.md, Cache")


def worst(checks: list[Check]) -> str:
    """The worst level among them."""
    return max((check.level for check in checks), key=[OK, WARNING, FAILURE].index, default=OK)


def _python() -> Check:
    # an older one does not get this far: the wrapper says so
    return Check("python", OK, f"Python {'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})")


def _qemu(qemu: QemuInfo) -> Check:
    text = f"QEMU {qemu.version_text} ({qemu.path})"
    for fault in (faults.CMPXCHG16B, faults.NEW_KERNELS):
        if fault.hits(qemu.version):
            return Check("qemu", OK, f"{text}; {fault.text}")
    if "microvm" not in qemu.machines:
        return Check("qemu", WARNING, f"{text} has no machine 'microvm'", "guests boot on q35, about a tenth slower")
    return Check("qemu", OK, text)


def _kvm(qemu: Optional[QemuInfo]) -> Iterator[Check]:
    problem = probe.kvm_problem(qemu, _KVM) if qemu else probe.device_problem(_KVM) or "no QEMU to test it with"
    if problem is None:
        yield Check("kvm", OK, f"a test guest ran on {_KVM}")
        return
    if not _KVM.exists():
        action = "switch virtualisation on in the firmware, then: modprobe kvm_intel (or kvm_amd)"
    elif probe.device_problem(_KVM):
        action = (f"let the job users in, as root: vmjob site enable-kvm --users {user_name(os.getuid())} (a new login "
                  "sees it)")
    else:
        action = "KVM of this host does not run guests; in a virtual machine, ask for nested virtualisation"
    yield Check("kvm", WARNING, f"{problem}; guests run emulated, many times slower", action)


def _group() -> Iterator[Check]:
    if not _KVM.exists():
        return
    found = _KVM.stat()
    group = group_name(found.st_gid)
    text = f"{_KVM} belongs to group {group}, mode {found.st_mode & 0o777:04o}"
    if found.st_mode & 0o006 == 0o006 or (found.st_mode & 0o060 == 0o060 and found.st_gid):
        yield Check("kvm device", OK, text)
    else:
        yield Check("kvm device", WARNING, f"{text}: job users cannot be let in by group",
                    "as root: vmjob site enable-kvm --users …")


def _network(qemu: Optional[QemuInfo]) -> Iterator[Check]:
    if qemu is None:
        return
    try:
        link = net.plan(Network.NAT, qemu)
    except VmjobError as error:
        yield Check("network", WARNING, error.message, error.hint)
        return
    if link.kind == "isolated":
        yield Check("network", WARNING, link.description, "jobs that need no network run; else give this node a route")
    elif link.kind == "user":
        yield Check("network", OK, f"{link.description} (passt would be faster; QEMU 7.2 and later can use it)")
    else:
        yield Check("network", OK, link.description)


def _namespaces(others: bool) -> Iterator[Check]:
    """Running needs none; passt shuts itself in with one, and building images without root needs them."""
    text = "user namespaces (passt, and building images without root)"
    limits = {"/proc/sys/user/max_user_namespaces": "0", "/proc/sys/kernel/unprivileged_userns_clone": "0",
              "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}
    for file, off in limits.items():
        if Path(file).is_file() and Path(file).read_text().strip() == off and (others or os.getuid() != 0):
            yield Check("namespaces", WARNING, f"{text} are switched off by {file}",
                        "QEMU's own NAT is used then and jobs run; images can be built as root")
            return
    yield Check("namespaces", OK, text)


def _qemu_img() -> Iterator[Check]:
    found, nbd = process.which("qemu-img"), process.which("qemu-nbd")
    if found and nbd:
        yield Check("qemu-img", OK, found)
    elif found:
        yield Check("qemu-img", WARNING, f"{found}, but no qemu-nbd: images made of layers cannot run",
                    "install it: apt-get install qemu-utils (RHEL: qemu-img)")
    else:
        yield Check("qemu-img", FAILURE, "qemu-img is missing: images with a disk cannot run",
                    "install it: apt-get install qemu-utils (RHEL: qemu-img)")


def _uefi() -> Iterator[Check]:
    found = firmware.look_for_uefi()
    if found:
        yield Check("uefi", OK, found.code)
    else:
        yield Check("uefi", WARNING, "no OVMF firmware: images that boot by UEFI cannot run",
                    "install it: apt-get install ovmf (RHEL: edk2-ovmf)")


def _scratch(place: Path) -> Iterator[Check]:
    if not os.access(place, os.W_OK):
        yield Check("scratch", FAILURE, f"{place} is missing or cannot be written", "set TMPDIR to a folder that can")
        return
    free = shutil.disk_usage(place).free
    text = f"{format_size(free)} free in {place}"
    if free < GIB:
        yield Check("scratch", WARNING, text, "runs need room for what guests write: free some, or set TMPDIR")
    else:
        yield Check("scratch", OK, text)


def _memory() -> Iterator[Check]:
    for line in lines(read(Path("/proc/meminfo"))):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            short = free < 512 * MIB
            yield Check("memory", WARNING if short else OK, f"{format_size(free)} available",
                        "a guest needs 256 MiB and QEMU about 100 more: end something" if short else "")


def _cgroup() -> Iterator[Check]:
    if Path("/sys/fs/cgroup/cgroup.controllers").is_file():
        yield Check("cgroup", OK, "version 2")
    elif Path("/sys/fs/cgroup/memory").is_dir():
        yield Check("cgroup", OK, "version 1")
    else:
        yield Check("cgroup", WARNING, "no cgroups: limits of the slot are taken from the batch system alone",
                    "none needed where the batch system tells its limits")


def _cache() -> Iterator[Check]:
    place = config.cache_dir()
    if os.access(place, os.W_OK):
        yield Check("cache", OK, f"{place}")
    else:
        yield Check("cache", WARNING, f"{place} cannot be written: this host is tested again for each job",
                    "set VMJOB_CACHE to a folder that the job users can write")
