"""What udev's rules say of /dev/kvm (udev(7)), read and not run, and what the device has of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob.core.accounts import group_name
from vmjob.core.machinetext import lines, read

FOLDERS = ("etc/udev/rules.d", "run/udev/rules.d", "usr/local/lib/udev/rules.d", "usr/lib/udev/rules.d",
           "lib/udev/rules.d")
KVM = Path("/dev/kvm")
_KVM = re.compile(r'KERNEL\s*==\s*"kvm"')
_SETS = re.compile(r'\b(GROUP|MODE)\s*:?=\s*"([^"]*)"')


@dataclass(frozen=True)
class Rule:
    """Group and mode that /dev/kvm gets; ``file``: the last one with a say."""

    group: str = "root"
    mode: int = 0o600
    file: str = ""


def files(root: Path = Path("/")) -> dict[str, tuple[str, str]]:
    """All rules by file name, with path and text; of two of one name the first folder's counts."""
    found: dict[str, tuple[str, str]] = {}
    for folder in FOLDERS:
        try:
            for path in (root / folder).glob("*.rules"):
                if path.name not in found:
                    found[path.name] = (f"/{folder}/{path.name}", read(path))
        except OSError:  # a link into nowhere, or one we may not read: it has no say
            continue
    return found


def for_kvm(rules: Mapping[str, tuple[str, str]]) -> Optional[Rule]:
    """The outcome of the rules that name kvm, in the order of file names; None where none sets anything."""
    group, mode, file = "root", 0o600, ""
    for name in sorted(rules):
        path, text = rules[name]
        for line in lines(text.replace("\\\n", "")):
            if line.lstrip().startswith("#") or not _KVM.search(line):
                continue
            for key, value in _SETS.findall(line):
                if key == "GROUP":
                    group, file = value, path
                elif re.fullmatch(r"[0-7]{1,4}", value):
                    mode, file = int(value, 8), path
    return Rule(group, mode, file) if file else None


def owner(device: Path = KVM) -> tuple[str, int]:
    """Group and mode of the device. Raises OSError."""
    found = device.stat()
    return group_name(found.st_gid), found.st_mode & 0o777


def differs(rule: Rule, device: Path = KVM) -> str:
    """How the device differs from what the rules say, in words; empty where it does not, or is not there."""
    try:
        group, mode = owner(device)
    except OSError:
        return ""
    if (group, mode) == (rule.group, rule.mode):
        return ""
    return f"{device} belongs to group {group}, mode {mode:04o}, not {rule.group}, {rule.mode:04o} as in {rule.file}"
