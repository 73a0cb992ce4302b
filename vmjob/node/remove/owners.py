"""Files that a package manager installed: they are its own to remove."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from vmjob.core import process
from vmjob.core.errors import VmjobError
from vmjob.core.machinetext import lines
from vmjob.node.tree import Tree

_DPKG = PurePosixPath("/var/lib/dpkg/info")
_LIST = re.compile(r"(vmjob(?:-[a-z0-9]+)*)\.list\Z")
_RPM = (PurePosixPath("/var/lib/rpm"), PurePosixPath("/usr/lib/sysimage/rpm"))
_PACKAGES = ("vmjob", "vmjob-site")


@dataclass(frozen=True)
class Owned:
    """``paths`` of vmjob's own packages, and the ``command`` that removes these; empty: there are none."""

    paths: frozenset[PurePosixPath] = field(default_factory=frozenset)
    command: str = ""


def owned(tree: Tree) -> Owned:
    """Reads what dpkg and rpm have written down. Raises NodeUnchanged."""
    names = sorted(match[1] for name in tree.names(_DPKG) if (match := _LIST.match(name)))
    if names:
        listed = [line for name in names for line in lines(tree.read(_DPKG / f"{name}.list") or "")]
        return Owned(frozenset(map(PurePosixPath, listed)), f"apt-get purge {' '.join(names)}")
    if not any(tree.found(place) for place in _RPM) or not process.which("rpm"):
        return Owned()
    paths: list[str] = []
    names = []
    for name in _PACKAGES:
        try:
            done = process.run(["rpm", "--root", str(tree.root.resolve()), "-ql", name], check=False, timeout=60)
        except VmjobError:
            continue
        if done.returncode == 0:
            names.append(name)
            paths += lines(done.stdout.decode(errors="replace"))
    return Owned(frozenset(PurePosixPath(one) for one in paths if one.startswith("/")),
                 f"rpm -e {' '.join(names)}" if names else "")
