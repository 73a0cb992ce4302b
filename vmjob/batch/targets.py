"""Where jobs can be sent: targets named in ``~/.config/vmjob/targets.yaml``, or given as URLs.

====================================== =============================================================
local                                  this machine, one job after the other
condor                                 the schedd of this machine's HTCondor configuration
condor://COLLECTOR[:9618][/SCHEDD]     a schedd elsewhere, found through its collector
condor-ce://HOST[:9619][/SCHEDD]       a compute element (HTCondor-CE listens on 9619)
====================================== =============================================================

A compute element is sent to directly, or ``through`` the VO's own schedd (grid universe).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from vmjob.core import config
from vmjob.core.errors import JobError
from vmjob.core.units import parse_duration

ANY = "any"  # in place of a target: see submit.anywhere
RETRIES = 3
AVOID = 600  # seconds for which a node that failed is left to others
_URL = re.compile(r"(?P<kind>[a-z-]+)(?:://(?P<host>\[[0-9a-fA-F:]+\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?"
                  r"(?:/(?P<schedd>[\w.@+-]+))?/?)?")
_PORTS = {"condor": 9618, "condor-ce": 9619}
_HINT = "a name from targets.yaml, or local, condor, condor://COLLECTOR[/SCHEDD], condor-ce://HOST[:9619]"


@dataclass(frozen=True)
class Place:
    """A schedd and the collector it is found through; both empty: what this machine's configuration says."""

    collector: str = ""
    schedd: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.collector, self.schedd))) or "the schedd of this machine"


@dataclass(frozen=True)
class Target:
    """``place``: who we submit to. ``element``: the compute element behind it, where that carries jobs on."""

    name: str
    kind: str
    place: Place = Place()
    element: Optional[Place] = None
    templates: Optional[Path] = None
    image_with_job: bool = False
    retries: int = RETRIES
    avoid: int = AVOID
    lines: tuple[tuple[str, str], ...] = ()

    @property
    def url(self) -> str:
        """Where the jobs run, whatever name the target has."""
        place = self.element or self.place
        kind = "condor-ce" if self.element else self.kind
        return f"{kind}://{place}" if place.collector else kind

    @property
    def grid_resource(self) -> str:
        """HTCondor's word for the compute element: ``condor SCHEDD COLLECTOR`` (empty where there is none). A CE's
        schedd has the name of its host."""
        if not self.element:
            return ""
        host = self.element.collector.rpartition(":")[0]
        return f"condor {self.element.schedd or host} {self.element.collector}"


def targets_file() -> Path:
    return config.settings_dir() / "targets.yaml"


def choose(text: Optional[str]) -> Target:
    """The target called ``text`` (a name of targets.yaml or a URL); without a text the file's default, else ``condor``.
    Raises JobError naming file and key."""
    document = _document()
    name = text or document.get("default") or "condor"
    if name == ANY:
        raise JobError("'any' is for vmjob submit --to alone, which asks for sites and says which it took",
                       "name the target that it printed; beforehand vmjob sites --for JOB.yaml shows what it is")
    entry = document.get("targets", {}).get(name)
    if entry is None:
        if not text and "default" in document:
            raise JobError(f"{targets_file()}: default: there is no target '{name}'", "name one of targets:")
        return _parse(name, name, name, sorted(document.get("targets", {})))
    where = f"{targets_file()}: targets.{name}"
    found = _parse(entry["url"], name, f"{where}.url", [])
    if "through" in entry:
        carrier = _parse(entry["through"], name, f"{where}.through", [])
        if found.kind != "condor-ce" or carrier.kind != "condor":
            raise JobError(f"{where}.through: only a condor-ce is reached through another schedd",
                           "through: condor, or condor://COLLECTOR[/SCHEDD]")
        if not found.place.schedd and re.match(r"[0-9.]+:|\[", found.place.collector):
            # HTCondor asks for the schedd by name, and that is not an address
            raise JobError(f"{where}.url: through another schedd a compute element is reached by its name",
                           "write its host's name, or add the name of its schedd: condor-ce://ADDRESS/SCHEDD")
        found = replace(found, place=carrier.place, element=found.place)
    return replace(
        found, templates=Path(entry["templates"]).expanduser() if "templates" in entry else None,
        image_with_job=entry.get("image") == "job", retries=int(entry.get("retries", RETRIES)),
        avoid=parse_duration(entry["avoid"], f"{where}.avoid") if "avoid" in entry else AVOID,
        lines=tuple((key, _text(value)) for key, value in entry.get("submit", {}).items()))


def at(url: str) -> Target:
    """The target at a URL that a stranger has published: a schedd or a compute element elsewhere, never this machine or
    a name of the user's. Raises JobError."""
    found = _parse(url, url, "url", [])
    if not found.place.collector:
        raise JobError(f"'{url}' names no host", _HINT)
    return found


def _document() -> dict[str, Any]:
    from vmjob.core.schema import load_yaml

    path = targets_file()
    return load_yaml(path, "targets") if path.exists() else {}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse(url: str, name: str, where: str, known: list[str]) -> Target:
    found = _URL.fullmatch(url)
    kind = found["kind"] if found else ""
    if not found or kind not in ("local", "condor", "condor-ce"):
        if known and "/" not in url:
            raise JobError(f"there is no target '{url}' in {targets_file()}", f"it has: {', '.join(known)}; or {_HINT}")
        raise JobError(f"{where}: this is no target" if where != url else f"'{url}' is no target", _HINT)
    if not found["host"]:
        if kind == "condor-ce":
            raise JobError(f"{where}: a compute element has a host", "condor-ce://HOST[:9619]")
        return Target(name, kind)
    if kind == "local":
        raise JobError(f"{where}: local is this machine and has no host", "write just: local")
    port = int(found["port"] or _PORTS[kind])
    if not 0 < port < 65536:
        raise JobError(f"{where}: {port} is no port", _HINT)
    return Target(name, kind, Place(f"{found['host']}:{port}", found["schedd"] or ""))
