"""Where one learns of sites: named in ``~/.config/vmjob/sites.yaml``, or given as addresses.

================================= ====================================================================
ldap://HOST[:2170][/BASE]         a BDII of a resource, a site or all sites; BASE is o=glue (GLUE 2), o=grid
                                  (GLUE 1.3) or an entry below; without one, both
condor://HOST[:9618]              the collector of a pool: its machines
condor-ce://HOST[:9619]           the collector of a compute element: what it says of its site
https://HOST/site.json            what ``vmjob-publish json`` wrote, or a list of such documents. http:// too
a path                            the same in a file
================================= ====================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union
from urllib.parse import unquote

from vmjob.core import config
from vmjob.core.errors import JobError

TIMEOUT = 10
_LONGEST = 2000  # characters of an address
GLUE2, GLUE1 = "o=glue", "o=grid"
_PORTS = {"ldap": 2170, "condor": 9618, "condor-ce": 9619}
_URL = re.compile(r"(?P<kind>[a-z-]+)://(?P<host>\[[0-9a-fA-F:]+\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?"
                  r"(?:/(?P<base>[^\x00-\x1f\x7f]{0,1000}))?")
HINT = "ldap://HOST:2170, condor://HOST, condor-ce://HOST, https://HOST/site.json, or the path of such a document"


@dataclass(frozen=True)
class Source:
    """``kind``: ldap, condor, condor-ce, http, https or file. ``place``: for file the path, for http(s) the
    address, else empty. ``base``: of a search. ``timeout``: seconds after which the others are not kept waiting."""

    url: str
    kind: str
    host: str = ""
    port: int = 0
    base: str = ""
    place: str = ""
    timeout: int = TIMEOUT

    def __str__(self) -> str:
        """For people: without what is secret in an address."""
        if not self.kind.startswith("http"):
            return self.url
        from vmjob.stage.transfer.credentials import shown

        return shown(self.url)


@dataclass(frozen=True)
class Settings:
    """``vo``: whose jobs the user's are, empty where the file does not say."""

    sources: tuple[Source, ...] = ()
    vo: str = ""


def sites_file() -> Path:
    return config.settings_dir() / "sites.yaml"


def load() -> Settings:
    """What the user's sites.yaml says; nothing where there is none. Raises JobError naming file and key."""
    from vmjob.core.schema import load_yaml

    path = sites_file()
    if not path.exists():
        return Settings()
    body = load_yaml(path, "sites", strict=True)
    usual = _seconds(body, str(path), TIMEOUT)
    found = tuple(_entry(one, f"{path}: sources.{number}", usual, path.parent)
                  for number, one in enumerate(body.get("sources", ())))
    return Settings(found, body.get("vo", ""))


def chosen(addresses: list[str], option: str = "--from") -> Settings:
    """Settings with these addresses instead of the file's sources, if there are any. Raises JobError where no source
    is left at all."""
    settings = load()
    sources = tuple(dict.fromkeys(parse(one, f"{option} {one}") for one in addresses)) or settings.sources
    if not sources:
        raise JobError(f"nothing is known that tells of sites: {sites_file()} "
                       + ("names no sources" if sites_file().exists() else "is not there"),
                       f"name one with {option}, or in that file below 'sources:': {HINT}")
    return Settings(sources, settings.vo)


def parse(url: str, where: str, timeout: int = TIMEOUT, folder: Path = Path()) -> Source:
    """``folder``: what a path begins from. Raises JobError naming ``where``."""
    if not url or len(url) > _LONGEST or not url.isprintable():
        raise JobError(f"{where[:200]}: this is no address and no path", HINT)
    if "://" not in url:
        return Source(url, "file", place=str((folder / Path(url).expanduser()).absolute()), timeout=timeout)
    if url.startswith(("http://", "https://")):
        if re.search(r"[^!-~]", url):
            raise JobError(f"{where}: an address has no spaces or other such characters", HINT)
        return Source(url, url.partition(":")[0], place=url, timeout=timeout)
    found = _URL.fullmatch(url)
    kind = found["kind"] if found else ""
    if not found or kind not in _PORTS:
        raise JobError(f"{where}: this is nothing that tells of sites", HINT)
    port = int(found["port"] or _PORTS[kind])
    if not 0 < port < 65536:
        raise JobError(f"{where}: {port} is no port", HINT)
    base = unquote(found["base"] or "")
    if base and not kind == "ldap":
        raise JobError(f"{where}: nothing comes after the host of a collector", HINT)
    if base and not re.search(r"(?:^|,)\s*o=(?:glue|grid)\s*$", base, re.I):
        raise JobError(f"{where}: the base of a search ends in {GLUE2} or {GLUE1}", f"ldap://HOST:2170/{GLUE2}")
    return Source(url, kind, found["host"].strip("[]"), port, base, timeout=timeout)


def _entry(one: Union[str, dict[str, Any]], where: str, timeout: int, folder: Path) -> Source:
    if isinstance(one, str):
        return parse(one, where, timeout, folder)
    return parse(one["url"], f"{where}.url", _seconds(one, where, timeout), folder)


def _seconds(body: dict[str, Any], where: str, usual: int) -> int:
    from vmjob.core.units import parse_duration

    return parse_duration(body["timeout"], f"{where}.timeout") if "timeout" in body else usual
