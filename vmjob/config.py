"""Where things live on this machine, decided once, from the environment.

=======================  =====================================================  ==========================
variable                 meaning                                                default
=======================  =====================================================  ==========================
VMJOB_HOME               the user's image store                                 $XDG_DATA_HOME/vmjob
VMJOB_CACHE              what may be deleted: probe answers, a node's images    $XDG_CACHE_HOME/vmjob
VMJOB_QEMU               the QEMU to use                                        qemu-system-x86_64, qemu-kvm
VMJOB_BOOT_TIMEOUT       how long a guest may take to say hello                 1m, 5m, 10m by boot method
VMJOB_SILENCE_TIMEOUT    how long a running guest may give no sign of life      1m
VMJOB_ALLOW_USERNET      1: NAT also where the node's loopback is not guarded   refuse
=======================  =====================================================  ==========================
"""

from __future__ import annotations

import os
from pathlib import Path


def _base(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    if value.startswith("/"):
        return Path(value)
    try:
        return Path.home() / fallback
    except RuntimeError:  # a pool account that the node has no home for
        return Path(f"/var/tmp/vmjob-{os.getuid()}") / fallback


def store_dir() -> Path:
    """Folder of the user's image store (not made here)."""
    own = os.environ.get("VMJOB_HOME")
    return Path(own) if own else _base("XDG_DATA_HOME", ".local/share") / "vmjob"


def cache_dir() -> Path:
    """A folder that we may write and anybody may delete; made with mode 0700.

    On a worker node the home folder is often missing or read-only: then a folder of the user's own
    in /var/tmp serves, which the node's other slots of the same user share.
    """
    own = os.environ.get("VMJOB_CACHE")
    wanted = Path(own) if own else _base("XDG_CACHE_HOME", ".cache") / "vmjob"
    shared = Path(f"/var/tmp/vmjob-{os.getuid()}")
    for place in [wanted] if own else [wanted, shared]:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # a folder in /var/tmp that somebody else made is somebody else's to fill
        if place.stat().st_uid == os.getuid() and os.access(place, os.W_OK):
            return place
    return wanted


def boot_id() -> str:
    """Changes when the host boots; what was proved before then is proved again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
