"""What an admin says of a site, for all that speaks for it: ``/etc/vmjob/site.yaml``. The publisher makes the site ad
from it, nodes write usage records by it. site.schema.json and docs/site-admin.md say what the words mean."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from vmjob.ads.site_ad import Element
from vmjob.core.errors import JobError
from vmjob.core.site_errors import SiteBroken

SITE_CONFIG = Path("/etc/vmjob/site.yaml")
VALIDITY = 3600
_PORTS = {"condor-ce": ":9619", "arc": ""}


@dataclass(frozen=True)
class Accounting:
    """``format``: apel-cloud, gratia or json; one, or usage would count twice. ``spool``: see accounting.spool.
    ``service``, ``benchmark`` (name, value): what the records say of it, where the site's accounting wants it."""

    format: str
    spool: Path
    service: str = ""
    benchmark: tuple[str, float] = ("", 0.0)


@dataclass(frozen=True)
class NodeSource:
    """Where the publisher learns of the worker nodes; one of these. ``collector``: HOST[:PORT] of the pool whose
    machine ads have what the startd hook says. ``here``: all nodes are as this machine. ``files``: a pattern for what
    ``vmjob site advertise --json`` wrote, one file a node."""

    collector: str = ""
    here: bool = False
    files: str = ""


@dataclass(frozen=True)
class Site:
    """``validity``: seconds for which what is published counts. ``names``: what images are called here, by digest,
    where two lists have one name for different ones."""

    file: Path
    name: str
    vos: tuple[str, ...] = ()
    elements: tuple[Element, ...] = ()
    nodes: Optional[NodeSource] = None
    accounting: Optional[Accounting] = None
    validity: int = VALIDITY
    names: tuple[tuple[str, str], ...] = ()
    description: str = ""
    web: str = ""
    contact: str = ""
    country: str = ""
    latitude: float = 0.0
    longitude: float = 0.0


def find() -> Optional[Path]:
    """The site's file on this machine, if it has one. VMJOB_SITE_CONFIG names one where the site has none: a user's
    environment does not replace what an admin says."""
    more = os.environ.get("VMJOB_SITE_CONFIG", "")
    try:
        SITE_CONFIG.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return Path(more) if more else None
    except OSError:
        pass  # whoever reads it then says what is wrong
    return SITE_CONFIG


def load(path: Path) -> Site:
    """Raises SiteBroken naming file and key."""
    from vmjob.core.schema import load_yaml

    body = load_yaml(path, "site", SiteBroken, strict=True)
    names = tuple(body.get("names", {}).items())
    for number, (_, name) in enumerate(names):
        if name in [other for _, other in names[:number]]:
            raise SiteBroken(f"{path}: names: '{name}' stands for two images", "give each a name of its own")
    place = body.get("location", {})
    return Site(path, body["name"], tuple(body.get("vos", ())),
                tuple(_element(one) for one in body.get("elements", ())), _nodes(body, path), _accounting(body),
                _seconds(body, "validity", str(path)) or VALIDITY, names, body.get("description", ""),
                body.get("web", ""), body.get("contact", ""), body.get("country", ""), place.get("latitude", 0.0),
                place.get("longitude", 0.0))


def _element(body: dict[str, Any]) -> Element:
    kind = body.get("kind", "condor-ce")
    scheme = "https" if kind == "arc" else kind
    return Element(body["host"], body.get("url") or f"{scheme}://{body['host']}{_PORTS[kind]}", kind,
                   body.get("batch", "condor"), body.get("batch_version", ""), body.get("queue", "default"),
                   _seconds(body, "max_walltime", "elements"))


def _seconds(body: dict[str, Any], key: str, where: str) -> int:
    from vmjob.core.units import parse_duration

    try:
        return parse_duration(body[key], f"{where}: {key}") if key in body else 0
    except JobError as wrong:
        raise SiteBroken(wrong.message, wrong.hint) from wrong


def _nodes(body: dict[str, Any], path: Path) -> Optional[NodeSource]:
    if "nodes" not in body:
        return None
    if len(body["nodes"]) != 1:
        raise SiteBroken(f"{path}: nodes: one of collector, here and files", "leave the others out")
    return NodeSource(**body["nodes"])


def _accounting(body: dict[str, Any]) -> Optional[Accounting]:
    if "accounting" not in body:
        return None
    own = body["accounting"]
    benchmark = own.get("benchmark", {})
    return Accounting(own["format"], Path(own["spool"]), own.get("service", ""),
                      (benchmark.get("name", ""), benchmark.get("value", 0.0)))
