"""The two trees as RPMs, by rpmbuild and vmjob.spec."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from pkg import legal
from pkg.contents import FOLDERS, PACKAGES, TIMERS, File
from pkg.deb import filled
from pkg.release import DATA, Release, run

_KINDS = {"": "", "config": "%config(noreplace) ", "doc": "%doc ", "licence": "%license "}
# not the machine's own: what is built must not depend on where
_MACROS = {"_buildhost": "reproducible", "use_source_date_epoch_as_buildtime": "1",
           "clamp_mtime_to_source_date_epoch": "1", "source_date_epoch_from_changelog": "0",
           "__os_install_post": "%{nil}", "_binary_payload": "w6.gzdio", "_binary_filedigest_algorithm": "8",
           "_build_id_links": "none", "_rpmfilename": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
           "dist": "%{nil}", "vendor": "%{nil}", "distribution": "%{nil}"}


def build(stage: Path, files: list[File], release: Release, out: Path) -> list[Path]:
    """The RPMs in ``out``. Raises DistError."""
    day = time.strftime("%a %b %d %Y", time.gmtime(release.epoch))
    values = {"VERSION": release.version, "MAINTAINER": release.maintainer, "DATE": day, "STAGE": str(stage),
              "TIMERS": " ".join(TIMERS), "FOLDERS": " ".join(FOLDERS),
              "LICENSES": legal.spdx(legal.texts(release.pyz))}
    for package in PACKAGES:
        own = [file for file in files if file.package == package]
        lines = [f"%dir /{folder}" for folder in _folders(own)]
        lines += [f"{_KINDS[file.kind]}%attr({file.mode:o},root,root) /{file.path}" for file in own]
        values["FILES_" + package.upper().replace("-", "_")] = "\n".join(lines)
    with tempfile.TemporaryDirectory() as scratch:
        spec = Path(scratch) / "vmjob.spec"
        spec.write_text(filled((DATA / "vmjob.spec").read_text(), values))
        macros = {**_MACROS, "_topdir": scratch, "_tmppath": scratch, "_rpmdir": str(out)}
        run("rpmbuild", "-bb", "--quiet", *(word for name, value in macros.items()
                                            for word in ("--define", f"{name} {value}")), spec,
            env={"SOURCE_DATE_EPOCH": str(release.epoch)})
    return [out / f"{package}-{release.version}-1.noarch.rpm" for package in PACKAGES]


def _folders(files: list[File]) -> list[str]:
    """Folders that are ours alone, and must go with us."""
    found = {str(parent) for file in files for parent in Path(file.path).parents if "vmjob" in parent.name
             or "vmjob" in str(parent.parent)}
    return sorted(found)
