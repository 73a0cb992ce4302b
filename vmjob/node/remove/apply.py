"""Reads all that vmjob has left on a node, and removes it: after a last look whether a run lives, behind closed
doors, in an order in which a second run finishes what a killed one began."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Optional, TypeVar

from vmjob.core import safepath
from vmjob.core.errors import PolicyBroken
from vmjob.core.site_errors import NodeUnchanged
from vmjob.node import record, snippets, wipe
from vmjob.node.enable import apply as enabling
from vmjob.node.enable import plan
from vmjob.node.remove import alive, hooks, owners
from vmjob.node.remove.hooks import Hook
from vmjob.node.remove.plan import FILE, FOLDER, LINK, SPOOL, SPOOL_NAMES, TREE, Found, HookFolder, Item, Removal
from vmjob.node.tree import Tree
from vmjob.node.wipe import Size

_T = TypeVar("_T")

_SITE, _CRON = snippets.ETC / "site.yaml", PurePosixPath("/etc/cron.d")
_WRITTEN = (plan.GROUP, plan.GSHADOW, snippets.RULE_FILE, snippets.CONDOR_FILE, record.RECORD, hooks.RECORD)
# what docs/site-admin.md has an admin make: (path, how it goes)
_BY_HAND = (
    ("/etc/condor-ce/config.d/60-vmjob.conf", "remove it, then condor_ce_reconfig"),
    ("/var/lib/bdii/gip/provider/vmjob", "remove it"),
    ("/var/lib/bdii/gip/plugin/vmjob", "remove it"),
    ("/var/lib/bdii/vmjob", "the provider's last output: rm -r /var/lib/bdii/vmjob"),
    ("/opt/vmjob", "an installation: rm -r /opt/vmjob"),
    ("/srv/vmjob-images", "a cache for all users: rm -r /srv/vmjob-images"),
    ("/var/lib/prometheus/node-exporter/vmjob.prom", "remove it with the cron job that writes it"),
    ("/var/www/html/vmjob", "what the site publishes: rm -r /var/www/html/vmjob"),
)
_LISTS = snippets.STATE / "lists"
_ACCOUNTANTS = "vmjob-acct"


def look(tree: Tree, more: Sequence[str], notes: list[str], sizes: bool = True) -> Found:
    """What is there. ``more``: folders of hooks that are recorded nowhere. What an ordinary user may not read is left
    out, and said in ``notes``. ``sizes``: measure. Raises NodeUnchanged."""
    base = None
    notes += _followed(tree, notes)
    if _read(tree, record.RECORD, notes):
        base = plan.disable(enabling.look(tree, None, "", notes))
        notes += base.notes
    recorded = _read(tree, hooks.RECORD, notes)
    known = hooks.parse(recorded) if recorded else ()
    condor = {path: text for name in _files(tree, snippets.CONDOR, notes)
              if (path := snippets.CONDOR / name).suffix != ".rpmsave" and (text := _read(tree, path, notes))
              and snippets.hook_in(text)}
    named = [*(one.folder for one in known), *map(hooks.script_folder, condor.values()), *more]
    folders = tuple(_hook_folders(tree, named, known, notes))
    applications = [data for one in folders if (data := one.names.get(hooks.PYZ))]
    spool = _spool_of(tree, notes)
    spooled = {name: _size(tree, spool / name, sizes) for name in SPOOL_NAMES if _is_folder(tree, spool / name)}
    return Found(base, tuple(_spares(tree)), _state(tree, sizes), folders, condor,
                 hooks.known(known, applications, _shipped()), spool, spooled, owners.owned(tree),
                 tuple(_leftovers(tree, sizes)), tuple(_elsewhere(tree, notes)))


def _shipped() -> dict[str, bytes]:
    from vmjob.job.pyz import wrapper_text

    return {name: wrapper_text(name) for name in (hooks.WRAPPER, snippets.HOOK, hooks.SNIPPET)}


def _seen(look: Callable[[PurePosixPath], _T], path: PurePosixPath, otherwise: _T,
          notes: Optional[list[str]] = None) -> _T:
    """What ``look`` finds at ``path``; ``otherwise`` where we may not look, which ``notes`` hears of."""
    try:
        return look(path)
    except NodeUnchanged as closed:
        if not isinstance(closed.__cause__, PermissionError):
            raise
        if notes is not None:
            notes.append(f"{path} cannot be read by you, and is left out here")
        return otherwise


def _read(tree: Tree, path: PurePosixPath, notes: list[str]) -> Optional[str]:
    return _seen(tree.read, path, None, notes)


def _stat(tree: Tree, path: PurePosixPath) -> Optional[os.stat_result]:
    """As Tree.found; None too where we may not look."""
    return _seen(tree.found, path, None)


def _files(tree: Tree, path: PurePosixPath, notes: list[str]) -> list[str]:
    return _seen(tree.names, path, [], notes)


def _names(tree: Tree, path: PurePosixPath) -> Optional[list[str]]:
    """All that is in a folder; None where there is none."""
    with tree.folder(path) as opened:
        return None if opened is None else wipe.names(opened)


def _is_folder(tree: Tree, path: PurePosixPath) -> bool:
    found = _stat(tree, path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _size(tree: Tree, path: PurePosixPath, wanted: bool = True) -> Size:
    with tree.folder(path) as opened:
        return wipe.measure(opened) if wanted and opened is not None else Size(more=wanted)


def _item(tree: Tree, path: PurePosixPath, sizes: bool) -> Iterator[Item]:
    found = _stat(tree, path)
    if found is None:
        return
    if stat.S_ISDIR(found.st_mode):
        yield Item(path, TREE, _size(tree, path, sizes))
    else:
        yield Item(path, LINK if stat.S_ISLNK(found.st_mode) else FILE, Size(found.st_size, 1))


def _state(tree: Tree, sizes: bool) -> Optional[tuple[Item, ...]]:
    found = _stat(tree, snippets.STATE)
    if found is None:
        return None
    if not stat.S_ISDIR(found.st_mode) or (tree.real and found.st_uid):
        raise NodeUnchanged(f"{snippets.STATE}: it is no folder of root's",
                            "look what it is, and remove it by hand; nothing was changed")
    names = _names(tree, snippets.STATE)
    return tuple(item for name in names or () for item in _item(tree, snippets.STATE / name, sizes))


def _leftovers(tree: Tree, sizes: bool) -> Iterator[Item]:
    """Caches of users who had no home on the node, and what killed runs left, where they had no slot's scratch."""
    for name in _names(tree, alive.SCRATCH) or ():
        owner, run = re.fullmatch(r"vmjob-([0-9]{1,10})", name), alive.RUN_FOLDER.match(name)
        found = _stat(tree, alive.SCRATCH / name) if owner or run else None
        if found and stat.S_ISDIR(found.st_mode) and (run or (owner and int(owner[1]) == found.st_uid)):
            yield Item(alive.SCRATCH / name, TREE, _size(tree, alive.SCRATCH / name, sizes))


def _spares(tree: Tree) -> Iterator[Item]:
    """What somebody who was killed while writing has left; in /var/lib/vmjob it goes with the rest."""
    begun = enabling.BEGUN
    for path in (*map(Tree.spare, _WRITTEN), begun / record.RECORD.name, Tree.spare(begun / record.RECORD.name)):
        if snippets.STATE not in path.parents:
            yield from _item(tree, path, sizes=False)
    if _is_folder(tree, begun):
        yield Item(begun, FOLDER)


def _hook_folders(tree: Tree, named: Sequence[str], known: Sequence[Hook], notes: list[str]) -> Iterator[HookFolder]:
    made = {one.folder for one in known if one.made}
    for text in dict.fromkeys([str(snippets.ETC), *filter(None, named)]):
        path = PurePosixPath(text)
        if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/"):
            raise NodeUnchanged(f"{text}: no absolute path of a folder", "name the hook's folder as the node has it")
        names = _names(tree, path)
        if names is None:
            continue
        if tree.real and os.geteuid() == 0:
            try:
                safepath.safe(Path(text), (0,))
            except PolicyBroken as unsafe:
                notes.append(f"{path} stays, as others could change what is removed there: {unsafe.message}")
                continue
        wanted = {*hooks.NAMES, *(f".{name}.new" for name in hooks.NAMES), "vmjob-gip.conf"}
        yield HookFolder(path, {name: _content(tree, path / name, notes) if name in wanted else None
                                for name in names}, text in made)


def _content(tree: Tree, path: PurePosixPath, notes: list[str]) -> Optional[bytes]:
    found = _stat(tree, path)
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    text = _read(tree, path, notes)
    return None if text is None else text.encode(errors="surrogateescape")


def _spool_of(tree: Tree, notes: list[str]) -> PurePosixPath:
    """Where the site's configuration has the usage records, else where the docs have them."""
    import yaml

    text = _read(tree, _SITE, notes)
    if not text:
        return SPOOL
    try:
        place = PurePosixPath(yaml.safe_load(text)["accounting"]["spool"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        return SPOOL
    return place if place.is_absolute() and ".." not in place.parts and len(place.parts) > 1 else SPOOL


def _elsewhere(tree: Tree, notes: list[str]) -> Iterator[str]:
    for name in _files(tree, _CRON, notes):
        if "vmjob" in (_read(tree, _CRON / name, notes) or ""):
            yield f"{_CRON / name}: runs vmjob; written by the admin"
    for path, action in _BY_HAND:
        if _stat(tree, PurePosixPath(path)):
            yield f"{path}: made by an admin: {action}"
    if f"\n{_ACCOUNTANTS}:" in f"\n{_read(tree, plan.GROUP, notes)}":
        yield f"the group {_ACCOUNTANTS}: made for the usage records: groupdel {_ACCOUNTANTS}"


def _followed(tree: Tree, notes: list[str]) -> Iterator[str]:
    for name in _names(tree, _LISTS) or ():
        text = _read(tree, _LISTS / name, notes) if re.fullmatch(r"[0-9a-f]+\.json", name) else ""
        address = re.search(r'"url": "([!-~]{1,300}?)"', text or "")
        if address:
            yield f"the list {address[1]} was followed here: vmjob image subscribe follows it again"


# ---------------------------------------------------------------- doing it


def refusal(tree: Tree, spool: Optional[PurePosixPath] = None) -> str:
    """Which runs live, in words; empty: none."""
    living = alive.guests(tree, spool)
    more = f" and {len(living) - 5} more" if len(living) > 5 else ""
    return f"virtual machines run on {tree}: {'; '.join(living[:5])}{more}" if living else ""


def apply(tree: Tree, wanted: Removal, again: Callable[[], Removal], spool: Optional[PurePosixPath]) -> list[str]:
    """Does what ``wanted`` says, or nothing where ``again``, the plan made under the lock, is another, or where a run
    lives. Returns what could not be done. Raises NodeUnchanged."""
    if not enabling.may(tree):
        raise NodeUnchanged("only root can change this node", "run it with sudo; --dry-run shows what it would do")
    with tree.lock():
        if again() != wanted:
            raise NodeUnchanged("somebody changed this node meanwhile", "run it again")
        if mounted := _mounts(tree, wanted):
            raise NodeUnchanged(f"{mounted}: a file system is mounted there", f"umount {mounted}, then run it again")
        _close(tree, wanted, spool)
        notes = [said for act in actions(tree, wanted) if (said := act())]
    return notes + enabling.told_udev(tree, wanted.base)


def _close(tree: Tree, wanted: Removal, spool: Optional[PurePosixPath]) -> None:
    """No run comes into the folders any more that are to go; open again where one is in already."""
    closed: list[tuple[PurePosixPath, int]] = []
    for item in wanted.trees:
        mode = tree.mode(item.path) if item.kind == TREE else None
        if mode is not None and mode & 0o7077:
            closed.append((item.path, mode))
            tree.make_folder(item.path, 0o700)
    living = refusal(tree, spool)
    if living:
        for path, mode in closed:
            tree.make_folder(path, mode)
        raise NodeUnchanged(living, "let them end, or take the node out of the batch system; then run it again")


def _mounts(tree: Tree, wanted: Removal) -> str:
    """A place below what is to go where something is mounted; empty: none."""
    tops = [str(tree.root.resolve() / str(one.path).lstrip("/")) for one in wanted.trees if one.kind == TREE]
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]
    except OSError:
        return ""
    for line in lines:
        place = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]))
        if any(place.startswith(f"{top}/") or (place == top and not tree.real) for top in tops):
            return place
    return ""


def actions(tree: Tree, wanted: Removal) -> list[Callable[[], Optional[str]]]:
    """Each step. Records go after what they tell of, and folders after what was in them."""
    steps: list[Callable[[], Optional[str]]] = [partial(_item_gone, tree, one) for one in wanted.trees]
    if wanted.base:
        steps += enabling.actions(tree, wanted.base)
    steps += [partial(_file_gone, tree, change.path) for change in wanted.condor]
    return steps + [partial(_item_gone, tree, one) for one in (*wanted.files, *wanted.last)]


def _file_gone(tree: Tree, path: PurePosixPath) -> None:
    tree.remove(path)


def _item_gone(tree: Tree, item: Item) -> Optional[str]:
    if item.kind in (FILE, LINK):
        tree.remove(item.path)
    elif item.kind == FOLDER and not tree.remove_folder(item.path):
        return f"{item.path} stays: it is not empty"
    elif item.kind == TREE and not tree.wipe(item.path):
        return f"{item.path} stays, empty: a file system is mounted there, or somebody writes to it"
    return None


def hints(wanted: Removal) -> list[str]:
    """What is left to the admin."""
    names = [change.path for change in (*wanted.condor, *(wanted.base.files if wanted.base else ()))]
    return ["for HTCondor: condor_reconfig"] if any(snippets.CONDOR in path.parents for path in names) else []
