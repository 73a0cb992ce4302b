"""Layers as files: what is written is read back, and what strangers write is refused before anything comes of it."""

from __future__ import annotations

import json
import lzma
import os
import random
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

import pytest

from vmjob.errors import HostError, ImageCorrupt, ImageError, ImageRefused, ScratchFull
from vmjob.image import compare, delta, nbd, qcow2
from vmjob.image.delta import BLOCK, NEW, ZEROS, Runs
from vmjob.image.nbd import MAX_READ
from vmjob.model import ImageFile, Manifest
from vmjob.opened import Opened
from vmjob.progress import Bar

pytestmark = pytest.mark.unit

BELOW = ["a" * 64, "b" * 64]
SIZE = 100 * BLOCK


def runs_of(*runs: tuple[int, int, int]) -> Runs:
    made = Runs()
    for run in runs:
        made.append(*run)
    return made


def layer(path: Path, *runs: tuple[int, int, int], size: int = SIZE, piece: bytes = b"") -> Path:
    made = runs_of(*runs)
    delta.write(path, BELOW, size, made, [piece] if piece else [])
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    data = random.Random(1).randbytes(3 * BLOCK)
    return layer(tmp_path / "good.delta", (0, 2, NEW), (5, 10, 20), (20, 1, ZEROS), (99, 1, NEW), piece=data)


def read(path: Path, *, below: Optional[list[str]] = None, below_size: int = SIZE, size: int = SIZE) -> delta.Delta:
    return delta.read(path, BELOW if below is None else below, below_size, size)


def test_round_trip(good: Path) -> None:
    made = read(good)
    assert list(made.runs) == [(0, 2, NEW), (5, 10, 20), (20, 1, ZEROS), (99, 1, NEW)]
    assert (made.runs.new, made.runs.copied) == (3, 10)
    assert b"".join(made.pieces()) == random.Random(1).randbytes(3 * BLOCK)


def test_pieces_come_in_order(tmp_path: Path) -> None:
    count = 2 * delta.PIECE // BLOCK + 5
    data = [bytes([n]) * delta.PIECE for n in (1, 2)] + [b"\3" * 5 * BLOCK]
    told: list[int] = []
    delta.write(tmp_path / "l", BELOW, count * BLOCK, runs_of((0, count, NEW)), data, told.append)
    assert list(read(tmp_path / "l", size=count * BLOCK).pieces()) == data
    assert sum(told) == count * BLOCK and (tmp_path / "l").stat().st_size < 20_000


def test_an_empty_layer_may_still_change_the_size(tmp_path: Path) -> None:
    made = read(layer(tmp_path / "l", size=2 * SIZE), size=2 * SIZE)
    assert not len(made.runs) and list(made.pieces()) == []


def test_runs_grow_as_long_as_they_continue() -> None:
    runs = Runs()
    for target, source in ((0, NEW), (1, NEW), (2, 7), (3, 8), (4, 10), (6, 11), (7, ZEROS), (8, ZEROS), (9, NEW)):
        runs.add(target, source)
    assert list(runs) == [(0, 2, NEW), (2, 2, 7), (4, 1, 10), (6, 1, 11), (7, 2, ZEROS), (9, 1, NEW)]


# ---------------------------------------------------------------- hostile files


def test_another_base_or_size_is_named(good: Path) -> None:
    with pytest.raises(ImageRefused, match=r"belongs on aaaaaaaaaaaa… \+ bbbb.*, but the manifest puts it on cccc"):
        read(good, below=["c" * 64])
    with pytest.raises(ImageRefused, match="the manifest says a disk of 4096 bytes"):
        read(good, size=BLOCK)


@pytest.mark.parametrize("where", range(0, 100, 3))
def test_every_truncation_is_found(good: Path, where: int) -> None:
    whole = good.read_bytes()
    good.write_bytes(whole[:len(whole) * where // 100])
    with pytest.raises((ImageCorrupt, ImageRefused)):
        list(read(good).pieces())


def test_a_byte_too_many_is_found(good: Path) -> None:
    good.write_bytes(good.read_bytes() + b"x")
    with pytest.raises(ImageCorrupt, match="bytes behind its end"):
        list(read(good).pieces())


def test_bit_flips_never_do_more_than_fail(good: Path) -> None:
    whole, dice, refused = good.read_bytes(), random.Random(2), 0
    before = (list(read(good).runs), b"".join(read(good).pieces()))
    for _ in range(400):
        spoilt = bytearray(whole)
        spoilt[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        good.write_bytes(spoilt)
        try:
            made = read(good)
            assert (list(made.runs), b"".join(made.pieces())) == before  # a space in JSON, say
        except (ImageCorrupt, ImageRefused):
            refused += 1
    assert refused > 380


def forged(path: Path, columns: list[int], pieces: bytes = b"", **header: Any) -> Path:
    packed = lzma.compress(struct.pack(f"<{len(columns)}I", *columns))
    body = {"below": BELOW, "virtual_size": SIZE, "block": BLOCK, "runs": len(columns) // 3, "packed": len(packed),
            "new": 0, "copied": 0, **header}
    path.write_bytes(b"vmjob-delta 1\n" + json.dumps(body).encode() + b"\n" + packed + pieces)
    return path


@pytest.mark.parametrize("columns", [
    [0, 101, NEW],  # longer than the disk
    [100, 1, ZEROS],  # behind its end
    [0, 0, NEW],  # nothing at all
    [0, 1, 100],  # from behind the end of what is below
    [0, 2, 99],
    [0, 1, ZEROS - 1],
    [0xFFFFFFFF, 0xFFFFFFFF, 0],  # would wrap around in 32 bits
    [90, 2, 9, 2, NEW, NEW],  # the second one
])
def test_runs_out_of_the_disk(tmp_path: Path, columns: list[int]) -> None:
    with pytest.raises(ImageCorrupt, match=r"run \d: .* reach out of the disk"):
        read(forged(tmp_path / "l", columns))


@pytest.mark.parametrize("header", [
    {"runs": 2**40}, {"runs": -1}, {"runs": True}, {"packed": 2**40}, {"block": 512}, {"virtual_size": 0},
    {"virtual_size": 2**60}, {"below": "a"}, {"below": [1]}, {"new": 1.5}, {"new": None}])
def test_a_damaged_header(tmp_path: Path, header: dict[str, Any]) -> None:
    with pytest.raises(ImageCorrupt, match="its header is damaged"):
        read(forged(tmp_path / "l", [0, 1, ZEROS], **header))


@pytest.mark.parametrize("head", [b"", b"QFI\xfb", b"vmjob-delta 2\n{}\n"])
def test_no_layer_at_all(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "l").write_bytes(head)
    with pytest.raises(ImageRefused, match="no layer that this vmjob knows"):
        read(tmp_path / "l")


@pytest.mark.parametrize("line", [b"[]", b"{", b"[" * 4090, b"{}", b"x" * 10**6, b'{"runs": ' + b"9" * 4000 + b"}"])
def test_headers_that_are_no_json_of_ours(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "l").write_bytes(b"vmjob-delta 1\n" + line + b"\n")
    with pytest.raises(ImageCorrupt, match="its header is damaged"):
        read(tmp_path / "l")


def test_the_header_cannot_lie_about_what_comes(tmp_path: Path) -> None:
    for header in ({"new": 5}, {"copied": 5}):
        with pytest.raises(ImageCorrupt, match="its header says"):
            read(forged(tmp_path / "l", [0, 1, ZEROS], **header))


def test_bombs_do_not_go_off(tmp_path: Path) -> None:
    """20 MB of zeros, where 12 bytes or one block should be: no more than that is unpacked."""
    bomb = lzma.compress(bytes(20_000_000))
    body = {"below": BELOW, "virtual_size": SIZE, "block": BLOCK, "runs": 10**4, "packed": len(bomb), "new": 1,
            "copied": 0}
    (tmp_path / "l").write_bytes(b"vmjob-delta 1\n" + json.dumps(body).encode() + b"\n" + bomb)
    with pytest.raises(ImageCorrupt, match="another length than 120000"):
        read(tmp_path / "l")
    forged(tmp_path / "l", [0, 1, NEW], struct.pack("<I", len(bomb)) + bomb, new=1)
    with pytest.raises(ImageCorrupt, match="another length than 4096"):
        list(read(tmp_path / "l").pieces())
    forged(tmp_path / "l", [0, 1, NEW], struct.pack("<I", 2**32 - 1) + bomb, new=1)
    with pytest.raises(ImageCorrupt, match=r"a piece of 4294967295 bytes .* is too long"):
        list(read(tmp_path / "l").pieces())


def test_a_huge_dictionary_is_not_allocated(tmp_path: Path) -> None:
    greedy = lzma.compress(bytes(BLOCK), filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**30}])
    forged(tmp_path / "l", [0, 1, NEW], struct.pack("<I", len(greedy)) + greedy, new=1)
    with pytest.raises(ImageCorrupt, match=r"[Mm]emory"):
        list(read(tmp_path / "l").pieces())


# ---------------------------------------------------------------- comparing


class Disk:
    """A disk in memory, read as nbd.Reader does."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)
        self.windows = [n for n in range(-(-len(data) // MAX_READ)) if any(data[n * MAX_READ:(n + 1) * MAX_READ])]

    def reads(self, pieces: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        for offset, length in pieces:
            yield self.data[offset:offset + length].ljust(length, b"\0")


def compared(old: bytes, new: bytes) -> Runs:
    a, b = Disk(old), Disk(new)
    found = compare.differences(a, a.windows, b, b.windows, Bar())  # type: ignore[arg-type]
    made = bytearray(old[:len(new)].ljust(-(-len(new) // BLOCK) * BLOCK, b"\0"))
    fresh = b"".join(compare.new_blocks(found, b))  # type: ignore[arg-type]
    for target, count, source in found:
        for n in range(count):
            at = (target + n) * BLOCK
            if source == NEW:
                block, fresh = fresh[:BLOCK], fresh[BLOCK:]
            else:
                block = bytes(BLOCK) if source == ZEROS else old[(source + n) * BLOCK:(source + n + 1) * BLOCK]
            made[at:at + BLOCK] = block.ljust(BLOCK, b"\0")
    assert made[:len(new)] == new and not fresh
    return found


def blocks(*numbers: int) -> bytes:
    return b"".join(bytes(BLOCK) if n == 0 else random.Random(n).randbytes(BLOCK) for n in numbers)


@pytest.mark.parametrize(("old", "new", "runs"), [
    ((1, 2, 3), (1, 2, 3), []),
    ((1, 2, 3), (1, 9, 3), [(1, 1, NEW)]),
    ((1, 2, 3, 4), (9, 1, 2, 3, 4), [(0, 1, NEW), (1, 4, 0)]),  # all of it shifted by one
    ((1, 2, 3), (1, 0, 3), [(1, 1, ZEROS)]),
    ((1, 2, 3), (1,), []),
    ((1, 2), (1, 2, 0, 1, 9), [(3, 1, 0), (4, 1, NEW)]),
    ((0, 0), (5, 5), [(0, 2, NEW)]),
    ((1, 0, 1), (1, 1, 1), [(1, 1, 0)])])
def test_differences(old: tuple[int, ...], new: tuple[int, ...], runs: list[tuple[int, int, int]]) -> None:
    assert list(compared(blocks(*old), blocks(*new))) == runs


def test_differences_of_random_disks() -> None:
    dice = random.Random(3)
    for _ in range(20):
        old = [dice.choice((0, 0, 1, 2, 3, 4, 5)) for _ in range(dice.randrange(1, 600))]
        new = [dice.choice((0, 1, 2, 8, 9)) if dice.random() < .1 else n for n in old[dice.randrange(3):]]
        compared(blocks(*old), blocks(*new) + blocks(7)[:dice.choice((0, 512, 1024))])


def test_too_many_places_are_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "MAX_RUNS", 2)
    with pytest.raises(ImageError, match="differ in 3 places, too many"):
        compared(blocks(*range(1, 7)), blocks(8, 2, 8, 4, 8, 6))


# ---------------------------------------------------------------- where it becomes a disk


def test_the_layout_has_room_for_all(tmp_path: Path) -> None:
    """qemu-img's own check of such files is in tests/integration/test_layers.py."""
    sparse = qcow2.Sparse(10 * 2**20 + 512, [(0, 1, True), (3, 2, False), (511, 2, True), (2000, 100, True)])
    with (tmp_path / "x").open("wb") as out:
        sparse.write_tables(out.fileno())
    assert sparse.total == (tmp_path / "x").stat().st_size == sparse.data_at + 103 * qcow2.CLUSTER
    head = struct.unpack(">4sIQIIQ", (tmp_path / "x").read_bytes()[:32])
    assert head == (b"QFI\xfb", 3, 0, 0, 12, 10 * 2**20 + 512)


@pytest.mark.parametrize("runs", [
    [(0, 2**30, ZEROS)],  # 4 TiB of them: beside the table of the first level nothing to speak of
    [(n * 2**20, 2**20, ZEROS) for n in range(2**10)],
])
def test_zeros_cost_nothing(tmp_path: Path, runs: list[tuple[int, int, int]]) -> None:
    from vmjob.image import apply

    made = read(layer(tmp_path / "l", *runs, size=4 * 2**40), size=4 * 2**40)
    assert apply.becomes(made) < 17 * 2**20


def test_zeros_that_are_copied_or_packed_are_not_written(tmp_path: Path) -> None:
    from vmjob.image import apply

    piece = (b"x" * BLOCK + bytes(200 * BLOCK) + b"y" * BLOCK)
    made = read(layer(tmp_path / "l", (0, 202, NEW), size=300 * BLOCK, piece=piece), size=300 * BLOCK)
    target = tmp_path / "x"
    apply.materialise(made, [], target)
    told = target.stat()
    assert told.st_size == apply.becomes(made) > 202 * BLOCK > 100 * BLOCK > told.st_blocks * 512
    assert target.read_bytes().endswith(piece)


def test_little_cannot_become_much(tmp_path: Path) -> None:
    """What is below may be copied a few times over, not without end."""
    runs = [(n * 100, 100, 0) for n in range(2**18 // 100 + 10)]
    path = layer(tmp_path / "l", *runs, size=2**19 * BLOCK)
    assert path.stat().st_size < 10_000
    with pytest.raises(ImageRefused, match=r"it copies .* bytes out of a disk of"):
        read(path, size=2**19 * BLOCK)
    assert read(path, below_size=2**17 * BLOCK, size=2**19 * BLOCK).runs.copied > 2**18


@pytest.mark.parametrize(("gib", "asked"), [(1, 0), (4090, 0), (4300, 4 * 2**40)])
def test_room_is_made_for_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: int, asked: int) -> None:
    """A few bytes that become 4 TiB do not empty a cache that could not hold them; nor are they begun on a disk that
    they would fill but for less than a twentieth."""
    from vmjob.image import chain
    from vmjob.image.blobs import Blobs

    size, digest, room = 4 * 2**40, "a" * 64, []
    made = runs_of((0, 2**30, 0))
    delta.write(tmp_path / "l", [digest], size, made, [])
    manifest = Manifest("x", (ImageFile("disk", "d", "raw", size, digest, size),
                              ImageFile("layer1", "l", "delta", 1, "b" * 64, size)), ())
    blobs = Blobs(tmp_path / "c", room.append)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(
        (4096, 4096, gib * 2**18, gib * 2**18, gib * 2**18, 9, 9, 9, 0, 255)))
    with pytest.raises(ScratchFull, match=r"no space for .*, which the layer l becomes"):
        paths = {"disk": tmp_path / "d", "layer1": tmp_path / "l"}
        chain.chain(manifest, {role: Opened(path, path) for role, path in paths.items()}, blobs, tmp_path, ExitStack())
    assert len(room) == 1 and asked <= room[0] <= asked * 1.01


def test_a_key_for_each_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmjob import config
    from vmjob.image.blobs import Blobs
    from vmjob.image.chain import formats, places

    def manifest(*digests: str, form: str = "vmdk", size: int = 1, top: int = 1) -> Manifest:
        files = tuple(ImageFile(f"layer{n}" if n else "disk", f"f{n}", "delta" if n else form, 1, digest,
                                top if n == len(digests) - 1 else size) for n, digest in enumerate(digests))
        return Manifest("x", files, ())

    paths, blobs = {"disk": Path("/d")}, Blobs(Path("/c"))
    first, second = (places(manifest("a", "b", c), paths, blobs) for c in "xy")
    assert first[:2] == second[:2] and first[2] != second[2] and first[0] == Path("/d")
    assert formats(manifest("a", "b", "x")) == ("vmdk", "qcow2", "qcow2") and formats(Manifest("x", (), ())) == ()
    # the same bytes that are read in another way
    others = [manifest("a", "b", form="raw"), manifest("a", "b", size=2), manifest("a", "b", top=2)]
    assert len({places(one, paths, blobs)[1] for one in (manifest("a", "b"), *others)}) == 4
    # a node, or a boot, of its own
    monkeypatch.setattr(config, "boot_id", lambda: "another")
    assert places(manifest("a", "b", "x"), paths, blobs)[1] != first[1]


def test_what_earlier_boots_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmjob import config
    from vmjob.image import chain
    from vmjob.image.blobs import Blobs

    def made(name: str, days: int) -> Path:
        path = blobs.derive(name, lambda path: path.touch(), tmp_path)
        os.utime(blobs.uses.folder / f"d-{name}", (time.time() - days * 86400,) * 2)
        return path

    blobs = Blobs(tmp_path / "c")
    old, used, young = made("a", 8), made("b", 8), made("c", 1)
    with blobs.hold(["d-b"]):
        os.utime(blobs.uses.folder / "d-b", (0, 0))
        monkeypatch.setattr(config, "boot_id", lambda: "another")
        mine = made("d", 8)
        chain._clean(blobs)
    assert [path.exists() for path in (old, used, young, mine)] == [False, True, True, True]
    assert not list((tmp_path / "c").glob("*/d-a"))


def test_a_server_that_ends_while_nobody_asks() -> None:
    """Not as BrokenPipeError, which elsewhere is the end of our own output."""
    ours, theirs = socket.socketpair()
    reader = object.__new__(nbd.Reader)
    reader._socket, reader._name, reader.size = ours, "d", BLOCK
    theirs.close()
    with ours, pytest.raises(HostError, match="qemu-nbd answered with the end of the connection"):
        reader.read(0, BLOCK)
