"""Disks as QEMU's block layer is told of them: each driver named down to the last file, so that nothing is probed and
no name inside a file is followed. Formats that can name a disk below theirs are told of it in so many words, or that
there is none: else QEMU opens what the file says (vmdk: parentFileNameHint, wherever our reader of it looked)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from vmjob import opened, process
from vmjob.fences import fence

BACKED = ("qcow2", "vmdk")  # of the formats that are let in (manifests.DISK_FORMATS); vdi and vhdx QEMU opens without


def stacked(chain: Sequence[tuple[str, str]]) -> Optional[dict[str, Any]]:
    """The read-only node of a chain of disks, each a path and a format, the lowest first. None for an empty one."""
    node: Optional[dict[str, Any]] = None
    for path, form in chain:
        below, node = node, {"driver": form, "read-only": True,
                             "file": {"driver": "file", "filename": path, "read-only": True}}
        if form in BACKED:
            node["backing"] = below  # None too
    return node


def file_name(chain: Sequence[tuple[str, str]]) -> str:
    """The same for QEMU's tools, which take it in the place of a file's name."""
    return "json:" + json.dumps(stacked(chain), ensure_ascii=False, separators=(",", ":"))


def qemu_img(*words: str, disks: Sequence[tuple[str, str]] = (), folder: Optional[Path] = None,
             timeout: Optional[float] = None, hint: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run qemu-img, which may open the ``disks`` (absolute paths or places of open files, as for ``stacked``) and write
    in ``folder``. Raises CommandMissing, CommandFailed."""
    tool = process.require("qemu-img", "qemu-utils")
    paths = [path for path, _ in disks]
    behind = fence(tool, paths, [str(folder)] if folder else [])
    return process.run([tool, *words], timeout=timeout, hint=hint, fence=behind, pass_fds=opened.numbers(*paths))
