"""HTTP and HTTPS as sites have it: trust, proxies that may be broken, redirects, tokens for whom they are meant.

requests does each single exchange; what it would decide by itself (netrc, certifi, redirects with headers) is decided
here. A Web may be used by several threads; each exchange has connections of its own.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional
from urllib.parse import urljoin, urlsplit

from vmjob import config
from vmjob.stage import credentials
from vmjob.stage.flow import PATIENCE, Failed, Patience, explain

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
        self._broken: set[str] = set()  # proxies
        self._contexts: dict[Optional[Path], ssl.SSLContext] = {}
        self._turn = threading.Lock()
        logging.getLogger("urllib3").setLevel(logging.WARNING)  # it would log what a query holds

    def request(self, method: str, url: str, headers: Callable[[str], Mapping[str, str]], *,
                data: Optional[Callable[[], Any]] = None, trusted: bool = False,
                proxy_certificate: bool = False, fresh: bool = False) -> requests.Response:
        """Ask, and follow where that leads; the answer's body is still to be read, and the caller closes it.

        ``headers`` makes those for one address on the way; ``data`` makes the body anew for each. ``trusted``: the user
        named the address, it may have a token at once. ``proxy_certificate``: show the user's X.509 proxy to who asks.
        ``fresh``: past caches. Raises Failed, also for statuses of 400 and more.
        """
        first, seen, token = _origin(url), set[str](), ""
        if trusted:
            token = credentials.token_for(url, os.environ, trusted=True)
        for _ in range(_HOPS):
            own = dict(headers(url))
            if token and _origin(url) == first:
                own["Authorization"] = f"Bearer {token}"
            answer = self._once(method, url, own, data, proxy_certificate, fresh)
            if answer.status_code in (401, 403) and not token and _origin(url) == first:
                token = credentials.token_for(url, os.environ)
                if token:
                    answer.close()
                    continue
            if answer.status_code in (301, 302, 303, 307, 308) and answer.headers.get("Location"):
                seen.add(url)
                url = _next(url, answer)
                if url in seen:
                    raise Failed("its redirects go round in a circle", final=True)
                continue
            if answer.status_code >= 400:
                raise self._refused(answer)
            return answer
        raise Failed(f"more than {_HOPS} redirects, one after the other", final=True)

    def _once(self, method: str, url: str, headers: dict[str, str], data: Optional[Callable[[], Any]],
              proxy_certificate: bool, fresh: bool) -> requests.Response:
        """One exchange: through the proxy, and where that is broken without. Raises Failed."""
        import requests

        own = {"User-Agent": "vmjob", "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        if fresh:
            own["Cache-Control"] = "no-cache"
        for proxy in self._roads(url):
            session = self._session(url, proxy_certificate)
            # a proxy that keeps us waiting must leave time for a try without it
            wait = self.patience.stall / 2 if proxy else self.patience.stall + 1
            try:
                answer = session.request(method, url, headers=own, data=data() if data else None, stream=True,
                                         allow_redirects=False, timeout=(self.patience.connect, wait),
                                         proxies={"http": proxy, "https": proxy} if proxy else {})
            except (requests.RequestException, OSError, ValueError) as failure:
                session.close()
                if proxy and not _certificate(failure):
                    self._leave(proxy, explain(failure))
                    continue
                raise _failed(failure) from failure
            if proxy and (answer.status_code == 407 or "X-Squid-Error" in answer.headers):
                said = answer.headers.get("X-Squid-Error", "it wants a password")
                answer.close()
                self._leave(proxy, said.split()[0] if said else "")
                continue
            return answer
        raise AssertionError("the last road has no proxy")

    def _roads(self, url: str) -> Iterator[Optional[str]]:
        proxy = proxy_for(url, os.environ)
        if proxy and proxy not in self._broken:
            yield proxy
        yield None

    def _leave(self, proxy: str, why: str) -> None:
        if proxy not in self._broken:
            self._broken.add(proxy)
            self._note(f"the proxy {credentials.shown(proxy)} does not work ({why}): going on without it")

    def _session(self, url: str, proxy_certificate: bool) -> requests.Session:
        import requests
        from requests.adapters import HTTPAdapter

        context = self._context(proxy_certificate) if url.startswith("https:") else None

        class Adapter(HTTPAdapter):
            """Trusts whom our context trusts, and reads no file of certifi's."""

            def init_poolmanager(self, *args: Any, **more: Any) -> None:
                super().init_poolmanager(*args, **more, ssl_context=context)

            def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
                return super().proxy_manager_for(proxy, **more, ssl_context=context)

            def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
                conn.cert_reqs = "CERT_REQUIRED"

        session = requests.Session()
        session.trust_env = False  # no netrc: who is told a password is the address's to say
        session.mount("https://", Adapter())
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
        return Failed(text, after=min(float(after), self.patience.retry_after) if after.isdecimal() else 0)


def proxy_for(url: str, environ: Mapping[str, str]) -> Optional[str]:
    """The proxy that the environment names for an address: http_proxy, https_proxy, all_proxy and no_proxy as everybody
    reads them; else, for plain http, the site's squid in OSG_SQUID_LOCATION."""
    from requests.utils import get_environ_proxies, select_proxy, should_bypass_proxies

    found = select_proxy(url, get_environ_proxies(url))
    if found:
        return found if "//" in found else f"http://{found}"
    squid = environ.get("OSG_SQUID_LOCATION", "")
    if url.startswith("http:") and squid and squid != "UNAVAILABLE" and not should_bypass_proxies(url, None):
        return squid if "//" in squid else f"http://{squid}"
    return None


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


def _origin(url: str) -> tuple[str, str, Optional[int]]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or ""), parts.port


def _next(url: str, answer: requests.Response) -> str:
    target = urljoin(url, answer.headers["Location"])
    answer.close()
    try:
        parts = urlsplit(target)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        raise Failed(f"it leads to {credentials.shown(target)}, which is no address of http", final=True)
    return target


def _chain(failure: BaseException) -> Iterator[BaseException]:
    todo, seen = [failure], 0
    while todo and seen < 30:
        here, seen = todo.pop(), seen + 1
        yield here
        todo += [a for a in (*here.args, getattr(here, "reason", None), here.__cause__, here.__context__)
                 if isinstance(a, BaseException)]


def _certificate(failure: BaseException) -> Optional[ssl.SSLCertVerificationError]:
    return next((e for e in _chain(failure) if isinstance(e, ssl.SSLCertVerificationError)), None)


def _failed(failure: BaseException) -> Failed:
    import requests

    refused = _certificate(failure)
    if refused:
        return Failed(f"its certificate is not trusted: {refused.verify_message}", broken=True, denied=True)
    if isinstance(failure, requests.ConnectTimeout):
        return Failed("it cannot be reached (no answer to a connection)")
    if is_timeout(failure):
        return Failed("no byte came in time")
    if isinstance(failure, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, UnicodeError)):
        return Failed("this is no address", final=True)
    return Failed(explain(failure))


def is_timeout(failure: BaseException) -> bool:
    """Whether somewhere below a socket waited in vain."""
    import socket

    return any(isinstance(e, (TimeoutError, socket.timeout)) for e in _chain(failure))
