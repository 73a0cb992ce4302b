"""Outputs on the way out: exact, sparse, and safe against a guest that wants out."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, Optional

import pytest

from vmjob import interrupt
from vmjob.errors import (
    Interrupted,
    OutputRefused,
    OutputTooLarge,
    ScratchFull,
    SlotError,
    VmjobError,
    WalltimeOver,
)
from vmjob.interrupt import PATIENCE, Signals
from vmjob.progress import Reporter
from vmjob.stage import tar, unpack
from vmjob.stage.archive import Wanted, unpack_outputs

pytestmark = pytest.mark.unit

GIB = 2**30


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "", **more: Any
           ) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def disk(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT,
         size: Optional[int] = None) -> Path:
    """A raw disk that begins with an archive of these members."""
    path = tmp_path / "disk"
    with tarfile.open(path, "w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    os.truncate(path, size or path.stat().st_size + 2**20)
    return path


def take(path: Path, cap: int = GIB) -> tuple[str, ...]:
    (path.parent / "out").mkdir(exist_ok=True)
    return unpack_outputs(path, path.parent / "out", cap, Reporter())


def refused(path: Path, error: type[VmjobError] = OutputRefused, match: str = "^.") -> None:
    """It is refused, and nothing is left or made anywhere near."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(error, match=match) as caught:
        take(path)
    assert caught.value.hint
    assert sorted(p for p in path.parent.rglob("*") if p != path.parent / "out") == \
        [p for p in before if p != path.parent / "out"]


# ---------------------------------------------------------------- what is good


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_round_trip(tmp_path: Path, form: int) -> None:
    long = "/".join(["d" * 40] * 3) + "/" + "f" * 60
    blob = random.Random(1).randbytes(1_000_001)
    path = disk(tmp_path, member("./", tarfile.DIRTYPE), member("./a", data=b"a", mode=0o4555, mtime=1234567890),
                member("sub", tarfile.DIRTYPE, mode=0o000), member("sub/blob", data=blob, mode=0o000),
                member(long, data=b"long"), member("empty"), member("deep/er/than", data=b"parents"),
                member("sub/link", tarfile.SYMTYPE, link="../a"), member("hard", tarfile.LNKTYPE, link="./a"),
                form=form)
    assert take(path) == ("a", "sub/blob", long, "empty", "deep/er/than", "sub/link", "hard")
    out = tmp_path / "out"
    assert (out / "sub/blob").read_bytes() == blob and (out / long).read_text() == "long"
    assert (out / "sub/link").read_text() == "a" and (out / "hard").samefile(out / "a")
    assert (out / "a").stat().st_mode & 0o7777 == 0o755 and (out / "a").stat().st_mtime == 1234567890
    assert (out / "sub/blob").stat().st_mode & 0o7777 == 0o600 and (out / "sub").stat().st_mode & 0o7777 == 0o700
    assert (out / "a").stat().st_uid == os.geteuid()
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []


def test_odd_names(tmp_path: Path) -> None:
    odd = ["ü☃", "new\nline", " ", "-rf", "back\\slash", os.fsdecode(b"\xff\xfe"), "x" * 255]
    path = disk(tmp_path, *(member(name, data=name.encode(errors="surrogateescape")) for name in odd))
    assert take(path) == tuple(odd)
    for name in odd:
        assert (tmp_path / "out" / name).read_bytes() == name.encode(errors="surrogateescape")


def test_empty_disk_is_an_empty_archive(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    os.truncate(tmp_path / "disk", 2**20)
    assert take(tmp_path / "disk") == ()


@pytest.mark.parametrize("words", [["tar", "--format=gnu"], ["tar", "--format=posix", "--sparse-version=0.0"],
                                   ["tar", "--format=posix", "--sparse-version=0.1"],
                                   ["tar", "--format=posix", "--sparse-version=1.0"]])
@pytest.mark.parametrize("pieces", [0, 1, 3, 120])
def test_sparse_members(tmp_path: Path, words: list[str], pieces: int) -> None:
    source = tmp_path / "holes"
    with source.open("wb") as file:
        for number in range(pieces):
            file.seek(number * 2**16 + 2**15)
            file.write(os.urandom(4096))
        file.truncate(10 * 2**20 + 5)
    (tmp_path / "after").write_text("after")
    done = subprocess.run([*words, "-S", "-cf", "disk", "holes", "after"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "disk").stat().st_size < 2 * 2**20
    assert take(tmp_path / "disk") == ("holes", "after")
    made = tmp_path / "out/holes"
    assert subprocess.run(["cmp", source, made]).returncode == 0
    assert made.stat().st_blocks * 512 < 2 * 2**20
    assert (tmp_path / "out/after").read_text() == "after"


def test_busybox_tar(tmp_path: Path) -> None:
    if not shutil.which("busybox"):
        pytest.skip("needs busybox: sudo apt-get install busybox")
    (tmp_path / "w/s").mkdir(parents=True)
    (tmp_path / "w/s" / ("l" * 150)).write_text("long")
    (tmp_path / "w/s/link").symlink_to("l" * 150)
    subprocess.run(["busybox", "tar", "cf", tmp_path / "disk", "-C", tmp_path / "w", "."], check=True)
    assert set(take(tmp_path / "disk")) == {"s/" + "l" * 150, "s/link"}
    assert (tmp_path / "out/s/link").read_text() == "long"


def test_member_beyond_4_gib_with_holes_in_the_disk(tmp_path: Path) -> None:
    size = 9 * GIB + 3
    info = tarfile.TarInfo("big")
    info.size = size
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(512 + 5 * GIB + 7)
        file.write(b"needle")
        file.seek(512 + size - 3)
        file.write(b"end")
        file.truncate(512 + size + 4096)
    take(path, 10 * GIB)
    with (tmp_path / "out/big").open("rb") as made:
        assert os.fstat(made.fileno()).st_size == size and os.fstat(made.fileno()).st_blocks < 1000
        made.seek(5 * GIB + 7)
        assert made.read(8) == b"needle\0\0"
        made.seek(-3, 2)
        assert made.read() == b"end"


@pytest.mark.parametrize("methods", [1, 2])
def test_slower_ways_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: int) -> None:
    """Where the kernel refuses the fast ways, the bytes are the same."""
    from vmjob import files

    def no(*_: int) -> int:
        raise OSError(errno.EXDEV, "no")

    monkeypatch.setattr(files, "_METHODS", [no] * methods + files._METHODS[methods:])
    blob = random.Random(2).randbytes(3_000_000)
    take(disk(tmp_path, member("blob", data=blob)))
    assert (tmp_path / "out/blob").read_bytes() == blob


def test_existing_files_are_replaced_and_links_not_followed(tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    (out / "dir").mkdir(parents=True)
    victim.mkdir()
    (victim / "f").write_text("keep")
    (out / "file").write_text("old")
    (out / "dir/kept").write_text("kept")
    (out / "dir/f").symlink_to(victim / "f")
    (out / "was-link").symlink_to(victim)
    take(disk(tmp_path, member("file", data=b"new"), member("dir/f", data=b"new"), member("was-link/f", data=b"new")))
    assert (out / "file").read_text() == (out / "dir/f").read_text() == (out / "was-link/f").read_text() == "new"
    assert (victim / "f").read_text() == "keep" and (out / "dir/kept").read_text() == "kept"
    assert not (out / "was-link").is_symlink()


def test_later_member_replaces_the_earlier(tmp_path: Path) -> None:
    assert take(disk(tmp_path, member("a", data=b"1"), member("h", tarfile.LNKTYPE, link="a"), member("a", data=b"2"),
                     member("l", tarfile.SYMTYPE, link="a"), member("l", data=b"3"))) == ("h", "a", "l")
    assert [(tmp_path / "out" / n).read_text() for n in "ahl"] == ["2", "1", "3"]


# ---------------------------------------------------------------- what is hostile


@pytest.mark.parametrize("evil", [
    [member("/etc/x", data=b"x")], [member("//x")], [member("../x")], [member("a/../../x")], [member("a/../b")],
    [member("..")],
    [member("../", tarfile.DIRTYPE)],
    [member("l", tarfile.SYMTYPE, link="/etc/passwd")], [member("l", tarfile.SYMTYPE, link="..")],
    [member("a/l", tarfile.SYMTYPE, link="../../x")], [member("l", tarfile.SYMTYPE, link="a/../../x")],
    [member("l", tarfile.SYMTYPE, link="")],
    [member("d/e/up", tarfile.SYMTYPE, link=".."), member("l", tarfile.SYMTYPE, link="d/e/up/../..")],
    [member("h", tarfile.LNKTYPE, link="/etc/passwd")], [member("h", tarfile.LNKTYPE, link="../disk")],
    [member("h", tarfile.LNKTYPE, link="h")], [member("h", tarfile.LNKTYPE, link="none")],
    [member("d", tarfile.DIRTYPE), member("h", tarfile.LNKTYPE, link="d")],
    [member("d/l", tarfile.SYMTYPE, link="../x"), member("l", tarfile.LNKTYPE, link="d/l")],
    [member("d", tarfile.DIRTYPE), member("l", tarfile.SYMTYPE, link="d"), member("l/x", data=b"x")],
    [member("d", tarfile.DIRTYPE), member("l", tarfile.SYMTYPE, link="d"), member("l/x/", tarfile.DIRTYPE)],
    [member("d", tarfile.DIRTYPE), member("d/x", data=b"x"), member("l", tarfile.SYMTYPE, link="d"),
     member("h", tarfile.LNKTYPE, link="l/x")],
    [member("f", data=b"x"), member("f/x", data=b"x")],
    [member("d/x", data=b"x"), member("d", data=b"x")],
    [member("d/x", data=b"x"), member("d", tarfile.SYMTYPE, link="x")],
    [member("f", data=b"x"), member("f", tarfile.DIRTYPE)],
    [member("null", tarfile.CHRTYPE, devmajor=1, devminor=3)], [member("sda", tarfile.BLKTYPE)],
    [member("fifo", tarfile.FIFOTYPE)], [member("what", b"Z")], [member("multi", b"M")],
    [member(".vmjob.lock", data=b"1")], [member("x" * 256)], [member("/".join("d" * 3000))],
], ids=lambda evil: "+".join(f"{i.name[:20]}{i.type.decode()}" for i, _ in evil))
def test_refused(tmp_path: Path, evil: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    refused(disk(tmp_path, member("good", data=b"good"), *evil))


def test_nul_in_a_pax_name(tmp_path: Path) -> None:
    info, _ = member("x")
    info.pax_headers = {"path": "a\0b"}
    refused(disk(tmp_path, (info, b""), form=tarfile.PAX_FORMAT), match="NUL")


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_header_bomb_is_not_read(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("bomb")
    info.type, info.size = kind, 50 * GIB
    path = tmp_path / "disk"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 51 * GIB)
    refused(path, match="bytes long")


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x7fELF" * 1000, os.urandom(4096), b"\0" * 100],
                         ids=["nothing", "short", "elf", "random", "short-zeros"])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "disk").write_bytes(content)
    refused(tmp_path / "disk")


def test_truncated(tmp_path: Path) -> None:
    whole = disk(tmp_path, member("a", data=b"a" * 5000), member("b", data=b"b" * 5000))
    for size in (300, 512, 3000, 5632, 6144, 11000):
        os.truncate(whole, 20000)
        path = tmp_path / str(size) / "disk"
        path.parent.mkdir()
        path.write_bytes(whole.read_bytes()[:size])
        refused(path)


def test_negative_and_absurd_sizes(tmp_path: Path) -> None:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    for field in (b"\xff" * 12, b"-0000000001\0", b"\x80" + b"\xff" * 11, b"99999999999\0",
                  b"\x80" + b"\0" * 6 + b"\xff" * 5):
        block[124:136] = field
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        (tmp_path / "disk").write_bytes(bytes(block) + b"\0" * 4096)
        refused(tmp_path / "disk")


def pax_member(records: dict[str, str], data: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info, _ = member("f", data=data)
    info.pax_headers = records
    return info, data


@pytest.mark.parametrize(("records", "data"), [
    ({"GNU.sparse.map": "0,512,256,512", "GNU.sparse.size": "1024"}, b"x" * 1024),
    ({"GNU.sparse.map": "0,512", "GNU.sparse.size": "100"}, b"x" * 512),
    ({"GNU.sparse.map": "0,5000", "GNU.sparse.size": "9000"}, b"x" * 512),
    ({"GNU.sparse.map": "-5,5", "GNU.sparse.size": "9000"}, b"x" * 512),
    ({"GNU.sparse.map": "a,b", "GNU.sparse.size": "9000"}, b"x" * 512),
    ({"GNU.sparse.map": "0,1," * 250_000 + "0,1", "GNU.sparse.size": "9000"}, b"x" * 512),
    ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99"}, b"1" * 4096),
    ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99"}, b"999999\n" + b"0\n" * 4000),
    ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99"},
     b"2\n0\n5\n3\n5\n".ljust(512, b"\0") + b"x" * 512),
    ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, b"0\n".ljust(512, b"\0")),
    ({"GNU.sparse.major": "1", "GNU.sparse.minor": "7", "GNU.sparse.realsize": "9"}, b"0\n".ljust(512, b"\0")),
    ({"size": "-1"}, b""), ({"size": "99999999999999999999999"}, b""), ({"size": str(2**62)}, b""),
])
def test_bad_sparse_maps_and_sizes(tmp_path: Path, records: dict[str, str], data: bytes) -> None:
    refused(disk(tmp_path, pax_member(records, data), form=tarfile.PAX_FORMAT))


def test_sparse_name_cannot_lead_out(tmp_path: Path) -> None:
    records = {"GNU.sparse.name": "../x", "GNU.sparse.map": "0,1", "GNU.sparse.size": "1"}
    refused(disk(tmp_path, pax_member(records, b"x"), form=tarfile.PAX_FORMAT), match="leads out")


def test_bad_pax_records(tmp_path: Path) -> None:
    for records in (b"9999 path=x\n", b"0 path=x\n", b"-5 path=x\n", b"path=x\n", b"12 path=x", b"6 path\n"):
        info = tarfile.TarInfo("x")
        info.type, info.size = b"x", len(records)
        (tmp_path / "disk").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + records.ljust(512, b"\0") + b"\0" * 2048)
        refused(tmp_path / "disk", match="pax")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hole = pax_member({"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2 * GIB)})
    refused(disk(tmp_path, hole, form=tarfile.PAX_FORMAT), OutputTooLarge, "1.0 GiB")
    many = [member(f"h{n}", tarfile.LNKTYPE, link="f") for n in range(1100)]
    refused(disk(tmp_path, member("f", data=b"x" * 2**20), *many), OutputTooLarge)
    monkeypatch.setattr(unpack, "MAX_MEMBERS", 100)
    refused(disk(tmp_path, *(member(f"f{n}") for n in range(101))), match="100 members")
    monkeypatch.setattr(tar, "MAX_PIECES", 10)
    refused(disk(tmp_path, pax_member({"GNU.sparse.map": ",".join(["0,0"] * 11), "GNU.sparse.size": "9"}),
                 form=tarfile.PAX_FORMAT), match="pieces")


def test_existing_folder_is_not_removed_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "out/dir").mkdir(parents=True)
    (tmp_path / "out/dir/kept").touch()
    refused(disk(tmp_path, member("a", data=b"a"), member("dir", data=b"x")), match="folder")


def test_leftovers_of_a_killed_run_go(tmp_path: Path) -> None:
    (tmp_path / "out/.vmjob-unpack-dead/deep").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / "out/.vmjob-unpack-link").symlink_to(tmp_path / "precious")
    take(disk(tmp_path, member("a", data=b"a")))
    assert (tmp_path / "precious/file").exists() and not (tmp_path / "out/.vmjob-unpack-dead").exists()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unpack, "copy_sparse", full)
    refused(disk(tmp_path, member("a", data=b"a")), ScratchFull, "No space")


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_never_gets_out(tmp_path: Path, seed: int) -> None:
    """Attack fuzz. Flipped bytes with mended checksums: every outcome is a clean refusal or files in the folder."""
    chance = random.Random(seed)
    whole = disk(tmp_path, member("a", data=b"a" * 700), member("d/l", tarfile.SYMTYPE, link="../a"),
                 pax_member({"GNU.sparse.map": "0,1", "GNU.sparse.size": "5"}, b"x"), member("n" * 150, data=b"n"),
                 form=chance.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])).read_bytes()[:12000]
    for number in range(60):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.choice(b"\0/.0127SxgLK\x80\xff")
        for start in range(0, len(data) - 511, 512):
            if data[start + 257:start + 262] == b"ustar":
                data[start + 148:start + 156] = b" " * 8
                data[start + 148:start + 156] = b"%06o\0 " % sum(data[start:start + 512])
        place = tmp_path / f"case{number}"
        place.mkdir()
        (place / "disk").write_bytes(data)
        try:
            take(place / "disk", 2**20)
        except VmjobError:
            assert not list((place / "out").iterdir())
        assert sorted(p.name for p in place.iterdir()) == ["disk", "out"]
        for link in (place / "out").rglob("*"):
            assert (place / "out").resolve() in (link.resolve(), *link.resolve().parents)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("case")) == ["disk"]


def test_a_file_asked_for_twice_comes_as_a_link_to_itself(tmp_path: Path) -> None:
    path = disk(tmp_path, member("d", tarfile.DIRTYPE), member("d/f", data=b"x"),
                member("d/f", tarfile.LNKTYPE, link="d/f"))
    assert take(path) == ("d/f",)
    assert (tmp_path / "out/d/f").read_bytes() == b"x"
    refused(disk(tmp_path, member("new", tarfile.LNKTYPE, link="new")), match="no output before it")


# ---------------------------------------------------------------- what a job asked for, and how long it takes


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    wanted = Wanted(["a*", "d/*.txt"])
    path = disk(tmp_path, member("./", tarfile.DIRTYPE), member("./a1"), member("./a2/deep", data=b"x"),
                member("d/1.txt"))
    (tmp_path / "out").mkdir()
    assert unpack_outputs(path, tmp_path / "out", GIB, Reporter(), wanted) == ("a1", "a2/deep", "d/1.txt")
    assert wanted.missing == []
    for evil in ("b", "d/x", "d", ".a", "a1/../b", "e/a1"):
        path = disk(tmp_path, member("a1", data=b"new"), member(evil))
        with pytest.raises(OutputRefused) as caught:
            unpack_outputs(path, tmp_path / "out", GIB, Reporter(), Wanted(["a*", "d/*.txt"]))
        assert caught.value.hint and (tmp_path / "out/a1").read_bytes() == b"", evil


def test_an_empty_work_folder_is_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    wanted = Wanted([".", "x"])
    path = disk(tmp_path, member("./", tarfile.DIRTYPE))
    assert unpack_outputs(path, tmp_path / "out", GIB, Reporter(), wanted) == ()
    assert wanted.missing == ["x"]


def test_a_move_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half result is seen by nobody, and what was there before is there again."""
    out = tmp_path / "out"
    (out / "d").mkdir(parents=True)
    (out / "b").write_text("old")
    (out / "d/f").symlink_to("nowhere")
    real, seen = Path.rename, list[str]()

    def rename(this: Path, goal: Path) -> Path:
        if goal.name == "z":
            seen.extend(sorted(path.name for path in out.iterdir() if not path.name.startswith(".")))
            raise OSError(errno.EIO, "Input/output error")
        return real(this, goal)

    monkeypatch.setattr(unpack, "_moves", lambda top, folder: [(top / name, folder / name) for name in
                                                               ("a", "b", "d/f", "z")])
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(SlotError, match="Input/output"):
        take(disk(tmp_path, *(member(name, data=b"new") for name in ("a", "b", "d/f", "z"))))
    assert seen == ["a", "b", "d"]  # it was under way
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == ["b", "d", "d/f"]
    assert (out / "b").read_text() == "old" and (out / "d/f").is_symlink()


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_headers_together_are_bounded(tmp_path: Path, kind: bytes) -> None:
    """Each is small enough; bodies are holes."""
    info = tarfile.TarInfo("h")
    info.type, info.size = kind, 2**20
    with (tmp_path / "disk").open("wb") as file:
        for number in range(70):
            file.seek(number * (2**20 + 512))
            file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(80 * 2**20)
    refused(tmp_path / "disk", match="headers .* more than 64 MiB")


def test_pax_records_are_bounded(tmp_path: Path) -> None:
    """Attack slowtar. Each costs a microsecond: 150,000 fit into one header."""
    refused(disk(tmp_path, pax_member({f"a{n}": "b" for n in range(1001)}), form=tarfile.PAX_FORMAT), match="records")
    assert take(disk(tmp_path, pax_member({f"a{n}": "b" for n in range(900)}), form=tarfile.PAX_FORMAT)) == ("f",)


def test_empty_headers_and_sparse_maps_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_HEADERS", 64 * 100)
    for kind in (b"x", b"L", b"V"):
        info = tarfile.TarInfo("h")
        info.type = kind
        (tmp_path / "disk").write_bytes(info.tobuf(tarfile.GNU_FORMAT) * 101 + bytes(1024))
        refused(tmp_path / "disk", match="headers")
    holes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "0"}
    maps = [pax_member(holes, b"0\n".ljust(512, b"\0"))] * 12
    refused(disk(tmp_path, *maps, form=tarfile.PAX_FORMAT), match="headers")


def test_names_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack manynames."""
    refused(disk(tmp_path, member("x" * 5000)), match="4096 bytes")
    refused(disk(tmp_path, member("l", tarfile.SYMTYPE, link="x" * 5000)), match="4096 bytes")
    monkeypatch.setattr(unpack, "MAX_NAMES", 20 * 400)
    refused(disk(tmp_path, *(member(f"d/{n:0240d}") for n in range(40))), match="names of more than")


@pytest.mark.parametrize("stopped", ["signal", "walltime"])
def test_collect_can_be_stopped_at_every_header(tmp_path: Path, stopped: str) -> None:
    """By a real signal, or a real timer, that came while the archive was read."""
    headers = 0

    def check() -> None:
        nonlocal headers
        headers += 1
        if headers == 5:
            if stopped == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                signals.until(time.monotonic())
        interrupt.check()

    (tmp_path / "out").mkdir()
    path = disk(tmp_path, *(member(f"f{n}", data=b"x") for n in range(100)))
    with Signals(PATIENCE) as signals, pytest.raises(Interrupted if stopped == "signal" else WalltimeOver):
        unpack_outputs(path, tmp_path / "out", GIB, Reporter(), None, check)
    assert headers == 5 and not list((tmp_path / "out").iterdir())


def test_what_was_stopped_is_removed_however_long_that_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack manynames: at the end of the walltime hundreds of thousands of files are removed, for longer than the
    patience after which the timer speaks."""
    (tmp_path / "out").mkdir()
    path = disk(tmp_path, *(member(f"d{n}/f", data=b"x") for n in range(10)))
    real, spoken = unpack.remove_tree, []

    def slow(hidden: Path) -> None:
        os.kill(os.getpid(), signal.SIGALRM)  # the timer's
        spoken.append(len(list((hidden / "new").iterdir())))
        real(hidden)

    monkeypatch.setattr(unpack, "remove_tree", slow)
    with Signals(PATIENCE) as signals, pytest.raises(WalltimeOver):
        def check() -> None:
            if len(list((tmp_path / "out").glob(".vmjob-unpack-*/new/*"))) == 5:
                signals.until(time.monotonic())
            interrupt.check()

        unpack_outputs(path, tmp_path / "out", GIB, Reporter(), None, check)
    assert spoken == [5] and not list((tmp_path / "out").iterdir())


def test_collect_can_be_stopped_within_a_member(tmp_path: Path) -> None:
    path = disk(tmp_path, member("big", data=bytes(1000)), size=2**20)
    (tmp_path / "out").mkdir()
    asked = []

    def check() -> None:
        asked.append(len(list((tmp_path / "out").glob(".vmjob-unpack-*/new/*"))))

    unpack_outputs(path, tmp_path / "out", GIB, Reporter(), None, check)
    assert 1 in asked  # while the file was there, and not moved in


def test_what_was_cut_short_before_has_until_its_moment() -> None:
    """A signal that was heard counts when the time that it left is over, the next one at once."""
    with Signals(PATIENCE) as signals:
        signals.watch()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.notes() == [signal.SIGTERM]
        signals.unwatch()
        signals.allow(1000, time.monotonic() + 1000)
        interrupt.check()
        signals.allow(0, time.monotonic() + 1000)
        with pytest.raises(Interrupted):
            interrupt.check()
        signals.allow(1000, time.monotonic() - 1)
        with pytest.raises(WalltimeOver):
            interrupt.check()
        signals.allow(1000, time.monotonic() + 1000)
        interrupt.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            interrupt.check()
