"""Disks as QEMU's block layer is told of them: each driver named down to the last file, so that nothing is probed and
no name inside a file is followed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Optional


def stacked(chain: Sequence[tuple[str, str]]) -> Optional[dict[str, Any]]:
    """The read-only node of a chain of disks, each a path and a format, the lowest first. None for an empty one."""
    node: Optional[dict[str, Any]] = None
    for path, form in chain:
        below, node = node, {"driver": form, "read-only": True,
                             "file": {"driver": "file", "filename": path, "read-only": True}}
        if form == "qcow2":
            node["backing"] = below  # None too: that says in so many words that there is none
    return node


def file_name(chain: Sequence[tuple[str, str]]) -> str:
    """The same for QEMU's tools, which take it in the place of a file's name."""
    return "json:" + json.dumps(stacked(chain), ensure_ascii=False, separators=(",", ":"))
