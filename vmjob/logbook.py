"""What became of a factory's glide-ins: a line for each in ``glideins.jsonl``, beside the logs of those that failed.
So a factory that was ended and starts again knows what went wrong of late."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Optional

from vmjob import config, errors, locks
from vmjob.errors import GuestError, VmjobError
from vmjob.files import remove_tree
from vmjob.machinetext import lines, read
from vmjob.pool_errors import NameTaken, PoolError

FILE = "glideins.jsonl"
STEADY = 600.0  # seconds in the pool after which a glide-in shows that the site can run them
STOPPED = "stopped"  # the outcome of a line that says: here the factory gave up on all that was submitted until then
_LINES = 1000  # kept of the file when it is large
_LARGE = 2 * 2**20  # bytes
_LOGS = 20  # folders of failed glide-ins that are kept
_TEXT = 500  # characters of a message
_OWN = {"Removed": PoolError, "ProgramFailed": GuestError}
_IN_GUEST = ("payload", "collect")  # stages of a run in which the pool has spoken


@dataclass(frozen=True)
class Ended:
    """One glide-in that has ended. ``submission``: the name it was submitted with; ``submitted``, ``ended`` (when that
    was noticed): epoch seconds. ``kind``: of its failure, empty for one that did not fail: a class of vmjob.errors,
    Removed or ProgramFailed; ``stage``: of the run that failed. ``seconds``: in the pool; ``vain``: it ran nothing,
    although jobs were idle. ``logs``: the folder with what came back, kept of failed ones."""

    id: str
    submission: str
    target: str
    submitted: float
    ended: float
    outcome: str
    kind: str = ""
    status: int = 0
    message: str = ""
    hint: str = ""
    jobs: int = 0
    busy_seconds: float = 0.0
    seconds: float = 0.0
    vain: bool = False
    stage: str = ""
    node: str = ""
    logs: str = ""

    @property
    def worked(self) -> bool:
        """It has run jobs, or would have for ten minutes if there had been any."""
        return not self.kind and bool(self.jobs or self.busy_seconds or (self.seconds >= STEADY and not self.vain))

    @property
    def mendable(self) -> bool:
        """The user or the image's maker must mend it: each one will end like this, whatever its node is like."""
        return (self.kind in ("CondorMissing", "CondorTooOld")
                or (self.kind == "TokenRefused" and self.stage in _IN_GUEST))

    def error(self, message: str, hint: str) -> VmjobError:
        """An error of this one's kind and exit status."""
        found: Any = _OWN.get(self.kind) or getattr(errors, self.kind, VmjobError)
        kind: type[VmjobError] = found if isinstance(found, type) and issubclass(found, VmjobError) else VmjobError
        return kind(message, hint)


class Logbook:
    """The folder ``NAME.glideins``; lines of other targets are passed over."""

    def __init__(self, folder: Path, target: str) -> None:
        self.folder, self.target = folder, target

    def read(self) -> list[Ended]:
        """The lines, oldest first."""
        try:
            text = read(self.folder / FILE)
        except FileNotFoundError:
            return []
        found = [_parsed(line) for line in lines(text)]
        return [one for one in found if one and one.target == self.target]

    def add(self, one: Ended) -> None:
        """One more line; of old ones so many are dropped that the file stays small."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / FILE
        with path.open("a+b") as file:
            if file.tell() and _last_byte(file.fileno()) != b"\n":  # we were killed in the middle of a line
                file.write(b"\n")
            short = replace(one, message=one.message[:_TEXT], hint=one.hint[:_TEXT])
            file.write(json.dumps(asdict(short)).encode() + b"\n")
        if path.stat().st_size > _LARGE:
            kept = lines(read(path))[-_LINES:]
            fresh = path.with_suffix(".new")
            fresh.write_text("".join(f"{line}\n" for line in kept))
            fresh.replace(path)

    def folder_of(self, number: str) -> Path:
        """Where what a glide-in left is brought to; empty."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = self.folder / number
        with suppress(FileNotFoundError):
            remove_tree(folder)
        return folder

    def tidy(self, good: Sequence[Path]) -> None:
        """Remove the folders of those that worked, and of failed ones all but the latest."""
        for folder in good:
            with suppress(FileNotFoundError):
                remove_tree(folder)
        with suppress(FileNotFoundError):
            failed = [path for path in self.folder.iterdir() if re.fullmatch(r"[0-9]+\.[0-9]+", path.name)]
            for path in sorted(failed, key=lambda path: path.stat().st_mtime)[:-_LOGS]:
                remove_tree(path)


@contextmanager
def alone(name: str, target: str, place: str) -> Iterator[None]:
    """One factory of a name for the queue at ``place`` on this machine; on two machines nothing keeps them apart.
    Raises NameTaken."""
    folder = config.cache_dir() / "factory"
    folder.mkdir(exist_ok=True)
    lock = locks.open_own(folder / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:12]}")
    try:
        if not locks.attempt(lock):
            raise NameTaken(f"a factory named '{name}' runs on this machine already, for {target}",
                            "end that one (its glide-ins go on), or give this one another name: name: in the job file")
        yield
    finally:
        os.close(lock)


def _last_byte(file: int) -> bytes:
    return os.pread(file, 1, os.fstat(file).st_size - 1)


def _parsed(line: str) -> Optional[Ended]:
    """None for what was cut, or comes from another version."""
    try:
        body: dict[str, Any] = json.loads(line)
        one = Ended(**{field.name: body[field.name] for field in fields(Ended) if field.name in body})
        float(one.submitted), float(one.ended), int(one.status), float(one.seconds)
        return one
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
