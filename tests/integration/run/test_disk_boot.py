"""Cloud images that know nothing of vmjob: firmware boots the disk, cloud-init lets the agent in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import pytest

from tests import images
from tests.conftest import Cli, result_of
from vmjob.vm import firmware

pytestmark = [pytest.mark.integration, pytest.mark.image]

DISKS = {"bios": "bios.qcow2", "uefi": "uefi.vmdk"}


@pytest.fixture(scope="module")
def image(home: Path) -> Callable[[str], str]:
    images.need({"qemu-system-x86_64": "qemu-system-x86"})

    def named(kind: str) -> str:
        if kind == "uefi" and not firmware.look_for_uefi():
            pytest.skip("to boot by UEFI: apt-get install ovmf")
        return images.register(Cli(home, home), images.cloud_disks() / DISKS[kind])

    return named


@pytest.mark.parametrize("kind", DISKS)
def test_import_finds_format_and_firmware(cli: Cli, image: Callable[[str], str], kind: str) -> None:
    found = cli("image", "inspect", "--json", image(kind)).json
    assert (found["firmware"], found["boot"]) == (kind, ["disk"])
    (disk,) = found["files"]
    assert (disk["format"], disk["virtual_size"]) == (DISKS[kind].split(".")[1], images.DISK_SIZE * 2**20)


@pytest.mark.parametrize("kind", DISKS)
def test_status_streams_inputs_outputs_and_network(cli: Cli, image: Callable[[str], str], kind: str) -> None:
    data = os.urandom(300_001)
    (cli.cwd / "in put").mkdir()
    (cli.cwd / "in put/é.dat").write_bytes(data)
    script = r"""cat 'in put/é.dat'; printf 'err\n' >&2
        cp 'in put/é.dat' ./-out.dat; truncate -s 3G hole; echo end >>hole; mkdir -p d/e; ln -s ../hole d/e/link
        { cat /proc/1/comm; echo $VMJOB_BOOT; id -un; id -un debian; [ -d /sys/firmware/efi ] && echo uefi || echo bios
          pwd; nproc; cat $MACHINEFEATURES/total_cpu; } >facts
        { ip -br -4 address; ip route; resolvectl dns; } >net; exit 7"""
    done = cli("run", "-q", "--image", image(kind), "--boot", "disk", "--accel", "tcg", "--cpus", "2", "--disk", "4GiB",
               "--input", "in put", "--output", "*", "--results", "res", "--", "sh", "-c", script, timeout=600)
    assert (done.status, done.err) == (7, "err\n")
    assert done.out == data
    assert (cli.cwd / "res/facts").read_text().split() == [
        "systemd", "disk", "vmjob", "debian", kind, "/var/lib/vmjob/work", "2", "2"]
    assert (cli.cwd / "res/-out.dat").read_bytes() == (cli.cwd / "res/in put/é.dat").read_bytes() == data
    hole = (cli.cwd / "res/hole").stat()
    assert hole.st_size == 3 * 2**30 + 4 and hole.st_blocks * 512 < 2**20
    assert (cli.cwd / "res/d/e/link").readlink() == Path("../hole")
    result = result_of(cli.cwd / "res")
    assert (result["boot"], result["outcome"]) == ("disk", "program-failed") and result["boot_attempts"] <= 2
    if "NAT" in result["network"]:
        net = (cli.cwd / "res/net").read_text()
        assert "10.0.2.15/24" in net and "default via 10.0.2.2" in net and "10.0.2.3\n" in net
    assert cli.left_over() == []


def test_user_of_the_cloud_image_and_no_way_out(cli: Cli, image: Callable[[str], str]) -> None:
    """A card that leads nowhere, without the two minutes that the image's own network set-up would wait."""
    done = cli("run", "-q", "--image", image("bios"), "--network", "isolated", "--user", "debian", "--", "sh", "-c",
               "id -un; echo $HOME; sudo -n true 2>/dev/null || echo no; ip -4 route | wc -l; "
               "systemctl show -P ActiveEnterTimestampMonotonic systemd-networkd-wait-online.service; "
               "systemctl show -P InactiveExitTimestampMonotonic systemd-networkd-wait-online.service", timeout=600)
    assert done.status == 0, done.err
    user, home, sudo, routes, online, asked = done.out.decode().split()
    assert (user, home, sudo, routes) == ("debian", "/home/debian", "no", "0")
    assert int(online) > int(asked) > 0 and int(online) - int(asked) < 60e6  # of the 120 s after which it gives up
