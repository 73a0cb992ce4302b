"""job.yaml → Job. The shape is in schemas/job.schema.json; here is what a schema cannot say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from vmjob.core import codec
from vmjob.core.errors import JobError
from vmjob.core.glideins import BOOT, DRAIN, FOLDER, Glidein, check_walltime
from vmjob.core.model import Input, Job, Network


def load_job(path: Path) -> Job:
    """Read a job file. Raises JobError that names the file and the key."""
    from vmjob.core.schema import load_yaml

    return job_from(load_yaml(path, "job"), str(path), name_from(path))


def name_from(path: Path) -> str:
    """The name of a job whose file states none."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-")[:64] or "job"


def job_from(document: dict[str, Any], where: str, name: str = "job") -> Job:
    """A checked document as a Job; ``where`` names it in messages. Raises JobError."""
    given = [key for key in ("command", "script", "glidein") if document.get(key)]
    if len(given) != 1:
        said = f", not both {' and '.join(given)}" if given else ""
        raise JobError(f"{where}: give one of 'command', 'script' and 'glidein'{said}",
                       "command: [./program, argument] or script: | and the lines below it (or glidein:)")
    job = codec.read(Job, {"name": name, **document, **_plain(document, where)}, where, units=True)
    return as_glidein(job, job.glidein, where) if job.glidein else job


def _plain(document: dict[str, Any], where: str) -> dict[str, Any]:
    """The keys that people may write in more than one way, as the fields of Job have them, checked. Raises JobError."""
    plain: dict[str, Any] = {
        "command": _command(document.get("command", ()), where),
        "inputs": [_input(one, f"{where}: inputs[{n}]") for n, one in enumerate(document.get("inputs", ()))],
        "outputs": [check_output(glob, f"{where}: outputs") for glob in _globs(document)],
        "outputs_to": check_address(_address(document), f"{where}: outputs.to"),
        "environment": {key: _env_text(value, f"{where}: environment.{key}")
                        for key, value in sorted(document.get("environment", {}).items())}}
    if "glidein" in document:
        plain["glidein"] = _glidein(document["glidein"], where)
    return plain


def as_glidein(job: Job, glidein: Glidein, where: str) -> Job:
    """``job`` as a glide-in. Raises JobError where the two do not go together, WalltimeTooShort."""
    if job.network is not Network.NAT:
        raise JobError(f"{where}: network: {job.network.value}: a glide-in has to reach its pool", "network: nat")
    if job.user not in ("", "root") or job.outputs:
        key = "outputs" if job.outputs else "user"
        raise JobError(f"{where}: {key}: not for a glide-in: its jobs run as users made for them, and it returns "
                       "HTCondor's logs", "leave the key out")
    walltime, inputs = job.resources.walltime, job.inputs
    if walltime is None and glidein.lifetime is not None:
        walltime = glidein.lifetime + BOOT + DRAIN
    check_walltime(glidein, walltime, where)
    if glidein.condor:
        inputs = (*inputs, Input(glidein.condor, Path(glidein.condor).name))
        glidein = replace(glidein, condor=Path(glidein.condor).name)
    return replace(job, glidein=glidein, user="root", outputs=(FOLDER,), inputs=inputs,
                   resources=replace(job.resources, walltime=walltime))


def _glidein(document: dict[str, Any], where: str) -> dict[str, Any]:
    attributes = dict(sorted(document.get("attributes", {}).items()))
    for key, value in [("start", document.get("start", "")), *attributes.items()]:
        if isinstance(value, str) and (re.search(r"[\x00-\x1f\\]", value) or len(value) > 500):
            raise JobError(f"{where}: glidein: {key}: holds a line break, another control character or a backslash, "
                           "or more than 500 characters", "one line of plain text a value")
    return {**document, "attributes": attributes}


def _globs(document: dict[str, Any]) -> list[str]:
    """``outputs`` is a list of globs, or {files: list of globs, to: address}."""
    outputs = document.get("outputs", [])
    return list(outputs["files"] if isinstance(outputs, dict) else outputs)


def _address(document: dict[str, Any]) -> str:
    outputs = document.get("outputs")
    return str(outputs["to"]) if isinstance(outputs, dict) else ""


def check_address(text: str, where: str, environment: Optional[Mapping[str, str]] = None) -> str:
    """The address of a folder that outputs are sent to, with what ``environment`` says in the place of ${NAME}; without
    it only looked at. Raises JobError."""
    from string import Template

    try:
        filled = Template(text).substitute(_Anything() if environment is None else environment)
    except ValueError as bad:
        raise JobError(f"{where}: {text!r}: {bad}", "write ${NAME} for a variable, and $$ for a dollar sign") from bad
    except KeyError as unknown:
        raise JobError(f"{where}: {text!r}: the job's environment has no {unknown.args[0]}",
                       "set it in the job's environment, with --env or with --set") from unknown
    host = text.split("/")[2] if re.match(r"(https?|davs?|roots?)://[^/]", text) else ""
    if text and (not host or "@" in host or re.search(r"[\x00-\x20\x7f]|[?#]|/\.\.(/|$)", filled)):
        raise JobError(f"{where}: {text!r} is no address that outputs can be sent to",
                       "such as https://HOST/FOLDER/ or root://HOST//FOLDER/, without spaces, passwords and ?")
    return text if environment is None else filled


class _Anything(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return name


def check_output(glob: str, where: str) -> str:
    """An output glob that stays in the guest's work folder. Raises JobError."""
    if glob.startswith(("/", "-")) or ".." in glob.split("/") or re.search(r"[\x00-\x1f]", glob):
        raise JobError(f"{where}: {glob!r} must be a path below the work folder",
                       "copy the file into the work folder at the end of the program, and name it here")
    from vmjob.core.ownnames import reserved

    if reserved(next((part for part in glob.split("/") if part not in ("", ".")), "")):
        raise JobError(f"{where}: {glob!r} is a name that vmjob or the batch system keeps for itself among the results",
                       "give this output another name")
    return glob


def parse_input(text: str, where: str) -> Input:
    """``PATH`` or ``PATH:NAME`` of the command line. Raises JobError."""
    source, _, target = text.partition(":")
    return Input(**_input({"from": source, "to": target} if target else source, where))


def with_parameters(job: Job, query: str, where: str) -> Job:
    """``job`` with environment variables of its own, written as in an address (``SEED=3&EVENTS=200``), over those it
    has. Raises JobError."""
    from urllib.parse import parse_qsl

    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as bad:
        raise JobError(f"{where}: {query!r}: {bad}", "write it as NAME=VALUE&NAME=VALUE, percent-encoded") from bad
    for name, value in pairs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise JobError(f"{where}: {name!r} is no name of an environment variable", "use letters, digits and _")
        _env_text(value, f"{where}: {name}")
    return replace(job, environment=tuple(sorted({**dict(job.environment), **dict(pairs)}.items())))


def _command(command: Any, where: str) -> tuple[str, ...]:
    if isinstance(command, str):
        try:
            return tuple(shlex.split(command))
        except ValueError as bad:
            raise JobError(f"{where}: command: {bad}", "balance the quotes, or write it as a list") from bad
    words = tuple(str(word) for word in command)
    if any("\x00" in word for word in words):
        raise JobError(f"{where}: command: a word holds a NUL byte", "remove it")
    return words


def _input(one: Any, where: str) -> dict[str, str]:
    if isinstance(one, str):
        one = {"from": one}
    strange = sorted(set(one) - {"from", "to"})
    if strange or not isinstance(one.get("from"), str) or not one["from"]:
        raise JobError(f"{where}: expected a path, or {{from: path, to: name}}"
                       + (f", found the key '{strange[0]}'" if strange else ""), "see vmjob schema job")
    target = str(one.get("to", ""))
    if target.startswith("/") or ".." in target.split("/"):
        raise JobError(f"{where}: to: {target!r} must stay below the work folder", "write a relative path")
    return {"source": one["from"], "target": target}


def _env_text(value: Any, where: str) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if "\x00" in text:
        raise JobError(f"{where}: holds a NUL byte", "remove it")
    return text
