"""Who we are to a storage: a bearer token as WLCG finds it, an X.509 proxy; and who may be told.

A manifest comes from an image maker, so its addresses must not decide who sees what. One rule for all secrets: a token,
a proxy certificate, and whatever XRootD's programs would show, go to hosts in VMJOB_TOKEN_HOSTS
(``dcache.example.org,*.example.net``) and to what the user herself names in the job; a token also to a host that it
was made for (its ``aud`` names the host). Never over plain http. Where a redirect leads to another host, that one must
be in VMJOB_TOKEN_HOSTS for the certificate, and sees no token.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import stat
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Optional
from urllib.parse import parse_qsl, unquote, urlsplit

from vmjob.stage.addresses import origin

_LARGEST = 64 * 2**10
_JWT = re.compile(r"[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*")
_TOKEN_NAMES = ("BEARER_TOKEN", "BEARER_TOKEN_FILE")


def bearer_token(environ: Mapping[str, str]) -> str:
    """The token by WLCG's rules: BEARER_TOKEN, else the file BEARER_TOKEN_FILE, $XDG_RUNTIME_DIR/bt_uUID,
    /tmp/bt_uUID. Empty where there is none."""
    if environ.get("BEARER_TOKEN", "").strip():
        return _plain(environ["BEARER_TOKEN"])
    if environ.get("BEARER_TOKEN_FILE"):
        return _read(Path(environ["BEARER_TOKEN_FILE"]), own=False)
    folders = [environ[name] for name in ("XDG_RUNTIME_DIR",) if environ.get(name)] + ["/tmp"]
    return next((token for folder in folders if (token := _read(Path(folder) / f"bt_u{os.getuid()}", own=True))), "")


def _read(path: Path, own: bool) -> str:
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if own else 0))
        with os.fdopen(opened, "rb", buffering=0) as file:
            if own and os.fstat(opened).st_uid != os.getuid():
                return ""  # somebody else's, in a folder that everybody writes to
            return _plain((file.read(_LARGEST) or b"").decode(errors="replace"))
    except OSError:
        return ""


def _plain(text: str) -> str:
    text = text.strip()
    return text if re.fullmatch(r"[!-~]+", text) else ""  # it goes into a header


def token_for(url: str, environ: Mapping[str, str], *, trusted: bool = False) -> str:
    """The token to send to ``url``; empty where there is none, or not for it. ``trusted``: the user named it. Raises
    Failed where it is no address."""
    parts = origin(url)
    if parts.scheme not in ("https", "davs", "roots", "root"):
        return ""
    token = bearer_token(environ)
    may = trusted or meant_for(token, parts.host, environ)
    return token if may else ""


def named(host: str, environ: Mapping[str, str]) -> bool:
    """Is ``host`` one of those that the user or the site says may see her secrets?"""
    hosts = environ.get("VMJOB_TOKEN_HOSTS", "")
    return bool(host) and any(fnmatchcase(host.lower(), pattern.strip().lower()) for pattern in hosts.split(",")
                              if pattern.strip())


def meant_for(token: str, host: str, environ: Mapping[str, str]) -> bool:
    """May ``host`` see this token, though only a manifest named it?"""
    host = host.lower()
    if not host:
        return False
    if named(host, environ):
        return True
    return any(_host(name) == host for name in _audience(token))


def _host(name: str) -> str:
    """Of an audience, which is an address, a host or any other word: empty where it names no host."""
    try:
        return urlsplit(name if "//" in name else f"//{name}").hostname or ""
    except ValueError:
        return ""


def _audience(token: str) -> list[str]:
    found = _JWT.fullmatch(token)
    if not found:
        return []
    try:
        body = json.loads(base64.urlsafe_b64decode(found.group(1) + "=="))
        named = body.get("aud", []) if isinstance(body, dict) else []
    except (ValueError, binascii.Error, RecursionError):
        return []
    # "any" in WLCG's words names nobody: https://wlcg.cern.ch/jwt/v1/any
    return [name for name in ([named] if isinstance(named, str) else named if isinstance(named, list) else ())
            if isinstance(name, str) and not name.endswith("/any") and "[" not in name]


def without_token(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a grid command, or a plug-in of HTCondor, finds no token to send."""
    gone = (*_TOKEN_NAMES, "XDG_RUNTIME_DIR", "_CONDOR_CREDS")
    kept = {name: value for name, value in environ.items() if name not in gone}
    # xrdcp also looks into /tmp: it may use all but tokens
    return {**kept, "BEARER_TOKEN_FILE": os.devnull, "XrdSecPROTOCOL": "gsi,krb5,sss,pwd,unix,host"}


def without_certificate(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which such a program finds no certificate, ticket or password to show."""
    gone = ("X509_USER_CERT", "X509_USER_KEY", "KRB5CCNAME", "XrdSecCREDS", "XrdSecGSICREATEPROXY", "XrdSecSSSKT")
    kept = {name: value for name, value in environ.items() if name not in gone}
    known = kept.get("XrdSecPROTOCOL", "ztn,unix,host").split(",")
    return {**kept, "X509_USER_PROXY": os.devnull, "KRB5CCNAME": f"FILE:{os.devnull}",
            "XrdSecPROTOCOL": ",".join(one for one in known if one in ("ztn", "unix", "host")) or "unix"}


def user_proxy(environ: Mapping[str, str]) -> Optional[Path]:
    """The user's X.509 proxy (certificate, key and chain in one file), None where there is none of hers."""
    own = environ.get("X509_USER_PROXY")
    path = Path(own or f"/tmp/x509up_u{os.getuid()}")
    try:
        found = path.stat() if own else path.lstat()  # a neighbour's link in /tmp chooses none of our files
        usable = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and os.access(path, os.R_OK)
        second = not own and found.st_nlink != 1  # nor does his second name for another of ours
        return path if usable and not second else None
    except OSError:
        return None


def shown(url: str) -> str:
    """An address as messages show it: without user, password, and what a query may hold."""
    try:
        prefix, inner = ("condor:", url[7:]) if url.startswith("condor:") else ("", url)
        parts = urlsplit(inner)
        place = parts.netloc.rpartition("@")[2]
        words = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:
        return "an address that cannot be read"
    query = "&".join(f"{name}=…" for name in words) if words else "…" if parts.query else ""
    text = parts._replace(netloc=place, query=query, fragment="").geturl()
    return prefix + "".join(c if c.isprintable() else "\ufffd" for c in unquote(text))
