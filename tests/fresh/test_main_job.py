"""The main job on a bare system in its shortest form; ``make fresh`` does all that the README says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bare import bare
from tests.fresh import clone
from tests.fresh.conftest import DEBIAN_12, DEBIAN_13, PACKAGES, Machine, need

pytestmark = pytest.mark.fresh


@pytest.mark.parametrize("suite", [DEBIAN_12, DEBIAN_13])
def test_set_up_micro_pack_and_the_wrapper_as_another_user(machines: Callable[[str], Machine], suite: str) -> None:
    machine = machines(suite)
    listed = machine.installed.split()[6:]
    assert {"qemu-system-x86", "passt", "python3"} <= set(listed)
    assert len(listed) == len(set(listed))
    checkout = machine.clone("main-job")
    machine.setup(checkout).succeeded()
    again = machine.setup(checkout).succeeded()
    assert again.printed == "", "a second set-up has nothing to do"
    machine.root.run(".venv/bin/vmjob", "pack", "--image", "micro", "-o", "/var/tmp/p", "--", "sh", "-c",
                     "echo hello from $(hostname)", user="ada", cwd=checkout)
    machine.root.run("mkdir", "slot", user="bob", cwd="/home/bob")
    done = machine.root.run("sh", "/var/tmp/p/vmjob-wrapper.sh", user="bob", cwd="/home/bob/slot")
    assert "hello from vmjob" in done.stdout.splitlines(), done
    result = json.loads(machine.root.run("cat", "/home/bob/slot/result.json").stdout)
    assert (result["outcome"], result["exit_status"]) == ("ok", 0)


def test_root_s_set_up_without_a_network_says_so(tmp_path: Path) -> None:
    """Where apt-get has nothing yet, and nobody to ask."""
    need()
    with bare(DEBIAN_12, PACKAGES, folder=tmp_path) as root:
        machine = Machine(root, "")
        checkout = clone.new(root, "root")
        machine.setup(checkout, user="root", network=False).refused("apt-get cannot install", "network")
        root.run("sh", "-c", "test ! -e /usr/sbin/policy-rc.d")
