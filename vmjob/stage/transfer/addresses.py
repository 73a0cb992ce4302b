"""Whom an address names: read in one place, so that who is asked for a token's sake is who is connected to.

urllib3, curl and XRootD's client each read an odd address in a way of their own (where the host ends, which of two @
counts). What they could differ about is no address here.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple, Optional, Union

from vmjob.stage.transfer.flow import Failed

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


# ---------------------------------------------------------------- numbers

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _number(text: str) -> Optional[Union[ipaddress.IPv4Address, ipaddress.IPv6Address]]:
    """The IP number that a host is; of an IPv6 number that stands for one of IPv4 the latter. None for a name."""
    try:
        found = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and (found in _NAT64 or 1 < int(found) < 2**32):  # ::127.0.0.1 is an old form of it
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        return inner or found
    return found


def is_own(host: str) -> bool:
    """Does ``host`` say that it is this machine itself?"""
    number = _number(host)
    if number is not None:
        return number.is_loopback or number.is_unspecified
    name = host.lower().rstrip(".")
    return name.endswith(".localhost") or name in (
        "localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback", socket.gethostname().lower())


def refused(peer: str, host: str) -> str:
    """Why nobody may be asked at the IP number ``peer``, to which the name or number ``host`` led; empty: somebody may.

    Nothing that has images is link-local (there are a cloud's own services, with its secrets), and what is on this
    machine's loopback says so by its name: another name that leads there is somebody's trick."""
    number = _number(peer)
    if number is None:
        return ""
    if number.is_link_local or number.is_multicast or number.is_unspecified:
        return f"at {peer}, which leaves no network"
    if number.is_loopback and not is_own(host) and host.lower() != socket.getfqdn().lower():
        return f"at {peer}, which is this machine itself"
    return ""
