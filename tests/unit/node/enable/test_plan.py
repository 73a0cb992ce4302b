"""What enable-kvm would change, worked out on text alone; maps of users; rules of udev."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Optional

import pytest

from tests.conftest import ROOT
from vmjob.core.site_errors import NodeUnchanged
from vmjob.node import snippets
from vmjob.node.enable import groupfile, plan, udev
from vmjob.node.enable.plan import GROUP, GSHADOW, Plan, State
from vmjob.node.enable.usermap import accounts
from vmjob.node.record import Record, dump, parse

pytestmark = pytest.mark.unit
GOLDEN = ROOT / "tests/golden"
KNOWN = {"root": 0, "condor": 104, "alice": 2001, "bob": 2002, "carol": 2003, "atlas001": 3000, "atlas002": 3000,
         "atlasprd001": 3001, "kvmowner": 105}
GROUP_TEXT = "root:x:0:\nkvm:x:105:carol\nstaff:$6$salt$hash:50:\n+::::\n"
SHADOW_TEXT = "root:*::\nkvm:!::carol\nstaff:$6$salt$hash::\n"
FOLDERS: dict[PurePosixPath, Optional[int]] = {path: None for path in plan.FOLDERS} | {
    path: 0o755 for path in plan.ABOVE} | {
    snippets.RULE_FILE.parent: 0o755, snippets.RULE_FILE.parents[1]: 0o755}


def state(group: str = GROUP_TEXT, shadow: Optional[str] = SHADOW_TEXT, **more: object) -> State:
    one = State({GROUP: group, GSHADOW: shadow}, FOLDERS, KNOWN)
    return replace(one, **more)  # type: ignore[arg-type]


def done(before: State, wanted: Plan) -> State:
    """What is there after the plan has come true."""
    texts, folders = dict(before.texts), dict(before.folders)
    for change in wanted.files:
        assert texts.get(change.path) == change.old
        texts[change.path] = change.new
    for path, old, new in wanted.folders:
        assert folders[path] == old
        folders[path] = new
    return replace(before, texts=texts, folders=folders, record=wanted.record)


def texts(one: State) -> dict[PurePosixPath, str]:
    return {path: text for path, text in one.texts.items() if text is not None}


# ---------------------------------------------------------------- maps


MAP = r"""# of HTCondor-CE
SCITOKENS /^https\:\/\/atlas-auth\.example\.org\/,.* with a space$/i alice
SSL "/DC=org/DC=example/CN=Bob \"B\" Example" bob@users.htcondor.org
GSI /DC=org/DC=example/CN=Carol carol
GSI (.*) GSS_ASSIST_GRIDMAP
FS "^(root|condor)$" \1@daemon.htcondor.org
SCITOKENS /^https:\/\/x.org,(.*)$/ \1
@include /etc/condor-ce/mapfiles.d/
"/atlas/Role=production/Capability=NULL" .atlasprd
"/atlas/*" .atlas, alice
"/cms" .cms
bob
nobody0
root
alice:x:0
a line of words
"""


def test_maps_name_accounts_and_lines_that_are_left_out() -> None:
    found = accounts(MAP, "map", KNOWN)
    assert found.users == ("alice", "bob", "carol", "atlasprd001", "atlas001", "atlas002")
    assert [one.split(": ", 1)[0] for one in found.odd] == [f"map:{n}" for n in (5, 6, 7, 8, 11, 13, 14, 15, 16)]
    assert "pool account cms001" in found.odd[4]
    assert "root" in found.odd[6]


@pytest.mark.parametrize("line", ["alice\x00", "alice\x1b[2J", "x" * 9000, '"' + "a," * 4000, "GSI alice",
                                  "SSL " + "\\" * 7000 + " alice", '"/CN=x" alice:bob', '"/CN=x" ,,,',
                                  "SSL /CN=x ../alice"])
def test_a_hostile_line_is_named_and_lets_nobody_in(line: str) -> None:
    found = accounts(f"bob\n{line}\ncarol\n", "map", KNOWN)
    assert set(found.users) <= {"bob", "carol"} | ({"alice"} if line.endswith(" alice") else set())
    assert found.users[:1] == ("bob",) and found.users[-1] == "carol"
    if not line.endswith(" alice"):
        assert len(found.odd) == 1 and found.odd[0].startswith("map:2: ")
        assert found.odd[0].isprintable()


# ---------------------------------------------------------------- group and gshadow


def test_a_line_changes_and_no_other_byte_does() -> None:
    text = "a:x:1:\r\n\n# odd\nkvm:x:105:\nb:x:2:z"
    line = groupfile.entry(text, "kvm")
    assert line is not None
    assert groupfile.replaced(text, "kvm", groupfile.with_members(line, ["m", "n", "m"])) == \
        text.replace("kvm:x:105:", "kvm:x:105:m,n")
    assert groupfile.replaced("a:x:1:", "b", groupfile.Entry("b", "x", "2", ())) == "a:x:1:\nb:x:2:\n"
    assert groupfile.replaced("a:x:1:\n+\n", "b", groupfile.Entry("b", "x", "2", ())) == "a:x:1:\nb:x:2:\n+\n"


@pytest.mark.parametrize("text", ["kvm:x:105:\nkvm:x:106:\n", "kvm:x:105\n", "kvm:x:105:a:b\n", "kvm:x:many:\n"])
def test_a_broken_line_is_refused(text: str) -> None:
    with pytest.raises(NodeUnchanged, match="kvm"):
        plan.enable(state(text), "kvm", ["alice"])


# ---------------------------------------------------------------- the plan


def test_the_diff() -> None:
    """Golden; without passwords of other groups."""
    wanted = plan.enable(state(condor="# the startd's\n"), "kvm", ["alice", "carol", "condor", "kvmowner"])
    assert wanted.diff() == (GOLDEN / "site-enable.diff").read_text()
    assert "hash" not in wanted.diff()


@pytest.mark.parametrize("group", ["kvm", "vmjob"])
@pytest.mark.parametrize("shadow", [SHADOW_TEXT, None])
def test_enabling_twice_changes_nothing_and_disabling_brings_all_back(group: str, shadow: Optional[str]) -> None:
    before = state(shadow=shadow, condor="# the startd's\n")
    after = done(before, plan.enable(before, group, ["alice", "carol"]))
    again = plan.enable(after, group, ["alice", "carol"])
    assert again.empty and again.record == after.record
    back = done(after, plan.disable(after))
    assert texts(back) == texts(before)
    assert back.folders == before.folders


def test_more_users_come_and_all_of_them_go() -> None:
    before = state()
    one = done(before, plan.enable(before, "kvm", ["alice"]))
    two = done(one, plan.enable(one, "kvm", ["bob"]))
    assert "kvm:x:105:carol,alice,bob\n" in texts(two)[GROUP]
    assert texts(done(two, plan.disable(two))) == texts(before)


def test_what_an_admin_did_since_stays() -> None:
    before = state()
    after = done(before, plan.enable(before, "vmjob", ["alice", "bob"]))
    changed = {**texts(after), GROUP: texts(after)[GROUP].replace("alice,bob", "bob,carol"),
               snippets.RULE_FILE: "# mine now\n"}
    undone = plan.disable(replace(after, texts=changed))
    back = done(replace(after, texts=changed), undone)
    assert "vmjob:x:999:carol\n" in texts(back)[GROUP]
    assert texts(back)[snippets.RULE_FILE] == "# mine now\n"
    assert any("carol" in note for note in undone.notes) and any("90-vmjob" in note for note in undone.notes)
    renumbered = {**texts(after), GROUP: texts(after)[GROUP].replace("vmjob:x:999", "vmjob:x:500")}
    assert texts(done(replace(after, texts=renumbered), plan.disable(replace(after, texts=renumbered))))[GROUP] == \
        renumbered[GROUP]


def test_a_file_of_somebody_elses_is_not_overwritten() -> None:
    foreign = state(texts={GROUP: GROUP_TEXT, GSHADOW: None, snippets.RULE_FILE: "# an admin's\n"})
    with pytest.raises(NodeUnchanged, match="90-vmjob-kvm"):
        plan.enable(foreign, "kvm", ["alice"])


def test_a_newer_vmjob_writes_its_own_file_anew() -> None:
    before = state(condor="# old\n")
    after = replace(done(before, plan.enable(before, "kvm", ["alice"])), condor="# new\n")
    newer = plan.enable(after, "kvm", ["alice"])
    assert [change.new for change in newer.files] == ["# new\n"]
    # the record comes first: killed before the file was written, disable still knows the old one
    crashed = replace(after, record=newer.record)
    assert texts(done(crashed, plan.disable(crashed))) == texts(before)


def test_a_group_has_a_number_that_nobody_has() -> None:
    text = GROUP_TEXT.replace("+", "x:x:999:\n+")
    wanted = plan.enable(state(text, taken=frozenset({998})), "vmjob", ["alice"])
    assert wanted.record is not None and wanted.record.gid == 997
    assert "\nvmjob:x:997:alice\n+" in (wanted.files[0].new or "")
    with pytest.raises(NodeUnchanged, match="no number"):
        plan.enable(state(range=(105, 105)), "vmjob", ["alice"])


def test_another_group_is_refused_and_nothing_to_undo_is_told() -> None:
    with pytest.raises(NodeUnchanged, match="group kvm") as told:
        plan.enable(state(record=Record("kvm", 105)), "vmjob", ["alice"])
    assert "disable first" in told.value.hint
    with pytest.raises(NodeUnchanged, match=r"enabled\.json"):
        plan.disable(state())


@pytest.mark.parametrize("text", ["", "{}", "[]", "{\"format\": 2}", '{"format": 1, "group": "kvm"}', "\x00"])
def test_a_broken_record_is_refused(text: str) -> None:
    with pytest.raises(NodeUnchanged, match=r"enabled\.json"):
        parse(text)


def test_a_record_comes_back() -> None:
    one = Record("kvm", 105, True, ("a",), ("b",), (("/f", ("s", "t")),), ("/d",), (("/m", 0o755, 0o1777),))
    assert parse(dump(one)) == one


# ---------------------------------------------------------------- udev


def test_the_last_rule_decides() -> None:
    rules = {"50-default.rules": ("/usr/50", 'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"\n'),
             "70-uaccess.rules": ("/usr/70", 'SUBSYSTEM=="misc", KERNEL=="kvm", TAG+="uaccess"\n')}
    assert udev.for_kvm(rules) == udev.Rule("kvm", 0o666, "/usr/50")
    assert udev.for_kvm({**rules, "90-vmjob-kvm.rules": ("/etc/90", snippets.udev_rule("vmjob"))}) == \
        udev.Rule("vmjob", 0o660, "/etc/90")
    assert udev.for_kvm({"70": rules["70-uaccess.rules"], "99": ("/x", '# KERNEL=="kvm", MODE="0666"\n')}) is None
    assert udev.for_kvm({"1": ("/x", 'KERNEL=="kvm", \\\n  MODE:="0600"\n')}) == udev.Rule("root", 0o600, "/x")


def test_of_two_files_of_one_name_the_first_folder_counts(tmp_path: Path) -> None:
    for folder, mode in (("etc/udev/rules.d", "0660"), ("usr/lib/udev/rules.d", "0666")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "60-kvm.rules").write_text(f'KERNEL=="kvm", MODE="{mode}"\n')
    assert udev.for_kvm(udev.files(tmp_path)) == udev.Rule("root", 0o660, "/etc/udev/rules.d/60-kvm.rules")
