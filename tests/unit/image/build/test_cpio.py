"""The initramfs writer: what comes out is what the cpio program reads, and the same every time."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from vmjob.image.build.cpio import Tree

pytestmark = pytest.mark.unit


def tree() -> Tree:
    made = Tree()
    made.file("usr/lib/x/init", b"#!/bin/sh\n", 0o755)
    made.link("bin/sh", "busybox")
    made.device("dev/console", 5, 1)
    made.folder("home/u", owner=1000)
    made.file("a", b"odd")
    return made


def test_cpio_reads_it() -> None:
    if not shutil.which("cpio"):
        pytest.skip("the program cpio is missing: apt-get install cpio")
    listing = subprocess.run(["cpio", "-itvn", "--quiet"], input=tree().pack(), capture_output=True, check=True).stdout
    lines = {line.split()[-1]: line for line in listing.decode().splitlines()}
    assert list(lines) == ["a", "bin", "busybox", "dev", "dev/console", "home", "home/u", "usr", "usr/lib", "usr/lib/x",
                           "usr/lib/x/init"]
    assert lines["dev/console"].startswith("crw-------") and "5,   1" in lines["dev/console"]
    assert lines["usr/lib/x/init"].startswith("-rwxr-xr-x")
    assert "bin/sh -> busybox" in lines["busybox"]
    assert lines["home/u"].split()[2:4] == ["1000", "1000"]


def test_order_of_calls_does_not_matter() -> None:
    one, two = Tree(), Tree()
    one.file("b/x", b"1")
    one.file("a", b"2")
    two.file("a", b"2")
    two.file("b/x", b"1")
    assert one.pack() == two.pack()


def test_later_entry_replaces() -> None:
    made = Tree()
    made.folder("tmp")
    made.folder("tmp", 0o1777)
    made.file("f", b"old")
    made.file("f", b"new")
    data = made.pack()
    assert b"old" not in data and data.count(b"tmp\0") == 1 and b"%08X" % 0o041777 in data
