"""``vmjob site enable-kvm`` and ``disable``: in trees as root and as an ordinary user, killed at every step, against
whoever else changes accounts, and for real in a mount namespace, where the kernel says who may open /dev/kvm."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli, Done
from vmjob.node.enable import apply, plan
from vmjob.node.tree import Tree

PASSWD = """root:x:0:0::/root:/bin/bash
condor:x:104:104::/var/lib/condor:/usr/sbin/nologin
alice:x:21001:21001::/home/alice:/bin/bash
bob:x:21002:21002::/home/bob:/bin/bash
atlas001:x:22001:22001::/home/atlas001:/bin/bash
"""
Run = Callable[..., Done]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A node's tree, with an HTCondor."""
    root = tmp_path / "root"
    for folder in ("etc/condor/config.d", "etc/udev/rules.d", "var/lib"):
        (root / folder).mkdir(parents=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_bytes(b"root:x:0:\nkvm:x:105:ann\nodd:\xff\xfe:7:\n")
    (root / "etc/gshadow").write_text("root:*::\nkvm:!::ann\n")
    (root / "etc/gshadow").chmod(0o640)
    return root


@pytest.fixture
def vmjob(cli: Cli) -> Run:
    return cli


def content(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is in a tree: mode, owner and bytes. The file of the lock is the system's own."""
    return {str(path.relative_to(root)): (path.lstat().st_mode, path.lstat().st_uid,
                                          path.read_bytes() if path.is_file() else b"")
            for path in root.rglob("*") if path.name != ".pwd.lock"}


def test_a_node_with_the_packages_runs_their_hook(vmjob: Run, tree: Path) -> None:
    (tree / "usr/share/vmjob").mkdir(parents=True)
    (tree / "usr/share/vmjob/vmjob-startd.sh").touch()
    done = vmjob("site", "enable-kvm", "--users", "alice", "--root", tree)
    assert "for HTCondor: condor_reconfig" in done.err, done.err
    text = (tree / "etc/condor/config.d/99-vmjob-node.conf").read_text()
    assert "STARTD_CRON_VMJOB_EXECUTABLE = /usr/share/vmjob/vmjob-startd.sh" in text
    assert vmjob("site", "disable", "--root", tree).status == 0


def test_in_a_tree(vmjob: Run, tree: Path) -> None:
    before = content(tree)
    words = ("site", "enable-kvm", "--users", "alice", "--root", tree)
    dry = vmjob(*words, "--dry-run")
    assert dry.status == 0 and "+kvm:x:105:ann,alice,condor" in dry.out.decode()
    assert content(tree) == before and not (tree / "etc/.pwd.lock").exists()
    done = vmjob(*words)
    assert done.status == 0, done.err
    assert done.out == dry.out  # the diff is what was done
    assert (tree / "etc/group").read_bytes() == b"root:x:0:\nkvm:x:105:ann,alice,condor\nodd:\xff\xfe:7:\n"
    assert stat.S_IMODE((tree / "etc/gshadow").stat().st_mode) == 0o640
    assert stat.S_IMODE((tree / "var/lib/vmjob/runs").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tree / "var/lib/vmjob/enabled.json").stat().st_mode) == 0o600
    assert "STARTD_CRON_VMJOB_EXECUTABLE" in (tree / "etc/condor/config.d/99-vmjob-node.conf").read_text()
    after = content(tree)
    twice = vmjob(*words)
    assert twice.out == b"nothing to change\n" and content(tree) == after
    undone = vmjob("site", "disable", "--root", tree)
    assert undone.status == 0, undone.err
    assert content(tree) == before
    nothing = vmjob("site", "disable", "--root", tree, "--json")
    assert nothing.status == 208 and nothing.json["failure"]["kind"] == "NodeUnchanged"


def test_in_a_tree_with_nothing_but_accounts(vmjob: Run, tree: Path) -> None:
    shutil.rmtree(tree / "var")
    before = content(tree)
    words = ("site", "enable-kvm", "--users", "alice", "--root", tree)
    dry = vmjob(*words, "--dry-run")
    assert b"new folder /var/lib (mode 0755)\n" in dry.out and "nothing was changed (--dry-run)" in dry.err
    done = vmjob(*words)
    assert done.status == 0 and done.out == dry.out and done.err.endswith("vmjob: done\n"), done.err
    assert vmjob("site", "disable", "--root", tree).status == 0 and content(tree) == before


def test_from_maps(vmjob: Run, tree: Path) -> None:
    maps = tree.parent / "mapfiles.d"
    maps.mkdir()
    (maps / "10-vo.conf").write_text("SCITOKENS /^https:..x.org,/ .atlas\nGSI (.*) GSS_ASSIST_GRIDMAP\n")
    (maps / "20-users.conf").write_text('"/DC=org/CN=Bob" bob\n')
    done = vmjob("site", "enable-kvm", "--map", maps, "--group", "vmjob", "--root", tree, "--json")
    assert done.status == 0 and done.json["changed"], done.err
    assert b"\nvmjob:x:999:atlas001,bob,condor\n" in (tree / "etc/group").read_bytes()
    assert "10-vo.conf:2: GSS_ASSIST_GRIDMAP" in done.err
    assert "GROUP=\"vmjob\"" in (tree / "etc/udev/rules.d/90-vmjob-kvm.rules").read_text()


@pytest.mark.parametrize(("words", "told"), [
    (("--users", "alice,mallory"), "no account mallory"), ((), "whom to let in"),
    (("--users", "a:b"), "no account a:b"), (("--map", "/nowhere"), "/nowhere"),
    (("--map", "/etc/passwd"), "nobody to let in"), (("--map", "/dev/zero"), "16 MiB"),
    (("--users", "alice", "--root", "/nowhere"), "no such folder"), (("--users", "alice", "--group", "k:x"), "k:x")])
def test_a_mistake_changes_nothing(vmjob: Run, tree: Path, words: tuple[str, ...], told: str) -> None:
    before = content(tree)
    failed = vmjob("site", "enable-kvm", "--root", tree, *words)
    assert failed.status == 208 and told in failed.err and "→" in failed.err and "Traceback" not in failed.err
    assert content(tree) == before


def steps(tree: Path, undo: bool = False) -> list[Callable[[], object]]:
    """What enable (or disable) would do in this tree, step by step."""
    state = apply.look(Tree(tree), "vmjob", apply.startd_text(Tree(tree)), [])
    wanted = plan.disable(state) if undo else plan.enable(state, "vmjob", ["alice", "condor"])
    return list(apply.actions(Tree(tree), wanted))


def walk(todo: list[Callable[[], object]]) -> None:
    for step in todo:
        step()


def afresh(tree: Path, spare: Path) -> None:
    shutil.rmtree(tree)
    shutil.copytree(spare, tree)


def test_killed_at_every_step(tree: Path) -> None:
    """A second run finishes what the first began, and disable undoes it, wherever the first was killed."""
    before, spare = content(tree), tree.parent / "spare"
    shutil.copytree(tree, spare)
    count = len(steps(tree))
    assert count > 6
    walk(steps(tree))
    after, undone = content(tree), 0
    for killed in range(count):
        afresh(tree, spare)
        walk(steps(tree)[:killed])
        # a file and a folder that were half written
        (tree / "etc/.vmjob-new.group").write_text("root:x:0:\nkv")
        (tree / "var/lib/.vmjob-new.vmjob").mkdir()
        if (tree / "var/lib/vmjob/enabled.json").exists():
            walk(steps(tree, undo=True))
            assert content(tree) == before, killed
            undone += 1
        afresh(tree, spare)
        walk(steps(tree)[:killed])
        (tree / "etc/.vmjob-new.group").write_text("root:x:0:\nkv")
        walk(steps(tree))
        assert content(tree) == after, killed
    assert undone >= 6


def test_disable_killed_at_every_step(tree: Path) -> None:
    before, spare = content(tree), tree.parent / "spare"
    walk(steps(tree))
    shutil.copytree(tree, spare)
    count = len(steps(tree, undo=True))
    for killed in range(count):
        afresh(tree, spare)
        os.chown(tree / "var/lib/vmjob/runs", os.geteuid(), -1)
        walk(steps(tree, undo=True)[:killed])
        if (tree / "var/lib/vmjob/enabled.json").exists():
            walk(steps(tree, undo=True))
            assert content(tree) == before, killed
        else:  # it was the last but one
            assert set(content(tree)) - set(before) <= {"var/lib/vmjob"}
            (tree / "var/lib/vmjob").rmdir()
            assert content(tree) == before


def test_who_changes_accounts_meanwhile_is_waited_for(vmjob: Run, tree: Path, cli: Cli) -> None:
    """The lock is that of lckpwdf: a record lock on /etc/.pwd.lock."""
    with (tree / "etc/.pwd.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        waiting = cli.start("site", "enable-kvm", "--users", "alice", "--root", tree)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2)
        assert b"alice" not in (tree / "etc/group").read_bytes()
        # somebody else's change is not lost, nor is one made that was not shown
        (tree / "etc/group").write_text("kvm:x:105:bob\n")
    out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 208 and b"meanwhile" in err, out
    assert (tree / "etc/group").read_text() == "kvm:x:105:bob\n"


@pytest.mark.parametrize("where", ["etc/udev/rules.d", "etc/group", "var/lib/vmjob", "etc", "etc/condor/config.d"])
def test_a_link_does_not_lead_out_of_the_tree(vmjob: Run, tree: Path, where: str) -> None:
    outside = tree.parent / "outside"
    (tree / where).parent.mkdir(exist_ok=True)
    if (tree / where).exists():
        (tree / where).rename(outside)
    else:
        outside.mkdir()
    (tree / where).symlink_to(outside)
    before = content(outside) if outside.is_dir() else outside.read_bytes()
    failed = vmjob("site", "enable-kvm", "--users", "alice", "--root", tree)
    assert failed.status == 208 and "symbolic link" in failed.err, failed.err
    assert (content(outside) if outside.is_dir() else outside.read_bytes()) == before


def ordinary(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """vmjob as nobody."""
    return subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "vmjob",
                           *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/nowhere",
                               "PYTHONDONTWRITEBYTECODE": "1"})


@pytest.fixture
def nobody(tmp_path: Path) -> Path:
    """A folder in which an ordinary user can run this vmjob."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    folder = Path("/var/tmp") / f"vmjob-{tmp_path.name}-{os.getpid()}"
    done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c",
                           f"import sys; sys.path.insert(0, {str(ROOT)!r}); import vmjob"], capture_output=True)
    if done.returncode:
        pytest.skip("an ordinary user cannot read this checkout, or its Python")
    return folder


def test_an_ordinary_user(nobody: Path, tree: Path) -> None:
    """In a tree of hers she may; on the node she sees the diff, and that it is root's to make."""
    shutil.copytree(tree, nobody)
    try:
        for path in [nobody, *nobody.rglob("*")]:
            os.chown(path, 65534, 65534)
        done = ordinary("site", "enable-kvm", "--users", "alice", "--root", nobody, cwd=nobody)
        assert done.returncode == 0, done.stderr
        assert "alice" in (nobody / "etc/group").read_text(errors="replace")
        refused = ordinary("site", "enable-kvm", "--users", "nobody", cwd=nobody)
        assert refused.returncode == 208 and "only root" in refused.stderr and "Traceback" not in refused.stderr
        assert "90-vmjob-kvm.rules" in refused.stdout
        for path in (nobody / "etc/gshadow", nobody / "var/lib/vmjob/enabled.json"):
            os.chown(path, 0, 0)
            path.chmod(0o600)
        undone = ordinary("site", "disable", "--root", nobody, cwd=nobody)
        assert undone.returncode == 208 and "Traceback" not in undone.stderr
    finally:
        shutil.rmtree(nobody)


# as a node is: /etc, /var and /dev of its own, and nothing of the machine's changed
NODE = r"""
set -eu
for folder in etc var/lib; do
    mkdir -p "$1/$folder"; cp -a "$2/$folder/." "$1/$folder"; mount --bind "$1/$folder" "/$folder"
done
mount -t tmpfs tmpfs /mnt; mknod -m 600 /mnt/kvm c 10 232; mount --bind /mnt/kvm /dev/kvm
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
may() {
    if setpriv --reuid="$1" --regid="$1" --init-groups sh -c ': <>/dev/kvm' 2>/dev/null; then echo "$1 may"
    else echo "$1 may not"; fi
}
may alice; may bob
shift 2
"$@" site enable-kvm --users alice >/dev/null
chgrp kvm /dev/kvm; chmod 0660 /dev/kvm  # as udev does it
may alice; may bob
"$@" site check --no-pool || true
groupadd -r between; usermod -aG kvm bob
"$@" site disable >/dev/null
may alice; may bob
getent group kvm between
test ! -e /var/lib/vmjob/enabled.json
"""


def test_the_kernel_agrees(tree: Path, tmp_path: Path, cli: Cli) -> None:
    """For real, as root, with the system's own tools before and after."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not Path("/dev/kvm").exists():
        pytest.skip("needs /dev/kvm")
    for tool in ("unshare", "setpriv", "groupadd", "usermod"):
        if not shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin"):
            pytest.skip(f"needs {tool}: apt-get install util-linux passwd")
    (tree / "etc/gshadow").write_text("root:*::\nkvm:!::\n")
    (tree / "etc/group").write_text("root:x:0:\nkvm:x:105:\n" + "".join(
        f"{line.split(':')[0]}:x:{line.split(':')[3]}:\n" for line in PASSWD.splitlines()[1:]))
    (tree / "etc/shadow").write_text("".join(f"{line.split(':')[0]}:*:1:0:9:7:::\n" for line in PASSWD.splitlines()))
    shutil.copy("/etc/nsswitch.conf", tree / "etc")
    shutil.copy("/etc/login.defs", tree / "etc")
    for name in ("alternatives", "ld.so.cache", "pam.d", "security"):  # programs of the machine want them
        source = Path("/etc") / name
        if source.is_dir():
            shutil.copytree(source, tree / "etc" / name, symlinks=True)
        elif source.exists():
            shutil.copy(source, tree / "etc")
    own = tmp_path / "own"
    done = subprocess.run(["unshare", "--mount", "--propagation=private", "sh", "-c", NODE, "sh", own, tree,
                           sys.executable, "-m", "vmjob"], capture_output=True, text=True, timeout=60,
                          env=cli.environment({"HOME": str(tmp_path)}))
    assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    assert lines[:4] == ["alice may not", "bob may not", "alice may", "bob may not"], lines
    assert any(line.startswith("ok       kvm group    kvm: alice, condor") for line in lines), done.stdout
    assert any(line.startswith("ok       udev rule    /etc/udev/rules.d/90-vmjob-kvm.rules: group kvm, mode 0660")
               for line in lines), done.stdout
    # bob was let in by somebody else meanwhile, and stays
    assert lines[-4:-2] == ["alice may not", "bob may"]
    assert lines[-2] == "kvm:x:105:bob" and lines[-1].startswith("between:x:")
