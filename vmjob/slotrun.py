"""What the wrapper starts in a batch slot: the payload beside it is read and run, the results go where the batch system
looks, and HTCondor is told what to do with the job. Whatever happens, there is a result."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from vmjob import config
from vmjob.chirp import Chirp, unavailable
from vmjob.errors import VmjobError
from vmjob.files import RESULT_FILES
from vmjob.interrupt import PATIENCE, Signals
from vmjob.model import Fetch, ImageFile
from vmjob.outcome import failed
from vmjob.progress import Reporter
from vmjob.result import Result
from vmjob.resultfile import begun, keep_result, refused
from vmjob.slot import token
from vmjob.slot.announce import Announcer, is_over

if TYPE_CHECKING:
    from vmjob.stage.collect import Entry

log = logging.getLogger("vmjob.run")

# Seconds for packing the results, from a signal to stop on, and then it is Interrupted: better a result without the
# outputs than none, as a batch system kills what does not end.
PACKING = 20.0


@dataclass(frozen=True)
class SlotRun:
    """``payload``: the unpacked folder. ``results``: the folder for the results, or, with ``pack``, one tar file for
    all of them. ``image_at``: where the submit side keeps what the payload lacks of the image (slot.carrier);
    ``token_at``: where a glide-in's token is (slot.token), and ``token`` is what was found beside the payload.
    ``parameters``: environment variables of this one job (job.with_parameters)."""

    payload: Path
    results: Path = Path()
    pack: Optional[Path] = None
    scratch: Optional[Path] = None
    image_at: str = ""
    token_at: str = ""
    token: str = field(default="", repr=False)
    parameters: str = ""

    @property
    def folder(self) -> Path:
        """For temporary files, where the batch system names none."""
        return self.scratch or Path(os.environ.get("_CONDOR_SCRATCH_DIR") or ".")


def slot_run(this: SlotRun, reporter: Reporter) -> Result:
    """Run the payload. Never raises a VmjobError: the Result tells it. Main thread only."""
    with Signals(PATIENCE) as signals:
        signals.one_run = True
        announcer, chirp = Announcer(reporter, None, {}), None
        try:
            if this.pack:  # HTCondor holds a job that is killed before it has this
                _pack_alone(begun(), this.pack)
            chirp = Chirp.find(os.environ)
            announcer = Announcer.begin(os.environ, reporter, chirp)
            signals.hurry = announcer.hurry
            signals.check()
            # first of all: whatever comes next, it is off the disk
            this = replace(this, token=token.take(this.token_at, this.payload))
            result = _packed(this, announcer, chirp, signals) if this.pack else \
                _run(this, this.results, announcer, chirp)
        except Exception as failure:  # the scratch folder, mostly
            result = failed(failure)
            if this.pack:
                _pack_alone(result, this.pack)
            else:
                result = keep_result(result, this.results)
        signals.decide()
        if signals.stops:
            announcer.hurry()
        announcer.finish(result)
        if is_over(result):
            token.remove(this.token_at, chirp)
    return result


def not_begun(words: Sequence[str], error: VmjobError) -> None:
    """The result of a slot-run whose options cannot be used, or that was stopped before it had read them: where the
    wrapper has said that a run begins. Never raises."""
    found = {"--results": ".", "--pack": ""}
    for word, after in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        if name in found:
            found[name] = value if equals else after
    if found["--pack"]:
        _pack_alone(failed(error), Path(found["--pack"]))
    else:
        refused(error, Path(found["--results"]), "")


def _run(this: SlotRun, results: Path, announcer: Announcer, chirp: Optional[Chirp]) -> Result:
    from vmjob.image.store import Store
    from vmjob.job import with_parameters
    from vmjob.payload import read_payload
    from vmjob.run import run
    from vmjob.slot.limits import detect

    try:
        with ExitStack() as keep:
            payload = read_payload(this.payload, fetchable=bool(this.image_at), keep=keep)
            payload = replace(payload, job=with_parameters(payload.job, this.parameters, "--parameters"))
            if payload.job.glidein:
                payload = replace(payload, token=this.token or token.fetch(this.token_at, chirp))
            slot = detect(os.environ, this.folder)
            store = Store(config.cache_dir(), cache=True)
            return run(payload, slot, store, results=results, reporter=announcer,
                       fetch=_fetch(this.image_at, chirp) if this.image_at else None)
    except Exception as failure:
        return keep_result(failed(failure), results)


def _fetch(image_at: str, chirp: Optional[Chirp]) -> Fetch:
    """Brings files of the image from the submit side. Fails when it is called: mostly the node has them."""

    def pieces(file: ImageFile, start: int) -> Iterator[bytes]:
        from vmjob.slot import carrier

        if chirp is None:
            raise unavailable("the image")
        return chirp.pieces(f"{carrier.find(image_at, chirp)}/{file.sha256}", file.size, start)

    return pieces


# ---------------------------------------------------------------- the results as one file


def _packed(this: SlotRun, announcer: Announcer, chirp: Optional[Chirp], signals: Signals) -> Result:
    """Run with the results in a folder that becomes the file ``this.pack``."""
    from vmjob.slot.scratch import scratch

    assert this.pack
    with scratch(this.folder) as folder:
        results = folder / "results"
        results.mkdir()
        result = _run(this, results, announcer, chirp)
        try:
            signals.decide()
            with signals.patiently(PACKING):
                pack_results(results, this.pack)
        except (VmjobError, OSError) as failure:
            result = _alone(result, failed(failure), this.pack)
    return result


def _alone(result: Result, unpacked: Result, target: Path) -> Result:
    """A result without the outputs, where these cannot be packed: what cannot come back is no success."""
    if result.outcome != "failed":
        result = replace(result, outcome="failed", status=unpacked.status, failure=unpacked.failure, outputs=(),
                         bytes_out=0)
    _pack_alone(result, target)
    return result


def _pack_alone(result: Result, target: Path) -> None:
    """A result without a folder to keep it in: straight into the archive, as HTCondor holds a job that lacks it."""
    import io
    import json
    import tarfile

    text = (json.dumps(result.to_json(), indent=1) + "\n").encode()
    info = tarfile.TarInfo(RESULT_FILES[0])
    info.size, info.mtime = len(text), int(result.ended)
    try:
        with _whole(target) as spare, tarfile.open(spare, "w") as archive:
            archive.addfile(info, io.BytesIO(text))
    except OSError as refused:
        log.error("%s cannot be written: %s", target, refused)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A name to write under; what stands there at the end is ``target`` then, and after a failure nothing."""
    spare = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield spare
        spare.replace(target)
    finally:
        spare.unlink(missing_ok=True)


def pack_results(folder: Path, target: Path) -> None:
    """All of ``folder`` as the tar archive ``target``, result.json first; links stay links. There whole or not at all.
    Raises ScratchFull, JobError, OSError."""
    from vmjob.stage.pack import write_archive

    with _whole(target) as spare:
        write_archive(_entries(folder), spare, lambda _: None)


def _entries(folder: Path) -> Iterator[Entry]:
    from vmjob.stage.collect import OURS

    first = [folder / name for name in RESULT_FILES if (folder / name).exists()]
    yield from map(lambda path: _entry(folder, path), first)
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(folders + files):
            path = Path(place, name)
            if path not in first and not name.startswith(OURS):
                yield _entry(folder, path)


def _entry(folder: Path, path: Path) -> Entry:
    from vmjob.stage.collect import Entry

    link = os.readlink(path) if path.is_symlink() else None  # noqa: PTH115 - a Path would tidy what it says
    return Entry(str(path.relative_to(folder)), path, path.lstat(), link)
