"""What slapd does not see in LDIF for a BDII, checked before anything is published: GLUE 2's enumerations, keys that
point to entries which are not there, two entries with one DN, a ``dn:`` where bdii-update would cut."""

from __future__ import annotations

import re

from cemon_publisher.ldif import Entry
from vmjob.core.errors import VmjobError

# Closed enumerations of GFD.147; Capability_t is an open one, of which we use three
_STATES = ("closed", "draining", "production", "queueing")
_QUALITY = ("development", "pre-production", "production", "testing")
_EXTENDED_BOOLEAN = ("false", "true", "undefined")
_ENUMS = {
    "GLUE2ServiceQualityLevel": _QUALITY, "GLUE2EndpointQualityLevel": _QUALITY,
    "GLUE2EndpointHealthState": ("critical", "ok", "other", "unknown", "warning"),
    "GLUE2EndpointServingState": _STATES, "GLUE2ComputingShareServingState": _STATES,
    "GLUE2ExecutionEnvironmentConnectivityIn": _EXTENDED_BOOLEAN,
    "GLUE2ExecutionEnvironmentConnectivityOut": _EXTENDED_BOOLEAN,
    "GLUE2ExecutionEnvironmentVirtualMachine": _EXTENDED_BOOLEAN,
    "GLUE2ContactType": ("general", "security", "sysadmin", "usersupport"),
    "GLUE2ApplicationEnvironmentState": (
        "installable", "installationfailed", "installedbroken", "installednotverified", "installedverified",
        "installingautomatically", "installingmanually", "pendingremoval", "removalfailed", "removing"),
}
_ENUMS["GLUE2ServiceCapability"] = _ENUMS["GLUE2EndpointCapability"] = (
    "executionmanagement.jobexecution", "executionmanagement.jobmanager", "executionmanagement.dynamicvmdeploy")
_KEY = re.compile(r"GLUE2\w*?(Service|Endpoint|Share|Manager|Resource|ExecutionEnvironment)ForeignKey")
_RDN = 249  # bytes, of which a key of LMDB has two, normalized and as given
_KIND = {"ExecutionEnvironment": "Resource"}
_ELSEWHERE = "gluesiteuniqueid="  # the site itself is the site BDII's


def glue2(entries: list[Entry]) -> list[Entry]:
    """The same entries. Raises VmjobError that names the first contradiction."""
    _plain(entries, "o=glue")
    kinds = ("Service", "Endpoint", "Share", "Manager", "Resource")
    known = {f"GLUE2{kind}ID={value}" for one in entries for kind in kinds for value in one.get(f"GLUE2{kind}ID")}
    for one in entries:
        for name, values in one.attributes:
            key = _KEY.fullmatch(name)
            for value in values:
                if name in _ENUMS and value not in _ENUMS[name]:
                    _wrong(one, f"{name}: {value} is not in GLUE 2's enumeration")
                if key and f"GLUE2{_KIND.get(key[1], key[1])}ID={value}" not in known:
                    _wrong(one, f"{name}: there is no entry {value}")
    return entries


def glue1(entries: list[Entry]) -> list[Entry]:
    """The same entries. Raises VmjobError that names the first contradiction."""
    _plain(entries, "o=grid")
    known = {one.dn.partition(",")[0].lower() for one in entries}
    for one in entries:
        for name in ("GlueForeignKey", "GlueChunkKey"):
            for value in one.get(name):
                if value.lower() not in known and not value.lower().startswith(_ELSEWHERE):
                    _wrong(one, f"{name}: there is no entry {value}")
    return entries


def _plain(entries: list[Entry], suffix: str) -> None:
    """Distinct DNs with parents before children, and nothing that bdii-update would cut or break."""
    seen: set[str] = set()
    for one in entries:
        dn, parent = one.dn.lower(), one.dn.partition(",")[2].lower()
        if dn in seen:
            _wrong(one, "it is there twice")
        if parent not in seen and parent.count(",") > suffix.count(",") + 1:
            _wrong(one, f"its parent {parent} does not come before it")
        if len(dn) - len(parent) > _RDN:
            _wrong(one, "its name is too long for slapd's database")
        seen.add(dn)
        for text in (one.dn, *(value for _, values in one.attributes for value in values)):
            if "dn:" in text or text != text.strip() or any(letter < " " for letter in text) or not text:
                _wrong(one, f"bdii-update would not take {text!r}")


def _wrong(one: Entry, why: str) -> None:
    raise VmjobError(f"{one.dn}: {why}", "nothing is published; this is a bug, please report it")
