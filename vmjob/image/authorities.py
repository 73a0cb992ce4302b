"""What a folder of trusted authorities says beyond their certificates: who was revoked (HASH.r0, from fetch-crl), and
which names each may certify (HASH.signing_policy, as Globus has it). Both count where they are there.

And whose name is whose: an authority is a certificate in the folder, never a name. Any trusted authority can make one
below itself that is called as another. So who certified a signer is in the folder with the very key that did; one that
comes with the message instead counts if the signing policy of the authority above it names it."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmjob import process
from vmjob.errors import EndorsementRefused
from vmjob.image import x509
from vmjob.machinetext import lines, read

_TIMEOUT = 120
MOST = 20  # certificates in a message
_LOOKED_AT = 2 * MOST  # of those and of the folder's, which may have several of one name
_SAME = (("/Email=", "/emailAddress="), ("/E=", "/emailAddress="), ("/USERID=", "/UID="))


def environment(ca_dir: Path) -> Mapping[str, str]:
    """Of every openssl that is asked about trust: nothing of ours, and no authorities but those of the folder."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "SSL_CERT_FILE": os.devnull,
            "SSL_CERT_DIR": str(ca_dir.absolute())}


def check(signer: x509.Certificate, others: Sequence[x509.Certificate], ca_dir: Path, now: float, spare: Path) -> None:
    """Refuse a signer who was revoked, or whose authority may not certify her name, and the same of the authorities
    above her. ``others``: certificates of the message; ``spare``: a folder for files. Raises EndorsementRefused.

    All of the message's are looked at, in whatever way openssl chained them: it finds names equal that are written
    differently, and a certificate that nobody needs has no reason to be there."""
    todo: list[x509.Certificate] = [signer, *others]
    seen: set[bytes] = set()
    (spare / "others.pem").write_bytes(b"".join(one.pem for one in others))
    while todo:
        one = todo.pop()
        if one.der in seen or (one.subject == one.issuer and one.der != signer.der):
            continue
        if len(seen) == _LOOKED_AT:  # what is left could be one that was revoked
            raise EndorsementRefused(f"more than {_LOOKED_AT} certificates, of the message and in {ca_dir}, could be "
                                     "the chain of the signer", "ask the endorser to send her own chain and no more")
        seen.add(one.der)
        digits = _issuer_hash(one)
        if any(ca_dir.glob(f"{digits}.r[0-9]*")):
            _not_revoked(one, ca_dir, now, spare)
        policy = ca_dir / f"{digits}.signing_policy"
        if policy.exists():
            _may_certify(one, policy)
        todo += [found for path in ca_dir.glob(f"{digits}.[0-9]*") for found in _installed(path)]


def anchored(signer: x509.Certificate, others: Sequence[x509.Certificate], ca_dir: Path, spare: Path) -> None:
    """Refuse a signer who was certified by an authority that only bears the name of another. ``others``: certificates
    of the message; ``spare``: a folder for files. Raises EndorsementRefused.

    Every certificate above hers, up to the first one that is in the folder: its key signed the one below."""
    todo, seen, why = [signer], set[bytes](), ""
    while todo:
        one = todo.pop()
        if one.der in seen:
            continue
        seen.add(one.der)
        digits = _issuer_hash(one)
        installed = [found for path in sorted(ca_dir.glob(f"{digits}.[0-9]*")) for found in _installed(path)]
        trusted = any(found.der == one.der or _issued(one, found, spare) for found in installed)
        named = one is signer or (ca_dir / f"{digits}.signing_policy").exists()  # which allows the name, says check()
        if trusted and named:
            return
        if trusted:
            why = why or (f"the authority {one.subject} is not in {ca_dir}, and {one.issuer}, which certified it, has "
                          "no signing policy there that names it")
        elif installed:
            why = f"{one.subject} was certified by another authority of the name {one.issuer} than the one in {ca_dir}"
        elif named:
            todo += [above for above in others if above.subject == one.issuer and _issued(one, above, spare)]
    raise EndorsementRefused(why or f"the chain from {signer.subject} to an authority in {ca_dir} has a gap",
                             "if you do trust that authority: install its certificate there (openssl rehash), or the "
                             "signing policy of the one above it")


def _issued(one: x509.Certificate, above: x509.Certificate, spare: Path) -> bool:
    """Did the key of ``above`` sign ``one``?"""
    (spare / "above.pem").write_bytes(above.pem)
    (spare / "below.pem").write_bytes(one.pem)
    return process.run(
        [process.require("openssl", "openssl"), "verify", "-partial_chain", "-CAfile", spare / "above.pem",
         "-no-CApath", "-no_check_time", "-purpose", "any", spare / "below.pem"], check=False,
        env=environment(Path(os.devnull)), timeout=_TIMEOUT).returncode == 0


def _issuer_hash(one: x509.Certificate) -> str:
    return process.run([process.require("openssl", "openssl"), "x509", "-noout", "-issuer_hash"], input=one.pem,
                       timeout=_TIMEOUT).stdout.decode().strip()


def _installed(path: Path) -> list[x509.Certificate]:
    try:
        return [x509.certificate(der) for der in x509.certificates_of_pem(path.read_bytes())]
    except (OSError, ValueError):
        return []


def _not_revoked(one: x509.Certificate, ca_dir: Path, now: float, spare: Path) -> None:
    (spare / "one.pem").write_bytes(one.pem)
    done = process.run(
        [process.require("openssl", "openssl"), "verify", "-CApath", ca_dir.absolute(), "-no-CAfile", "-untrusted",
         spare / "others.pem", "-purpose", "any", "-crl_check", "-attime", str(int(now)), spare / "one.pem"],
        check=False, env=environment(ca_dir), timeout=_TIMEOUT)
    said = done.stderr.decode(errors="replace")
    wrong = re.search(r"error \d+ at \d+ depth lookup: ?(.+)", said)
    if done.returncode == 0 and not wrong:
        return
    reason = wrong.group(1).strip() if wrong else "openssl does not verify it"
    if "revoked" in reason:
        raise EndorsementRefused(f"the certificate of {one.subject} was revoked by {one.issuer}",
                                 "do not trust what it signed; ask the endorser for a list signed anew")
    raise EndorsementRefused(f"whether {one.subject} was revoked cannot be told: {reason}",
                             f"renew the revocation lists in {ca_dir}: fetch-crl")


def _may_certify(one: x509.Certificate, policy: Path) -> None:
    try:
        text = read(policy)
    except OSError as unreadable:
        raise EndorsementRefused(f"{policy}: cannot be read: {unreadable.strerror}",
                                 "make it readable for everybody") from unreadable
    issuer = ""
    for line in lines(text):
        words = re.match(r"\s*(access_id_CA|cond_subjects)\s+\S+\s+(.+?)\s*$", line)
        if words and words.group(1) == "access_id_CA":
            issuer = words.group(2).strip("'\"")
        elif words and _same(issuer) == _same(one.issuer):
            body = words.group(2).strip("'")
            globs = re.findall(r'"([^"]*)"', body) or [body]
            # in a policy only * and ? are special
            if any(fnmatch.fnmatchcase(_same(one.subject), _same(glob).replace("[", "[[]")) for glob in globs):
                return
    raise EndorsementRefused(f"{one.issuer} may not certify the name {one.subject}, says {policy}",
                             "the authority's policy file is outdated, or somebody misuses the authority")


def _same(name: str) -> str:
    """Old spellings of the same name made one."""
    for old, new in _SAME:
        name = name.replace(old, new)
    return name.casefold()
