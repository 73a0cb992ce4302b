"""The one list of what is in the packages: every file, its place and its mode."""

from __future__ import annotations

import gzip
import io
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pkg import legal, pages
from pkg.release import DATA, ROOT, Release

MAIN, SITE = PACKAGES = ("vmjob", "vmjob-site")
SUMMARY = {"vmjob": "run a virtual machine image as an ordinary grid job",
           "vmjob-publish": "tell the grid that this site runs virtual machines"}
SHARE = "usr/share/vmjob"
TIMERS = tuple(sorted(path.name for path in (DATA / "systemd").glob("*.timer")))
# what the services make for themselves: gone with the package
FOLDERS = ("/var/lib/vmjob-publish", "/var/cache/vmjob-publish", "/var/cache/vmjob-lists",
           "/var/cache/vmjob-site-check")


@dataclass(frozen=True)
class File:
    """``path``: without the first /. ``kind``: "" or "config", which the admin may change, "doc" or "licence"."""

    package: str
    path: str
    data: bytes
    mode: int = 0o644
    kind: str = ""


@dataclass(frozen=True)
class Family:
    """Where distributions differ."""

    zsh: str
    licences: str  # of a package: folder


DEBIAN = Family("usr/share/zsh/vendor-completions", "usr/share/doc/vmjob/licences")
REDHAT = Family("usr/share/zsh/site-functions", "usr/share/licenses/vmjob")


def contents(release: Release, family: Family) -> list[File]:
    """All files of both packages, by their paths. Raises DistError."""
    found = [*_commands(release), *_pages(release, family), *_documents(release, family), *_site()]
    return sorted(found, key=lambda file: (file.package, file.path))


def _commands(release: Release) -> Iterator[File]:
    pyz = f"/{SHARE}/vmjob.pyz"
    yield File(MAIN, "usr/bin/vmjob", _command("vmjob", MAIN, "vmjob.cli.main", "vmjob.__main__:start", pyz), 0o755)
    yield File(MAIN, pyz[1:], release.pyz.read_bytes(), 0o755)
    # of the pyz, and not of the checkout: payload, hook and wrapper belong together
    with zipfile.ZipFile(release.pyz) as archive:
        yield File(MAIN, f"{SHARE}/vmjob-wrapper.sh", archive.read("vmjob/wrappers/vmjob-wrapper.sh"), 0o755)
        for name in archive.namelist():
            if name.startswith("vmjob/schemas/"):
                yield File(MAIN, f"{SHARE}/schemas/{Path(name).name}", archive.read(name))
        snippet = archive.read("vmjob/wrappers/99-vmjob-node.conf").decode()
        yield File(SITE, f"{SHARE}/vmjob-startd.sh", archive.read("vmjob/wrappers/vmjob-startd.sh"), 0o755)
    snippet = snippet.replace("/etc/vmjob/vmjob-startd.sh", f"/{SHARE}/vmjob-startd.sh")
    yield File(SITE, f"{SHARE}/99-vmjob-node.conf", snippet.encode())
    publisher = f"/{SHARE}/vmjob-publish.pyz"
    module = "cemon_publisher.cli"
    yield File(SITE, "usr/bin/vmjob-publish",
               _command("vmjob-publish", SITE, module, f"{module}:main", publisher, pyz), 0o755)
    yield File(SITE, publisher[1:], _zipped(ROOT / "ceMon-publisher/cemon_publisher"))


def _command(name: str, package: str, module: str, entry: str, *parts: str) -> bytes:
    text = (DATA / "files/command.in").read_text()
    where, _, start = entry.partition(":")
    for key, value in {"NAME": name, "PACKAGE": package, "MODULE": module, "ENTRY": where, "START": start,
                       "PARTS": repr(list(parts))}.items():
        text = text.replace(f"@{key}@", value.replace("'", '"'))
    return text.encode()


def _zipped(folder: Path) -> bytes:
    """A package as a zip file, the same bytes every time. Plain files would get a __pycache__ beside them as soon as
    root runs them, which no package knows of."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                entry = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix(), (1980, 1, 1, 0, 0, 0))
                entry.external_attr, entry.create_system = 0o644 << 16, 3
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    return made.getvalue()


def _pages(release: Release, family: Family) -> Iterator[File]:
    from cemon_publisher.cli import parser as publisher

    from vmjob.cli.main import parser

    for package, make in ((MAIN, parser), (SITE, publisher)):
        name = make().prog
        for shell, path in (("bash", f"usr/share/bash-completion/completions/{name}"),
                            ("zsh", f"{family.zsh}/_{name}"),
                            ("fish", f"usr/share/fish/vendor_completions.d/{name}.fish")):
            yield File(package, path, pages.completion(make(), shell).encode())
        every = list(pages.verbs(make(), SUMMARY[name]))
        for verb in every:
            yield File(package, f"usr/share/man/man1/{'-'.join(verb[0])}.1.gz",
                       packed(pages.manual(verb, every, release).encode()), kind="doc")


def _documents(release: Release, family: Family) -> Iterator[File]:
    doc = f"usr/share/doc/{MAIN}"
    examples = [path for path in sorted((ROOT / "examples").rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), *examples]:
        yield File(MAIN, f"{doc}/{path.relative_to(ROOT).as_posix()}", path.read_bytes(), kind="doc")
    yield File(SITE, f"usr/share/doc/{SITE}/README.md", (ROOT / "ceMon-publisher/README.md").read_bytes(), kind="doc")
    licences = legal.texts(release.pyz)
    for package, files in licences.items():
        for name, text in files.items():
            yield File(MAIN, f"{family.licences}/{package}/{name}", text, kind="licence")
    if family is DEBIAN:
        day = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(release.epoch))
        for package in PACKAGES:
            log = (f"vmjob ({release.version}) unstable; urgency=medium\n\n"
                   f"  * See /usr/share/doc/vmjob/CHANGELOG.md.\n\n -- {release.maintainer}  {day}\n")
            yield File(package, f"usr/share/doc/{package}/changelog.gz", packed(log.encode()))
            yield File(package, f"usr/share/doc/{package}/copyright",
                       legal.copyright_file(package, licences if package == MAIN else {}).encode())
            overrides = DATA / f"debian/{package}.lintian-overrides"
            yield File(package, f"usr/share/lintian/overrides/{package}", overrides.read_bytes())
    else:
        for package in PACKAGES:
            yield File(package, f"usr/share/licenses/{package}/LICENSE", legal.own_text(), kind="licence")


def _site() -> Iterator[File]:
    for path in sorted((DATA / "systemd").iterdir()):
        yield File(SITE, f"usr/lib/systemd/system/{path.name}", path.read_bytes())
    for path in sorted((DATA / "etc").iterdir()):
        yield File(SITE, f"etc/vmjob/{path.name}", path.read_bytes(), kind="config")
    yield File(SITE, f"{SHARE}/cache-verify.sh", (DATA / "files/cache-verify.sh").read_bytes(), 0o755)
    gip = ROOT / "ceMon-publisher/gip"
    yield File(SITE, "etc/vmjob/vmjob-gip.conf.example", (gip / "vmjob-gip.conf").read_bytes(), kind="config")
    for kind in ("provider", "plugin"):
        yield File(SITE, f"{SHARE}/gip/{kind}/vmjob", (gip / kind / "vmjob").read_bytes(), 0o755)


def packed(data: bytes) -> bytes:
    """As gzip -9n."""
    return gzip.compress(data, 9, mtime=0)


def stage(files: list[File], folder: Path, epoch: int) -> dict[str, Path]:
    """Each package as a tree below ``folder``: modes as listed, whatever the umask; all times are ``epoch``."""
    import os
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    trees = {package: folder / package for package in PACKAGES}
    for file in files:
        path = trees[file.package] / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(file.mode)
    for tree in trees.values():
        for path in sorted([tree, *tree.rglob("*")], reverse=True):  # what is in a folder before the folder
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (epoch, epoch))
    return trees
