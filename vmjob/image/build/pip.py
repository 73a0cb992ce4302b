"""Python packages for a guest, fetched by this side's pip: its configuration, proxies and certificates hold, and
the guest needs no pip, compiler or network."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vmjob.core import process
from vmjob.core.errors import BuildFailed, CommandFailed
from vmjob.core.machinetext import lines, read


def guest_python(root: Path) -> tuple[int, int]:
    """Version (3, minor) of /usr/bin/python3 in an unpacked tree. Raises BuildFailed."""
    link = root / "usr/bin/python3"
    found = re.match(r"python3\.(\d+)$", link.readlink().name if link.is_symlink() else "")
    if not found:
        raise BuildFailed("there is no /usr/bin/python3 in this image", "add python3 to packages")
    return 3, int(found.group(1))


def guest_glibc(root: Path) -> int:
    """The minor version of glibc 2 in an unpacked tree; it decides which wheels run there."""
    status = read(root / "var/lib/dpkg/status")
    found = re.search(r"^Package: libc6\n(?:.+\n)*?Version: 2\.(\d+)", status, re.MULTILINE)
    if not found:
        raise BuildFailed("there is no libc6 in this image", "the suite must be a Debian for amd64")
    return int(found.group(1))


def argv(requirements: Sequence[str], staging: Path, python: tuple[int, int], glibc: int) -> list[str]:
    """pip's command line: wheels that run on a guest with this Python and glibc 2.``glibc``."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(glibc, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(staging), "--no-compile",
             "--only-binary=:all:", "--implementation", "cp", "--python-version", f"{python[0]}.{python[1]}"]
    return [*words, *(f"--platform={name}" for name in platforms), "--", *requirements]


def install(requirements: Sequence[str], root: Path, overlay: Path) -> tuple[str, ...]:
    """Install wheels for the guest whose tree is ``root`` below ``overlay``/usr/local; ``name==version`` of each.

    Raises BuildFailed with what pip said.
    """
    python = guest_python(root)
    target = overlay / f"usr/local/lib/python{python[0]}.{python[1]}/dist-packages"
    target.mkdir(parents=True)
    try:
        process.run(argv(requirements, target, python, guest_glibc(root)))
    except CommandFailed as failed:
        error = next((line for line in lines(failed.output) if "ERROR" in line), failed.message)
        raise BuildFailed(f"pip: {error}", "only packages with a wheel for the guest's Python do") from failed
    if (target / "bin").is_dir():
        _scripts(target / "bin", overlay / "usr/local/bin")
    for name in ("share", "etc"):  # what a wheel puts beside lib/, and finds there: ../../../share from its own place
        if (target / name).is_dir():
            (target / name).rename(overlay / "usr/local" / name)
    return tuple(sorted(_settle(info) for info in target.glob("*.dist-info")))


def _scripts(source: Path, target: Path) -> None:
    """Their first line names this side's Python."""
    target.mkdir(parents=True, exist_ok=True)
    for script in sorted(source.iterdir()):
        data = script.read_bytes()
        if data.startswith(b"#!") and b"python" in data.split(b"\n", 1)[0]:
            data = b"#!/usr/bin/python3\n" + data.split(b"\n", 1)[1]
        (target / script.name).write_bytes(data)
        (target / script.name).chmod(0o755)
        script.unlink()
    source.rmdir()


def _settle(info: Path) -> str:
    """Take out what tells of this machine: hashes of scripts with its paths, where a wheel was found."""
    record = info / "RECORD"
    if record.exists():
        kept = [line for line in lines(read(record)) if not re.match(r"\.\./|bin/|.*direct_url", line)]
        record.write_text("\n".join(sorted(kept)) + "\n")
    (info / "direct_url.json").unlink(missing_ok=True)
    name, _, version = info.name[:-len(".dist-info")].rpartition("-")
    return f"{name}=={version}"
