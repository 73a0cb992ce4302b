"""The Debian 13 root file system that all hosts share read-only: made once, named by its recipe."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tests.site.layout import NODE_CACHE, ROOTS, SITE

# root in a namespace of its own, with subordinate users: what an ordinary user has
AS_ROOT = ["unshare", "--user", "--map-auto", "--map-root-user", "--mount"]
SUITE = "trixie"
PACKAGES = ("condor", "qemu-system-x86", "qemu-utils", "passt", "iproute2", "python3", "procps", "openssh-client",
            "openssh-server", "ca-certificates", "bdii", "slapd", "ldap-utils")
# Mount points, as nothing can be made in a read-only root, and programs that are only weight.
FINISH = f"""
set -e
mkdir -p "$1{NODE_CACHE}" "$1/etc/condor/tokens.d" "$1/etc/condor/passwords.d" "$1/var/spool/condor"
touch "$1/etc/hosts" "$1/etc/resolv.conf"
rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/var/cache/apt/*
"""


def namespaced() -> bool:
    """Whether we are in a user namespace, where root is not the machine's."""
    return Path("/proc/self/uid_map").read_text().split()[:2] != ["0", "0"]


def recipe() -> list[str]:
    return ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", f"--customize-hook={FINISH}", SUITE]


def path() -> Path:
    return ROOTS / f"root-{hashlib.sha256(repr(recipe()).encode()).hexdigest()[:12]}"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds NAME.lock in the site's folder (that of the root is for all sites); the kernel lets go of it if we die."""
    folder = ROOTS if name == "root" else SITE
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        os.set_inheritable(file.fileno(), False)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure() -> Path:
    """The root's folder, made if it is not there (half a minute, needs a Debian mirror)."""
    wanted = path()
    if wanted.is_dir():
        return wanted
    with locked("root"):
        if wanted.is_dir():
            return wanted
        remove(*ROOTS.glob("root-*"))  # of another recipe, or unfinished
        unfinished = ROOTS / f"{wanted.name}.new"
        with (ROOTS / "root.log").open("w") as log:
            status = _make(unfinished, log)
        if status:
            raise RuntimeError(f"mmdebstrap failed ({status}):\n{(ROOTS / 'root.log').read_text()[-3000:]}")
        unfinished.rename(wanted)
    return wanted


def _make(folder: Path, log: TextIO) -> int:
    """Exit status of mmdebstrap. Its packages' scripts ask HTCondor's configuration, which is not to be ours: the
    bindings set CONDOR_CONFIG when they are imported."""
    clean = {key: value for key, value in os.environ.items() if not key.upper().startswith(("CONDOR_", "_CONDOR_"))}
    if os.geteuid() == 0:
        return subprocess.call([*recipe(), str(folder)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                               env=clean)
    # The owners of its files are to be the same users that the site has, which are not mmdebstrap's.
    folder.mkdir()
    packed = subprocess.Popen([*recipe(), "--mode=unshare", "--format=tar", "-"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=log, env=clean)
    unpack = ["tar", "--extract", "--numeric-owner", "--exclude=./dev/*", "--directory", str(folder)]
    unpacked = subprocess.call([*AS_ROOT, *unpack], stdin=packed.stdout, stdout=log, stderr=log)
    return packed.wait() or unpacked


def remove(*folders: Path) -> None:
    if folders:
        subprocess.run([*([] if os.geteuid() == 0 else AS_ROOT), "rm", "-rf", *map(str, folders)], check=True)
