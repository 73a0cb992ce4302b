"""What is in a certificate and in a signature, read from their DER (X.690), for names and algorithms. All that is
cryptography is openssl's (image.smime); what openssl prints is never parsed for names, as a name can hold anything.

Names are written as grid software writes them (X509_NAME_oneline of OpenSSL, ``-nameopt compat``): each part as
``/KEY=VALUE`` in the order of the certificate, KEY as OpenSSL abbreviates it (emailAddress, UID, DC …) or dotted
numbers, and every byte of the value that is not printable ASCII as ``\\xHH``. A name with a part that would read as two
(a value with ``/KEY=`` in it), or with several values in one place, is refused: this form cannot tell it from another.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import functools
import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Optional, TypeVar

_SIGNED_DATA = "1.2.840.113549.1.7.2"
_SEQUENCE, _SET, _OID, _INTEGER = 0x30, 0x31, 0x06, 0x02
_TIMES = (0x17, 0x18)
_NUMBER, _NAME, _TIME = 64, 4096, 32  # bytes, at most: of an object identifier, of a name, of a time
_AMBIGUOUS = re.compile(rb"/[A-Za-z0-9.-]+=|\\x")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_PEM_CRL = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----")
_KEYS = {
    "2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
    "2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description",
    "2.5.4.15": "businessCategory", "2.5.4.17": "postalCode", "2.5.4.20": "telephoneNumber", "2.5.4.41": "name",
    "2.5.4.42": "GN", "2.5.4.43": "initials", "2.5.4.44": "generationQualifier", "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym", "2.5.4.97": "organizationIdentifier", "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC", "1.2.840.113549.1.9.1": "emailAddress",
    "1.2.840.113549.1.9.2": "unstructuredName",
}


@dataclass(frozen=True)
class Certificate:
    """``subject`` and ``issuer`` in the slash form; times in seconds since 1970."""

    subject: str
    issuer: str
    begins: float
    expires: float
    der: bytes

    @property
    def pem(self) -> bytes:
        return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(self.der) + b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True)
class Signature:
    """A PKCS#7 signature beside its text. ``algorithms``: digest and signature algorithm of each signer, as numbers."""

    algorithms: tuple[tuple[str, str], ...]
    has_content: bool
    certificates: tuple[bytes, ...]


def certificates_of_pem(text: bytes) -> list[bytes]:
    """The DER of each certificate in a PEM file, whatever else is in it. Raises ValueError where one is broken."""
    try:
        return [base64.b64decode(b"".join(body.split())) for body in _PEM.findall(text)]
    except binascii.Error as broken:
        raise ValueError(f"a certificate is not in base64: {broken}") from broken


_T = TypeVar("_T")


def _or_value_error(read: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
    """What is too short, or has a part less than it should, is a ValueError too, as all callers expect."""
    @functools.wraps(read)
    def reading(data: bytes) -> _T:
        try:
            return read(data)
        except (IndexError, StopIteration, TypeError) as short:
            raise ValueError("a part of it is missing") from short

    return reading


@_or_value_error
def certificate(der: bytes) -> Certificate:
    """Raises ValueError where it is none, or where a name cannot be told in the slash form."""
    parts = list(_parts(_inside(_inside(der, _SEQUENCE), _SEQUENCE)))
    if parts and parts[0][0] == 0xA0:
        del parts[0]  # the version
    (_, _), (_, _), (_, issuer), (_, validity), (_, subject) = parts[:5]
    begins, expires = (_moment(tag, value) for tag, value in _parts(validity))
    return Certificate(_slashes(subject), _slashes(issuer), begins, expires, der)


@_or_value_error
def crl_expires(text: bytes) -> float:
    """When the next issue of a revocation list (RFC 5280, 5.1; PEM or DER) is due, in seconds since 1970; infinity
    where it does not say. Its signature is not looked at. Raises ValueError where it is none."""
    found = _PEM_CRL.search(text)
    try:
        der = base64.b64decode(b"".join(found.group(1).split())) if found else text
    except binascii.Error as broken:
        raise ValueError(f"a revocation list is not in base64: {broken}") from broken
    times = [_moment(tag, value) for tag, value in _first(_inside(_inside(der, _SEQUENCE), _SEQUENCE), 5)
             if tag in _TIMES]
    if not times:
        raise ValueError("it is no revocation list")
    return times[1] if len(times) > 1 else float("inf")


def _first(body: bytes, count: int) -> Iterator[tuple[int, bytes]]:
    return itertools.islice(_parts(body), count)


@_or_value_error
def signature(der: bytes) -> Signature:
    """Raises ValueError where this is no PKCS#7 signature."""
    what, content = list(_parts(_inside(der, _SEQUENCE)))[:2]
    if what[0] != _OID or _numbers(what[1]) != _SIGNED_DATA:
        raise ValueError("it is no signature")
    parts = list(_parts(_inside(content[1], _SEQUENCE)))
    kind, infos = parts[-1]
    signers = [_algorithms(one) for tag, one in _parts(infos) if tag == _SEQUENCE] if kind == _SET else []
    certificates = tuple(_tlv(tag, one) for place, body in parts[3:-1] if place == 0xA0
                         for tag, one in _parts(body) if tag == _SEQUENCE)
    return Signature(tuple(signers), len(list(_parts(parts[2][1]))) > 1, certificates)


def _algorithms(signer: bytes) -> tuple[str, str]:
    parts = list(_parts(signer))
    digest = parts[2][1]
    signing = next(body for tag, body in parts[3:] if tag == _SEQUENCE)
    return _first_oid(digest), _first_oid(signing)


def _first_oid(sequence: bytes) -> str:
    tag, body = next(_parts(sequence))
    if tag != _OID:
        raise ValueError("an algorithm without a number")
    return _numbers(body)


# ---------------------------------------------------------------- names and times


def _slashes(name: bytes) -> str:
    if len(name) > _NAME:
        raise ValueError(f"a name of {len(name)} bytes")
    text = ""
    for tag, part in _parts(name):
        pairs = list(_parts(part))
        if tag != _SET or len(pairs) != 1:
            raise ValueError("a name with several values in one place")
        (_, number), (_, value) = _parts(pairs[0][1])
        if _AMBIGUOUS.search(value):
            raise ValueError("a name with a value that reads as two")
        key = _numbers(number)
        shown = "".join(chr(byte) if 0x20 <= byte <= 0x7E else f"\\x{byte:02X}" for byte in value)
        text += f"/{_KEYS.get(key, key)}={shown}"
    if not text:
        raise ValueError("a name without any part")
    return text


def _moment(tag: int, value: bytes) -> float:
    if len(value) > _TIME:
        raise ValueError("a time that is none")
    text = value.decode("ascii")
    if tag == 0x17:  # UTCTime: years 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))


def _numbers(body: bytes) -> str:
    if not 0 < len(body) <= _NUMBER:  # longer ones take quadratic time, and nobody has them
        raise ValueError(f"an object identifier of {len(body)} bytes")
    values, value = [], 0
    for byte in body:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            values.append(value)
            value = 0
    first = min(values[0] // 40, 2)
    return ".".join(map(str, (first, values[0] - 40 * first, *values[1:])))


# ---------------------------------------------------------------- DER


def _parts(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of one value after the other."""
    at = 0
    while at < len(body):
        tag, length, start = body[at], _length(body, at + 1), _start(body, at + 1)
        if tag & 0x1F == 0x1F or length is None or start + length > len(body):
            raise ValueError("it is not DER")
        yield tag, body[start:start + length]
        at = start + length


def _length(body: bytes, at: int) -> Optional[int]:
    if at >= len(body):
        return None
    if body[at] < 0x80:
        return body[at]
    count = body[at] & 0x7F
    return int.from_bytes(body[at + 1:at + 1 + count], "big") if 0 < count <= 4 else None


def _start(body: bytes, at: int) -> int:
    return at + 1 + (body[at] & 0x7F if at < len(body) and body[at] >= 0x80 else 0)


def _inside(body: bytes, tag: int) -> bytes:
    found = next(_parts(body), (None, b""))
    if found[0] != tag:
        raise ValueError("it is not what it should be")
    return found[1]


def _tlv(tag: int, body: bytes) -> bytes:
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body
