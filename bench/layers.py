"""One more 30 MB package in a 400 MB image: what must travel, and the seconds to make it and to apply it.

Once with the image built anew, so that most of its files lie elsewhere, and once with the package put into the disk
that there was. Beside tar czf of the new disk, zstd --patch-from and casync; all of them are given raw disks.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.common import Bench, Goal, Row, alternate, execute, seconds, tool
from bench.debian import image
from vmjob.core.files import copy_sparse

# As a node does it: the files are there and verified, the layer is still to become a disk.
_OPEN = """
import sys, tempfile
from pathlib import Path
from vmjob.image.store.images import Store
from vmjob.core.progress import Reporter
store = Store(Path(sys.argv[1]))
manifest, paths = store.resolve(sys.argv[2])
store.open(manifest, paths, Reporter(), spare=Path(sys.argv[3]))
"""
_ROUNDS = 3  # each takes half a minute


def measure(bench: Bench) -> list[Row]:
    rows = []
    with bench.folder() as work:
        old, rebuilt, patched = work / "v1.raw", work / "v2.raw", work / "v1-changed.raw"
        for folder, raw in ((image(bench, "layers"), old), (image(bench, "layers-2"), rebuilt)):
            execute(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", folder / "disk.qcow2", raw])
        bench.vmjob("image", "import", bench.home / "layers")
        change_in_place(old, rebuilt, patched, work)
        for kind, new in (("image rebuilt", rebuilt), ("changed in place", patched)):
            rows += _compare(bench, f"one more 30 MB package, {kind}", old, new, work)
    bench.vmjob("image", "rm", "bench-layered")
    return rows


def _compare(bench: Bench, name: str, old: Path, new: Path, work: Path) -> list[Row]:
    ours, others = _Layer(bench, old, new, work), [_Tar(old, new, work), _Zstd(old, new, work), _Casync(old, new, work)]
    ways = [ours, *others]
    rounds = min(bench.rounds, _ROUNDS)
    made = alternate(rounds, *(way.make for way in ways))
    applied = alternate(rounds, *(way.apply for way in ways))
    sizes = [way.size() / 1e6 for way in ways]
    rows = []
    for what, found, unit in (("what travels", sizes, "MB"), ("to make it", made, "s"), ("to apply it", applied, "s")):
        for other, figure in zip(others, found[1:]):
            goal = Goal("ratio", "<=", 1.1) if unit == "MB" and isinstance(other, _Zstd) else None
            rows.append(Row(f"{name}: {what}", found[0], figure, unit, goal, other.name))
    for way in ways:
        way.remove()
    return rows


class _Way:
    """``make`` and ``apply`` return seconds; ``size``: bytes that travel to who has the old disk."""

    name = ""

    def __init__(self, old: Path, new: Path, work: Path) -> None:
        self.old, self.new, self.work = old, new, work
        self.sent, self.result = work / f"sent-{type(self).__name__}", work / f"result-{type(self).__name__}"

    def make(self) -> float:
        raise NotImplementedError

    def apply(self) -> float:
        raise NotImplementedError

    def size(self) -> int:
        return self.sent.stat().st_size

    def remove(self) -> None:
        """Whoever applied it wrongly must not count as quick."""
        execute(["qemu-img", "compare", "-f", "raw", "-F", "raw", self.result, self.new])
        self.sent.unlink()
        self.result.unlink()


class _Layer(_Way):
    name = "vmjob image layer"

    def __init__(self, bench: Bench, old: Path, new: Path, work: Path) -> None:
        super().__init__(old, new, work)
        self.bench, self.out = bench, work / "layered"

    def make(self) -> float:
        shutil.rmtree(self.out, ignore_errors=True)
        return seconds(self.bench.words("image", "layer", "bench-layers", "--from-disk", self.new, "--name",
                                        "bench-layered", "-o", self.out, "--no-register"),
                       env=self.bench.environment())

    def apply(self) -> float:
        self.bench.vmjob("image", "rm", "bench-layered", check=False)
        shutil.rmtree(self.bench.home / "store/derived", ignore_errors=True)
        self.bench.vmjob("image", "import", self.out)
        return seconds([sys.executable, "-c", _OPEN, self.bench.home / "store", "bench-layered", self.work],
                       env=self.bench.environment())

    def size(self) -> int:
        return (self.out / "layer1.delta").stat().st_size

    def remove(self) -> None:
        """It was compared byte for byte when it was made."""


class _Tar(_Way):
    name = "tar czf"

    def make(self) -> float:
        return seconds(["tar", "czf", self.sent, "-C", self.new.parent, self.new.name])

    def apply(self) -> float:
        with contextlib.suppress(FileExistsError):
            self.result.with_suffix(".d").mkdir()
        took = seconds(["tar", "xSzf", self.sent, "-C", self.result.with_suffix(".d")])
        (self.result.with_suffix(".d") / self.new.name).replace(self.result)
        return took


class _Zstd(_Way):
    name = "zstd --patch-from"

    def make(self) -> float:
        return seconds([tool("zstd"), "-q", "-f", "--long=31", f"--patch-from={self.old}", self.new, "-o", self.sent])

    def apply(self) -> float:
        return seconds([tool("zstd"), "-q", "-d", "-f", "--long=31", f"--patch-from={self.old}", self.sent, "-o",
                        self.result])


class _Casync(_Way):
    name = "casync"

    def make(self) -> float:
        """Who has the old disk has its chunks."""
        self.chunks, self.index = self.work / "chunks.castr", self.work / "new.caibx"
        shutil.rmtree(self.chunks, ignore_errors=True)
        execute([tool("casync"), "make", f"--store={self.chunks}", self.work / "old.caibx", self.old])
        self.before = self._bytes()
        return seconds([tool("casync"), "make", f"--store={self.chunks}", self.index, self.new])

    def apply(self) -> float:
        self.result.unlink(missing_ok=True)
        return seconds([tool("casync"), "extract", f"--store={self.chunks}", f"--seed={self.old}", self.index,
                        self.result])

    def size(self) -> int:
        return self._bytes() - self.before + self.index.stat().st_size

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self.chunks.rglob("*.cacnk"))

    def remove(self) -> None:
        self.sent.touch()
        super().remove()


def change_in_place(old: Path, new: Path, target: Path, work: Path) -> None:
    """The raw disk ``old`` with the files that only ``new`` has, or has otherwise, written into it as ``target``."""
    trees = []
    for number, raw in enumerate((old, new)):
        trees.append(work / f"tree-{number}")
        trees[-1].mkdir()
        execute([tool("debugfs"), "-R", f"rdump / {trees[-1]}", raw])
    with old.open("rb") as source, target.open("wb") as out:
        size = os.fstat(source.fileno()).st_size
        out.truncate(size)
        copy_sparse(source.fileno(), out.fileno(), 0, 0, size)
    script = work / "script"
    script.write_text("".join(f"{line}\n" for line in _commands(*trees)))
    execute([tool("debugfs"), "-w", "-f", script, target])
    for tree in trees:
        shutil.rmtree(tree)


def _commands(old: Path, new: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(new):
        folders.sort()
        for name in sorted(folders + names):
            path = Path(folder, name)
            inside = path.relative_to(new)
            there, mode = old / inside, path.lstat().st_mode
            if stat.S_ISLNK(mode):
                if not there.is_symlink():
                    yield f'symlink "/{inside}" "{os.readlink(path)}"'  # noqa: PTH115 - a Path would tidy it
            elif stat.S_ISDIR(mode):
                if not there.exists():
                    yield f'mkdir "/{inside}"'
            elif stat.S_ISREG(mode) and not (there.is_file() and filecmp.cmp(path, there, shallow=False)):
                if there.exists():
                    yield f'rm "/{inside}"'
                yield f'write "{path}" "/{inside}"'
