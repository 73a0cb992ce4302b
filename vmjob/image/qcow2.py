"""A raw disk as a compressed qcow2: small to send, and bootable as it is, so that no node unpacks it."""

from __future__ import annotations

from pathlib import Path

from vmjob import process


def pack(raw: Path, target: Path) -> None:
    """Write ``target``; the same bytes from the same disk. Raises CommandMissing or CommandFailed."""
    # never with -W, which writes clusters as they come; file: keeps a colon in a path from being read as a protocol
    process.run([process.require("qemu-img", "qemu-utils"), "convert", "-f", "raw", "-O", "qcow2", "-c", "-o",
                 "compression_type=zstd,cluster_size=65536", f"file:{raw.resolve()}", f"file:{target.resolve()}"])
