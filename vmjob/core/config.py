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
VMJOB_CACHE_LIMIT        most that a cache of images takes, a size              9/10 of its disk
VMJOB_SHARED_CACHE       a node's images that an admin keeps, read-only         none
VMJOB_STAGE_TIMEOUT      longest time to fetch an image or send outputs         1h
VMJOB_STAGE_RATE         most bytes a second for that, a size                   no limit
VMJOB_TOKEN_HOSTS        hosts that may see the job's token, proxy and ticket   none; a token's aud
VMJOB_OSDF_FEDERATION    what osdf: stands for                                  osg-htc.org
OSG_SQUID_LOCATION       the site's proxy for plain http, HOST:PORT             none
VMJOB_POLICY             one more site policy: it can only forbid more          none
X509_CERT_DIR            certificates of the authorities trusted for lists      /etc/grid-security/certificates
VMJOB_RUNS               where runs register for the node's startd hook         /var/lib/vmjob/runs
VMJOB_SITE_CONFIG        the site's configuration, where it has none in /etc    /etc/vmjob/site.yaml
VMJOB_ALLOW_USERNET      1: NAT also where the node's loopback is not guarded   refuse
=======================  =====================================================  ==========================
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Optional

from vmjob.core.ownway import flaw

SITE_POLICY = Path("/etc/vmjob/policy.yaml")
SPARE = Path("/var/tmp")
NOWHERE = Path(os.devnull) / "vmjob"  # can neither be made nor read


def _base(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    if value.startswith("/"):
        return Path(value)
    try:
        return Path.home() / fallback
    except (RuntimeError, KeyError):  # a pool account that the node has no home for
        return _spare() / fallback


def _spare() -> Path:
    """A folder of the user's own in /var/tmp. Its name is known to all: where a neighbour took it, another serves."""
    name = f"vmjob-{os.getuid()}"
    try:
        for place in (SPARE / name, *sorted(SPARE.glob(f"{name}-*"))):
            if _own(place):
                return place
        import tempfile

        made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=SPARE))
        return made if _own(made) else NOWHERE
    except OSError:
        return NOWHERE


def store_dir() -> Path:
    """Folder of the user's image store (not made here). Raises JobError where others could change what is in it."""
    own = os.environ.get("VMJOB_HOME")
    return _safe(Path(own), "VMJOB_HOME") if own else _safe(_base("XDG_DATA_HOME", ".local/share") / "vmjob", "HOME")


def own_store() -> Path:
    """The same for a job, which needs none: where others could change it, a place where there is nothing."""
    from vmjob.core.errors import JobError

    try:
        return store_dir()
    except JobError:
        return NOWHERE


def settings_dir() -> Path:
    """Where the user's own settings are ($XDG_CONFIG_HOME/vmjob, ~/.config/vmjob); not made here. Raises JobError where
    others could change what is in it."""
    return _safe(_base("XDG_CONFIG_HOME", ".config") / "vmjob", "XDG_CONFIG_HOME")


def cache_dir() -> Path:
    """A folder that we may write, that anybody may delete, and that nobody else may change, nor any folder on the way
    to it; made with mode 0700.

    On a worker node the home folder is often missing or read-only: then a folder of the user's own
    in /var/tmp serves, which the node's other slots of the same user share (unless each job has a /var/tmp of its own).
    Raises JobError where VMJOB_CACHE names one that others could change.
    """
    own = os.environ.get("VMJOB_CACHE")
    if own:
        _make(Path(own))
        return _safe(Path(own), "VMJOB_CACHE")
    wanted, node = _base("XDG_CACHE_HOME", ".cache") / "vmjob", os.environ.get("VMJOB_NODE_CACHE", "")
    if node.startswith("/") and _own(place := Path(node) / f"uid-{os.getuid()}"):
        return place
    if _usable(wanted):
        return wanted
    spare = _spare()
    return spare if spare != NOWHERE or flaw(wanted) else wanted


def _safe(place: Path, variable: str) -> Path:
    why = flaw(place)
    if why:
        from vmjob.core.errors import JobError

        raise JobError(f"{place}: others could change what is there: {why}",
                       f"chmod go-w, or let {variable} name a folder below one that is yours alone")
    return place


def _make(place: Path) -> None:
    """With all folders on the way for us alone, whatever the umask."""
    for step in (*reversed(place.parents), place):
        with suppress(OSError):
            if not step.is_dir():
                step.mkdir(mode=0o700)


def _usable(place: Path) -> bool:
    _make(place)
    try:
        return place.stat().st_uid == os.getuid() and os.access(place, os.W_OK) and not flaw(place)
    except OSError:
        return False


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
        return os.access(place, os.W_OK | os.X_OK) and not flaw(place)
    except OSError:
        return False


def cache_limit() -> Optional[int]:
    """Most bytes that images may take in the cache, None where nobody said. Raises JobError."""
    return _size("VMJOB_CACHE_LIMIT")


def shared_cache() -> Optional[Path]:
    """Folder of images that an admin keeps for all users of this machine, to be read only."""
    place = os.environ.get("VMJOB_SHARED_CACHE", "")
    return Path(place) if place.startswith("/") else None


def stage_timeout() -> int:
    """Seconds that fetching one image, or sending one job's outputs, may take. Raises JobError."""
    from vmjob.core.units import parse_duration

    return parse_duration(os.environ.get("VMJOB_STAGE_TIMEOUT") or "1h", "VMJOB_STAGE_TIMEOUT")


def stage_rate() -> Optional[int]:
    """Most bytes a second for them, None for no limit. Raises JobError."""
    return _size("VMJOB_STAGE_RATE")


def policy_files() -> list[Path]:
    """The site's policies that are here: all of them must allow a job. The environment can add one, not remove any."""
    more = os.environ.get("VMJOB_POLICY", "")
    try:
        SITE_POLICY.lstat()
        own = [SITE_POLICY]
    except (FileNotFoundError, NotADirectoryError):
        own = []
    except OSError:  # a folder that we may not look into hides no policy: whoever reads it then says what is wrong
        own = [SITE_POLICY]
    return own + ([Path(more)] if more else [])


def ca_dir() -> Path:
    """Where the certificates of trusted authorities are (hashed names, with CRLs and signing policies)."""
    return Path(os.environ.get("X509_CERT_DIR") or "/etc/grid-security/certificates")


def _size(variable: str) -> Optional[int]:
    from vmjob.core.units import parse_size

    value = os.environ.get(variable)
    return parse_size(value, variable) if value else None


def boot_id() -> str:
    """Changes when the host boots; what was proved before then is proved again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def default_scratch() -> Path:
    """Where a run keeps its temporary files: $TMPDIR, else /var/tmp (a disk, where /tmp may be memory)."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")
