"""Set-up where something is wrong: a clear message with the next action, and a second run that works.

Everything here is the real thing in a bare Debian 12, by a user for whom root has installed what set-up lists.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bare import bare
from tests.fresh import clone, index
from tests.fresh.conftest import DEBIAN_12, Machine, need

pytestmark = pytest.mark.fresh


@pytest.fixture(scope="module")
def unlucky(machines: Callable[[str], Machine]) -> str:
    """A clone to which one bad thing after the other happens, until at last all is right."""
    return machines(DEBIAN_12).clone("unlucky")


def test_no_network(machine: Machine, unlucky: str) -> None:
    machine.setup(unlucky, network=False).refused("pip cannot install", "no answer from the network")


def test_a_dead_proxy(machine: Machine, unlucky: str) -> None:
    with socket.socket() as closed:  # bound and not listening: nobody else will
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        machine.setup(unlucky, env=dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), proxy)).refused(
            "no answer from the network", "https_proxy")


def test_an_index_with_other_files(machine: Machine, unlucky: str) -> None:
    with index.changed(clone.REPOSITORY / "locks/dev.txt") as address:
        wrong = machine.setup(unlucky, env={"PIP_INDEX_URL": address, "PIP_EXTRA_INDEX_URL": "", "NO_PROXY": "*"})
    wrong.refused("DO NOT MATCH THE HASHES", "serves other files than locks/", "nothing of them was installed")


def test_a_checkout_that_cannot_be_written(machine: Machine, unlucky: str) -> None:
    """A read-only disk; then one that root has cloned."""
    machine.root.mounts.append(("ro", str(on_host(machine, unlucky)), unlucky))
    try:
        machine.setup(unlucky).refused("cannot be written", "Read-only file system")
    finally:
        machine.root.mounts.pop()
    checkout = machine.clone("root-s")
    machine.root.run("chown", "-R", "root:root", checkout)
    machine.setup(checkout).refused("cannot be written", "clone the repository")


def test_a_full_disk(machine: Machine) -> None:
    """There is no room for pip, then none for what pip installs, then there is room."""
    machine.root.mounts.append(("tmpfs", "size=1g,mode=1777", "/mnt/small"))
    as_ada = "setpriv --reuid=ada --regid=ada --init-groups env HOME=/home/ada"
    try:
        done = machine.root.run("sh", "-c", f"""exec 2>&1
            cd /mnt/small && {as_ada} git clone -q /srv/vmjob.git vmjob && cd vmjob || exit
            mount -o remount,size=$(($(du -sk /mnt/small | cut -f1) + 6000))k /mnt/small
            for size in 60m 2g more; do
                {as_ada} .ci/setup demo
                echo "status $?"
                mount -o remount,size=$size /mnt/small
            done
            {as_ada} .venv/bin/vmjob image inspect micro >/dev/null && echo complete""", check=False)
    finally:
        machine.root.mounts.pop()
    parts = re.split(r"status (\d+)\n", done.stdout)
    assert parts[1::2] == ["1", "1", "0"], done.stdout
    for printed in parts[0:4:2]:
        assert "the disk is full\nsetup: → free some space in /mnt/small/vmjob" in printed, printed
        assert "Traceback" not in printed, printed
    assert parts[-1].endswith("complete\n"), done.stdout


def test_killed_in_the_middle(machine: Machine, unlucky: str) -> None:
    """While pip installs. The second run is that of the next test."""
    running = subprocess.Popen(machine.root.command(".ci/setup", "demo", user="ada", cwd=unlucky),
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    of_venv = ("pip", "setuptools", "pkg_resources", "_distutils", "distutils")
    wait(lambda: any(not entry.name.startswith(of_venv) for entry in
                     (on_host(machine, unlucky) / ".venv").glob("lib/*/site-packages/*")), running)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not list((on_host(machine, unlucky) / ".venv").glob(".made-from-*"))


def test_after_all_that_a_run_works_and_so_it_does_where_another_commit_was_built(
        machine: Machine, unlucky: str) -> None:
    machine.setup(unlucky).succeeded()
    machine.works(unlucky)
    # other packages, another agent; and then a .venv as python3 -m venv leaves it where ensurepip is missing
    machine.root.run("sh", "-c", "echo '# later' | tee -a locks/dev.txt >>vmjob/guest/agent.sh", user="ada",
                     cwd=unlucky)
    machine.setup(unlucky, network=False).refused("making .venv", "no answer from the network")
    machine.root.run("sh", "-c", "rm -r .venv/lib/*/site-packages/pip*", user="ada", cwd=unlucky)
    assert "building the micro image" in machine.setup(unlucky).succeeded().printed
    machine.works(unlucky)


def test_a_path_with_spaces_and_two_at_once(machine: Machine) -> None:
    checkout = machine.clone("my work/the clone")
    command = machine.root.command(".ci/setup", "demo", user="ada", cwd=checkout)
    both = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True) for _ in range(2)]
    printed = [running.communicate(timeout=600)[0] for running in both]
    assert [running.returncode for running in both] == [0, 0], printed
    assert "".join(printed).count("making .venv") == 1, "the second one has waited for the first"
    machine.works(checkout)
    # pip's scripts too know their place
    done = machine.root.run(".venv/bin/vmjob", "run", "--image", "micro", "--", "echo", "it works", user="ada",
                            cwd=checkout)
    assert done.stdout == "it works\n", done


def test_python_that_is_too_old(tmp_path: Path) -> None:
    """Debian 11 has 3.9: enough for a worker node, not for a checkout. (A bare system has none: test_main_job.)"""
    need()
    with bare("bullseye", ("make", "git", "ca-certificates", "python3"), folder=tmp_path) as root:
        old = Machine(root, "")
        checkout = old.clone("vmjob")
        old.setup(checkout).refused("needs Python 3.11 or later", "python3 is 3.9.", "PYTHON=")


def on_host(machine: Machine, checkout: str) -> Path:
    return machine.root.path / checkout.lstrip("/")


def wait(happened: Callable[[], object], running: subprocess.Popen[bytes]) -> None:
    """Until it has, while that process runs."""
    while not happened():
        assert running.poll() is None, "it ended before"
        time.sleep(0.05)


