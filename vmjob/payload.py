"""payload.json: the resolved job as it travels, and its checks where it arrives."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

from vmjob.errors import ImageMissing, JobError
from vmjob.files import hash_file
from vmjob.glideins import Glidein
from vmjob.manifests import manifest_from_dict, manifest_to_dict
from vmjob.model import Accel, Boot, Input, Job, Network, Payload, Resources
from vmjob.opened import hold

NAME = "payload.json"
INPUT = "input.tar"
TOKEN = "token"  # a glide-in's, where it cannot come by a better way
WRAPPER = "vmjob-wrapper.sh"
IMAGE = "image"  # the folder of its files
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
    import vmjob

    body: dict[str, Any] = {
        "schema": 1, "vmjob": vmjob.__version__, "job": _job_to_dict(payload.job),
        "image": manifest_to_dict(payload.manifest),
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
    stays open as it was verified, and its path leads to what is open (vmjob.opened).

    Raises JobError naming file and key, ImageMissing when a file of the image is not there, ImageCorrupt where its
    manifest states another digest than it has."""
    from vmjob import schema

    path = folder / NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise JobError(f"{path}: no such file", "give the folder of an unpacked payload, as vmjob pack makes it") \
            from missing
    except (OSError, ValueError, RecursionError) as broken:
        raise JobError(f"{path}: corrupted payload: {broken}", _AGAIN) from broken
    body = schema.check(document, "payload", str(path))
    manifest = manifest_from_dict(body["image"], f"{path}: image", JobError)
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
    return Payload(_job_from_dict(body["job"], path), manifest, files, archive, lists=_lists(folder, body, path))


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


def _job_to_dict(job: Job) -> dict[str, Any]:
    wants = job.resources
    glidein = None
    if job.glidein:
        # where the token lies is nobody's business there
        glidein = {**asdict(job.glidein), "attributes": dict(job.glidein.attributes)}
        del glidein["token"]
    return {
        "name": job.name, "image": job.image, "command": list(job.command), "script": job.script,
        "inputs": [{"source": one.source, "target": one.target} for one in job.inputs],
        "outputs": list(job.outputs), "outputs_to": job.outputs_to, "environment": dict(job.environment),
        "resources": {"cpus": wants.cpus, "memory": wants.memory, "disk": wants.disk, "walltime": wants.walltime},
        "accel": job.accel.value, "network": job.network.value, "user": job.user,
        "boot": job.boot.value if job.boot else None, "glidein": glidein,
    }


def _job_from_dict(body: dict[str, Any], where: Path) -> Job:
    command, script, glidein = tuple(body.get("command", ())), body.get("script", ""), body.get("glidein")
    if [bool(command), bool(script), bool(glidein)].count(True) != 1:
        raise JobError(f"{where}: job: exactly one of command, script and glidein must be set", _AGAIN)
    if glidein:
        glidein = Glidein(**{**glidein, "attributes": tuple(sorted(glidein.get("attributes", {}).items()))})
    boot: Optional[str] = body.get("boot")
    return Job(
        name=body["name"], image=body["image"], command=command, script=script,
        inputs=tuple(Input(one["source"], one.get("target", "")) for one in body.get("inputs", ())),
        outputs=tuple(body.get("outputs", ())), outputs_to=body.get("outputs_to", ""),
        environment=tuple(body.get("environment", {}).items()),
        resources=Resources(**body.get("resources", {})), accel=Accel(body.get("accel", "auto")),
        network=Network(body.get("network", "nat")), user=body.get("user", ""), boot=Boot(boot) if boot else None,
        glidein=glidein or None)
