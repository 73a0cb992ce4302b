"""What a guest writes: its channel, its terminal, its disk of outputs, its frames, what scripts in it tell."""

from __future__ import annotations

import io
import ipaddress
import os
import tarfile
import warnings
from pathlib import Path

from tests.fuzz.target import target
from vmjob.errors import AgentFailed, OutputRefused, OutputTooLarge, VmjobError
from vmjob.guest import glidein, selftest
from vmjob.guest.attach import Marks
from vmjob.guest.channel import MAX_LINE, Channel, State
from vmjob.image import packages as listing
from vmjob.progress import Reporter
from vmjob.stage.unpack import unpack_outputs
from vmjob.stage.wanted import Wanted
from vmjob.vm import guard

_CAP = 64 << 20  # bytes that all outputs together may have


def _dialogues() -> list[bytes]:
    return [b"\x08hello 1 job 6.1.0\nready\nstarted\nheartbeat 1 50\nexit 0\nmissing x\noutputs ok\nbye\n",
            b"\x01hello 1 system k\nready\nstarted\nheartbeat 2\nexit 143\noutputs toolarge 5 GiB\nbye\n"]


@target(_dialogues, AgentFailed)
def channel(data: bytes, place: Path) -> None:
    """The guest's control channel, in pieces of the length that the first byte says."""
    step, data = data[0] + 1 if data else 1, data[1:]
    fed, state = Channel(), State.SILENT
    for at in range(0, len(data), step):
        fed.feed(data[at:at + step])
        assert fed.state >= state, "the state went backwards"
        state = fed.state
    assert len(fed._rest) <= MAX_LINE
    assert fed.exit_status is None or 0 <= fed.exit_status <= 255
    assert fed.percent is None or 0 <= fed.percent <= 100
    for text in (fed.boot, fed.kernel, fed.outputs_text, *fed.missing):
        assert text.isprintable(), f"{text!r} is not fit for a terminal"


def _terminals() -> list[bytes]:
    return [b"\x05junk\033]7777;ready\007$ ls\r\nfoo\033[0m\033]7777;exit 3\007tail"]


@target(_terminals)
def terminal(data: bytes, place: Path) -> None:
    """The marks of the guest's shell: the same is cut out, however the bytes come in pieces."""
    step, data = data[0] + 1 if data else 1, data[1:]
    whole, pieces, own = Marks(), Marks(), b""
    shown = whole.feed(data)
    for at in range(0, len(data), step):
        own += pieces.feed(data[at:at + step])
    assert shown + whole._rest == own + pieces._rest or (whole.status is not None and shown == own), (shown, own)
    assert (whole.ready, whole.status) == (pieces.ready, pieces.status)


# ---------------------------------------------------------------- outputs


def _archives() -> list[bytes]:
    found = []
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=form) as archive:
            for name, kind, link, size in (("a", b"0", "", 10), ("d", b"5", "", 0), ("d/" + "l" * 50, b"0", "", 600),
                                           ("s", b"2", "a", 0), ("h", b"1", "a", 0), ("d/up", b"2", "../a", 0)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size, member.mtime = kind, link, size, 1.5
                if form == tarfile.PAX_FORMAT and name == "a":
                    member.pax_headers = {"GNU.sparse.map": "0,5,8,2", "GNU.sparse.size": "20", "path": "a"}
                archive.addfile(member, io.BytesIO(b"x" * size))
        whole = made.getvalue().rstrip(b"\0")
        found.append(whole + bytes(-len(whole) % 512 + 1024))  # less of the zeros behind its end
    return found


def _summed(data: bytes) -> bytes:
    """With right checksums in what look like headers: else nothing behind the sum is looked at."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - 511, 512):
        block = blocks[at:at + 512]
        if block[257:262] == b"ustar" or at == 0:
            block[148:156] = b" " * 8
            blocks[at + 148:at + 156] = b"%06o\0 " % sum(block)
    return bytes(blocks)


@target(_archives, OutputRefused, OutputTooLarge)
def archive(data: bytes, place: Path) -> None:
    """The tar archive of outputs: nothing leads out of its folder, and a refused one leaves nothing."""
    out, disk = place / "out", place / "disk"
    out.mkdir()
    disk.write_bytes(_summed(data))
    try:
        names = unpack_outputs(disk, out, _CAP, Reporter())
    except VmjobError:
        assert not list(out.iterdir()), "a refused archive left something"
        raise
    assert sorted(path.name for path in place.iterdir()) == ["disk", "out"]
    found = set()
    for folder, folders, files in os.walk(out):
        for name in folders + files:
            path = Path(folder, name)
            assert not path.lstat().st_mode & 0o6000 and (path.is_symlink() or not path.lstat().st_mode & 0o002), path
            if path.is_symlink():
                assert Path(os.path.realpath(path)).is_relative_to(out.resolve()), f"{path} leads out"
            if name in files or path.is_symlink():
                found.add(str(path.relative_to(out)))
    assert found == set(names)


def _patterns() -> list[bytes]:
    return [b"*.root\nd\na/b/c\0out.root", b"[!a-c]?[[:digit:]]x\\*\0d1", b".h*/[^x]*\0.hid/y"]


@target(_patterns)
def pattern(data: bytes, place: Path) -> None:
    """Patterns of outputs and a name from the guest: what matches itself, and never takes long."""
    patterns, _, name = data.decode(errors="surrogateescape").partition("\0")
    words = [word for word in patterns.split("\n") if word and "\0" not in word][:20]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of re, which it would write on the user's terminal
        wanted = Wanted(words)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    took = wanted.take(parts)
    assert took == (set(wanted.missing) < set(words))
    for word in words:
        if not any(letter in word for letter in "*?[\\"):
            assert Wanted([word]).take([part for part in word.split("/") if part not in ("", ".")])


# ---------------------------------------------------------------- frames


def _frames() -> list[bytes]:
    packet = bytes.fromhex("525400123457525400123456080045000028000000004006") + b"\0\0"
    packet += bytes([10, 0, 2, 15, 8, 8, 8, 8]) + bytes(20)
    frame = len(packet).to_bytes(4, "big") + packet
    return [frame, frame * 3]


@target(_frames, ValueError)
def frames(data: bytes, place: Path) -> None:
    """Frames of the guest's network card: none that passes is for the node, its neighbours or a group."""
    good, rest = guard.split(data)
    assert data.endswith(rest)
    at = 0
    while at < len(good):
        size = int.from_bytes(good[at:at + 4], "big")
        frame, at = good[at + 4:at + 4 + size], at + 4 + size
        if frame[12:14] == b"\x08\0":
            goal = ipaddress.ip_address(frame[30:34])
            assert not goal.is_loopback and not goal.is_link_local and not goal.is_multicast, goal
        else:
            assert frame[12:14] == b"\x08\x06"
    assert at == len(good)


# ---------------------------------------------------------------- what scripts in it tell


def _packages() -> list[bytes]:
    return [b"os\tdebian\t12\nmanager\tdpkg\ndpkg\tbash\t5.2-1+b1\tamd64\tbash\t5.2-1\nrpm\topenssl\t3.0\tx86_64\t"
            b"openssl-3.0-24.el9.src.rpm\t\npython\t/usr/lib/python3/dist-packages/six-1.16.0.egg-info\n"
            b"installer\tpip\t/usr/local/lib/x-1.0.dist-info\nend\n"]


@target(_packages, OutputRefused)
def packages(data: bytes, place: Path) -> None:
    """The list of an image's packages: what is kept of it is read back the same, and shown without harm."""
    digest = f"sha256:{'a' * 64}"
    found = listing.parse(data, digest)
    listing.remember(found, place)
    assert listing.remembered(digest, place) == found
    for one in found.packages:
        assert (one.name + one.version + one.arch + one.source).isascii()


def _facts() -> list[bytes]:
    return [b"0.10\tagent.version\t1\n1.25\tcpus.count\t4\nnoise\n1.30\ttest.end\tyes\n"]


@target(_facts)
def facts(data: bytes, place: Path) -> None:
    """What the self-test in a guest prints."""
    found, spent = selftest.read_facts(data)
    assert len(found) <= 100 and all(value.isprintable() and name.isprintable() for name, value in found.items())
    assert all(0 <= seconds < 1e10 for seconds in spent.values())


def _histories() -> list[bytes]:
    return [b"JobDuration = 5.0\nCpusProvisioned = 1\nToE = [ HowCode = 0; ]\n*** Offset = 3\n"
            b"\0" b"1700000000 1700000100\n\0no pool\n"]


@target(_histories)
def glide_in(data: bytes, place: Path) -> None:
    """What a glide-in's guest returned: history, times and why it ended."""
    for name, part in zip((glidein.HISTORY, "times", glidein.WHY), data.split(b"\0")):
        (place / name).write_bytes(part)
    worked = glidein.worked("x", place)
    assert worked.busy_seconds >= 0 and worked.jobs >= 0 and worked.evicted >= 0
    for status in (14, 99):
        assert glidein.failure(status, place).message.isprintable()
