"""IDTOKENS of HTCondor: read where they are used, checked for what can be known without the pool. They are JSON Web
Tokens (RFC 7519); who signed them only the pool can tell."""

from __future__ import annotations

import base64
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from vmjob.errors import ClockWrong, JobError, TokenRefused
from vmjob.files import SECRET
from vmjob.units import format_duration

_HOW = "a token is made in the pool: condor_token_create -identity glidein@DOMAIN -authz ADVERTISE_STARTD …"
_SKEW = 300  # seconds that two clocks may differ


@dataclass(frozen=True)
class Claims:
    """What a token says of itself. Times in seconds since 1970; None: it does not say."""

    issuer: str
    subject: str
    issued: Optional[float] = None
    expires: Optional[float] = None


def read_token(path: Path) -> str:
    """The token in a file, checked as in :func:`check`. Raises as it does, JobError naming
    the file."""
    try:
        if path.stat().st_mode & 0o007:
            raise JobError(f"{path}: everybody on this machine can read this token", f"chmod 600 {path}")
        with path.open("rb") as file:
            text = file.read(SECRET).decode("ascii", "replace").strip()
    except OSError as unreadable:
        raise JobError(f"{path}: the glide-in's token cannot be read: {unreadable.strerror}",
                       "glidein.token: the path of a file with an IDTOKEN of the pool") from unreadable
    check(text, str(path))
    return text


def check(text: str, where: str, now: Optional[float] = None) -> Claims:
    """The claims of a token that counts now. Raises JobError for what is no token, TokenRefused for one that has
    expired, ClockWrong for one that was made in the future."""
    claims = claims_of(text)
    if claims is None:
        raise JobError(f"{where}: this is no IDTOKEN", _HOW)
    moment = time.time() if now is None else now
    if claims.expires is not None and claims.expires <= moment:
        ago = format_duration(moment - claims.expires)
        raise TokenRefused(f"{where}: the token of {claims.subject} expired {ago} ago", _HOW)
    if claims.issued is not None and claims.issued > moment + _SKEW:
        late = format_duration(claims.issued - moment)
        raise ClockWrong(f"the clock of this machine is wrong: by it, {where} was made {late} from now",
                         "set the clock (timedatectl); another node may do")
    return claims


def claims_of(text: str) -> Optional[Claims]:
    """None: not a token."""
    parts = text.split(".")
    if len(parts) != 3 or not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        return None
    try:
        body = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        if not isinstance(body, dict):
            return None
        times = _moment(body.get("iat")), _moment(body.get("exp"))
    except (ValueError, RecursionError):
        return None
    return Claims(_word(body.get("iss")), _word(body.get("sub")), *times)


def _word(value: Any) -> str:
    return "".join(c for c in value if c.isprintable())[:200] if isinstance(value, str) else ""


def _moment(value: Any) -> Optional[float]:
    """Raises ValueError for a number that is no time (NaN and Infinity too, which Python's JSON has)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if not 0 <= value < 1e11:
        raise ValueError("no time")
    return float(value)
