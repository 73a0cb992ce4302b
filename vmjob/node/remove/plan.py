"""What goes from a node when vmjob goes: worked out whole, from what was found, before anything is touched. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Optional

from vmjob.core.units import format_size
from vmjob.node import snippets
from vmjob.node.enable import plan
from vmjob.node.enable.plan import Change, Plan
from vmjob.node.record import RECORD, Record
from vmjob.node.remove import hooks
from vmjob.node.remove.owners import Owned
from vmjob.node.wipe import Size

FILE, LINK, TREE, FOLDER = "file", "link", "tree", "folder"
STORE = snippets.STATE / "store"
SPOOL = PurePosixPath("/var/spool/vmjob")  # as docs/site-admin.md has it
# what vmjob writes into its own folder, or has jobs write there
STATE_NAMES = ("runs", "cache", "lists", "rte")
SPOOL_NAMES = ("open", "outgoing", "ledger")
# files that vmjob ships with comments for an admin to fill in; SHA-256 of those that say nothing yet
EXAMPLES = {"vmjob-gip.conf": ("76774b23e2356a4a006dc205cfce0e93c4464b5a042dbea73a9770c219297662",)}


@dataclass(frozen=True)
class Item:
    """A name that goes. ``kind``: TREE goes with all that is in it, FOLDER only if it is empty. ``size`` may change
    meanwhile."""

    path: PurePosixPath
    kind: str
    size: Size = field(default_factory=Size, compare=False)

    def line(self) -> str:
        if self.kind == FILE:
            return f"remove file {self.path} ({format_size(self.size.bytes)})\n"
        if self.kind == LINK:
            return f"remove link {self.path}\n"
        if self.kind == FOLDER:
            return f"remove folder {self.path} (if it is empty)\n"
        count = f"{self.size.files} file{'' if self.size.files == 1 else 's'}"
        least = "at least " if self.size.more else ""
        return f"remove folder {self.path} with all in it ({least}{format_size(self.size.bytes)}, {count})\n"


@dataclass(frozen=True)
class HookFolder:
    """``names``: all that is in it, with what is in those files that have a name of the hook's (None: no file of
    ours). ``sizes`` of these. ``made``: by us."""

    path: PurePosixPath
    names: Mapping[str, Optional[bytes]]
    made: bool = False


@dataclass(frozen=True)
class Found:
    """What is there. ``base``: what vmjob site disable would do. ``spares``: of files that somebody was killed while
    writing. ``state``: what is in /var/lib/vmjob, None: there is none. ``condor``: files of HTCondor's configuration.
    ``known``: hooks.known(). ``spool``: where usage records are, None: nowhere, with the sizes of its folders.
    ``leftovers``: of
    users' runs in /var/tmp. ``elsewhere``: what an admin has of vmjob outside of its folders."""

    base: Optional[Plan] = None
    spares: tuple[Item, ...] = ()
    state: Optional[tuple[Item, ...]] = None
    hooks: tuple[HookFolder, ...] = ()
    condor: Mapping[PurePosixPath, str] = field(default_factory=dict)
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spool: Optional[PurePosixPath] = None
    spooled: Mapping[str, Size] = field(default_factory=dict)
    owned: Owned = field(default_factory=Owned)
    leftovers: tuple[Item, ...] = ()
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class Removal:
    """``base`` is disable's part without what lies in /var/lib/vmjob. In the order in which it is done: ``trees``,
    ``base``, ``condor``, ``files``, ``last``. ``kept``: what stays, and whose it is."""

    trees: tuple[Item, ...] = ()
    base: Optional[Plan] = None
    condor: tuple[Change, ...] = ()
    files: tuple[Item, ...] = ()
    last: tuple[Item, ...] = ()
    kept: tuple[str, ...] = field(default=(), compare=False)

    @property
    def empty(self) -> bool:
        return not (self.trees or self.base or self.condor or self.files or self.last)

    def diff(self) -> str:
        changes = Plan(files=self.condor, record=_ANY).diff()
        return "".join([*(one.line() for one in self.trees), self.base.diff() if self.base else "", changes,
                        *(one.line() for one in (*self.files, *self.last))])


_ANY = Record("", 0)  # so that a diff says nothing of a record


def remove(found: Found, spool: bool = False, store: bool = False) -> Removal:
    """The plan. ``spool``: usage records and the ledger go, too; ``store``: the site's own images."""
    kept: list[str] = []
    base = found.base and _without_state(found.base)
    trees, last = _state(found, store, kept)
    trees += found.leftovers
    if spool:
        trees += _spool(found)
        last = [*_spool_folder(found), *last]
    elif any(size.files for size in found.spooled.values()):
        counts = ", ".join(f"{size.files} file{'' if size.files == 1 else 's'} in {name}"
                           for name, size in found.spooled.items())
        kept.append(f"{found.spool}: usage records of the site ({counts}); they go with --spool")
    elif found.spooled:
        kept.append(f"{found.spool}: no usage records are in it; it goes with --spool")
    condor = _condor(found, base, kept)
    files = [one for one in found.spares if one.path not in found.owned.paths]
    for folder in found.hooks:
        files += _hook(folder, found, kept)
    if found.owned.command:
        kept.append(f"what packages installed is theirs to remove: {found.owned.command}")
    kept += found.elsewhere
    return Removal(tuple(trees), base, tuple(condor), tuple(files), tuple(last), tuple(dict.fromkeys(kept)))


def _without_state(base: Plan) -> Plan:
    folders = tuple(one for one in base.folders
                    if snippets.STATE not in (one[0], *one[0].parents) and one[0] not in plan.ABOVE)
    return replace(base, folders=folders)


def _state(found: Found, store: bool, kept: list[str]) -> tuple[list[Item], list[Item]]:
    """What is in /var/lib/vmjob, and that folder, with those above it that enable-kvm made."""
    trees, last, stays = [], list[Item](), False
    for item in found.state or ():
        name, path = item.path.name, item.path
        if path in found.owned.paths:
            stays = True
        elif path == RECORD:
            pass  # goes with the base
        elif path == hooks.RECORD:
            last.append(item)  # after the files that it names
        elif name in STATE_NAMES or name.startswith((".vmjob-new", "vmjob-run-")) or (path == STORE and store):
            trees.append(item)
        elif path == STORE:
            kept.append(f"{path}: images of the site ({format_size(item.size.bytes)}); they go with --store")
            stays = True
        else:
            kept.append(f"{path}: not of vmjob")
            stays = True
    if found.state is not None and not stays and snippets.STATE not in found.owned.paths:
        last.append(Item(snippets.STATE, FOLDER))
        made = [path for path, _, new in (found.base.folders if found.base else ()) if new is None]
        last += [Item(path, FOLDER) for path in made if path in plan.ABOVE]
    return trees, last


def _spool(found: Found) -> list[Item]:
    return [Item(found.spool / name, TREE, size) for name, size in found.spooled.items()] if found.spool else []


def _spool_folder(found: Found) -> list[Item]:
    if found.spool is None or not found.spooled or found.spool in found.owned.paths:
        return []
    return [Item(found.spool, FOLDER)]


def _condor(found: Found, base: Optional[Plan], kept: list[str]) -> list[Change]:
    """Copies of the hook's configuration that an admin made, as the docs say."""
    changes = []
    gone = {change.path for change in base.files if change.new is None} if base else set()
    for path, text in found.condor.items():
        if path in gone or path in found.owned.paths or not hooks.script_folder(text):
            continue
        data = text.encode(errors="surrogateescape")
        if hooks.ours(hooks.SNIPPET, data, found.known.get(hooks.SNIPPET, ())):
            changes.append(Change(path, text, None))
        else:
            kept.append(f"{path}: written or changed by hand; it has the startd run {snippets.HOOK}: take that out, "
                        "then condor_reconfig")
    return changes


def _hook(folder: HookFolder, found: Found, kept: list[str]) -> list[Item]:
    """The hook's files in a folder; the folder too, where nothing else is in it and it was made for them."""
    files, stays = [], False
    spares = {f".{name}.new" for name in hooks.NAMES}
    order = [*(name for name in hooks.NAMES if name in folder.names),
             *sorted(name for name in folder.names if name not in hooks.NAMES)]
    for name in order:
        path, data = folder.path / name, folder.names[name]
        if path in found.owned.paths:
            stays = True
        elif data is not None and (name in spares or hooks.ours(name, data, found.known.get(name, ()))
                                   or hooks.digest(name, data) in EXAMPLES.get(name, ())):
            files.append(Item(path, FILE, Size(len(data), 1)))
        else:
            stays = True
            changed = ": changed by hand" if name in hooks.NAMES else ": written by the admin"
            if folder.path == snippets.ETC or name in hooks.NAMES:
                kept.append(f"{path}{changed}")
    own = folder.made or folder.path == snippets.ETC
    if not stays and own and folder.path not in found.owned.paths:
        files.append(Item(folder.path, FOLDER))
    return files
