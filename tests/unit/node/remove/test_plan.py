"""What goes from a node, worked out on what was found alone; which files of a hook are ours; folders measured and
emptied."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from tests.conftest import ROOT
from vmjob.core.site_errors import NodeUnchanged
from vmjob.core.units import format_size
from vmjob.job.pyz import wrapper_text
from vmjob.node import snippets, wipe
from vmjob.node.enable.plan import Plan
from vmjob.node.record import RECORD
from vmjob.node.remove import hooks, plan
from vmjob.node.remove.hooks import Hook
from vmjob.node.remove.owners import Owned
from vmjob.node.remove.plan import FILE, FOLDER, LINK, TREE, Found, HookFolder, Item, remove
from vmjob.node.wipe import Size

pytestmark = pytest.mark.unit
OLD = (ROOT / "tests/data/vmjob-0.1.0.pyz").read_bytes()
SCRIPTS = {name: wrapper_text(name) for name in hooks.NAMES if name != hooks.PYZ}
KNOWN = hooks.known((), (), SCRIPTS)
STATE = snippets.STATE


def paths(items: tuple[Item, ...]) -> list[str]:
    return [str(one.path) for one in items]


# ---------------------------------------------------------------- what is ours


def test_what_0_1_0_wrote_is_known_without_a_record() -> None:
    carried = hooks.known((), (OLD,), {})
    for name, sums in hooks.RELEASED.items():
        assert carried[name] == sums  # the application says the same as the list
        with zipfile.ZipFile(io.BytesIO(OLD)) as archive:
            text = archive.read(f"vmjob/wrappers/{name}")
        assert hooks.ours(name, text, hooks.known((), (), {})[name])
        assert not hooks.ours(name, text + b"#\n", carried[name])
    assert hooks.ours(hooks.PYZ, OLD, ())


def test_every_example_that_is_shipped_is_known() -> None:
    for name, sums in plan.EXAMPLES.items():
        assert hooks.digest(name, (ROOT / "ceMon-publisher/gip" / name).read_bytes()) in sums


def test_the_configuration_is_ours_wherever_its_hook_lies() -> None:
    text = SCRIPTS[hooks.SNIPPET]
    for place in ("/srv/a-b", "/usr/share/vmjob"):  # as site hook writes it, and as a package has it
        moved = text.replace(b"/etc/vmjob/", f"{place}/".encode())
        assert moved != text and hooks.ours(hooks.SNIPPET, moved, KNOWN[hooks.SNIPPET])
        assert hooks.script_folder(moved.decode()) == place
    for other in (text.replace(b"--users 2", b"--users 1"), text.replace(b"60s", b"61s"), b"", b"\xff\x00"):
        assert not hooks.ours(hooks.SNIPPET, other, KNOWN[hooks.SNIPPET])
    assert hooks.script_folder("STARTD_CRON_X_EXECUTABLE = vmjob-startd.sh\n") == ""


def archive(**names: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in names.items():
            file.writestr(name.replace("__", "/"), data)
    return made.getvalue()


@pytest.mark.parametrize("data", [
    b"", b"PK\3\4", b"#!/bin/sh\n", OLD[:len(OLD) // 2], archive(x=b"1"), archive(vmjob__cli__main=b"1"),
    OLD[:-200] + bytes(200), OLD.replace(b"vmjob/wrappers/vmjob-startd.sh", b"vmjob/wrappers/vmjob-startd.xx")],
    ids=range(8))
def test_an_application_of_others_is_not_ours(data: bytes) -> None:
    assert not hooks.ours(hooks.PYZ, data, ())


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked() -> None:
    big = archive(**{"vmjob/cli/main.py": b"", **{f"vmjob/wrappers/{name}": bytes(2**24) for name in SCRIPTS}})
    assert len(big) < 2**18 and not hooks.ours(hooks.PYZ, big, ())


def test_a_record_says_where_hooks_are_and_keeps_all_that_was_written() -> None:
    first = hooks.added((), Hook("/srv/hook", True, (("a", ("1",)),)))
    both = hooks.added(first, Hook("/srv/hook", False, (("a", ("2",)), ("b", ("3",)))))
    assert both == (Hook("/srv/hook", True, (("a", ("1", "2")), ("b", ("3",)))),)
    assert hooks.added(both, both[0]) == both == hooks.parse(hooks.dump(both))
    more = hooks.added(both, Hook("/etc/vmjob"))
    assert [one.folder for one in more] == ["/srv/hook", "/etc/vmjob"]
    assert "3" in hooks.known(more, (), {})["b"]
    for text in ("", "[]", '{"format": 2, "hooks": []}', '{"format": 1, "hooks": [7]}'):
        with pytest.raises(NodeUnchanged, match=r"hooks\.json"):
            hooks.parse(text)


# ---------------------------------------------------------------- the plan


def found(**more: object) -> Found:
    items = tuple(Item(STATE / name, TREE, Size(2**20, 3)) for name in ("cache", "lists", "rte", "runs"))
    folder = HookFolder(snippets.ETC, {**SCRIPTS, hooks.PYZ: OLD})
    one = Found(Plan(folders=((STATE / "runs", 0o1777, None), (STATE, 0o755, None),
                              (PurePosixPath("/var/lib"), 0o755, None),
                              (snippets.RULE_FILE.parent, 0o755, None))),
                state=(*items, Item(RECORD, FILE), Item(hooks.RECORD, FILE)), hooks=(folder,), known=KNOWN)
    return replace(one, **more)  # type: ignore[arg-type]


def test_all_goes_in_an_order_in_which_records_go_last() -> None:
    gone = remove(found())
    sizes = {name: format_size(len(data)) for name, data in SCRIPTS.items()}
    assert gone.diff() == f"""\
remove folder /var/lib/vmjob/cache with all in it (1.0 MiB, 3 files)
remove folder /var/lib/vmjob/lists with all in it (1.0 MiB, 3 files)
remove folder /var/lib/vmjob/rte with all in it (1.0 MiB, 3 files)
remove folder /var/lib/vmjob/runs with all in it (1.0 MiB, 3 files)
remove folder /etc/udev/rules.d (if it is empty)
remove file /var/lib/vmjob/enabled.json
remove file /etc/vmjob/vmjob-wrapper.sh ({sizes[hooks.WRAPPER]})
remove file /etc/vmjob/vmjob-startd.sh ({sizes[snippets.HOOK]})
remove file /etc/vmjob/99-vmjob-node.conf ({sizes[hooks.SNIPPET]})
remove file /etc/vmjob/vmjob.pyz (1.3 MiB)
remove folder /etc/vmjob (if it is empty)
remove file /var/lib/vmjob/hooks.json (0 B)
remove folder /var/lib/vmjob (if it is empty)
remove folder /var/lib (if it is empty)
"""
    assert gone.kept == () and not gone.empty and remove(Found()).empty


def test_sizes_do_not_make_another_plan_and_paths_do() -> None:
    later = tuple(replace(one, size=Size(7, 7)) for one in found().state or ())
    assert remove(found(state=later)) == remove(found())
    assert remove(found(state=later[1:])) != remove(found())


def test_what_is_of_the_admin_or_of_packages_keeps_its_folders() -> None:
    hers = HookFolder(snippets.ETC, {"policy.yaml": None, hooks.WRAPPER: SCRIPTS[hooks.WRAPPER] + b"# hers\n",
                                     snippets.HOOK: SCRIPTS[snippets.HOOK], "deny.d": None})
    state = (Item(STATE / "hers", FILE), Item(plan.STORE, TREE, Size(2**30, 1)), Item(STATE / "rte", LINK))
    owned = Owned(frozenset({snippets.ETC / snippets.HOOK}), "apt-get purge vmjob")
    gone = remove(found(base=None, hooks=(hers,), state=state, owned=owned))
    assert paths(gone.trees) == ["/var/lib/vmjob/rte"] and gone.files == gone.last == ()
    assert gone.diff() == "remove link /var/lib/vmjob/rte\n"
    assert gone.kept == (
        "/var/lib/vmjob/hers: not of vmjob",
        "/var/lib/vmjob/store: images of the site (1.0 GiB); they go with --store",
        "/etc/vmjob/vmjob-wrapper.sh: changed by hand", "/etc/vmjob/deny.d: written by the admin",
        "/etc/vmjob/policy.yaml: written by the admin",
        "what packages installed is theirs to remove: apt-get purge vmjob")


def test_a_folder_that_was_not_made_for_the_hook_stays() -> None:
    place = PurePosixPath("/opt/site")
    for made, last in ((False, "vmjob-wrapper.sh"), (True, "site")):
        gone = remove(Found(hooks=(HookFolder(place, {hooks.WRAPPER: SCRIPTS[hooks.WRAPPER]}, made),), known=KNOWN))
        assert gone.files[-1].path.name == last
    assert remove(Found(hooks=(HookFolder(place, {"theirs": None}, False),), known=KNOWN)).kept == ()


def test_records_go_only_when_asked_for() -> None:
    one = found(base=None, hooks=(), state=None, spool=PurePosixPath("/srv/acct"),
                spooled={"open": Size(), "outgoing": Size(10, 2), "ledger": Size(10, 1)})
    assert remove(one).empty and "2 files in outgoing, 1 file in ledger" in remove(one).kept[0]
    gone = remove(one, spool=True)
    assert paths(gone.trees) == ["/srv/acct/open", "/srv/acct/outgoing", "/srv/acct/ledger"]
    assert gone.last == (Item(PurePosixPath("/srv/acct"), FOLDER),) and gone.kept == ()


def test_configuration_of_htcondor_that_was_changed_stays_and_is_named() -> None:
    mine, hers = snippets.CONDOR / "50-copy.conf", snippets.CONDOR / "60-hers.conf"
    text = SCRIPTS[hooks.SNIPPET].decode()
    gone = remove(Found(condor={mine: text, hers: text + "X = 1\n"}, known=KNOWN))
    assert [one.path for one in gone.condor] == [mine] and f"--- {mine}\n+++ /dev/null\n" in gone.diff()
    assert len(gone.kept) == 1 and gone.kept[0].startswith(f"{hers}: ")


# ---------------------------------------------------------------- folders


def test_a_folder_is_measured_and_emptied(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/b/c/file").write_bytes(bytes(8192))
    os.link(top / "a/b/c/file", top / "other")
    (top / "link").symlink_to("/etc")
    (top / "a/closed/in").mkdir(parents=True)
    (top / "a/closed").chmod(0o500)
    handle = os.open(top, wipe.FOLDER)
    size = wipe.measure(handle)
    os.close(handle)
    assert (size.files, size.more) == (3, False) and size.bytes >= 8192
    (top / "a/closed/in").chmod(0)
    parent = os.open(tmp_path, wipe.FOLDER)
    try:
        assert wipe.wipe(parent, "top", enter_mount=False) and not top.exists()
        assert wipe.wipe(parent, "top", enter_mount=False)  # twice is fine
        (tmp_path / "link").symlink_to("/etc")
        assert wipe.wipe(parent, "link", enter_mount=False) and Path("/etc/passwd").exists()
    finally:
        os.close(parent)
    assert list(tmp_path.iterdir()) == []
