"""What the packages say of licences: whose code is in vmjob.pyz, and under which terms."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pkg.release import ROOT, DistError


@dataclass(frozen=True)
class Carried:
    """A package in vmjob.pyz. ``folder``: its place in there; ``licence``: by the names of DEP-5, ``spdx``: of SPDX;
    ``holders``: who has the copyright, where its licence file does not say so."""

    folder: str
    licence: str
    spdx: str
    holders: str = ""


# Each package that vmjob.pyz may carry; a new one must be entered here before it is released.
CARRIED = {
    "pyyaml": Carried("yaml", "Expat", "MIT"),
    "certifi": Carried("certifi", "MPL-2.0", "MPL-2.0", "Mozilla and contributors to certifi"),
    "charset-normalizer": Carried("charset_normalizer", "Expat", "MIT"),
    "fastjsonschema": Carried("fastjsonschema", "BSD-3-clause", "BSD-3-Clause"),
    "htchirp": Carried("htchirp", "Apache-2.0", "Apache-2.0", "HTCondor team, University of Wisconsin-Madison"),
    "idna": Carried("idna", "BSD-3-clause", "BSD-3-Clause"),
    "pycdlib": Carried("pycdlib", "LGPL-2.1", "LGPL-2.1-only", "Chris Lalancette"),
    "qemu-qmp": Carried("qemu", "LGPL-2+ and GPL-2", "LGPL-2.0-or-later AND GPL-2.0-only",
                        "John Snow and contributors to QEMU"),
    "requests": Carried("requests", "Apache-2.0", "Apache-2.0", "Kenneth Reitz and contributors"),
    "tqdm": Carried("tqdm", "MPL-2.0 and Expat", "MPL-2.0 AND MIT"),
    "urllib3": Carried("urllib3", "Expat", "MIT"),
}
# what Debian has in /usr/share/common-licenses
_COMMON = {"Apache-2.0": "Apache-2.0", "LGPL-2.1": "LGPL-2.1", "LGPL-2+": "LGPL-2", "GPL-2": "GPL-2",
           "MPL-2.0": "MPL-2.0"}
OWN = "2026 the authors of vmjob"


def texts(pyz: Path) -> dict[str, dict[str, bytes]]:
    """The licence files in vmjob.pyz, by package and name. Raises DistError where a package is not in CARRIED, or has
    no licence."""
    found: dict[str, dict[str, bytes]] = {}
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
        for name in names:
            parts = name.split("/")
            if parts[0] == "licences" and len(parts) == 3:
                package = re.sub(r"[-_.]+", "-", parts[1]).lower()  # as the package index compares names
                found.setdefault(package, {})[parts[2]] = archive.read(name)
    folders = {name.split("/")[0] for name in names if "/" in name} - {"vmjob", "licences"}
    folders = {name for name in folders if not name.endswith((".dist-info", ".egg-info"))}
    strange = sorted((found.keys() - CARRIED.keys()) | (folders - {CARRIED[name].folder for name in found
                                                                  if name in CARRIED}))
    if strange:
        raise DistError(f"vmjob.pyz carries {', '.join(strange)}, of whose licence pkg/legal.py knows nothing; "
                        "enter it in CARRIED, and see that its licence text is in vmjob.pyz")
    return found


def copyright_file(package: str, licences: dict[str, dict[str, bytes]]) -> str:
    """debian/copyright (DEP-5) of a package. ``licences``: what texts() found; empty for vmjob-site."""
    parts = ["Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: vmjob\n"
             + (_wrapped("Comment: /usr/share/vmjob/vmjob.pyz is a zip file that carries packages of others; they are "
                         "named below by their folders in it. The texts of their licences are in it too, and in "
                         "/usr/share/doc/vmjob/licences.") + "\n" if licences else ""),
             f"Files: *\nCopyright: {OWN}\nLicense: Apache-2.0\n"]
    used = {"Apache-2.0"}
    for name, files in sorted(licences.items(), key=lambda one: one[0].lower()):
        known = CARRIED[name]
        holders = _holders(files) or [known.holders]
        parts.append(f"Files: usr/share/vmjob/vmjob.pyz/{known.folder}/*\nCopyright: " + "\n           ".join(holders)
                     + f"\nLicense: {known.licence}\nComment: {name}\n")
        used.update(known.licence.split(" and "))
    parts += [_licence(name, licences) for name in sorted(used)]
    return "\n".join(parts)


def _holders(files: dict[str, bytes]) -> list[str]:
    found = re.findall(r"^[ #*-]*Copyright (?:\([cC]\) |© )?(\d{4}.*?)\.?\s*$",
                       "\n".join(text.decode(errors="replace") for text in files.values()), re.M)
    return [one for one in dict.fromkeys(found) if "Free Software" not in one]


def _licence(name: str, licences: dict[str, dict[str, bytes]]) -> str:
    if name in _COMMON:
        return f"License: {name}\n On Debian systems its text is in /usr/share/common-licenses/{_COMMON[name]}.\n"
    source = next(package for package in sorted(licences) if name in CARRIED[package].licence.split(" and "))
    # without whose it is, which stands above
    begins = {"Expat": "Permission is hereby", "BSD-3-clause": "Redistribution and use"}[name]
    text = next(whole[whole.index(begins):] for data in licences[source].values()
                for whole in [data.decode(errors="replace")] if begins in whole)
    body = "\n".join(f" {line.strip()}" if line.strip() else " ." for line in text.strip().splitlines())
    return f"License: {name}\n{body}\n"


def _wrapped(text: str) -> str:
    import textwrap

    return "\n ".join(textwrap.wrap(text, 100))


def spdx(licences: dict[str, dict[str, bytes]]) -> str:
    """One expression for all of it."""
    single = {part for name in licences for part in CARRIED[name].spdx.split(" AND ")}
    return " AND ".join(sorted({"Apache-2.0"} | single))


def own_text() -> bytes:
    return (ROOT / "LICENSE").read_bytes()
