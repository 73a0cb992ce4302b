"""payload.json: the resolved job as it travels, and its checks where it arrives."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

from vmjob.core import codec
from vmjob.core.errors import ImageMissing, JobError
from vmjob.core.files import hash_file
from vmjob.core.model import Job, Payload
from vmjob.core.opened import hold
from vmjob.core.ownnames import IMAGE, INPUT, NAME
from vmjob.image.manifest import from_document, to_document

LISTS = 8  # signed image lists, at most
_AGAIN = "the payload was damaged on its way: pack it again, or send it again"


def image_place(sha256: str) -> str:
    """Where a file of the image is in the payload folder."""
    return f"{IMAGE}/{sha256}"


def list_name(number: int) -> str:
    """What a signed image list is called in the payload folder."""
    return f"list-{number}.smime"


def payload_document(payload: Payload) -> dict[str, Any]:
    """The document of payload.schema.json. The input archive is read for its digest. Raises OSError."""
    from vmjob.core.version import __version__

    body: dict[str, Any] = {
        "schema": 1, "vmjob": __version__, "job": codec.write(payload.job),
        "image": to_document(payload.manifest),
        "places": {file.role: image_place(file.sha256) for file in payload.manifest.files},
    }
    if payload.lists:
        body["lists"] = [list_name(n) for n in range(len(payload.lists))]
    archive = payload.input_archive
    if archive is not None:
        body["input"] = {"name": INPUT, "size": archive.stat().st_size, "sha256": hash_file(archive)[0]}
    return body


def write_payload(folder: Path, payload: Payload) -> Path:
    """Write ``folder``/payload.json; its path. Nothing is copied. Raises OSError."""
    path = folder / NAME
    path.write_text(json.dumps(payload_document(payload), indent=1) + "\n", encoding="utf-8")
    return path


def read_payload(folder: Path, verify: bool = True, fetchable: bool = False,
                 keep: Optional[ExitStack] = None) -> Payload:
    """The payload in an unpacked folder. With ``verify`` the input archive is read and compared with its digest
    (the image's files are verified where they are used). ``fetchable``, or where the image has sources: its files
    may be missing, and ``image_files`` then leaves them out. Who runs it hands in ``keep``: until it ends the archive
    stays open as it was verified, and its path leads to what is open (core.opened).

    Raises JobError naming file and key, ImageMissing when a file of the image is not there, ImageCorrupt where its
    manifest states another digest than it has."""
    from vmjob.core import schema

    path = folder / NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise JobError(f"{path}: no such file", "give the folder of an unpacked payload, as vmjob pack makes it") \
            from missing
    except (OSError, ValueError, RecursionError) as broken:
        raise JobError(f"{path}: corrupted payload: {broken}", _AGAIN) from broken
    body = schema.check(document, "payload", str(path))
    manifest = from_document(body["image"], f"{path}: image", JobError)
    files = {}
    for file in manifest.files:
        # a batch system that delivers files flat drops the folder
        places = [folder / body["places"].get(file.role, image_place(file.sha256)), folder / file.sha256]
        found = next((place for place in places if place.is_file()), None)
        if found:
            files[file.role] = found
        elif not fetchable and not manifest.sources:
            raise ImageMissing(f"{places[0]}: the {file.role} of the image {manifest.name} is not there", _AGAIN)
    archive = _input(folder, body["input"], path, verify, keep) if "input" in body else None
    return Payload(job_from(body["job"], path), manifest, files, archive, lists=_lists(folder, body, path))


def _input(folder: Path, body: dict[str, Any], where: Path, verify: bool, keep: Optional[ExitStack]) -> Path:
    archive: Path = folder / body["name"]
    try:
        with ExitStack() as stack:
            place = hold(archive, keep or stack).place
            size = place.stat().st_size
            if size == body["size"] and (not verify or hash_file(place)[0] == body["sha256"]):
                return place if keep else archive
    except OSError as unreadable:
        raise JobError(f"{archive}: {unreadable.strerror}, and {where.name} names it: corrupted payload", _AGAIN) \
            from unreadable
    what = f"it has {size} bytes, not {body['size']}" if size != body["size"] else "its SHA-256 is another one"
    raise JobError(f"{archive}: corrupted payload: {what}", _AGAIN)


def _lists(folder: Path, body: dict[str, Any], where: Path) -> tuple[Path, ...]:
    lists = tuple(folder / name for name in body.get("lists", ()))
    for path in lists:
        if not path.is_file():
            raise JobError(f"{path}: no such file, and {where.name} names it: corrupted payload", _AGAIN)
    return lists


def job_from(body: dict[str, Any], where: Path) -> Job:
    """The job in a payload's document. Raises JobError."""
    if [bool(body.get(key)) for key in ("command", "script", "glidein")].count(True) != 1:
        raise JobError(f"{where}: job: exactly one of command, script and glidein must be set", _AGAIN)
    return codec.read(Job, body, f"{where}: job")
