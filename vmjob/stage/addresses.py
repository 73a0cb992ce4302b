"""Whom an address names: read in one place, so that who is asked for a token's sake is who is connected to.

urllib3, curl and XRootD's client each read an odd address in a way of their own (where the host ends, which of two @
counts). What they could differ about is no address here.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

from vmjob.stage.flow import Failed

_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/]*))?")
# user and password without \ ? # @; a host as DNS or an IP number has it
_AUTHORITY = re.compile(r'(?:[!"$->A-\[\]-~]*@)?((\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?)')


class Origin(NamedTuple):
    """``place``: host and port as they were written, without user and password. ``host``: in lower case."""

    scheme: str
    host: str
    port: Optional[int]
    place: str


def origin(url: str) -> Origin:
    """Whom ``url`` names: what is between ``//`` and the next ``/``. Raises Failed where it is odd, or none."""
    parts = _PARTS.match(url)
    found = _AUTHORITY.fullmatch(parts.group(2) or "") if parts else None
    if not parts or not found or int(found.group(3) or 1) > 65535:
        raise Failed("this is no address: before its path stands something else than HOST or HOST:PORT", broken=True)
    return Origin(parts.group(1).lower(), found.group(2).strip("[]").lower(), int(found.group(3) or 0) or None,
                  found.group(1))


def names_host(url: str) -> bool:
    """Whether something stands where a host would: ``osdf:///x`` and ``s3:x`` name none."""
    parts = _PARTS.match(url)
    return bool(parts and parts.group(2))
