"""What enable-kvm has changed on a node, so that disable undoes that and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from vmjob.node.snippets import STATE
from vmjob.site_errors import NodeUnchanged

RECORD = STATE / "enabled.json"
_FORMAT = 1


@dataclass(frozen=True)
class Record:
    """Written before anything is changed, so each of it may have happened, or not. ``group``, ``gid``: the group;
    ``made``: by us; ``members``: whom we added to it, ``shadow`` to its line in gshadow. ``files``: paths with the
    SHA-256 of all that we may have written there. ``folders``: made by us. ``modes``: of folders that had another
    one: path, the mode then, the mode now."""

    group: str
    gid: int
    made: bool = False
    members: tuple[str, ...] = ()
    shadow: tuple[str, ...] = ()
    files: tuple[tuple[str, tuple[str, ...]], ...] = ()
    folders: tuple[str, ...] = ()
    modes: tuple[tuple[str, int, int], ...] = ()

    def wrote(self, path: PurePosixPath, text: str) -> bool:
        """Is ``text`` what we wrote to ``path``?"""
        return digest(text) in dict(self.files).get(str(path), ())


def digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def dump(record: Record) -> str:
    return json.dumps({"format": _FORMAT, **asdict(record)}, indent=1) + "\n"


def parse(text: str) -> Record:
    """Raises NodeUnchanged."""
    try:
        body = json.loads(text)
        if body.pop("format") != _FORMAT:
            raise ValueError("written by a later vmjob")
        return Record(str(body["group"]), int(body["gid"]), bool(body["made"]), tuple(map(str, body["members"])),
                      tuple(map(str, body["shadow"])),
                      tuple((str(path), tuple(map(str, sums))) for path, sums in body["files"]),
                      tuple(map(str, body["folders"])),
                      tuple((str(path), int(old), int(new)) for path, old, new in body["modes"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as broken:
        raise NodeUnchanged(f"{RECORD}: it cannot be read: {broken}",
                            "it says what enable-kvm changed; bring it back from a backup, or remove it, and undo by "
                            "hand what docs/site-admin.md lists") from broken
