"""Debian packages fetched and unpacked without root, and kernel modules in the order they load."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vmjob.core import process
from vmjob.core.errors import BuildFailed, CommandFailed
from vmjob.core.machinetext import lines, read

_HINT = "see whether this machine reaches its Debian mirror: sudo apt-get update"


class Apt:
    """apt as the machine has it set up. Where it has no package lists (a fresh container), lists of our own are
    fetched into ``folder``; nothing outside of it is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._options: list[str] = []

    def _run(self, tool: str, *words: str) -> str:
        process.require(tool, "apt")
        env = {**os.environ, "LC_ALL": "C"}
        return process.run([tool, *self._options, *words], cwd=self.folder, env=env, hint=_HINT).stdout.decode()

    def resolve(self, package: str) -> str:
        """The package that a meta package such as linux-image-cloud-amd64 stands for now; others give themselves."""
        try:
            text = self._run("apt-cache", "depends", "--important", package)
        except CommandFailed:
            if self._options:
                raise
            self._own_lists()
            return self.resolve(package)
        found = re.search(r"Depends: (linux-image-[0-9]\S*)", text)
        return found.group(1) if found else package

    def _own_lists(self) -> None:
        for part in ("lists/partial", "cache/archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self._options = ["-o", f"Dir::State::Lists={self.folder}/lists", "-o", f"Dir::Cache={self.folder}/cache"]
        self._run("apt-get", "-q", "update")

    def download(self, package: str) -> tuple[Path, str]:
        """The .deb file in the folder, and ``package=version``. Raises CommandFailed where it cannot be had."""
        before = set(self.folder.glob("*.deb"))
        self._run("apt-get", "-q", "download", package)
        new = set(self.folder.glob("*.deb")) - before
        if len(new) != 1:
            raise BuildFailed(f"apt-get download {package} left {len(new)} packages", _HINT)
        deb = new.pop()
        name, version = process.run(["dpkg-deb", "-W", deb]).stdout.decode().split()
        return deb, f"{name}={version}"


def unpack(deb: Path, folder: Path) -> None:
    """Unpack the files of a .deb below ``folder``; its scripts do not run."""
    folder.mkdir(exist_ok=True)
    process.run([process.require("dpkg-deb", "dpkg"), "-x", deb, folder])


def modules_folder(root: Path) -> Path:
    """The one folder lib/modules/VERSION below ``root``."""
    found = sorted((root / "lib/modules").glob("*/kernel")) or sorted((root / "usr/lib/modules").glob("*/kernel"))
    if len(found) != 1:
        raise BuildFailed(f"{len(found)} kernels in one image", "name one kernel package")
    return found[0].parent


def load_order(modules: Path, wanted: Iterable[str], loaded: Sequence[str] = ()) -> list[Path]:
    """Files of the ``wanted`` modules and all that these need, in an order that insmod can walk.

    Read from the modules themselves, so depmod need not have run. What is built in, or ``loaded`` already, is
    left out. Raises BuildFailed for an unknown module.
    """
    files = {_word(p.name.split(".ko")[0]): p for p in sorted(modules.rglob("*.ko*"))}
    built_in = {_word(Path(line).stem) for line in lines(read(modules / "modules.builtin"))}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in built_in or name in order or name in loaded:
            return
        if name not in files:
            raise BuildFailed(f"the kernel in {modules.name} has no module {name}", "choose another kernel package")
        found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module_bytes(files[name]))
        for needed in (found.group(1).decode() if found else "").split(","):
            if needed:
                add(_word(needed))
        order[name] = files[name]

    for name in wanted:
        add(_word(name))
    return list(order.values())


def _word(name: str) -> str:
    return name.replace("-", "_")


def module_bytes(path: Path) -> bytes:
    """A module as insmod wants it; Debian 13 ships them compressed."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        import lzma

        return lzma.decompress(data)
    if path.suffix == ".zst":
        return process.run([process.require("zstd", "zstd"), "-dcq", path]).stdout
    return data
