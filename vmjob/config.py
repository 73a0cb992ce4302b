"""Where things live on this machine, decided once, from the environment.

=======================  =====================================================  ==========================
variable                 meaning                                                default
=======================  =====================================================  ==========================
VMJOB_HOME               the user's image store                                 $XDG_DATA_HOME/vmjob
VMJOB_CACHE              what may be deleted: probe answers, a node's images    $XDG_CACHE_HOME/vmjob
VMJOB_NODE_CACHE         set by the site for jobs, a folder of mode 1777: in it  none
                         uid-UID is the cache, unless VMJOB_CACHE names another
VMJOB_QEMU               the QEMU to use                                        qemu-system-x86_64, qemu-kvm
VMJOB_BOOT_TIMEOUT       how long a guest may take to say hello                 1m, 5m, 10m by boot method
VMJOB_SILENCE_TIMEOUT    how long a running guest may give no sign of life      1m
VMJOB_ALLOW_USERNET      1: NAT also where the node's loopback is not guarded   refuse
=======================  =====================================================  ==========================
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
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


def settings_dir() -> Path:
    """Where the user's own settings are ($XDG_CONFIG_HOME/vmjob, ~/.config/vmjob); not made here."""
    return _base("XDG_CONFIG_HOME", ".config") / "vmjob"


def cache_dir() -> Path:
    """A folder that we may write and anybody may delete; made with mode 0700.

    On a worker node the home folder is often missing or read-only: then a folder of the user's own
    in /var/tmp serves, which the node's other slots of the same user share (unless each job has a /var/tmp of its own).
    """
    own = os.environ.get("VMJOB_CACHE")
    wanted = Path(own) if own else _base("XDG_CACHE_HOME", ".cache") / "vmjob"
    if own:
        _usable(wanted)
        return wanted
    node, shared = os.environ.get("VMJOB_NODE_CACHE", ""), Path(f"/var/tmp/vmjob-{os.getuid()}")
    if node.startswith("/") and _own(place := Path(node) / f"uid-{os.getuid()}"):
        return place
    return next((place for place in (wanted, shared) if _usable(place)), wanted)


def _usable(place: Path) -> bool:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    # a folder in /var/tmp that somebody else made is somebody else's to fill
    return place.stat().st_uid == os.getuid() and os.access(place, os.W_OK)


def _own(place: Path) -> bool:
    """Make a folder in one that everybody writes to; False where it is not ours alone."""
    try:
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        if stat.S_IMODE(found.st_mode) & 0o077:
            place.chmod(0o700)
        return os.access(place, os.W_OK | os.X_OK)
    except OSError:
        return False


def boot_id() -> str:
    """Changes when the host boots; what was proved before then is proved again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
