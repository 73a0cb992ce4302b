"""Inputs on the way in: names, links, exact bytes, and archives that other tars read."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from vmjob.core.errors import InputMissing, JobError
from vmjob.core.model import Input
from vmjob.core.progress import Bar, Reporter
from vmjob.stage.archive import pack
from vmjob.stage.archive.pack import pack_inputs
from vmjob.stage.archive.unpack import unpack_outputs

pytestmark = pytest.mark.unit


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    (base / "data/sub").mkdir(parents=True)
    (base / "data/a.txt").write_text("a")
    (base / "data/sub/b.bin").write_bytes(bytes(range(256)) * 40)
    (base / "run.sh").write_text("#!/bin/sh\n")
    (base / "run.sh").chmod(0o4755)
    return base


def packed(base: Path, *inputs: Input, target: str = "in.tar") -> tarfile.TarFile:
    archive = base.parent / target
    size = pack_inputs(inputs, base, archive, Reporter())
    assert size == archive.stat().st_size and size % 512 == 0
    return tarfile.open(archive)


def names(base: Path, *inputs: Input) -> list[str]:
    with packed(base, *inputs) as archive:
        return archive.getnames()


@pytest.mark.parametrize(("one", "expected"), [
    (Input("run.sh"), ["run.sh"]),
    (Input("run.sh", "bin/go"), ["bin/go"]),
    (Input("run.sh", "bin/"), ["bin/run.sh"]),
    (Input("data"), ["data", "data/a.txt", "data/sub", "data/sub/b.bin"]),
    (Input("data/"), ["data", "data/a.txt", "data/sub", "data/sub/b.bin"]),
    (Input("data", "d"), ["d", "d/a.txt", "d/sub", "d/sub/b.bin"]),
    (Input("data", "."), ["a.txt", "sub", "sub/b.bin"]),
    (Input("../base/data/sub"), ["sub", "sub/b.bin"]),
    (Input("data/*.txt"), ["a.txt"]),
    (Input("data/*/*.bin"), ["sub/b.bin"]),
    (Input("data/**"), ["a.txt", "sub", "sub/b.bin"]),
    (Input("*.sh", "tools"), ["tools/run.sh"]),
    (Input("."), ["data", "data/a.txt", "data/sub", "data/sub/b.bin", "run.sh"]),
])
def test_names(base: Path, one: Input, expected: list[str]) -> None:
    assert names(base, one) == expected


def test_absolute_sources_and_odd_base(tmp_path: Path) -> None:
    base = tmp_path / "b[1]*"
    base.mkdir()
    (base / "x[1].txt").write_text("x")
    (base / "y.txt").write_text("y")
    assert names(base, Input("x[1].txt")) == ["x[1].txt"]  # a name that is there is no glob
    assert names(base, Input("*.txt")) == ["x[1].txt", "y.txt"]
    assert names(base, Input(str(base / "y.txt"))) == ["y.txt"]
    odd = tmp_path / "plain"
    odd.mkdir()
    (odd / "z.dat").touch()
    assert names(base, Input(str(odd / "*.dat"))) == ["z.dat"]


def test_nothing_makes_an_empty_archive(base: Path) -> None:
    assert names(base) == []


def test_bytes_owner_and_modes(base: Path) -> None:
    (base / "ro").write_bytes(b"x" * 511)
    (base / "ro").chmod(0o444)
    with packed(base, Input("data"), Input("run.sh"), Input("ro")) as archive:
        assert archive.extractfile("data/sub/b.bin").read() == bytes(range(256)) * 40  # type: ignore[union-attr]
        assert archive.extractfile("ro").read() == b"x" * 511  # type: ignore[union-attr]
        for member in archive:
            assert (member.uid, member.gid, member.uname) == (0, 0, "")
        assert archive.getmember("run.sh").mode == 0o755 and archive.getmember("ro").mode == 0o644


def test_same_files_same_bytes(base: Path) -> None:
    packed(base, Input("data"), Input("run.sh")).close()
    packed(base, Input("run.sh"), Input("data"), target="again.tar").close()
    assert (base.parent / "in.tar").read_bytes() == (base.parent / "again.tar").read_bytes()


@pytest.mark.parametrize("tool", ["tar", "busybox tar"])
def test_other_tars_read_it(base: Path, tool: str) -> None:
    words = tool.split()
    if not shutil.which(words[0]):
        pytest.skip(f"needs {words[0]}: sudo apt-get install {words[0]}")
    long = "n" * 90 + "/" + "m" * 120
    (base / "long" / ("n" * 90)).mkdir(parents=True)
    (base / "long" / long).write_text("long")
    (base / "long/link").symlink_to(long)
    (base / "long/ümlaut ☃").write_text("u")
    packed(base, Input("long"), Input("data")).close()
    out = base.parent / "out"
    out.mkdir()
    done = subprocess.run([*words, "xf", base.parent / "in.tar", "-C", out], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (out / "long" / long).read_text() == "long" == (out / "long/link").read_text()
    assert (out / "long/ümlaut ☃").read_text() == "u"
    assert (out / "data/sub/b.bin").read_bytes() == (base / "data/sub/b.bin").read_bytes()


def test_our_own_reader_reads_it(base: Path) -> None:
    (base / ("long" * 40)).write_text("x")
    packed(base, Input(".")).close()
    out = base.parent / "out"
    out.mkdir()
    unpack_outputs(base.parent / "in.tar", out, 10**6, Reporter())
    assert sorted(p.relative_to(out) for p in out.rglob("*")) == sorted(p.relative_to(base) for p in base.rglob("*"))


def test_file_beyond_8_gib(base: Path) -> None:
    state = os.stat_result((0o100644, 1, 1, 1, 0, 0, 9 * 2**30, 0, 0, 0))
    header = pack.header("big", state, None)
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == 9 * 2**30


def test_links(base: Path) -> None:
    (base / "outside").write_text("outside")
    (base / "data/inside").symlink_to("sub/b.bin")
    (base / "data/sub/up").symlink_to("../a.txt")
    (base / "data/out").symlink_to("../outside")
    (base / "data/absolute").symlink_to(base / "data/a.txt")
    (base / "data/gone").symlink_to("not/there")
    (base / "top").symlink_to("data")
    with packed(base, Input("top")) as archive:
        assert archive.getmember("top/inside").linkname == "sub/b.bin"
        assert archive.getmember("top/sub/up").linkname == "../a.txt"
        assert archive.getmember("top/gone").issym()
        assert archive.getmember("top").isdir()
        for name, text in (("top/out", b"outside"), ("top/absolute", b"a")):
            assert archive.getmember(name).isreg()
            assert archive.extractfile(name).read() == text  # type: ignore[union-attr]


def test_link_in_a_circle(base: Path) -> None:
    (base / "data/sub/loop").symlink_to(base)
    with pytest.raises(JobError, match=r"inputs\[0\].*loop"):
        names(base, Input("data"))


@pytest.mark.parametrize("source", ["none", "none/*.x", "*.none"])
def test_missing_names_the_key(base: Path, source: str) -> None:
    with pytest.raises(InputMissing, match=r"inputs\[1\]") as caught:
        names(base, Input("run.sh"), Input(source))
    assert caught.value.hint and not (base.parent / "in.tar").exists()


def test_dangling_link_out_and_self_loop(base: Path) -> None:
    (base / "data/bad").symlink_to("/no/such/thing")
    with pytest.raises(InputMissing, match="bad"):
        names(base, Input("data"))
    (base / "self").symlink_to("self")
    with pytest.raises(InputMissing, match="self"):
        names(base, Input("self"))


def test_special_files(base: Path) -> None:
    os.mkfifo(base / "data/fifo")
    with pytest.raises(JobError, match="fifo"):
        names(base, Input("data"))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(base / "sock"))
    with pytest.raises(JobError, match="sock"):
        names(base, Input("sock"))


def test_two_with_one_name(base: Path) -> None:
    assert names(base, Input("data/*"), Input("data/a.txt")) == ["a.txt", "sub", "sub/b.bin"]  # the same file: fine
    with pytest.raises(JobError, match=r"'a.txt'"):
        names(base, Input("run.sh", "a.txt"), Input("data/a.txt"))


@pytest.mark.parametrize("target", ["/etc/x", "../x", "a/../../x"])
def test_target_stays_below(base: Path, target: str) -> None:
    with pytest.raises(JobError, match=r"inputs\[0\].to"):
        names(base, Input("run.sh", target))


def test_the_archive_itself_and_our_locks_stay_out(base: Path) -> None:
    (base / ".vmjob.lock").touch()
    (base / ".hidden").touch()
    (base / "in.tar").write_text("an older one")
    size = pack_inputs((Input("."),), base, base / "in.tar", Reporter())
    with tarfile.open(base / "in.tar") as archive:
        assert ".hidden" in archive.getnames() and not {"in.tar", ".vmjob.lock"} & set(archive.getnames())
    assert size == (base / "in.tar").stat().st_size


class Meddler(Reporter):
    """Grows a file while it is packed, as another program may."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def bar(self, name: str, total: object, unit: str = "B") -> Bar:
        path = self.path

        class Growing(Bar):
            def advance(self, amount: float) -> None:
                with path.open("ab") as file:
                    file.write(b"more")
                os.utime(path, (1, 1))

        return Growing()


def test_file_that_changes_meanwhile(base: Path) -> None:
    with pytest.raises(JobError, match="changed while"):
        pack_inputs((Input("data"),), base, base.parent / "in.tar", Meddler(base / "data/a.txt"))
    assert not (base.parent / "in.tar").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything: run the tests as an ordinary user")
def test_unreadable(base: Path) -> None:
    (base / "data/a.txt").chmod(0)
    with pytest.raises(InputMissing, match=r"a\.txt"):
        names(base, Input("data"))
