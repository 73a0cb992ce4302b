"""A Debian image of ``vmjob image build``: its boot methods, and the agent among dash, GNU tar and util-linux."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests import images
from tests.conftest import ROOT, Cli, result_of

pytestmark = [pytest.mark.integration, pytest.mark.image]

GIB = 2**30


@pytest.fixture(scope="module")
def image(home: Path) -> str:
    images.need({"qemu-system-x86_64": "qemu-system-x86"})
    return images.register(Cli(home, home), images.built(ROOT / "tests/debian.yaml"))


@pytest.mark.parametrize("boot", ["job", "system"])
def test_status_streams_inputs_outputs_and_network(cli: Cli, image: str, boot: str) -> None:
    (cli.cwd / "in put").mkdir()
    (cli.cwd / "in put/é.txt").write_text("text")
    script = r"""printf 'a\000\377b\n'; printf 'err\n' >&2
        cp 'in put/é.txt' out.txt; mkdir -p d; echo deep >d/f
        { cat /proc/1/comm; echo $VMJOB_BOOT; id -un; id -u; id -G; pwd; } >facts
        { ip -br -4 address show dev eth0; ip route; cat /etc/resolv.conf; } >net; exit 7"""
    done = cli("run", "-q", "--image", image, "--boot", boot, "--accel", "tcg", "--input", "in put", "--output", "*",
               "--results", "res", "--", "sh", "-c", script, timeout=400)
    assert (done.status, done.out, done.err) == (7, b"a\0\xffb\n", "err\n")
    first, said, user, uid, groups, folder = (cli.cwd / "res/facts").read_text().splitlines()
    assert (first, said) == {"job": ("agent", "job"), "system": ("systemd", "system")}[boot]
    assert (user, uid, groups) == ("vmjob", "1000", "1000") and folder.startswith("/var/lib/vmjob/")
    assert (cli.cwd / "res/out.txt").read_text() == (cli.cwd / "res/in put/é.txt").read_text() == "text"
    assert (cli.cwd / "res/d/f").read_text() == "deep\n"
    result = result_of(cli.cwd / "res")
    assert (result["boot"], result["accelerator"]["name"]) == (boot, "tcg") and result["boot_attempts"] <= 2
    if "NAT" in result["network"]:
        net = (cli.cwd / "res/net").read_text()
        assert "10.0.2.15/24" in net and "default via 10.0.2.2" in net and "nameserver 10.0.2.3\n" in net
    assert cli.left_over() == []


@pytest.mark.parametrize("network", ["none", "isolated"])
def test_system_without_a_way_out(cli: Cli, image: str, network: str) -> None:
    done = cli("run", "-q", "--image", image, "--boot", "system", "--network", network, "--", "sh", "-c",
               "ip -br -4 address show; ip route", timeout=400)
    assert done.status == 0, done.err
    assert b"10.0.2" not in done.out and b"default" not in done.out and b"127.0.0.1" in done.out


def test_names_of_every_kind_and_thousands_of_files(cli: Cli, image: str) -> None:
    odd = ["plain", "two  words", "é ü ☃", "-dash", "--checkpoint-action=exec=false", "a'b\"c", "back\\slash", "*",
           "[x]", "(", "!"]
    (cli.cwd / "names").write_text("".join(f"{name}\n" for name in odd))
    script = r"""while IFS= read -r name; do printf '%s' "$name" >"./$name"; done <names
        mkdir many; cd many; i=0; while [ $i -lt 2500 ]; do echo $i >"f$i"; i=$((i+1)); done"""
    done = cli("run", "-q", "--image", image, "--input", "names", "--output", "*", "--output", "many/f?", "--results",
               "res", "--", "sh", "-c", script, timeout=300)
    assert done.status == 0, done.err
    back = cli.cwd / "res"
    assert {p.name for p in back.iterdir()} == {*odd, "names", "many", "result.json", "console.log"}
    assert all((back / name).read_text() == name for name in odd)
    assert {int((back / f"many/f{n}").read_text()) for n in range(2500)} == set(range(2500))
    assert len(list((back / "many").iterdir())) == 2500


def test_thousands_of_outputs_in_the_folder_itself(cli: Cli, image: str) -> None:
    script = "i=0; while [ $i -lt 2500 ]; do echo $i >f$i; i=$((i+1)); done"
    done = cli("run", "-q", "--image", image, "--output", "f*", "--results", "res", "--",
               "sh", "-c", script, timeout=300)
    assert done.status == 0, done.err
    assert {p.name for p in (cli.cwd / "res").glob("f*")} == {f"f{n}" for n in range(2500)}
    assert (cli.cwd / "res/f2499").read_text() == "2499\n"


def test_sparse_files_stay_sparse_and_exact(cli: Cli, image: str) -> None:
    script = ("truncate -s 5G hole; for at in 0 2500000000 4294967295 5368709110; do "
              "printf 'data at %s' $at | dd of=hole bs=1 seek=$at conv=notrunc 2>/dev/null; done; stat -c %s hole")
    done = cli("run", "-q", "--image", image, "--disk", "6GiB", "--output", "hole", "--results", "res", "--",
               "sh", "-c", script, timeout=300)
    assert done.status == 0, done.err
    size = int(done.out)
    hole = cli.cwd / "res/hole"
    assert hole.stat().st_size == size == 5368709110 + len("data at 5368709110")
    assert hole.stat().st_blocks * 512 < 2**20
    with hole.open("rb") as file:
        for at in (0, 2500000000, 4294967295, 5368709110):
            file.seek(at)
            assert file.read(18).rstrip(b"\0") == b"data at %d" % at
        file.seek(4294967295 - 4096)
        assert file.read(4096) == bytes(4096)


def test_more_than_four_gib_of_real_bytes(cli: Cli, image: str) -> None:
    """Also in one file: 32 bits must be nowhere. Each MiB tells its number."""
    if os.statvfs(cli.cwd).f_bavail * os.statvfs(cli.cwd).f_frsize < 20 * GIB:
        pytest.skip("needs 20 GiB of free disk")
    script = ("head -c 1048568 /dev/urandom >block; i=0; while [ $i -lt 41 ]; do "
              "cat block block block block block block block block block block >>tens; printf '%08d' $i >>tens; "
              "i=$((i+1)); done; i=0; while [ $i -lt 10 ]; do cat tens; i=$((i+1)); done >big; "
              "printf end >>big; stat -c %s big; sha256sum tens block")
    done = cli("run", "-q", "--image", image, "--memory", "2GiB", "--disk", "6GiB", "--output", "big", "--results",
               "res", "--", "sh", "-c", script, timeout=400)
    assert done.status == 0, done.err
    size, tens, _, _, _ = done.out.decode().split()
    big = cli.cwd / "res/big"
    assert big.stat().st_size == int(size) > 4 * GIB
    with big.open("rb") as file:
        for _ in range(10):
            digest = hashlib.sha256(file.read(int(size) // 10))
            assert digest.hexdigest() == tens
        assert file.read() == b"end"
    big.unlink()


@pytest.mark.parametrize("number", [9, 11, 15])
def test_death_by_signal_is_told(cli: Cli, image: str, number: int) -> None:
    done = cli("run", "--json", "--image", image, "--", "sh", "-c", f"kill -{number} $$", timeout=120)
    assert (done.status, done.json["signal"]) == (128 + number, number), done.err


def test_missing_user_is_made_and_root_is_possible(cli: Cli, image: str) -> None:
    (cli.cwd / "data").write_text("x")
    for user, ids in (("ana", "ana"), ("root", "root")):
        done = cli("run", "-q", "--image", image, "--user", user, "--input", "data", "--", "sh", "-c",
                   "id -un; cd && touch here && pwd; stat -c %U $VMJOB_WORK/data", timeout=120)
        assert done.status == 0, done.err
        name, home, owner = done.out.decode().split()
        assert (name, owner) == (ids, ids) and home == {"ana": "/home/ana", "root": "/root"}[user]


@pytest.mark.parametrize("boot", ["job", "system"])
def test_daemons_left_behind_do_not_hang_the_job(cli: Cli, image: str, boot: str) -> None:
    script = ("sleep 1000 & setsid sleep 1000 & (setsid sh -c 'trap \"\" TERM HUP; sleep 1000; sleep 1000' &) ; "
              "echo kept >out; echo done; exit 5")
    done = cli("run", "-q", "--image", image, "--boot", boot, "--output", "out", "--results", "res", "--",
               "sh", "-c", script, timeout=300)
    assert (done.status, done.out) == (5, b"done\n"), done.err
    assert (cli.cwd / "res/out").read_text() == "kept\n"


def test_interrupt_is_not_ignored_in_the_program(cli: Cli, image: str) -> None:
    """A shell cannot trap what was ignored when it started; and children start with no signal blocked."""
    done = cli("run", "-q", "--image", image, "--", "sh", "-c",
               "trap 'echo caught; exit 4' INT; grep -E 'Sig(Blk|Ign)' /proc/self/status; kill -INT $$; echo not",
               timeout=120)
    assert done.status == 4, done.err
    blocked, ignored, caught = done.out.decode().splitlines()
    assert int(blocked.split()[1], 16) == 0 and int(ignored.split()[1], 16) & 0b10 == 0 and caught == "caught"
