"""A BDII asked by LDAP, and not believed: entries and bytes are counted, pointers elsewhere are not followed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from vmjob.ads.site_ad import SiteAd
from vmjob.core.errors import VmjobError
from vmjob.core.site_errors import SitesRefused, SitesUnreachable
from vmjob.core.units import format_size
from vmjob.sites import glue1, glue2
from vmjob.sites.answer import Answer
from vmjob.sites.glue import Entry, entry, shown
from vmjob.sites.sources import GLUE1, GLUE2, Source

ENTRIES = 20000
BYTES = 64 * 2**20
SITES = 1000
_PAGE = 1000
_PIECE = 2**18  # bytes taken at once: ldap3 copies all it has of a message with each
_PAGED = "1.2.840.113556.1.4.319"  # RFC 2696
_DONE, _TIME_LIMIT, _SIZE_LIMIT, _REFERRAL, _ADMIN_LIMIT, _NOTHING = 0, 3, 4, 10, 11, 32
_NARROWER = "ask a BDII of your own region or VO; ldap://HOST:2170/BASE asks for a part of the tree"
_DOWN = "is it up, and reachable from here? 'timeout:' in sites.yaml gives it more time"


def ask(source: Source) -> Answer:
    """GLUE 2 and GLUE 1.3, or what the source's base is of. Raises SitesUnreachable, SitesRefused."""
    with _Bdii(source) as bdii:
        ads = list[SiteAd]()
        base = source.base.lower().replace(" ", "")
        if not base.endswith(GLUE1):
            ads += bdii.glue2(source.base or GLUE2)
        if not base.endswith(GLUE2):
            ads += bdii.glue1(source.base or GLUE1)
    return Answer(tuple(ads), tuple(bdii.notes))


class _Bdii:
    """A connection. What can go wrong with it is named here."""

    def __init__(self, source: Source) -> None:
        self.source, self.notes = source, list[str]()
        self._until = time.monotonic() + source.timeout
        self._entries, self._bytes = ENTRIES, BYTES
        self._connection: Any = None

    def __enter__(self) -> _Bdii:
        try:
            import ldap3
        except ImportError as missing:
            raise VmjobError("the Python package ldap3 is not installed here",
                             "install the package python3-ldap3, or by pip 'ldap3<3'; only the submit side needs it"
                             ) from missing
        server = ldap3.Server(self.source.host, port=self.source.port, get_info=ldap3.NONE,
                              connect_timeout=self.source.timeout)
        self._connection = ldap3.Connection(
            server, read_only=True, check_names=False, auto_referrals=False, auto_range=False,
            return_empty_attributes=False, receive_timeout=self.source.timeout)
        self._guarded(self._connection.open, read_server_info=False)
        self._socket = self._connection.socket
        self._connection.socket = _Counted(self._socket, self)
        self._connection.strategy.socket_size = _PIECE
        self._guarded(self._connection.bind, read_server_info=False)
        self._check()
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def glue2(self, base: str) -> list[SiteAd]:
        services = {one.dn.lower(): one for one in self._search(base, glue2.SERVICES, glue2.ATTRIBUTES)}
        self._few(len(services))
        parts = f"(|{''.join(f'(objectClass={one})' for one in glue2.PARTS)})"
        return [ad for one in services.values() if one.dn.lower().endswith(GLUE2)
                if (ad := glue2.site(one, list(self._search(one.dn, parts, glue2.ATTRIBUTES)), self.notes))]

    def glue1(self, base: str) -> list[SiteAd]:
        """Sites are searched whole, by their part of the tree: there, entries are tied by keys."""
        found = [one.dn.lower() for one in self._search(base, glue1.FOUND, ("objectClass",))]
        trees = dict.fromkeys(dn[dn.index("mds-vo-name="):] for dn in found
                              if "mds-vo-name=" in dn and dn.endswith(GLUE1))
        self._few(len(trees))
        parts = f"(|{''.join(f'(objectClass={one})' for one in glue1.PARTS)})"
        return [ad for tree in trees
                for ad in glue1.sites(list(self._search(tree, parts, glue1.ATTRIBUTES)), self.notes)]

    def _few(self, count: int) -> None:
        if count > SITES:
            raise SitesRefused(f"{self.source}: it tells of {count} services that run virtual machines; more than "
                               f"{SITES} are not believed", _NARROWER)

    def _search(self, base: str, query: str, attributes: Sequence[str]) -> Iterator[Entry]:
        """By pages, so that the end of our patience, or of our belief, is the end of the search too."""
        import ldap3

        cookie: Any = None
        most = self._entries + 1  # of all pages together
        while True:
            self._guarded(
                self._connection.search, base, query, ldap3.SUBTREE, ldap3.DEREF_NEVER, attributes,
                size_limit=most, time_limit=max(1, round(self.left)), paged_size=_PAGE,
                paged_cookie=cookie, paged_criticality=False)
            for one in self._connection.response or ():
                if one["type"] == "searchResEntry":
                    self._entries -= 1
                    yield entry(one["raw_dn"], one["raw_attributes"], self.notes)
                elif one["type"] == "searchResRef":
                    self.notes.append(f"it points to another server ({shown(str(one.get('uri')))}): not followed")
            self._check()
            controls = self._connection.result.get("controls") or {}
            cookie = controls.get(_PAGED, {}).get("value", {}).get("cookie")
            if not cookie:
                return
            self._entries -= _PAGE // 100  # that there is one more counts too, or it could give empty ones for ever

    def _check(self) -> None:
        """What the last answer said of itself."""
        result = self._connection.result or {}
        code = result.get("result")
        if self._entries < 0 or (code == _SIZE_LIMIT and self._entries < _PAGE):
            raise SitesRefused(f"{self.source}: it has more than {ENTRIES} entries for virtual machines, which is not "
                               "believed", _NARROWER)
        if code in (_SIZE_LIMIT, _ADMIN_LIMIT):
            raise SitesRefused(f"{self.source}: it does not give all its entries ({ENTRIES - self._entries} came)",
                               "its sizelimit is too low: tell those who run it")
        if code == _TIME_LIMIT:
            raise SitesUnreachable(f"{self.source}: it did not end its search in time", _DOWN)
        if code == _REFERRAL:
            where = ", ".join(map(str, result.get("referrals") or ()))
            self.notes.append(f"it points to another server ({shown(where)}): not followed")
        elif code not in (_DONE, _NOTHING):
            said = " ".join(str(result.get(key) or "") for key in ("description", "message"))
            raise SitesRefused(f"{self.source}: it refuses: {shown(said.strip())}", "tell those who run it")

    def _guarded(self, call: Any, *words: Any, **more: Any) -> None:
        """What a library of 100 modules raises over what a stranger sends."""
        from ldap3.core.exceptions import LDAPCommunicationError, LDAPInvalidDnError

        try:
            call(*words, **more)
        except (VmjobError, MemoryError):
            raise
        except LDAPInvalidDnError as wrong:
            raise SitesRefused(f"{self.source}: no DN: {shown(str(wrong))}", _NARROWER) from wrong
        except (LDAPCommunicationError, OSError) as failed:
            raise SitesUnreachable(f"{self.source}: {_why(failed)}", _DOWN) from failed
        except Exception as odd:
            raise SitesRefused(f"{self.source}: what it answers is no LDAP ({type(odd).__name__}: {shown(str(odd))})",
                               "check host and port; tell those who run it") from odd

    @property
    def left(self) -> float:
        return self._until - time.monotonic()

    def came(self, count: int) -> None:
        """Raises SitesRefused when that is too much."""
        self._bytes -= count
        if self._bytes < 0:
            raise SitesRefused(f"{self.source}: it answers with more than {format_size(BYTES)}", _NARROWER)

    def late(self) -> SitesUnreachable:
        return SitesUnreachable(f"{self.source}: no whole answer within {self.source.timeout} s", _DOWN)


class _Counted:
    """A socket for ldap3 that ends at the deadline, however slowly bytes drip, and when there are too many."""

    def __init__(self, inner: Any, bdii: _Bdii) -> None:
        self._inner, self._bdii = inner, bdii

    def recv(self, amount: int) -> bytes:
        left = self._bdii.left
        if left <= 0:
            raise self._bdii.late()
        self._inner.settimeout(left)
        try:
            data: bytes = self._inner.recv(amount)
        except (TimeoutError, socket.timeout) as late:
            raise self._bdii.late() from late
        self._bdii.came(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _why(failed: BaseException) -> str:
    """Of ldap3's sentences, the part for people."""
    text = str(failed).lower()
    for sign, said in (("timed out", "no answer to a connection"), ("timeout", "no answer to a connection"),
                       ("refused", "connection refused"), ("unreachable", "no way to it from here"),
                       ("no route", "no way to it from here"), ("invalid server address", "no such host"),
                       ("name or service", "no such host"), ("terminated", "it ended the connection"),
                       ("no response", "it ended the connection"), ("reset", "it ended the connection")):
        if sign in text:
            return said
    return shown(str(failed))
