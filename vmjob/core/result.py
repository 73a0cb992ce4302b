"""What became of a run, as typed, frozen values: ``result.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from vmjob.core.codec import SPARSE, write
from vmjob.core.glideins import Worked
from vmjob.core.model import AccelChoice

# Of one list in result.json: a guest chooses how many names there are, and how long they are.
MOST_NAMES, MOST_TEXT = 10_000, 2**20


@dataclass(frozen=True)
class StageTime:
    name: str
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A named failure; ``kind`` is a class of core.errors."""

    stage: str
    kind: str
    status: int
    message: str
    hint: str
    transient: bool


@dataclass(frozen=True)
class Decision:
    """What a site's policy said of the image and the job, and why. ``endorser``: the DN whose signature counted, if one
    did; ``policies``: the files that were asked, none where the site has none."""

    allowed: bool
    reason: str
    endorser: str = ""
    policies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Staged:
    """An output that was sent to ``url``; its checksum is from before it left. Bytes."""

    name: str
    url: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Result:
    """What ``result.json`` holds (vmjob/schemas/result.schema.json); times in seconds, sizes in bytes.

    ``outcome``: ``ok`` (program ended with 0 and everything asked for came back), ``program-failed``
    (it ran and ended otherwise), ``failed`` (``failure`` says what) or ``begun`` (it goes on, or was killed).
    ``status`` is the exit status of the wrapper.
    ``glidein``: what a glide-in has done, None for other jobs. ``notes``: what went wrong besides. ``network_lost``:
    why the guest's network ended while it ran."""

    job: str
    outcome: str
    status: int
    exit_status: Optional[int] = None
    signal: Optional[int] = None
    failure: Optional[Failure] = None
    stages: tuple[StageTime, ...] = ()
    accelerator: Optional[AccelChoice] = None
    qemu_version: str = ""
    image: str = ""
    image_digest: str = ""
    boot: str = ""
    boot_attempts: int = 0
    network: str = ""
    cpus: int = 0
    memory: int = 0
    slot: str = ""
    bytes_in: int = 0
    bytes_image: int = 0
    bytes_out: int = 0
    cpu_seconds: float = 0.0
    peak_memory: int = 0
    outputs: tuple[str, ...] = ()
    console_tail: tuple[str, ...] = ()
    stop: str = ""
    started: float = 0.0
    ended: float = 0.0
    host: str = ""
    glidein: Optional[Worked] = field(default=None, metadata=SPARSE)
    policy: Optional[Decision] = field(default=None, metadata=SPARSE)
    staged: tuple[Staged, ...] = ()
    notes: tuple[str, ...] = field(default=(), metadata=SPARSE)
    network_lost: str = field(default="", metadata=SPARSE)

    @property
    def failure_kind(self) -> str:
        """Name of the failure, or nothing."""
        return self.failure.kind if self.failure else ""

    def to_json(self) -> dict[str, Any]:
        """The document of result.schema.json. Of very many outputs it names the first, and says how many more there
        are."""
        from vmjob.core.version import __version__

        outputs, staged = _first(self.outputs), _first([one.url for one in self.staged])
        body = write(replace(self, outputs=self.outputs[:outputs], staged=self.staged[:staged]))
        for key, more in (("outputs_more", len(self.outputs) - outputs), ("staged_more", len(self.staged) - staged)):
            if more:
                body[key] = more
        body["stages"] = [{"name": s.name, "seconds": round(s.seconds, 4)} for s in self.stages]
        return {"vmjob": __version__, "schema": 1, **body}


def _first(names: Sequence[str]) -> int:
    """How many of these fit into a document."""
    room = MOST_TEXT
    for number, name in enumerate(names[:MOST_NAMES]):
        room -= len(name)
        if room < 0:
            return number
    return min(len(names), MOST_NAMES)
