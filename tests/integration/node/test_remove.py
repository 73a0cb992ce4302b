"""``vmjob site remove``: nodes that 0.1.0 and today's vmjob set up are as they were before, killed at any call to the
file system, and whatever users have put into the folders that all may write to."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli
from tests.integration.node.test_enable import PASSWD, content, ordinary
from vmjob.cli.main import main
from vmjob.image.store.uses import Uses
from vmjob.node import wipe

pytestmark = pytest.mark.integration

OLD = ROOT / "tests/data/vmjob-0.1.0.pyz"
STATE = "var/lib/vmjob"
UUID = "0f0e0d0c-0b0a-0908-0706-050403020100"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node's tree, with an HTCondor."""
    place = tmp_path / "root"
    for folder in ("etc/condor/config.d", "etc/udev/rules.d", "etc/cron.d", "var/lib", "var/tmp"):
        (place / folder).mkdir(parents=True)
    (place / "etc/passwd").write_text(PASSWD)
    (place / "etc/group").write_bytes(b"root:x:0:\nkvm:x:105:ann\nodd:\xff\xfe:7:\n")
    (place / "etc/gshadow").write_text("root:*::\nkvm:!::ann\n")
    return place


def old(*words: object) -> None:
    """vmjob 0.1.0."""
    done = subprocess.run([sys.executable, OLD, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def used(root: Path) -> None:
    """As jobs and an admin's cron leave a node."""
    uid = os.getuid()
    cache = root / STATE / f"cache/uid-{uid}"
    (root / STATE / "runs").mkdir(parents=True, exist_ok=True)
    for folder in ("blobs/sha256", "uses", "tmp"):
        (cache / folder).mkdir(parents=True, exist_ok=True)
    cache.chmod(0o700)
    (cache / "blobs/sha256" / ("a" * 64)).write_bytes(b"image" * 1000)
    (cache / "probe.json").write_text("{}")
    (root / STATE / f"runs/run-{uid}-0123456789abcdef").write_text("{}")
    (root / STATE / "lists").mkdir(exist_ok=True)
    (root / STATE / "lists/0a.json").write_text('{"url": "https://images.example.org/images.list"}')
    (root / STATE / "rte/ENV/VMJOB").mkdir(parents=True, exist_ok=True)
    (root / STATE / "rte/ENV/VMJOB/micro").write_text("#!/bin/sh\n")
    (root / f"var/tmp/vmjob-{uid}/.cache").mkdir(parents=True, exist_ok=True)
    (root / "var/tmp/vmjob-run-abcd").mkdir(exist_ok=True)
    (root / "var/tmp/vmjob-run-abcd/.lock").touch()


def removed(root: Path, *more: str) -> int:
    return main(["site", "remove", "--root", str(root), *more])


@pytest.mark.parametrize("version", ["0.1.0", "today"])
def test_a_node_is_as_it_was_before(cli: Cli, root: Path, version: str) -> None:
    """All that enable-kvm, the hook and jobs left there; the hook's own configuration copied by hand."""
    before = content(root)
    for words in (("enable-kvm", "--users", "alice", "--root", root), ("hook", root / "etc/vmjob")):
        if version == "today":
            assert cli("site", *words).status == 0
        else:
            old("site", *words)
    shutil.copy(root / "etc/vmjob/99-vmjob-node.conf", root / "etc/condor/config.d/50-by-hand.conf")
    (root / "etc/vmjob/.vmjob.pyz.new").write_bytes(b"PK")  # a hook that was killed
    (root / "etc/.vmjob-new.group").write_text("root:x:0:\nkv")
    used(root)
    there = content(root)
    dry = cli("site", "remove", "--root", root, "--dry-run")
    assert dry.status == 0 and content(root) == there and "nothing was changed" in dry.err, dry.err
    for line in (b"remove file /etc/vmjob/vmjob.pyz (1", b"remove folder /var/lib/vmjob/cache with all in it (",
                 b"-kvm:x:105:ann,alice,condor", b"--- /etc/condor/config.d/50-by-hand.conf",
                 b"remove folder /var/tmp/vmjob-run-abcd with all in it"):
        assert line in dry.out, dry.out
    done = cli("site", "remove", "--root", root)
    assert done.status == 0 and done.out == dry.out, done.err
    assert "the list https://images.example.org/images.list was followed here" in done.err
    assert "condor_reconfig" in done.err
    assert content(root) == before
    again = cli("site", "remove", "--root", root, "--json")
    assert again.status == 0 and again.json == {"changed": False, "diff": "", "notes": [], "kept": []}
    assert cli("site", "remove", "--root", root).out == b"nothing of vmjob is left\n"


def test_after_0_1_0_and_today_one_after_the_other(cli: Cli, root: Path) -> None:
    """An upgrade between: the record is the old one's, the files are the new one's; and the other way round."""
    before = content(root)
    for first, second in ((old, cli), (cli, old)):
        for do in (first, second):
            do("site", "enable-kvm", "--users", "alice", "--root", root)
            do("site", "hook", root / "etc/vmjob")
        again = cli("site", "enable-kvm", "--users", "alice", "--root", root)
        assert again.status == 0 and again.out == b"nothing to change\n", again.err
        assert cli("site", "remove", "--root", root).status == 0
        assert content(root) == before


def test_what_an_admin_wrote_stays_and_is_named(cli: Cli, root: Path) -> None:
    assert cli("site", "enable-kvm", "--users", "alice", "--root", root).status == 0
    assert cli("site", "hook", root / "etc/vmjob").status == 0
    hers = {"etc/vmjob/policy.yaml": "rules: []\n", "etc/vmjob/site.yaml": "name: X\n",
            "etc/vmjob/deny.d/scan.txt": "sha256:0\n", "etc/vmjob/vmjob-gip.conf": "PUBLISH=/opt/x\n",
            "etc/cron.d/vmjob-publish": "* * * * * root vmjob-publish json\n",
            "etc/condor/config.d/99-vmjob-node.conf": None, "etc/vmjob/vmjob-startd.sh": None,
            f"{STATE}/store/images/x": "an image", f"{STATE}/notes.txt": "x", "var/tmp/vmjob-99999/x": "not 99999's"}
    for name, text in hers.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or path.read_text() + "# changed\n")
    stays = {name: (root / name).read_bytes() for name in hers}
    done = cli("site", "remove", "--root", root, "--json")
    assert done.status == 0, done.err
    assert {name: (root / name).read_bytes() for name in hers} == stays
    told = "\n".join(done.json["kept"] + done.json["notes"])
    for name in ("policy.yaml", "site.yaml", "deny.d", "vmjob-gip.conf", "cron.d/vmjob-publish", "99-vmjob-node.conf",
                 "vmjob-startd.sh", "store: images of the site", "notes.txt"):
        assert name in told, told
    assert not (root / "etc/vmjob/vmjob.pyz").exists() and not (root / STATE / "runs").exists()
    more = cli("site", "remove", "--store", "--root", root)
    assert more.status == 0 and not (root / STATE / "store").exists() and (root / STATE / "notes.txt").exists()


def test_an_example_that_says_nothing_yet_goes(cli: Cli, root: Path) -> None:
    before = content(root)
    (root / "etc/vmjob").mkdir()
    shutil.copy(ROOT / "ceMon-publisher/gip/vmjob-gip.conf", root / "etc/vmjob")
    assert cli("site", "remove", "--root", root).status == 0
    assert content(root) == before


def test_usage_records_go_only_when_asked_for(cli: Cli, root: Path) -> None:
    for name in ("open", "outgoing", "ledger"):
        (root / "srv/acct" / name).mkdir(parents=True)
        (root / "srv/acct" / name).chmod(0o3777)
    (root / "srv/acct/outgoing/1.json").write_text("{}")
    (root / "srv/acct/ledger/1.json").write_text("{}")
    (root / "etc/vmjob").mkdir()
    (root / "etc/vmjob/site.yaml").write_text("name: X\naccounting: {format: json, spool: /srv/acct}\n")
    before = content(root)
    done = cli("site", "remove", "--root", root)
    assert done.status == 0 and content(root) == before and done.out == b"nothing of vmjob is left\n"
    assert "/srv/acct: usage records of the site (0 files in open, 1 file in outgoing, 1 file in ledger)" in done.err
    assert cli("site", "remove", "--root", root, "--spool").status == 0
    assert not (root / "srv/acct").exists() and (root / "etc/vmjob/site.yaml").exists()


def test_what_packages_installed_is_the_package_managers(cli: Cli, root: Path) -> None:
    old("site", "hook", root / "etc/vmjob")
    (root / STATE / "cache").mkdir(parents=True)
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info / "vmjob.list").write_text("/.\n/etc\n/etc/vmjob\n/etc/vmjob/vmjob.pyz\n/var/lib/vmjob\n")
    (info / "vmjob-site.list").write_text("/etc/vmjob/vmjob-startd.sh\n")
    (info / "vmjobs-of-others.list").write_text("/etc/vmjob/vmjob-wrapper.sh\n")
    done = cli("site", "remove", "--root", root)
    assert done.status == 0 and "apt-get purge vmjob vmjob-site\n" in done.err
    assert sorted(path.name for path in (root / "etc/vmjob").iterdir()) == ["vmjob-startd.sh", "vmjob.pyz"]
    assert not list((root / STATE).iterdir())


# ---------------------------------------------------------------- runs that live


def test_while_a_guest_runs_nothing_is_removed(cli: Cli, root: Path) -> None:
    for name in ("runs", "cache"):
        (root / STATE / name).mkdir(parents=True)
        (root / STATE / name).chmod(0o1777)
    env = {"VMJOB_RUNS": str(root / STATE / "runs"),
           "VMJOB_CACHE": str(root / STATE / f"cache/uid-{os.getuid()}")}
    run = cli.start("run", "--image", "micro", "--", "sh", "-c", "echo up; sleep 600", env=env)
    try:
        assert run.stdout is not None and run.stdout.readline() == b"up\n"
        there = content(root)
        dry = cli("site", "remove", "--root", root, "--dry-run")
        assert dry.status == 0 and "it would be refused now: virtual machines run on" in dry.err
        refused = cli("site", "remove", "--root", root)
        assert refused.status == 208 and f"/var/lib/vmjob/runs/run-{os.getuid()}-" in refused.err, refused.err
        assert content(root).keys() == there.keys()
        assert (root / STATE / "runs").stat().st_mode & 0o7777 == 0o1777  # open to other jobs, as before
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert cli("site", "remove", "--root", root).status == 0
    assert not (root / STATE).exists()


def test_locks_of_a_run_count_wherever_they_are(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of its image in the cache, its folder, and its usage record, for runs that could not register."""
    uid = os.getuid()
    used(root)
    (root / "var/spool/vmjob/open" / UUID).mkdir(parents=True)
    state = root / "var/spool/vmjob/open" / UUID / "state"
    state.touch()
    (root / "var/spool/vmjob/outgoing").mkdir()
    uses = Uses(root / STATE / f"cache/uid-{uid}/uses")
    with contextlib.ExitStack() as held:
        lock = uses.take("a" * 64)
        assert lock is not None
        assert removed(root) == 208 and f"cache/uid-{uid}, whose images are in use" in capfd.readouterr().err
        uses.leave(lock)
        for path, more in ((root / "var/tmp/vmjob-run-abcd/.lock", ()), (state, ("--spool",))):
            file = held.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
            assert removed(root, *more) == 208 and str(path.parent.name) in capfd.readouterr().err
            fcntl.flock(file, fcntl.LOCK_UN)
        # a stranger's lock says nothing of this user's runs
        fcntl.flock(held.enter_context((root / STATE / "lists/0a.json").open()), fcntl.LOCK_EX)
        assert removed(root, "--spool") == 0 and not (root / "var/spool/vmjob").exists()


# ---------------------------------------------------------------- killed


def killed_at(number: int, root: Path) -> bool:
    """Run it in a process that is killed with SIGKILL instead of its call of this number that changes something; was
    it?"""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    calls = itertools.count()

    def instead(call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **words: object) -> object:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **words)
        return called

    for name in ("unlink", "rmdir", "rename", "mkdir", "fchmod", "fsync"):
        setattr(os, name, instead(getattr(os, name)))
    os._exit(removed(root))


def test_killed_at_every_call_to_the_file_system(root: Path) -> None:
    before, spare = content(root), root.parent / "spare"
    old("site", "enable-kvm", "--users", "alice", "--root", root)
    old("site", "hook", root / "etc/vmjob")
    used(root)
    shutil.copytree(root, spare, symlinks=True)
    for number in range(200):
        shutil.rmtree(root)
        shutil.copytree(spare, root, symlinks=True)
        killed = killed_at(number, root)
        assert removed(root) == 0
        assert {name: one[2] for name, one in content(root).items()} == \
            {name: one[2] for name, one in before.items()}, number
        if not killed:
            break
    assert number > 25 and not killed


# ---------------------------------------------------------------- hostile users


def outside_of(root: Path) -> Path:
    """What nobody must touch."""
    place = root.parent / "outside"
    (place / "deep").mkdir(parents=True)
    (place / "deep/file").write_text("keep")
    (place / "deep").chmod(0o755)
    return place


def test_links_and_odd_files_lead_nowhere(cli: Cli, root: Path) -> None:
    outside = outside_of(root)
    before = content(outside)
    runs, cache = root / STATE / "runs", root / STATE / "cache"
    runs.mkdir(parents=True)
    (cache / "uid-1/uses").mkdir(parents=True)
    uid = os.getuid()
    (runs / f"run-{uid}-0123456789abcdef").symlink_to(outside / "deep/file")
    (runs / "up").symlink_to("../../../../../outside")
    (cache / f"uid-{uid}").symlink_to(outside)
    (cache / "uid-1/uses/x").symlink_to(outside / "deep/file")
    (cache / "uid-1/blobs").symlink_to(outside / "deep")
    os.link(outside / "deep/file", cache / "uid-1/hard")
    os.mkfifo(runs / f"run-{uid}-fedcba9876543210")
    os.mkfifo(cache / "uid-1/uses/pipe")
    (cache / "uid-1/\n\033[2Jremove file").write_text("")
    (root / STATE / "rte").symlink_to(outside)
    (root / f"var/tmp/vmjob-{uid}").symlink_to(outside)
    (root / "var/tmp/vmjob-run-x").symlink_to(outside)
    (root / "var/tmp/vmjob-run-\033[2J").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(runs)
        try:
            listener.bind("sock")
        finally:
            os.chdir(here)
    done = cli("site", "remove", "--root", root, timeout=60)
    assert done.status == 0, done.err
    assert "remove link /var/lib/vmjob/rte" in done.out.decode() and b"\033" not in done.out
    assert content(outside) == before and not (root / STATE).exists()
    assert sorted(path.name for path in (root / "var/tmp").iterdir()) == [f"vmjob-{uid}", "vmjob-run-\033[2J",
                                                                              "vmjob-run-x"]


def test_folders_nested_deeper_than_any_path(cli: Cli, root: Path) -> None:
    top = root / STATE / "cache"
    top.mkdir(parents=True)
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 200, dir_fd=here)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    done = cli("site", "remove", "--root", root)
    assert done.status == 0 and b"at least" in done.out, done.err
    assert not (root / STATE).exists()


def test_names_that_change_while_it_is_removed(root: Path) -> None:
    """A user swaps folders for links all the time: what the links lead to is never touched."""
    outside = outside_of(root)
    before, over = content(outside), threading.Event()
    cache = root / STATE / "cache"
    cache.mkdir(parents=True)

    def swap(number: int) -> None:
        name, spare = cache / f"x{number}", cache / f"y{number}"
        while not over.is_set():
            try:
                (name / "deep").mkdir(parents=True)
                (name / "deep/file").write_text("")
                name.rename(spare)
                name.symlink_to(outside)
                spare.rename(cache / f"z{number}")
                name.unlink()
            except OSError:
                pass

    threads = [threading.Thread(target=swap, args=(number,)) for number in range(3)]
    for one in threads:
        one.start()
    parent = os.open(root / STATE, os.O_RDONLY)
    top = os.open(cache, wipe.FOLDER)
    try:
        for _ in range(300):
            wipe._pass(top, wipe.mount_of(top))
    finally:
        over.set()
        for one in threads:
            one.join()
    assert wipe.wipe(parent, "cache", enter_mount=False) and not cache.exists()
    os.close(top)
    os.close(parent)
    assert content(outside) == before


@pytest.mark.parametrize("where", ["var", "var/lib", "etc", "etc/vmjob", STATE, f"{STATE}/cache"])
def test_a_link_does_not_lead_out_of_the_tree(cli: Cli, root: Path, where: str) -> None:
    old("site", "hook", root / "etc/vmjob")
    used(root)
    outside = root.parent / "outside"
    (root / where).rename(outside)
    (root / where).symlink_to(outside)
    before = content(outside)
    done = cli("site", "remove", "--root", root)
    assert content(outside) == before
    assert done.status == (0 if where == f"{STATE}/cache" else 208), done.err


def test_an_ordinary_user(cli: Cli, root: Path) -> None:
    """In a tree of hers she may; of one that is not she sees what would go."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    place = Path("/var/tmp") / f"vmjob-remove-{os.getpid()}"
    shutil.copytree(root, place)
    try:
        old("site", "enable-kvm", "--users", "alice", "--root", place)
        for name in ("cron.d", "condor/config.d"):
            (place / "etc" / name).chmod(0o700)
        seen = ordinary("site", "remove", "--root", place, "--dry-run", cwd=place)
        if "No module" in seen.stderr or "Permission denied: '" in seen.stderr:
            pytest.skip("an ordinary user cannot read this checkout, or its Python")
        assert seen.returncode == 0 and "remove folder /var/lib/vmjob/cache" in seen.stdout, seen.stderr
        for name in ("enabled.json", "cron.d", "condor/config.d"):
            assert f"{name} cannot be read by you" in seen.stderr
        refused = ordinary("site", "remove", "--root", place, cwd=place)
        assert refused.returncode == 208 and "run it as root" in refused.stderr and "Traceback" not in refused.stderr
        for path in [place, *place.rglob("*")]:
            os.chown(path, 65534, 65534)
        done = ordinary("site", "remove", "--root", place, cwd=place)
        assert done.returncode == 0 and not (place / STATE).exists(), done.stderr
    finally:
        shutil.rmtree(place)


# ---------------------------------------------------------------- for real


# as a node is: /etc, /var and processes of its own, and nothing of the machine's changed
NODE = r"""
set -eu
for folder in etc var/lib var/tmp srv; do
    mkdir -p "$1/$folder" "/$folder"; cp -a "$2/$folder/." "$1/$folder" 2>/dev/null || :
    mount --bind "$1/$folder" "/$folder"
done
old=$3
shift 3
all() { find /etc /var/lib /var/tmp /srv ! -name .pwd.lock -printf '%p %m %u %l\n' | sort; cat /etc/group /etc/gshadow
}
before=$(all)
new() { "$@" || { echo "status $?: $*"; exit 1; }; }
# as the docs had it for nodes without enable-kvm
install -d -m 1777 /var/lib/vmjob/cache; install -d -m 1777 /var/lib/vmjob/runs
"$PYTHON" "$old" site hook /etc/vmjob
cp /etc/vmjob/99-vmjob-node.conf /etc/condor/config.d/
new "$@" site remove
[ "$(all)" = "$before" ] || { all; exit 1; }
# the hook elsewhere, recorded
new "$@" site enable-kvm --users alice
new "$@" site hook /srv/hook
new "$@" site hook /srv/hook
grep -q /srv/hook /var/lib/vmjob/hooks.json
new "$@" site remove --dry-run | grep /srv/hook/vmjob.pyz
# by the application that goes itself
"$@" site hook /etc/vmjob
new "$PYTHON" /etc/vmjob/vmjob.pyz site remove
[ "$(all)" = "$before" ] || { all; exit 1; }
new "$@" site enable-kvm --users alice
new "$@" site hook /srv/hook
# a file system of the cache's own, and one that has no place there
mount -t tmpfs tmpfs /var/lib/vmjob/cache
mkdir -p /var/lib/vmjob/cache/uid-1/bound /var/lib/vmjob/cache/uid-1/more
echo keep >/srv/hook/keep
mount --bind /srv/hook /var/lib/vmjob/cache/uid-1/bound
if "$@" site remove 2>/tmp/said; then exit 1; fi
grep '/var/lib/vmjob/cache/uid-1/bound: a file system is mounted there' /tmp/said
"$PYTHON" -c 'import os
from vmjob.node import wipe
print("wiped", wipe.wipe(os.open("/var/lib/vmjob", os.O_RDONLY), "cache", True))'
cat /srv/hook/keep; ls /var/lib/vmjob/cache/uid-1
rm /srv/hook/keep
umount /var/lib/vmjob/cache/uid-1/bound
new "$@" site remove
umount /var/lib/vmjob/cache
new "$@" site remove
[ "$(all)" = "$before" ] || { all; exit 1; }
echo as before
"""


def test_for_real(root: Path, tmp_path: Path, cli: Cli) -> None:
    """As root, on a node of its own, with mounts."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not shutil.which("unshare"):
        pytest.skip("needs unshare: apt-get install util-linux")
    shutil.copy("/etc/nsswitch.conf", root / "etc")
    for name in ("alternatives", "ld.so.cache"):  # programs of the machine want them
        source = Path("/etc") / name
        if source.is_dir():
            shutil.copytree(source, root / "etc" / name, symlinks=True)
        elif source.exists():
            shutil.copy(source, root / "etc")
    words = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--propagation=private"]
    done = subprocess.run([*words, "sh", "-c", NODE, "sh", tmp_path / "own", root, OLD, sys.executable, "-m", "vmjob"],
                          env=cli.environment({"HOME": str(tmp_path), "PYTHON": sys.executable}), capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    assert "wiped False" in lines and lines[lines.index("wiped False") + 1:][:2] == ["keep", "bound"], done.stdout
    assert lines[-1] == "as before"
    assert "/srv/hook/vmjob.pyz" in done.stdout
