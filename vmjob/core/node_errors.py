"""What a node does to a run in the midst of it: each may pass, on another node or later. Their place in the tree, and
their statuses: errors.py."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, Optional

from vmjob.core.errors import BootFailed, GuestHung, HostError, Interrupted, NetworkRefused, ScratchFull, VmjobError


class NodeFailed(HostError):
    status = 230
    transient = True


class DiskFailed(NodeFailed):
    pass


class NodeExhausted(NodeFailed):
    pass


class ScratchLost(NodeFailed):
    pass


class NetworkLost(NetworkRefused):
    """From then on the guest reaches nothing."""


class BootStarved(BootFailed):
    transient = True


class GuestStarved(GuestHung):
    transient = True


class Killed(Interrupted):
    """What a run's result.json says from its beginning on (outcome ``begun``), until it says something better."""


def under_guest(folder: Path, event: dict[str, Any]) -> VmjobError:
    """What QEMU's BLOCK_IO_ERROR means, of a disk in ``folder``."""
    if event.get("nospace"):
        return ScratchFull(f"the node's disk is full: the guest could not write on below {folder}",
                           "free space there, set another scratch folder, or ask for less in resources.disk")
    return DiskFailed(f"the node's disk failed under the guest: {event.get('reason', 'no reason told')}",
                      "see the node's kernel log; another node may do")


# ---------------------------------------------------------------- the operating system's refusals

_EXHAUSTED = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG)
_BROKEN = (errno.EIO, getattr(errno, "EUCLEAN", errno.EIO), errno.ESTALE, errno.ENODEV, errno.ENXIO)


def of_node(refused: BaseException) -> Optional[NodeFailed]:
    """The failure that an operating system's refusal is, where that is the node's fault; None: it is not."""
    number, where = getattr(refused, "errno", None), getattr(refused, "filename", None)
    text = f"{getattr(refused, 'strerror', None) or refused}" + (f": {where}" if where else "")
    thread = isinstance(refused, RuntimeError) and "start new thread" in str(refused)
    if thread or isinstance(refused, MemoryError) or number in _EXHAUSTED:
        return NodeExhausted(f"this node, or the slot, has no more to give: {text or type(refused).__name__}",
                             "see the limits of processes, threads, memory, descriptors and files (ulimit -a, pids.max "
                             "and memory.max of the slot), and what else runs there; another node may do")
    if number in _BROKEN:
        return DiskFailed(f"a disk of this node fails: {text}", "see the node's kernel log; another node may do")
    return None
