"""What is asked of HTCondor, as submit files: our definitions, then a template that a site can replace. Pure, but for
reading the template."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from vmjob.batch import nodes
from vmjob.batch.targets import Target
from vmjob.core.errors import JobError, VmjobError
from vmjob.core.ownnames import WRAPPER
from vmjob.job.parameters import PROCESS, Parameters

RESULTS = "vmjob-results.tar"
_TOKEN = f"token-{PROCESS}"
MOST_TOKENS = 1000
ONE_JOB = Parameters()
NOTHING_SAID, NOTHING_NEEDED = nodes.Said(), nodes.Needs()
SPOOL = "$(payload)"  # stands for the payload's folder while nobody knows it


@dataclass(frozen=True)
class Request:
    """What one job asks for, QEMU's own needs included. Bytes and seconds."""

    cpus: int
    memory: int
    disk: int
    walltime: Optional[int] = None


@dataclass(frozen=True)
class Submission:
    """N jobs of one kind. ``files``: the names in the payload folder; ``image_files``: where the image's files are
    here, by sha256; ``tokens``: names in the payload folder too, of glide-ins one for each job; ``needs``: of nodes."""

    name: str
    image: str
    digest: str
    request: Request
    parameters: Parameters = ONE_JOB
    files: tuple[str, ...] = ()
    image_files: dict[str, Path] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    needs: nodes.Needs = NOTHING_NEEDED


def token_names(count: int) -> tuple[str, ...]:
    """One for each job, so that each can go when its job is over. Raises JobError."""
    if count > MOST_TOKENS:
        raise JobError(f"{count} glide-ins in one submission: the most is {MOST_TOKENS}", "submit several times")
    return tuple(_TOKEN.replace(PROCESS, str(number)) for number in range(count))


def jobs_description(target: Target, submission: Submission, payload: str, image_at: str, tokens_at: str = "",
                     said: nodes.Said = NOTHING_SAID) -> str:
    """The submit file of the jobs. ``payload``: the folder at the schedd; ``image_at``, ``tokens_at``: where the node
    fetches the image (empty: from its sources) and the token, a folder at the schedd or the carrier's CLUSTER.PROC
    there; ``said``: what its nodes say. Raises JobError where a site's template cannot be read."""
    from vmjob.core.version import __version__

    request = submission.request
    inputs = [f"{payload}/{name}" for name in submission.files if name != WRAPPER]
    arguments = f"--pack {RESULTS}"
    if target.image_with_job:
        inputs += [f"{image_at}/{sha256}" for sha256 in sorted(submission.image_files)]
    elif image_at:
        arguments += f" --image-at {image_at}"
    if submission.tokens and target.image_with_job:  # no Chirp there
        inputs.append(f"{payload}/{_TOKEN}")
        arguments += f" --token-at {_TOKEN}"
    elif submission.tokens:
        arguments += f" --token-at {tokens_at}/{_TOKEN}"
    shared = submission.parameters.shared + ("&" if submission.parameters.rows and submission.parameters.shared else "")
    definitions = {
        "vmjob_name": submission.name, "vmjob_image": submission.image, "vmjob_digest": submission.digest,
        "vmjob_version": __version__, "vmjob_cpus": str(request.cpus),
        "vmjob_memory": str(-(-request.memory // 2**20)), "vmjob_disk": str(-(-request.disk // 2**10)),
        **({"vmjob_walltime": str(request.walltime)} if request.walltime else {}),
        "vmjob_retries": str(target.retries), "vmjob_avoid": str(target.avoid),
        # joined with ours, which leave nodes alone that failed
        "vmjob_requirements": dict(target.lines).get("requirements", "true"),
        "vmjob_nodes": nodes.requirements(submission.needs, said),
        "vmjob_rank": nodes.rank(submission.needs, submission.digest),
        "vmjob_payload": payload, "vmjob_inputs": ",".join(inputs),
        "vmjob_arguments": f"{arguments} --parameters={shared}$(parameters)",
    }
    if target.element:
        definitions["vmjob_element"] = target.grid_resource
    text = _render(target, "condor-ce" if target.element else "condor", definitions)
    return text + "".join(f"{key} = {value}\n" for key, value in target.lines if key != "requirements")


def carrier_description(target: Target, holds: str, what: str, title: str, files: list[Path], keep: int, *,
                        grid: bool = False) -> str:
    """The submit file of a carrier. ``keep``: seconds until the schedd may drop it."""
    for path in files:
        if re.search(r"[,\n]|\$[($]", str(path)):
            raise JobError(f"{path}: HTCondor cannot transfer a file with a comma or $( in its path",
                           "move or rename the folder, or name another one for temporary files: TMPDIR")
    definitions = {"vmjob_title": f"vmjob keeps the {holds} {title}", "vmjob_holds": holds, "vmjob_what": what,
                   "vmjob_files": ",".join(map(str, files)), "vmjob_keep": str(keep)}
    if grid:
        definitions["vmjob_element"] = target.grid_resource
    return _render(target, "carrier-ce" if grid else "carrier", definitions)


def _render(target: Target, name: str, definitions: dict[str, str]) -> str:
    for key, value in definitions.items():
        if "\n" in value:
            raise JobError(f"{key}: {value!r} has a line break in it", "HTCondor's submit files have one line a value")
    return "".join(f"{key} = {value}\n" for key, value in definitions.items()) + "\n" + _template(target, name)


def _template(target: Target, name: str) -> str:
    """The site's or the user's own file where there is one, else ours."""
    import pkgutil

    own = target.templates / f"{name}.sub" if target.templates else None
    if target.templates and not target.templates.is_dir():
        raise JobError(f"{target.templates}: no such folder (templates of the target {target.name})",
                       "fix the path in targets.yaml")
    if own and own.exists():
        try:
            return own.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as unreadable:
            raise JobError(f"{own}: cannot be read: {unreadable}", "check its permissions") from unreadable
    data: Optional[bytes]
    try:
        data = pkgutil.get_data("vmjob", f"submit-templates/{name}.sub")
    except OSError:
        data = None
    if data is None:  # a checkout: they are its neighbours

        try:
            data = (Path(__file__).parents[2] / "submit-templates" / f"{name}.sub").read_bytes()
        except OSError as missing:
            raise VmjobError(f"the template {name}.sub is missing from this installation",
                             "reinstall vmjob") from missing
    return data.decode()
