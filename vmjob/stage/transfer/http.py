"""HTTP and HTTPS as sites have it: trust, proxies that may be broken, redirects, tokens for whom they are meant.

requests does each single exchange; what it would decide by itself (netrc, certifi, redirects with headers) is decided
here. A Web may be used by several threads; each exchange has connections of its own.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional
from urllib.parse import urljoin
from weakref import WeakSet

from vmjob.core import config
from vmjob.core.machinetext import is_number
from vmjob.stage.transfer import credentials, proxies
from vmjob.stage.transfer.addresses import Origin, is_own, origin
from vmjob.stage.transfer.flow import Failed, explain
from vmjob.stage.transfer.patience import PATIENCE, Patience

if TYPE_CHECKING:
    import requests

_HOPS = 10
# Where distributions keep their authorities, for a Python whose OpenSSL was built to look elsewhere.
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
            "/etc/ssl/cert.pem")
_AGAIN = (408, 421, 423, 425, 429, 500, 502, 503, 504, 507)
CERTIFICATES = ("SSL_CERT_FILE names a file of authorities to trust instead of the system's, X509_CERT_DIR the grid's "
                "folder beside them")


class Web:
    """What the exchanges of one fetch share. ``note`` hears what a person should know, such as of a broken proxy."""

    def __init__(self, patience: Patience = PATIENCE, note: Callable[[str], None] = lambda _: None) -> None:
        self.patience, self._note = patience, note
        self._broken: set[tuple[str, str]] = set()  # proxies, and for whom: empty for all
        self._opened: WeakSet[Any] = WeakSet()  # connections
        self._contexts: dict[Optional[Path], ssl.SSLContext] = {}
        self._turn, self._over = threading.Lock(), False
        for name in ("urllib3", "urllib3.connection", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)  # it would log what a query holds

    def cut(self) -> None:
        """End whatever waits for a server, in any thread; nothing is asked any more. Never raises."""
        self._over = True
        for connection in list(self._opened):
            with suppress(OSError, AttributeError, ValueError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def request(self, method: str, url: str, headers: Callable[[str], Mapping[str, str]], *,
                data: Optional[Callable[[], Any]] = None, trusted: bool = False,
                proxy_certificate: bool = False, fresh: bool = False, wait: float = 0) -> requests.Response:
        """Ask, and follow where that leads; the answer's body is still to be read, and the caller closes it.

        ``headers`` makes those for one address on the way; ``data`` makes the body for each. ``trusted``: the user
        named the address, it may have a token at once. ``proxy_certificate``: show the user's X.509 proxy to those who
        ask for it and may see it (credentials.py).
        ``fresh``: past caches. ``wait``: seconds for an answer to begin, instead of a stall's. Raises Failed, also for
        statuses of 400 and more.
        """
        first, seen, token = _whom(url), set[str](), ""
        if trusted:
            token = credentials.token_for(url, os.environ, trusted=True)
        for _ in range(_HOPS):
            own = dict(headers(url))
            if token and _whom(url) == first:
                own["Authorization"] = f"Bearer {token}"
            if fresh:
                own["Cache-Control"] = "no-cache"
            here = _whom(url)
            shows = proxy_certificate and ((trusted and here == first) or credentials.named(here.host, os.environ))
            answer = self._once(method, url, own, data, shows, wait)
            if answer.status_code in (401, 403) and not token and _whom(url) == first:
                token = credentials.token_for(url, os.environ)
                if token:
                    answer.close()
                    continue
            if answer.status_code in (301, 302, 303, 307, 308) and answer.headers.get("Location"):
                seen.add(url)
                url = _next(first, url, answer, trusted)
                if url in seen:
                    raise Failed("its redirects go round in a circle", final=True)
                continue
            if answer.status_code >= 400:
                raise self._refused(answer)
            return answer
        raise Failed(f"more than {_HOPS} redirects, one after the other", final=True)

    def _once(self, method: str, url: str, headers: dict[str, str], data: Optional[Callable[[], Any]],
              proxy_certificate: bool, wait: float) -> requests.Response:
        """One exchange: through the proxy, and where that gets no answer, without. Raises Failed."""
        import requests

        own = {"User-Agent": "vmjob", "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        fault: Optional[proxies.Fault] = None
        for proxy in self._roads(url):
            if self._over:
                raise Failed("it was left", final=True)
            session = self._session(url, proxy_certificate)
            # a proxy that keeps us waiting must leave time for a try without it
            stall = self.patience.stall / 2 if proxy else self.patience.stall + 1
            try:
                answer = session.request(method, url, headers=own, data=data() if data else None, stream=True,
                                         allow_redirects=False, timeout=(self.patience.connect, wait or stall),
                                         proxies={"http": proxy, "https": proxy} if proxy else {})
            except (requests.RequestException, OSError, ValueError) as failure:
                session.close()
                # what was sent whole may have arrived: whoever sends it looks first
                if not proxy or _certificate(failure) or (data and is_timeout(failure)):
                    raise _failed(failure, fault) from failure
                fault = proxies.fault_in(failure, explain(failure))
            else:
                fault = proxies.fault_of(answer) if proxy else None
                if not proxy or fault is None:
                    return answer
                answer.close()
            self._leave(proxy, url, fault)
        raise AssertionError("the last road has no proxy")

    def _roads(self, url: str) -> Iterator[Optional[str]]:
        proxy = proxies.proxy_for(url, os.environ)
        if proxy and not self._broken & {(proxy, ""), (proxy, origin(url).place)}:
            yield proxy
        yield None

    def _leave(self, proxy: str, url: str, fault: proxies.Fault) -> None:
        """For good only where the proxy is at fault: the server behind it may be down as well."""
        place = origin(url).place
        if fault.proxy and (proxy, "") not in self._broken:
            self._note(f"the proxy {credentials.shown(proxy)} does not work ({fault}): going on without it")
        elif fault.host and not fault.proxy:
            self._note(f"the proxy {credentials.shown(proxy)} does not let us to {place} ({fault}): going without it")
        if fault.proxy or fault.host:
            self._broken.add((proxy, "" if fault.proxy else place))

    def _session(self, url: str, proxy_certificate: bool) -> requests.Session:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.poolmanager import pool_classes_by_scheme

        context = self._context(proxy_certificate) if url.startswith("https:") else None
        opened = self._opened

        class Adapter(HTTPAdapter):
            """Trusts whom our context trusts, and reads no file of certifi's."""

            def init_poolmanager(self, *args: Any, **more: Any) -> None:
                super().init_poolmanager(*args, **more, ssl_context=context)
                self._noting(self.poolmanager, guarded=True)

            def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
                return self._noting(super().proxy_manager_for(proxy, **more, ssl_context=context))

            def _noting(self, manager: Any, guarded: bool = False) -> Any:
                manager.pool_classes_by_scheme = {scheme: partial(proxies.noting, kind, opened, guarded)
                                                  for scheme, kind in pool_classes_by_scheme.items()}
                return manager

            def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
                conn.cert_reqs = "CERT_REQUIRED"

        session = requests.Session()
        session.trust_env = False  # no netrc: who is told a password is the address's to say
        for scheme in ("http://", "https://"):
            session.mount(scheme, Adapter())
        return session

    def _context(self, proxy_certificate: bool) -> ssl.SSLContext:
        shown = credentials.user_proxy(os.environ) if proxy_certificate else None
        with self._turn:
            if shown not in self._contexts:
                self._contexts[shown] = trust(shown)
            return self._contexts[shown]

    def _refused(self, answer: requests.Response) -> Failed:
        status, reason = answer.status_code, answer.reason or ""
        answer.close()
        text = f"{status} {''.join(c for c in reason if c.isprintable())[:60]}".strip()
        if status not in _AGAIN:
            return Failed(text, final=True, denied=status in (401, 403))
        after = answer.headers.get("Retry-After", "")
        return Failed(text, after=min(float(after), self.patience.retry_after) if is_number(after) else 0)


def trust(client: Optional[Path] = None) -> ssl.SSLContext:
    """The authorities: REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or SSL_CERT_FILE (SSL_CERT_DIR) instead of the system's;
    beside them the grid's folder, where there is one. ``client``: a certificate with its key to show. Raises Failed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    named = next((os.environ[n] for n in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
                  if os.environ.get(n)), "")
    try:
        if named:
            folder = Path(named).is_dir()
            context.load_verify_locations(cafile=None if folder else named, capath=named if folder else None)
        else:
            _system(context)
        if config.ca_dir().is_dir():
            context.load_verify_locations(capath=str(config.ca_dir()))
    except (OSError, ssl.SSLError) as broken:
        raise Failed(f"the authorities in {named or config.ca_dir()} cannot be read: {explain(broken)}",
                     broken=True) from broken
    if client:
        with suppress(OSError, ssl.SSLError):  # one that cannot be used is as none: the server says what it lacks
            context.load_cert_chain(client, password="")  # never ask a terminal for one
    return context


def _system(context: ssl.SSLContext) -> None:
    context.load_default_certs()
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):
        return
    found = next((name for name in _BUNDLES if Path(name).is_file()), None)
    if found:
        context.load_verify_locations(cafile=found)
        return
    import pkgutil

    data = pkgutil.get_data("certifi", "cacert.pem")  # also from within vmjob.pyz
    context.load_verify_locations(cadata=(data or b"").decode("ascii"))


def _whom(url: str) -> Origin:
    """Whom an exchange is with. Raises Failed where the address is odd, which all would read in their own way."""
    found = origin(url)
    if found.scheme not in ("http", "https"):
        raise Failed("this is no address of http", broken=True)
    return found


def _next(first: Origin, url: str, answer: requests.Response, trusted: bool) -> str:
    """Where a redirect leads. ``trusted``: the user named the first address, for outputs of
    hers. Raises Failed."""
    answer.close()
    shown = credentials.shown(answer.headers["Location"])
    try:
        target = urljoin(url, answer.headers["Location"])
        found = _whom(target)
    except (Failed, ValueError) as odd:
        raise Failed(f"it leads to {shown}, which is no address of http", final=True) from odd
    if is_own(found.host) and not is_own(first.host):
        raise Failed(f"it leads to {shown}, which is this machine itself", final=True)
    if trusted and first.scheme == "https" and found.scheme == "http":
        raise Failed(f"it leads to {shown}, where everybody on the way could read and change it", final=True)
    return target


def _certificate(failure: BaseException) -> Optional[ssl.SSLCertVerificationError]:
    return next((e for e in proxies.chain(failure) if isinstance(e, ssl.SSLCertVerificationError)), None)


def _failed(failure: BaseException, fault: Optional[proxies.Fault]) -> Failed:
    """``fault``: what became of it through the proxy, before."""
    import requests

    refused = _certificate(failure)
    if refused:
        return Failed(f"its certificate is not trusted: {refused.verify_message}", broken=True, denied=True)
    through = f" (through the proxy: {fault})" if fault and not fault.proxy else ""
    if isinstance(failure, requests.ConnectTimeout):
        return Failed(f"it cannot be reached (no answer to a connection){through}")
    if is_timeout(failure):
        return Failed(f"no byte came in time{through}")
    if isinstance(failure, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, UnicodeError)):
        return Failed("this is no address", final=True)
    return Failed(f"{explain(failure)}{through}")


def is_timeout(failure: BaseException) -> bool:
    """Whether somewhere below a socket waited in vain."""
    return any(isinstance(e, (TimeoutError, socket.timeout)) for e in proxies.chain(failure))
