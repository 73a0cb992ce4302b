"""LDIF (RFC 2849) that survives a BDII.

bdii-update (6.0.3) does not parse LDIF, it cuts text: at every ``dn:``, wherever that stands, after it has
decoded base64; what changed it hands to ldapmodify as it is, so that a line break in a value would begin an order of
its own. Base64 is thus no shelter, and a DN in base64 is not understood at all. So values are made harmless here:
control characters become blanks, ``dn:`` is written ``dn%3A``, and identifiers are of few characters.
"""

from __future__ import annotations

import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Optional, Union
from urllib.parse import quote

Values = Union[None, str, int, Iterable[str]]
_CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")
LONGEST = 200  # characters of an identifier
_AUTHORITY = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*")


@dataclass(frozen=True)
class Entry:
    """``dn`` and all values are as they are written."""

    dn: str
    attributes: tuple[tuple[str, tuple[str, ...]], ...]

    def get(self, name: str) -> tuple[str, ...]:
        return next((values for key, values in self.attributes if key == name), ())


def entry(key: str, value: str, parent: str, classes: Iterable[str], attributes: Mapping[str, Values],
          ia5: bool = False) -> Entry:
    """The entry ``KEY=VALUE,PARENT``. What has no value is left out, as LDAP knows no empty ones. ``ia5``: the schema
    takes ASCII only and does not tell upper from lower case: GLUE 1.3. ``value`` comes from ``identifier``."""
    made = {"objectClass": tuple(classes), key: (value,)}
    for name, given in attributes.items():
        many = () if given is None else (given,) if isinstance(given, str) else \
            (str(given),) if isinstance(given, int) else given
        values = _distinct((_ia5(clean(one)) if ia5 else clean(one) for one in many), fold=ia5)
        if values:
            made[name] = values
    return Entry(f"{key}={value},{parent}", tuple(made.items()))


def _distinct(values: Iterable[str], fold: bool) -> tuple[str, ...]:
    """A value that is there twice makes slapd refuse the entry, whatever its case where the schema ignores that."""
    return tuple({one.lower() if fold else one: one for one in values if one}.values())


def text(entries: Iterable[Entry]) -> str:
    """All of them; no comments, no folded lines."""
    return "\n".join(_written(one) for one in entries)


def _written(one: Entry) -> str:
    lines = [f"dn: {one.dn}"]
    for name, values in one.attributes:
        lines += [f"{name}: {value}" if _plain(value) else f"{name}:: {b64encode(value.encode()).decode()}"
                  for value in values]
    return "\n".join(lines) + "\n"


def _plain(value: str) -> bool:
    """RFC 2849 SAFE-STRING, of what ``clean`` left."""
    return value.isascii() and value[:1] not in (":", "<")


def clean(value: str) -> str:
    """One line of text that no BDII cuts: of an address the host has ``dN:``, as case means nothing there; elsewhere
    it is ``dn%3A``."""
    if not (value.isascii() and value.isprintable()):
        value = "".join(" " if unicodedata.category(one) in _CONTROL else one for one in value)
    value = " ".join(value.split())
    if "dn:" in value:
        value = _AUTHORITY.sub(lambda found: found.group().replace("dn:", "dN:"), value).replace("dn:", "dn%3A")
    return value


def _ia5(value: str) -> str:
    if value.isascii():
        return value
    plain = unicodedata.normalize("NFKD", value)
    return clean("".join(one if one.isascii() else "?" for one in plain if not unicodedata.combining(one)))


def words(values: Iterable[str]) -> str:
    """Words with commas between; in a word commas and blanks, which separate, become ``_`` (as vmjob.core.classads)."""
    return ",".join(re.sub(r"[,\s]", "_", clean(one)) for one in values)


def identifier(*parts: str) -> str:
    """A name for a DN, of ``parts`` with colons between: letters, digits, ``. _ - : / @``, the rest as %XX. Nothing
    there is for RFC 4514 to escape, and nothing that slapd and bdii-update would write in two ways."""
    text = quote(":".join(parts).encode("utf-8", "replace"), safe=":/@")
    return short(text.replace("~", "%7E").replace("dn:", "dn%3A"))


def short(name: str) -> str:
    """The same, or its beginning and a digest: slapd's database has no room for an RDN of more than 249 bytes."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST - 33]}-{sha256(name.encode()).hexdigest()[:32]}"


def distinct(names: Iterable[str]) -> list[str]:
    """The same, those that were there before (in any case: DNs have none for bdii-update) with a number behind."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        count = seen[name.lower()] = seen.get(name.lower(), 0) + 1
        made.append(name if count == 1 else short(f"{name}/{count}"))
    return made


def moment(seconds: int) -> Optional[str]:
    """As GLUE 2 writes a time; None for 0."""
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else None
