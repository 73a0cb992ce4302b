"""The disks that a run makes for itself: an overlay on the image, and the disk for its outputs."""

from __future__ import annotations

from pathlib import Path

from vmjob.core import blockdev
from vmjob.core.errors import CommandFailed, HostError, ScratchFull
from vmjob.core.files import FULL


def create_overlay(path: Path, size: int) -> None:
    """A qcow2 of ``size`` bytes at ``path`` that takes the writes of one run. It names nothing below it: that is told
    when it is used (vm.cmdline). Raises CommandMissing, ScratchFull or CommandFailed."""
    # file: keeps a colon in the path from being read as a protocol
    try:
        blockdev.qemu_img("create", "-q", "-f", "qcow2", f"file:{path.resolve()}", str(size), timeout=60,
                          hint="check the scratch folder", folder=path.resolve().parent)
    except CommandFailed as failure:
        if "No space left" in failure.output:
            raise ScratchFull(f"no space for the overlay {path}", "free space in the scratch folder") from failure
        raise


def create_output_disk(path: Path, size: int) -> None:
    """A sparse raw file of ``size`` bytes, rounded up to whole 512-byte sectors. Raises ScratchFull, HostError."""
    try:
        with path.open("wb") as file:
            file.truncate(-(-size // 512) * 512)
    except OSError as error:
        if error.errno in FULL:
            raise ScratchFull(f"no space for the output disk {path}", "free space in the scratch folder") from error
        raise HostError(f"{path}: cannot make the output disk: {error.strerror}",
                        "its file system must allow files of that size; ask for less in resources.disk") from error
