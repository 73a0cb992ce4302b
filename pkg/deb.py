"""A tree as a Debian package, by dpkg-deb."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from pkg.contents import FOLDERS, TIMERS, File
from pkg.release import DATA, Release, run

_SCRIPTS = ("preinst", "postinst", "prerm", "postrm")


def build(package: str, tree: Path, files: list[File], release: Release, out: Path) -> Path:
    """``out``/PACKAGE_VERSION_all.deb. Raises DistError."""
    import os

    control = tree / "DEBIAN"
    shutil.rmtree(control, ignore_errors=True)
    control.mkdir()
    control.chmod(0o755)  # whatever the umask is
    own = [file for file in files if file.package == package]
    size = sum(-(-len(file.data) // 1024) for file in own)
    values = {"VERSION": release.version, "MAINTAINER": release.maintainer, "SIZE": str(size),
              "TIMERS": " ".join(TIMERS), "FOLDERS": " ".join(FOLDERS)}
    made = {"control": filled((DATA / f"debian/{package}.control").read_text(), values),
            "md5sums": "".join(f"{hashlib.md5(file.data).hexdigest()}  {file.path}\n" for file in own),
            "conffiles": "".join(f"/{file.path}\n" for file in own if file.kind == "config")}
    for name in _SCRIPTS:
        if (source := DATA / f"debian/{package}.{name}").exists():
            made[name] = filled(source.read_text(), values)
    for name, text in made.items():
        if text:
            (control / name).write_text(text)
            (control / name).chmod(0o755 if name in _SCRIPTS else 0o644)
    for path in [*control.iterdir(), control]:
        os.utime(path, (release.epoch, release.epoch))
    os.utime(tree, (release.epoch, release.epoch))
    target = out / f"{package}_{release.version}_all.deb"
    # one thread: how xz cuts its work into pieces must not depend on the machine
    run("dpkg-deb", "--root-owner-group", "-Zxz", "--threads-max=1", "--build", tree, target,
        env={"SOURCE_DATE_EPOCH": str(release.epoch)})
    shutil.rmtree(control)
    return target


def filled(text: str, values: dict[str, str]) -> str:
    """``text`` with the values for its @NAMES@."""
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
