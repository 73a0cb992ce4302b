"""The files of the startd's hook: where vmjob site hook has put them, and which files are those. vmjob 0.1.0 kept no
record; what it wrote is known by what is in it. All but ``remember`` is pure."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from vmjob.node import snippets
from vmjob.node.tree import Tree
from vmjob.site_errors import NodeUnchanged

RECORD = snippets.STATE / "hooks.json"
PYZ, WRAPPER = snippets.BESIDE
SNIPPET = snippets.CONDOR_FILE.name
# vmjob.pyz last: it says which versions of the others are ours
NAMES = (WRAPPER, snippets.HOOK, SNIPPET, PYZ)
_FORMAT = 1
_LARGEST = 2**20  # bytes of a script in vmjob.pyz
_MOST = 100  # digests of one file, folders
# SHA-256 of what releases wrote that kept no record; the snippet as for /etc/vmjob
RELEASED = {
    WRAPPER: ("6769a57962bc1ea903de79907fc944411c1553a5618679103f9427c9be6f2446",),
    snippets.HOOK: ("84e92a4714634815f368c4eaea2257343c0316e81e7f183b3e8110635c6a2107",),
    SNIPPET: ("1ff1957ebef61593a6bc1d15e6cc6002fb3c3d6a31b84166a420584cccad32fd",),
}


@dataclass(frozen=True)
class Hook:
    """A folder into which the hook's files were written. ``made``: by us. ``files``: SHA-256 of all that we may have
    written there, by name."""

    folder: str
    made: bool = False
    files: tuple[tuple[str, tuple[str, ...]], ...] = ()


def dump(known: Sequence[Hook]) -> str:
    return json.dumps({"format": _FORMAT, "hooks": [asdict(one) for one in known]}, indent=1) + "\n"


def parse(text: str) -> tuple[Hook, ...]:
    """Raises NodeUnchanged."""
    try:
        body = json.loads(text)
        if body["format"] != _FORMAT:
            raise ValueError("written by a later vmjob")
        return tuple(Hook(str(one["folder"]), bool(one["made"]),
                          tuple((str(name), tuple(map(str, sums))) for name, sums in one["files"]))
                     for one in body["hooks"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as broken:
        raise NodeUnchanged(f"{RECORD}: it cannot be read: {broken}",
                            "it says where vmjob site hook wrote files; bring it back from a backup, or remove it: the "
                            f"hook's files in {snippets.ETC} are found without it") from broken


def added(known: Sequence[Hook], new: Hook) -> tuple[Hook, ...]:
    """The record with what ``new`` is about to write, beside what was written there before."""
    old = next((one for one in known if one.folder == new.folder), Hook(new.folder))
    sums = dict(old.files)
    for name, more in new.files:
        sums[name] = (*(one for one in sums.get(name, ()) if one not in more), *more)[-_MOST:]
    both = Hook(new.folder, old.made or new.made, tuple(sorted(sums.items())))
    return (*(one for one in known if one.folder != new.folder), both)[-_MOST:]


def remember(tree: Tree, new: Hook) -> None:
    """Record what is about to be written, on a node that has a folder for it. Raises NodeUnchanged."""
    if tree.mode(snippets.STATE) is None:
        return
    before = tree.read(RECORD)
    after = dump(added(parse(before) if before else (), new))
    if after != before:
        tree.write(RECORD, after, 0o644)


def ours(name: str, data: bytes, known: Sequence[str]) -> bool:
    """Was this file of a hook's folder, or its copy in HTCondor's configuration, written by some vmjob, and not
    changed since? ``known``: of that name, what all() has."""
    if name == PYZ:
        return digest(name, data) in known or bool(_texts(data))
    return digest(name, data) in known


def known(recorded: Sequence[Hook], applications: Sequence[bytes], shipped: Mapping[str, bytes]
          ) -> dict[str, tuple[str, ...]]:
    """Digests of what vmjob may have written, by name: as recorded, as released without a record, as in the
    ``applications`` (vmjob.pyz) found on the node, each of which carries what its version writes, and as ``shipped``
    with this vmjob."""
    sums: dict[str, list[str]] = {name: list(RELEASED.get(name, ())) for name in NAMES}
    for hook in recorded:
        for name, more in hook.files:
            sums.setdefault(name, []).extend(more)
    for texts in (shipped, *(_texts(one) for one in applications)):
        for name, text in texts.items():
            sums[name].append(digest(name, text))
    return {name: tuple(dict.fromkeys(each)) for name, each in sums.items()}


def digest(name: str, data: bytes) -> str:
    """SHA-256; of HTCondor's configuration as it is for /etc/vmjob, wherever its hook lies."""
    if name == SNIPPET:
        script = re.search(rb"^STARTD_CRON_VMJOB_EXECUTABLE = (/\S*)/" + re.escape(snippets.HOOK).encode() + rb"$",
                           data, re.M)
        if script:
            data = data.replace(script[1] + b"/", f"{snippets.ETC}/".encode())
    return hashlib.sha256(data).hexdigest()


def _texts(application: bytes) -> dict[str, bytes]:
    """The hook's files in a vmjob.pyz, by name; empty: it is none."""
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(application)) as archive:
            archive.getinfo("vmjob/cli/main.py")
            for name in (WRAPPER, snippets.HOOK, SNIPPET):
                entry = archive.getinfo(f"vmjob/wrappers/{name}")
                if entry.file_size > _LARGEST:
                    return {}
                found[name] = archive.read(entry)
    except (KeyError, ValueError, OSError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile):
        return {}
    except Exception as odd:  # zlib.error, and what else an archive made by somebody else brings
        if type(odd).__module__ != "zlib":
            raise
        return {}
    return found


def script_folder(configuration: str) -> str:
    """The folder of the hook that a file of HTCondor's configuration has the startd run; empty: none."""
    script = snippets.hook_in(configuration)
    return str(PurePosixPath(script).parent) if script.startswith("/") else ""
