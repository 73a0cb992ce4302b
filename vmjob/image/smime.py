"""Signed messages (S/MIME with the text beside the signature, as HEPiX image lists are): openssl signs and verifies.

The message is taken apart here, strictly: one text, one signature, nothing behind it. The signature is given to
openssl with the text as it is, and what openssl has verified is the only text that anybody sees. Certificates are
trusted if their chain ends at an authority in the given folder (hashed names, as in /etc/grid-security/certificates),
and nowhere else: OpenSSL 3 looks into the system's folder of web authorities too, unless its environment names another.

Every option of openssl used here is in 1.1.1 (Debian 11) and all later releases.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob import process
from vmjob.errors import CommandFailed, EndorsementRefused, JobError
from vmjob.image import authorities, x509
from vmjob.machinetext import last_line

LARGEST = 256 * 2**20  # bytes of a message
_TIMEOUT = 120  # seconds that one openssl may take
_HEAD = 16 * 2**10  # bytes of the headers, at most
_SIGNATURE = 2**20  # bytes of the signature with its certificates, at most
_BOUNDARY = re.compile(rb"boundary=(?:\"([^\"\r\n]{1,200})\"|([^\s;\"]{1,200}))", re.IGNORECASE)
_DIGESTS = {"2.16.840.1.101.3.4.2.1": "SHA-256", "2.16.840.1.101.3.4.2.2": "SHA-384",
            "2.16.840.1.101.3.4.2.3": "SHA-512"}
_SIGNATURES = {"1.2.840.113549.1.1.1", "1.2.840.113549.1.1.11", "1.2.840.113549.1.1.12", "1.2.840.113549.1.1.13",
               "1.2.840.10045.4.3.2", "1.2.840.10045.4.3.3", "1.2.840.10045.4.3.4"}  # RSA, ECDSA with SHA-2
_WEAK = {"1.3.14.3.2.26": "SHA-1", "1.2.840.113549.2.5": "MD5", "1.2.840.113549.2.2": "MD2",
         "1.2.840.113549.1.1.5": "SHA-1", "1.2.840.113549.1.1.4": "MD5", "1.2.840.10045.4.1": "SHA-1",
         "1.3.36.3.2.1": "RIPEMD-160", "2.16.840.1.101.3.4.2.4": "SHA-224"}
_ANEW = "ask the endorser to sign it anew: vmjob image sign, or openssl cms -sign -md sha256"
_FETCH = "fetch it again; if that does not help, ask the endorser"


@dataclass(frozen=True)
class Signed:
    """A text that was signed by ``signer``, whose chain of certificates holds."""

    text: bytes
    signer: x509.Certificate


def verify(message: bytes, ca_dir: Path, now: float) -> Signed:
    """The text of a message, and who signed it; ``now`` in seconds since 1970. Raises EndorsementRefused with what is
    wrong, CommandMissing where openssl is."""
    text, raw = _split(message)
    if not ca_dir.is_dir():
        raise EndorsementRefused(f"{ca_dir}: there is no such folder of trusted authorities",
                                 "install them (the IGTF's, or your own), or name the folder in X509_CERT_DIR")
    with tempfile.TemporaryDirectory(prefix="vmjob-") as spare:
        try:
            return Signed(text, _signer(text, raw, ca_dir, now, Path(spare)))
        except CommandFailed as failed:  # openssl hangs, or fails where it never does: the message is to blame
            raise EndorsementRefused(f"the message cannot be judged: {failed.message}", _FETCH) from failed


def _signer(text: bytes, raw: bytes, ca_dir: Path, now: float, folder: Path) -> x509.Certificate:
    others = _inspect(raw, folder)
    found = _ask(folder, text, ca_dir, now)
    if found.returncode:
        raise _refusal(found.stderr.decode(errors="replace"), others, ca_dir)
    signers = x509.certificates_of_pem((folder / "signer.pem").read_bytes())
    if len(signers) != 1:
        raise EndorsementRefused(f"the message has {len(signers)} signers, not one", _ANEW)
    signer = _certificate(signers[0])
    authorities.check(signer, others, ca_dir, now, folder)
    authorities.anchored(signer, others, ca_dir, folder)
    return signer


def sign(text: bytes, certificate: Path, key: Path) -> bytes:
    """The signed message. A passphrase of the key is asked for by openssl itself, on the terminal. The first of the
    certificates in the file is the signer's, others travel with it. Raises JobError, CommandMissing."""
    chain = _chain(certificate)
    try:
        if key.stat().st_mode & 0o007:
            raise JobError(f"{key}: everybody on this machine can read this key", f"chmod 600 {key}")
    except OSError as unreadable:
        raise JobError(f"{key}: cannot be read: {unreadable.strerror}",
                       "--cert and --key: the files of your certificate, in PEM") from unreadable
    signer = _certificate(chain[0])  # a name that nobody could verify is told now
    with tempfile.TemporaryDirectory(prefix="vmjob-") as spare:
        folder = Path(spare)
        (folder / "text").write_bytes(text)
        (folder / "signer.pem").write_bytes(signer.pem)
        (folder / "chain.pem").write_bytes(b"".join(_certificate(one).pem for one in chain[1:]))
        more: list[process.Argument] = ["-certfile", folder / "chain.pem"] if chain[1:] else []
        try:
            return process.run([_openssl(), "cms", "-sign", "-in", folder / "text", "-signer", folder / "signer.pem",
                                "-inkey", key, *more, "-md", "sha256", "-outform", "SMIME"]).stdout
        except CommandFailed as failed:
            raise JobError(f"{key}: this key did not sign: {_last_line(failed.output)}",
                           "the key must belong to the certificate, and its passphrase be right") from failed


def certificate_of(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file. Raises JobError."""
    return _certificate(_chain(path)[0])


def _chain(path: Path) -> list[bytes]:
    """The certificates of a PEM file, one at least. Raises JobError."""
    try:
        found = x509.certificates_of_pem(path.read_bytes())
    except OSError as unreadable:
        raise JobError(f"{path}: cannot be read: {unreadable.strerror}",
                       "--cert: your certificate, in PEM") from unreadable
    except ValueError as broken:
        raise JobError(f"{path}: {broken}", "--cert: a certificate in PEM") from broken
    if not found:
        raise JobError(f"{path}: there is no certificate in this file", "--cert: a certificate in PEM")
    return found


def _openssl() -> str:
    return process.require("openssl", "openssl")


# ---------------------------------------------------------------- the message


def _split(message: bytes) -> tuple[bytes, bytes]:
    """The text as it was signed (lines end in CR LF), and the signature's DER or BER."""
    if len(message) > LARGEST:
        raise EndorsementRefused(f"the message is larger than {LARGEST // 2**20} MiB", _FETCH)
    head = re.split(rb"\r?\n\r?\n", message[:_HEAD], maxsplit=1)[0]
    kinds = re.findall(rb"(?im)^content-type:(.*(?:\r?\n[ \t].*)*)", head)
    mark = _BOUNDARY.search(kinds[0]) if len(kinds) == 1 else None
    if not mark or b"multipart/signed" not in kinds[0].lower():
        raise EndorsementRefused("this is no signed message (S/MIME, multipart/signed)", _FETCH)
    line = b"--" + (mark.group(1) or mark.group(2))
    places = _lines(message, line)
    if [message[end - 2:end] == b"--" and end - start > len(line) + 1 for start, end in places] != [False, False, True]:
        raise EndorsementRefused("the message is not one text with one signature", _FETCH)
    if message[places[2][1]:].strip():
        raise EndorsementRefused("there is something behind the signature of the message", _FETCH)
    text = _inner(message, places[0][1], places[1][0])
    return _canonical(text), _decoded(_inner(message, places[1][1], places[2][0]))


def _lines(message: bytes, line: bytes) -> list[tuple[int, int]]:
    """Where the lines are that a boundary makes: from the line break before to the end of the line. No more than the
    first four, one too many: a message can hold a hundred million."""
    whole = re.compile(re.escape(b"\n" + line) + rb"(?:--)?(?=\r?\n|\Z)")
    return [match.span() for match in itertools.islice(whole.finditer(message), 4)]


def _inner(message: bytes, start: int, end: int) -> bytes:
    """Between two boundaries; the line breaks beside them are theirs."""
    start += 2 if message[start:start + 2] == b"\r\n" else 1
    end -= message[end - 1:end] == b"\r"
    return message[start:end]


def _canonical(text: bytes) -> bytes:
    returns = text.count(b"\r")
    if returns == 0:
        return text.replace(b"\n", b"\r\n")
    if returns != text.count(b"\r\n"):
        raise EndorsementRefused("the text has line breaks that no text has", _FETCH)
    return text if returns == text.count(b"\n") else text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _decoded(part: bytes) -> bytes:
    if len(part) > _SIGNATURE * 3 // 2:  # in base64
        raise EndorsementRefused(f"the signature of the message is larger than {_SIGNATURE // 2**20} MiB", _FETCH)
    head, _, body = part.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not re.search(rb"(?im)^content-transfer-encoding:[ \t]*base64[ \t]*$", head):
        raise EndorsementRefused("the signature of the message is not in base64", _FETCH)
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as broken:
        raise EndorsementRefused("the signature of the message is not in base64", _FETCH) from broken


# ---------------------------------------------------------------- the signature


def _inspect(raw: bytes, folder: Path) -> list[x509.Certificate]:
    """Write signature.der (as openssl reads it) and refuse what is not one strong signature; its certificates."""
    done = process.run([_openssl(), "cms", "-cmsout", "-inform", "DER", "-outform", "DER"], input=raw, check=False,
                       env=authorities.environment(Path(os.devnull)), timeout=_TIMEOUT)
    try:
        if done.returncode or len(done.stdout) > _SIGNATURE:
            raise ValueError("openssl cannot read it")
        found = x509.signature(done.stdout)
    except ValueError as broken:
        raise EndorsementRefused(f"the message's signature cannot be read: {broken}", _FETCH) from broken
    if found.has_content:
        raise EndorsementRefused("the message has a second text inside its signature", _ANEW)
    if len(found.algorithms) != 1:
        raise EndorsementRefused(f"the message has {len(found.algorithms)} signers, not one", _ANEW)
    for number in found.algorithms[0]:
        if number in _WEAK:
            raise EndorsementRefused(f"the message is signed with {_WEAK[number]}, which anybody can forge", _ANEW)
    digest, signing = found.algorithms[0]
    if digest not in _DIGESTS or signing not in _SIGNATURES:
        raise EndorsementRefused(f"the message is signed with algorithms unknown here ({digest}, {signing})", _ANEW)
    if len(found.certificates) > authorities.MOST:
        raise EndorsementRefused(f"the message has {len(found.certificates)} certificates, and no chain has so many",
                                 f"a signer sends her own and the authorities above it: {authorities.MOST} at most")
    (folder / "signature.der").write_bytes(done.stdout)
    return [_certificate(one) for one in found.certificates]


def _certificate(der: bytes) -> x509.Certificate:
    try:
        return x509.certificate(der)
    except ValueError as broken:
        raise EndorsementRefused(f"a certificate cannot be read: {broken}", "ask the endorser") from broken


def _ask(folder: Path, text: bytes, ca_dir: Path, now: float) -> subprocess.CompletedProcess[bytes]:
    return process.run(
        # -purpose any: endorsers sign with user, robot and host certificates. Level 2: RSA from 2048 bits, and neither
        # SHA-1 nor MD5 below the root. The text is binary, as it is canonical already: openssl verifies these very
        # bytes, and takes nothing apart that could be taken apart in another way than here.
        [_openssl(), "cms", "-verify", "-inform", "DER", "-in", folder / "signature.der", "-binary",
         "-content", "/dev/stdin", "-CApath", ca_dir.absolute(), "-no-CAfile", "-purpose", "any", "-auth_level", "2",
         "-attime", str(int(now)), "-signer", folder / "signer.pem", "-out", os.devnull],
        input=text, check=False, env=authorities.environment(ca_dir), timeout=_TIMEOUT)


def _refusal(said: str, others: list[x509.Certificate], ca_dir: Path) -> EndorsementRefused:
    """Why openssl did not verify, for people."""
    why = re.search(r"Verify error: ?(.+)", said)
    if not why:
        return EndorsementRefused("the text was changed after it was signed: the signature is not this text's", _FETCH)
    reason = why.group(1).strip()
    lower = reason.lower()
    if "issuer certificate" in lower or "self signed" in lower or "self-signed" in lower:
        top = _top(others)
        if top and top.subject == top.issuer:
            return EndorsementRefused(f"the authority {top.subject} is not trusted here: not in {ca_dir}",
                                      "install its certificate there if you do trust it (openssl rehash)")
        name = f"{top.issuer}, which certified {top.subject}," if top else "who certified the signer"
        what = "the chain of certificates is broken" if len(others) > 1 else "the authority is not known here"
        return EndorsementRefused(
            f"{what}: {name} is neither in the message nor in {ca_dir}",
            "install its certificate there, or ask the endorser to send the chain (all in the file of --cert)")
    hints = {"expired": "ask the endorser to sign with a valid certificate; check the clock here (date -u)",
             "not yet valid": "check the clock here (date -u)",
             "weak": "certificates need RSA of 2048 bits or more, and SHA-256: the endorser needs a new one",
             "proxy": "an endorser signs with her own certificate, not with a proxy"}
    hint = next((text for word, text in hints.items() if word in lower), "the endorser needs a valid certificate")
    return EndorsementRefused(f"the endorser's certificate does not hold: {reason}", hint)


def _top(certificates: list[x509.Certificate]) -> Optional[x509.Certificate]:
    """The uppermost certificate of a message: the one whose issuer is not in it."""
    subjects = {one.subject for one in certificates}
    for one in certificates:
        if one.issuer == one.subject or one.issuer not in subjects:
            return one
    return None


def _last_line(text: str) -> str:
    return re.sub(r"^[0-9A-F]+:error:", "", last_line(text, "openssl said nothing"))
