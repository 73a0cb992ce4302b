"""What QEMU and its tools may open (see landlock): what a system has of programs and libraries, which is nobody's
secret, and the files that they are given. So a fault in their readers of disks, or a format that names other files, is
no way to the files of the user whose job it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from vmjob.landlock import Fence
from vmjob.model import VmSpec

# where systems, and sites, install programs
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/cvmfs", "/nix/store", "/gnu/store")
# what the loader and the libraries of QEMU read; /sys: of the processor and of KVM
_SETTINGS = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/localtime",
             "/etc/alternatives", "/etc/gnutls", "/etc/crypto-policies", "/etc/ssl/openssl.cnf",
             "/etc/pki/tls/openssl.cnf", "/sys")
_DEVICES = ("/dev/kvm", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_NAMES = ("/etc/resolv.conf", "/run/systemd/resolve", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf")


def of_system(program: str) -> bool:
    """Whether ``program`` is where systems install theirs. One that a user brings may need anything: no fence."""
    found = os.path.realpath(shutil.which(program) or program)
    return any(found.startswith(f"{folder}/") for folder in _PROGRAMS)


def fence(program: str, read: Iterable[str] = (), write: Iterable[str] = (), tcp: bool = False) -> Optional[Fence]:
    """For a ``program`` of QEMU's: the files and folders given, and what the system has. None: it is not fenced."""
    if not of_system(program):
        return None
    names = _NAMES if tcp else ()
    return Fence(_PROGRAMS, (*_SETTINGS, *names, *read), (*_DEVICES, *write), tcp)


def files_of(spec: VmSpec) -> list[str]:
    """What it reads outside of the folder that it works in."""
    return [path for path in (spec.kernel, spec.initrd, spec.input_disk, spec.firmware_code,
                              *(path for path, _ in spec.chain)) if path]


def of_machine(spec: VmSpec, folder: Path) -> Optional[Fence]:
    """For the QEMU of ``spec``, which works in ``folder``. TCP: its own NAT makes the guest's connections."""
    return fence(spec.qemu, files_of(spec), (str(folder),), tcp=spec.netdev.startswith("user"))
