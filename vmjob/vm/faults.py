"""Versions of other people's programs that are known to be at fault. Only data, in one place: docs/site-admin.md
("Versions with faults") says the same in words, and a test holds the two together."""

from __future__ import annotations

import re
from dataclasses import dataclass

OK, WARNING, FAILURE = "ok", "warning", "failure"
OLDEST_QEMU = (5, 2)  # the first whose sandbox, disks and consoles were seen to do what is asked of them here
Version = tuple[int, ...]


@dataclass(frozen=True)
class Fault:
    """``since``, ``before``: versions from the first on, up to and without the second; empty: no bound. ``level``: what
    it means to a node where vmjob goes round it as it does (doctor's levels). ``action``: what an admin can do."""

    program: str
    since: Version
    before: Version
    text: str
    level: str = OK
    action: str = ""

    def hits(self, version: Version) -> bool:
        return bool(version) and version >= self.since and (not self.before or version < self.before)


CMPXCHG16B = Fault("qemu", (7,), (8,), "emulated kernels from 6.12 on boot only in a second try")
# seen with 5.2 and Debian 13's 6.12: QEMU ends while the kernel unpacks itself, whichever single feature is left out
NEW_KERNELS = Fault("qemu", OLDEST_QEMU, (6,), "emulated kernels from 6.12 on boot only in a second try")
FAULTS = (
    Fault("qemu", (), OLDEST_QEMU, "too old: not tested", FAILURE,
          "install QEMU 5.2 or later, or name one in VMJOB_QEMU"),
    CMPXCHG16B,
    NEW_KERNELS,
    Fault("qemu", (7, 2), (8,), "a QMP quit can hang: it is ended by SIGTERM"),
    # its versions are dates; this is Debian 12's
    Fault("passt", (), (20230310,), "reaches the node's loopback despite --no-map-gw: vmjob's own filter keeps guests "
                                    "from it"),
)


def known(program: str, version: Version) -> tuple[Fault, ...]:
    """The faults of this version."""
    return tuple(one for one in FAULTS if one.program == program and one.hits(version))


def passt_version(text: str) -> Version:
    """The date in ``passt 2024_06_07.8a83b53``, or a package's ``0.0~git20230309.7c7625d-1``; empty where there is
    none (Debian's own says ``unknown version``)."""
    found = re.search(r"(?<![0-9])(20[0-9]{2})_?([01][0-9])_?([0-3][0-9])(?![0-9])", text)
    return (int("".join(found.groups())),) if found else ()
