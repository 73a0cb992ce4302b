"""Usage records of real runs: each exactly one, whenever somebody is killed, and whatever is taken away meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.ca import Ca
from tests.conftest import ROOT, Cli, qemus
from vmjob.accounting import spool
from vmjob.accounting.ledger import names, read
from vmjob.accounting.payer import payer
from vmjob.accounting.record import UsageRecord, render
from vmjob.vm.net import has_route

pytestmark = pytest.mark.integration

UUID = "4c8502e3-52d9-4012-8047-c127dff8f4a7"
# what changes a file system; that of these which are audited call the hook before they are done
_CALLS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "fcntl.flock"}
_OTHERS = ("pwrite", "fsync", "posix_fallocate", "close")
LAST = UsageRecord(UUID, "X", "n1", "u", 0, "g", 1795204684.0, wall=100.0, cpu=50.0, outcome="ok", status=0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A spool as docs/site-admin.md makes one."""
    for folder in spool.FOLDERS:
        (tmp_path / "spool" / folder).mkdir(parents=True)
        (tmp_path / "spool" / folder).chmod(0o3777)
    return tmp_path / "spool"


@pytest.fixture
def site(cli: Cli, place: Path) -> Cli:
    """vmjob on a node that has such a site configuration."""
    configure(cli, place, "json")
    return cli


def configure(cli: Cli, place: Path, kind: str) -> None:
    path = cli.cwd / "site.yaml"
    path.write_text(f"name: EXAMPLE-T2\naccounting:\n  format: {kind}\n  spool: {place}\n")
    cli.env["VMJOB_SITE_CONFIG"] = str(path)


def outgoing(place: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((place / "outgoing").iterdir())]


def pages(place: Path) -> list[UsageRecord]:
    found = list(read(names(place)))
    assert not [why for _, record, why in found if record is None]
    return [record for _, record, _ in found if record]


def opened(place: Path) -> list[Path]:
    return list((place / "open").iterdir())


# ---------------------------------------------------------------- killed at every step


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Does ``work`` in a process that is killed with SIGKILL before its call number ``step`` to the file system. False:
    it was done before."""
    child = os.fork()
    if not child:
        count = 0

        def call(*_: object) -> None:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

        def counted(name: str) -> Callable[..., Any]:
            real = getattr(os, name)
            return lambda *args: (call(), real(*args))[1]

        for name in _OTHERS:
            setattr(os, name, counted(name))
        sys.addaudithook(lambda event, args: call() if event in _CALLS else None)
        try:
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def live(place: Path) -> None:
    """All that a run does with its record."""
    mine = replace(LAST, uid=os.geteuid())
    entry = spool.begin(place, replace(mine, wall=0.0, cpu=0.0, outcome="running", status=None), "json")
    entry.beat(replace(entry.record, wall=60.0, cpu=30.0))
    entry.end(mine)
    entry.close()


def fresh(place: Path) -> None:
    for folder in spool.FOLDERS:
        shutil.rmtree(place / folder)
        (place / folder).mkdir()


def test_one_record_whatever_call_the_run_and_then_the_sweep_are_killed_at(place: Path) -> None:
    deaths, kinds = 0, set()
    for first in range(1, 200):
        # of all pairs a third, in which each call of both is
        for second in range(1 + first % 3, 200, 3):
            fresh(place)
            died = killed_at(first, lambda: live(place))
            begun = any(not path.name.startswith(".") for path in opened(place)) or any((place / "outgoing").iterdir())
            again = killed_at(second, lambda: spool.sweep(place) and None)
            taken = outgoing(place)  # the site's sender takes them away, whatever goes on
            shutil.rmtree(place / "outgoing")
            (place / "outgoing").mkdir()
            deaths += died + again
            swept = spool.sweep(place)
            assert not swept.stuck and not swept.alive
            taken += outgoing(place)
            assert len(taken) == begun, f"killed at {first} and {second}"
            assert [one["uuid"] for one in taken] == [page.uuid for page in pages(place)]
            assert [one["outcome"] for one in taken] == [page.outcome for page in pages(place)]
            assert all(path.name.startswith(".") for path in opened(place))
            kinds |= {(one["outcome"], one["wall"]) for one in taken}
            if not again:
                break
        if not died:
            break
    assert deaths > 100 and not died
    assert {("ok", 100.0), ("killed", 60.0)} < kinds


def test_a_folder_that_never_began_goes_when_it_is_old(place: Path) -> None:
    (place / "open" / f".{UUID}").mkdir()
    (place / "open" / f".{UUID}" / "state").write_text("")
    spool.sweep(place)
    assert len(opened(place)) == 1
    os.utime(place / "open" / f".{UUID}", (0, 0))
    spool.sweep(place)
    assert not opened(place) and not outgoing(place)


def test_many_sweep_at_once_and_a_sender_takes_away(place: Path) -> None:
    """Runs that die, four that sweep, and a sender: each record is taken once."""
    taken: list[str] = []
    over = threading.Event()

    def send() -> None:
        while True:
            last = over.is_set()
            for path in (place / "outgoing").iterdir():
                taken.append(json.loads(path.read_text())["uuid"])
                path.unlink()
            if last:
                return

    sender = threading.Thread(target=send)
    sender.start()
    code = ("import sys, uuid; from pathlib import Path; from vmjob.accounting import spool\n"
            "from vmjob.accounting.record import UsageRecord\n"
            "import os; place = Path(sys.argv[1])\n"
            "for number in range(40):\n"
            "    record = UsageRecord(str(uuid.uuid4()), 'X', 'n', 'u', os.geteuid(), 'g', 1795204684.0)\n"
            "    entry = spool.begin(place, record, 'json')\n"
            "    if number % 2: entry.end(record)\n"
            "    entry.close(); spool.sweep(place)\n")
    try:
        workers = [subprocess.Popen([sys.executable, "-c", code, place], env=dict(os.environ, PYTHONPATH=str(ROOT)))
                   for _ in range(4)]
        assert [worker.wait(60) for worker in workers] == [0] * 4
    finally:
        over.set()
        sender.join()
    assert len(taken) == len(set(taken)) == 160 == len(pages(place))


# ---------------------------------------------------------------- shared with neighbours


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A spool that other users reach: the folder of another session's tests closes that of ours."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="vmjob-test-") as above:
        Path(above).chmod(0o755)
        for folder in spool.FOLDERS:
            (Path(above) / "spool" / folder).mkdir(parents=True)
            (Path(above) / "spool" / folder).chmod(0o3777)
        yield Path(above) / "spool"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")
def test_root_sweeps_for_everybody_and_nobody_is_led_astray(open_place: Path, cli: Cli) -> None:
    place = open_place
    me, neighbour = 64001, 64002
    secret = cli.cwd / "secret"
    secret.write_text("secret")
    mine = replace(LAST, uid=me, outcome="running")

    def as_user(uid: int, work: Callable[[], object]) -> None:
        child = os.fork()
        if not child:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            try:
                work()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    as_user(me, lambda: spool.begin(place, mine, "json"))

    def attack() -> None:
        for folder, end in (("outgoing", ".json"), ("ledger", ".json")):  # he has seen the name in open
            (place / folder / f"{UUID}{end}").symlink_to(secret)
        (place / "open" / UUID[::-1]).symlink_to("/etc")
        spool.begin(place, replace(mine, uuid=UUID.replace("4", "5"), uid=me), "json")  # usage of another
        folder = place / "open" / UUID.replace("4", "6")
        folder.mkdir()
        (folder / "state").symlink_to(secret)
        folder = place / "open" / UUID.replace("4", "7")
        folder.mkdir()
        os.mkfifo(folder / "state")

    as_user(neighbour, attack)
    done = cli("account", "sweep", "--spool", place, "--json")
    assert done.status == 229 and len(done.json["delivered"]) == 1 and len(done.json["stuck"]) == 3, done.err
    assert secret.read_text() == "secret" and not (place / "open" / UUID).exists()
    went = [path for path in (place / "outgoing").iterdir() if not path.is_symlink()]
    assert len(went) == 1 and went[0].stat().st_uid == me and went[0].stat().st_mode & 0o777 == 0o640
    assert [record.uid for _, record, _ in read(names(place)) if record] == [me]


# ---------------------------------------------------------------- real runs


def test_a_run_leaves_one_record_in_the_format_of_the_site(cli: Cli, place: Path) -> None:
    for kind, word in (("apel-cloud", "SiteName: EXAMPLE-T2"), ("gratia", "<SiteName>EXAMPLE-T2</SiteName>")):
        configure(cli, place, kind)
        assert cli.micro("-q", "--", "sh", "-c", "exit 7").status == 7
        path, = (place / "outgoing").iterdir()
        assert word in path.read_text()
        path.unlink()
    one, _ = sorted(pages(place), key=lambda page: page.started)
    assert (one.outcome, one.status, one.image, one.accelerator, one.cpus) == ("program-failed", 7, "micro", "tcg", 1) \
        or one.accelerator == "kvm"
    assert one.uid == os.getuid() and 0 < one.cpu <= one.wall * os.cpu_count() and one.memory >= 2**28  # type: ignore
    assert one.suspended == 0 and not opened(place)
    done = cli("account", "report", "--spool", place, "--by", "image,user", "--json")
    row, = done.json["tables"][0]["rows"]
    assert row["runs"] == 2 and row["image"].startswith("micro ")
    shown = cli("account", "report", "--spool", place)
    assert shown.status == 0 and "IMAGE" in shown.out.decode() and "█" in shown.out.decode()
    for text in ("$\\frac{", "=cmd", "<b>&"):  # what a picture and a table could take for more than names
        odd = replace(one, uuid=str(uuid4()), vo=text, image=text, global_user=text)
        (place / "ledger" / f"{odd.uuid}.json").write_bytes(render(odd, "json"))
    drawn = cli("account", "report", "--spool", place, "--csv", "--plot", "usage.svg")
    assert drawn.status == 0 and b"\n'=cmd," in drawn.out, drawn.err
    assert (cli.cwd / "usage.svg").read_text().rstrip().endswith("</svg>")


def test_without_a_site_configuration_nothing_is_written_or_imported(cli: Cli, place: Path) -> None:
    if Path("/etc/vmjob/site.yaml").exists():
        pytest.skip("this machine has a site configuration of its own")
    code = ("import sys, vmjob.run.recording as a\nwith a.recorded(None): pass\n"
            "print([m for m in sys.modules if m == 'yaml' or m.startswith(('vmjob.accounting', 'vmjob.ads'))])")
    done = subprocess.run([sys.executable, "-c", code], env=cli.environment(), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("text", ["name: [", "name: X\naccounting: {format: xml, spool: /x}\n",
                                  "name: X\naccounting: {format: json, spool: /nowhere/spool}\n"])
def test_a_node_with_broken_accounting_runs_no_job(cli: Cli, text: str) -> None:
    configure(cli, cli.cwd, "json")
    (cli.cwd / "site.yaml").write_text(text)
    done = cli.micro("--json", "--", "true")
    assert done.status == 229 and done.json["failure"]["transient"] is True
    assert done.json["failure"]["kind"] == "RecordSpoolFull" and not done.json["boot_attempts"], done.err


def test_killed_runs_and_two_at_once_are_each_told_once(site: Cli, place: Path) -> None:
    for wait in (0.0, 0.7, 2.5):
        started = site.start("run", "--image", "micro", "-q", "--", "sleep", "60", start_new_session=True)
        until(lambda: any(not path.name.startswith(".") for path in opened(place)))
        time.sleep(wait)
        started.kill()
        started.communicate()
        until(lambda: not qemus())
        assert site("account", "sweep", "--spool", place).status == 0
    killed = outgoing(place)
    assert [one["outcome"] for one in killed] == ["killed"] * 3
    assert max(one["cpu"] for one in killed) > 0  # what the last beat said
    two = [site.start("run", "--image", "micro", "-q", "--", "true") for _ in range(2)]
    assert [one.wait(120) for one in two] == [0, 0]
    for one in two:
        one.communicate()
    assert sorted(one["outcome"] for one in outgoing(place)) == ["killed"] * 3 + ["ok"] * 2
    assert len(pages(place)) == 5 and not opened(place)


def test_time_of_standing_still_is_told_apart(site: Cli, place: Path) -> None:
    """As a batch system suspends: SIGSTOP to all processes; and as one asks: SIGUSR1, SIGUSR2."""
    started = site.start("run", "--image", "micro", "--", "sh", "-c", "echo up; sleep 3")
    assert started.stdout and started.stdout.readline() == b"up\n"
    slot = [started.pid, *children(started.pid)]
    for one in slot:
        os.kill(one, signal.SIGSTOP)
    time.sleep(5)
    for one in slot:
        os.kill(one, signal.SIGCONT)
    time.sleep(0.5)
    started.send_signal(signal.SIGUSR1)
    time.sleep(2)
    started.send_signal(signal.SIGUSR2)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 0, said
    one, = outgoing(place)
    # of each of the two what is less than a tick may be missing, and on a busy machine more of the second
    assert 4 <= one["suspended"] <= one["wall"] - 2


def test_a_full_spool_takes_no_run_and_loses_none(site: Cli, place: Path) -> None:
    """On a small file system that is really full: in a mount namespace of our own."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs user and mount namespaces: sysctl kernel.unprivileged_userns_clone=1")
    script = """
set -e
mount -t tmpfs -o size=1m vmjob "$1"; cd "$1"; mkdir open outgoing ledger; shift
"$@" sh -c 'echo up; sleep 2' &
until ls open | grep -q .; do sleep 0.05; done
sleep 0.5
cat /dev/zero >full 2>/dev/null || true
wait $!
echo "first $? $(ls outgoing | wc -l) $(ls ledger | wc -l)"
status=0; "$@" true || status=$?
echo "second $status $(ls outgoing | wc -l) $(ls -A open | wc -l)"
"""
    argv = [sys.executable, "-m", "vmjob", "run", "--image", "micro", "--"]
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", place, *argv], cwd=site.cwd,
                          env=site.environment({"TMPDIR": str(site.cwd)}), capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == ["first 0 1 1", "second 229 1 0"], done.stdout + done.stderr
    assert "No space left" in done.stderr and "boot " not in done.stderr.partition("No space left")[2]


class _Big(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(3_000_000))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    if not has_route():
        pytest.skip("needs an IPv4 route out")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        own = probe.getsockname()[0]
    with ThreadingHTTPServer((own, 0), _Big) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield own, server.server_port
        server.shutdown()


def test_network_bytes_are_counted_on_the_host(site: Cli, place: Path, server: tuple[str, int]) -> None:
    own, port = server
    done = site.micro("-q", "--", "sh", "-c", f"wget -q -O - http://{own}:{port}/ | wc -c; cat /proc/net/dev")
    assert done.out.startswith(b"3000000\n"), done.err
    card = next(line.split() for line in done.out.decode().splitlines() if "eth0:" in line)
    one, = outgoing(place)
    # a guest's card counts the frames that it took; a few more come, and each has a check sum of four bytes on a wire
    assert one["bytes_in"] >= int(card[1]) >= 3_000_000
    assert one["bytes_out"] >= int(card[9]) * 0.9 > 1000
    assert one["counted_by"]


def children(pid: int) -> list[int]:
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()]


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)


# ---------------------------------------------------------------- for whom, where there is a proxy alone


def test_a_proxy_tells_whose_it_is_and_her_first_group(ca: Ca, tmp_path: Path) -> None:
    """As VOMS makes them: a certificate of hers below her own, with a list of groups in an extension."""
    group = b"/atlas/Role=producer"
    listed = b"\x06\x0a\x2b\x06\x01\x04\x01\xbe\x45\x64\x64\x04\x31" + bytes([len(group) + 4]) + b"\x30" \
        + bytes([len(group) + 2]) + b"\x04" + bytes([len(group)]) + group
    extension = (b"\x30" + bytes([len(listed)]) + listed).hex(":")
    (tmp_path / "voms").write_text(f"1.3.6.1.4.1.8005.100.100.5=DER:{extension}\n")
    request, proxy = tmp_path / "request", tmp_path / "proxy"
    ca.openssl("req", "-new", "-key", ca.ada.key, "-out", request, "-subj", f"{ca.ada.dn}/CN=12345")
    ca.openssl("x509", "-req", "-in", request, "-CA", ca.ada.cert, "-CAkey", ca.ada.key, "-set_serial", 5, "-days", 1,
               "-extfile", tmp_path / "voms", "-out", proxy)
    for chain in (b"", ca.ada.cert.read_bytes()):
        (tmp_path / "both").write_bytes(proxy.read_bytes() + chain)
        found = payer({"X509_USER_PROXY": str(tmp_path / "both")})
        assert (found.global_user, found.fqan, found.vo) == (ca.ada.dn, group.decode(), "atlas")
        assert found.said_by == "X509_USER_PROXY" and not found.vouched
