"""The proxies that the environment names; what tells that one of them is to be left, and not a server behind it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Optional
from weakref import WeakSet

from vmjob.stage.transfer.addresses import refused

if TYPE_CHECKING:
    import requests

# A storage may think for an hour: a machine that is gone is told from it, and what is between us does not forget us.
_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
          (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)]


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


class Fault(str):
    """What is wrong with the way through a proxy. ``proxy``: with itself, nothing comes through it; ``host``: it does
    not let us to this one. Neither: it did not get an answer, which may be the server's fault."""

    proxy = host = False


def fault_of(answer: requests.Response) -> Optional[Fault]:
    """Whether this is a proxy's word, and no server's."""
    said = answer.headers.get("X-Squid-Error", "").split()
    if answer.status_code != 407 and not said:
        return None
    fault = Fault(said[0][:60] if said else "it wants a password")
    fault.proxy, fault.host = answer.status_code == 407, "DENIED" in fault
    return fault


def fault_in(failure: BaseException, why: str) -> Fault:
    """Of an exchange that was to go through a proxy; ``why`` is for people."""
    from requests.exceptions import InvalidProxyURL
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    fault = Fault(why)
    found = next((m for e in chain(failure) if (m := re.search(r"Tunnel connection failed: (\d+)", str(e)))), None)
    if found:
        fault.proxy, fault.host = found[1] == "407", found[1] in ("400", "403", "405", "501")
    else:
        # whom else would we have connected to; what urllib3 calls a ProxyError may be a server's
        fault.proxy = any(isinstance(e, (InvalidProxyURL, ConnectTimeoutError, NewConnectionError))
                          for e in chain(failure))
    return fault


def chain(failure: BaseException) -> Iterator[BaseException]:
    """A failure and all that it was made of."""
    todo, seen = [failure], 0
    while todo and seen < 30:
        here, seen = todo.pop(), seen + 1
        yield here
        todo += [a for a in (*here.args, getattr(here, "reason", None), here.__cause__, here.__context__)
                 if isinstance(a, BaseException)]


def noting(kind: Callable[..., Any], opened: WeakSet[Any], guarded: bool, *args: Any, **more: Any) -> Any:
    """A pool of urllib3's whose connections are kept alive, and noted in ``opened``, so that they can be cut.
    ``guarded``: they go to the server itself, and not to where no server of ours can be."""
    pool = kind(*args, **more)
    make = pool.ConnectionCls

    def made(*args: Any, **more: Any) -> Any:
        connection = make(*args, **more)
        connection.socket_options = [*(connection.socket_options or ()), *_ALIVE]
        opened.add(connection)
        if guarded:
            connect = connection._new_conn
            connection._new_conn = lambda: _guarded(connection.host, connect())
        return connection

    pool.ConnectionCls = made
    return pool


def _guarded(host: str, connected: socket.socket) -> socket.socket:
    """The connection, of which nothing has been told yet: whatever name servers say now, it is to who is there. Raises
    OSError."""
    why = refused(str(connected.getpeername()[0]), host)
    if why:
        connected.close()
        raise OSError(f"{host} is {why}, and no server of images")
    return connected
