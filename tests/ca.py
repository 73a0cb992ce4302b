"""Certification authorities for tests, made with openssl: endorsers good and bad, revocation lists, signed lists."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import pytest

_CONFIG = """\
[req]
distinguished_name = dn
utf8 = yes
string_mask = utf8only
[dn]
[ca]
basicConstraints = critical,CA:TRUE
subjectKeyIdentifier = hash
[user]
basicConstraints = CA:FALSE
keyUsage = digitalSignature
[host]
basicConstraints = CA:FALSE
extendedKeyUsage = serverAuth
[proxy]
proxyCertInfo = critical,language:id-ppl-anyLanguage,pathlen:1,policy:text:x
[issuing]
database = {folder}/index.txt
new_certs_dir = {folder}
default_md = sha256
default_days = 30
policy = anything
unique_subject = no
rand_serial = yes
default_crl_days = 30
[anything]
domainComponent = optional
commonName = supplied
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    cert: Path
    key: Path
    dn: str
    ca: str


class Ca:
    """Below ``folder``. ``certificates``: the hashed folder that is trusted. The pairs: ``root``, ``middle`` (an
    authority below root, whose policy allows that), ``ada`` (of root), ``eve`` (of an authority that is not trusted).
    ``root`` and ``ada`` have RSA keys of ``bits``; others (all, where it is 0) elliptic ones, which are made at
    once."""

    def __init__(self, folder: Path, bits: int = 2048) -> None:
        if not shutil.which("openssl"):
            pytest.skip("needs openssl: apt-get install openssl")
        self.folder, self.certificates = folder, folder / "certificates"
        self.certificates.mkdir(parents=True)
        (folder / "config").write_text(_CONFIG.format(folder=folder))
        self.root = self.authority("/DC=org/DC=example/CN=Test CA", bits=bits)
        self.ada = self.issue("/DC=org/DC=example/CN=Ada Lovelace", self.root, bits=bits)
        self.trust(self.root)

    @functools.cached_property
    def other(self) -> Pair:
        return self.authority("/DC=org/DC=elsewhere/CN=Other CA")

    @functools.cached_property
    def middle(self) -> Pair:
        self.policy(self.root, "/DC=org/DC=example/*")
        return self.issue("/DC=org/DC=example/CN=Middle CA", self.root, extensions="ca")

    @functools.cached_property
    def eve(self) -> Pair:
        return self.issue("/DC=org/DC=elsewhere/CN=Eve", self.other)

    def openssl(self, *words: Any, stdin: bytes = b"") -> bytes:
        done = subprocess.run(["openssl", *map(str, words)], input=stdin, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def authority(self, dn: str, *, bits: int = 0, md: str = "sha256") -> Pair:
        """A root of its own; not yet trusted."""
        made = self._request(dn, bits)
        self.openssl("req", "-x509", "-new", "-key", made.key, "-out", made.cert, "-subj", dn, "-days", 3650,
                     f"-{md}", "-config", self.folder / "config", "-extensions", "ca")
        return Pair(made.cert, made.key, dn, dn)

    def issue(self, dn: str, by: Pair, *, extensions: str = "user", md: str = "sha256", bits: int = 0,
              begins: Optional[float] = None, ends: Optional[float] = None, chain: Sequence[Pair] = ()) -> Pair:
        """A certificate; ``begins`` and ``ends`` in seconds since 1970. ``chain``: more certificates for its file."""
        made = self._request(dn, bits)
        request = made.cert.with_suffix(".csr")
        self.openssl("req", "-new", "-key", made.key, "-out", request, "-subj", dn, "-multivalue-rdn", "-utf8",
                     "-config", self.folder / "config")
        (self.folder / "index.txt").touch()
        start, end = begins or time.time() - 3600, ends or time.time() + 30 * 86400
        self.openssl("ca", "-batch", "-notext", "-preserveDN", "-config", self.folder / "config", "-name", "issuing",
                     "-extensions", extensions, "-in", request, "-out", made.cert, "-cert", by.cert, "-keyfile", by.key,
                     "-md", md, "-startdate", _zulu(start), "-enddate", _zulu(end))
        with made.cert.open("ab") as file:
            for one in chain:
                file.write(one.cert.read_bytes())
        return Pair(made.cert, made.key, dn, by.dn)

    def trust(self, *authorities: Pair) -> None:
        for one in authorities:
            shutil.copy(one.cert, self.certificates)
        self.openssl("rehash", self.certificates)

    def policy(self, one: Pair, names: str) -> Path:
        """Which names an authority may certify, as a site has it beside the certificate; the file."""
        path = self.certificates / f"{self.hash(one)}.signing_policy"
        path.write_text(f"access_id_CA X509 '{one.dn}'\npos_rights globus CA:sign\n"
                        f"cond_subjects globus '\"{names}\"'\n")
        return path

    def hash(self, one: Pair) -> str:
        return self.openssl("x509", "-noout", "-subject_hash", "-in", one.cert).decode().strip()

    def revocations(self, by: Pair, *gone: Pair, days: str = "30") -> None:
        """A revocation list beside the authority's certificate."""
        given = ("-config", self.folder / "config", "-name", "issuing", "-cert", by.cert, "-keyfile", by.key)
        for one in gone:
            self.openssl("ca", *given, "-revoke", one.cert)
        self.openssl("ca", *given, "-gencrl", "-crldays", days, "-out", self.certificates / f"{self.hash(by)}.r0")

    def sign(self, document: Mapping[str, Any], by: Optional[Pair] = None, *more: Any) -> bytes:
        """A signed message of an image list (the body of hv:imagelist); ``more``: words for openssl cms -sign."""
        return self.sign_text(json.dumps({"hv:imagelist": document}, indent=1).encode(), by, *more)

    def sign_text(self, text: bytes, by: Optional[Pair] = None, *more: Any) -> bytes:
        one = by or self.ada
        if "-md" not in more:
            more = (*more, "-md", "sha256")
        extra = ("-certfile", self._rest(one)) if one.cert.read_text().count("BEGIN") > 1 else ()
        return self.openssl("cms", "-sign", "-signer", one.cert, "-inkey", one.key, *extra, *more, stdin=text)

    def _rest(self, one: Pair) -> Path:
        rest = one.cert.with_suffix(".chain")
        rest.write_text("-----BEGIN" + one.cert.read_text().split("-----BEGIN", 2)[2])
        return rest

    def _request(self, dn: str, bits: int) -> Pair:
        number = len(list(self.folder.glob("*.key")))
        made = Pair(self.folder / f"{number}.pem", self.folder / f"{number}.key", dn, "")
        kind = ("RSA", "-pkeyopt", f"rsa_keygen_bits:{bits}") if bits else ("EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        self.openssl("genpkey", "-algorithm", *kind, "-out", made.key)
        made.key.chmod(0o600)
        return made


def _zulu(seconds: float) -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(seconds))


def image_list(endorser: Pair, images: Sequence[Mapping[str, Any]] = (), **changed: Any) -> dict[str, Any]:
    """The body of hv:imagelist as HEPiX' tools write it; ``changed``: keys with _ for : (dc_title)."""
    now = time.time()
    body: dict[str, Any] = {
        "dc:date:created": _iso(now - 60), "dc:date:expires": _iso(now + 86400), "dc:identifier": "list-1",
        "dc:description": "images for tests", "dc:title": "Tests", "dc:source": "tests", "hv:version": "1",
        "hv:uri": "https://example.org/images.list",
        "hv:endorser": {"hv:x509": {"hv:dn": endorser.dn, "hv:ca": endorser.ca, "hv:email": "ada@example.org",
                                    "dc:creator": "Ada"}},
        "hv:images": [{"hv:image": dict(one)} for one in images]}
    body.update({key.replace("_", ":"): value for key, value in changed.items()})
    return body


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def entry(name: str = "one", **changed: Any) -> dict[str, Any]:
    """An image as the EGI AppDB lists it: sizes as text, many keys of others."""
    body: dict[str, Any] = {
        "dc:description": "", "dc:identifier": f"id-{name}", "ad:mpuri": f"https://example.org/{name}:1/",
        "dc:title": f"Image {name}", "ad:group": "General group", "hv:hypervisor": "KVM", "hv:format": "OVA",
        "hv:ram_minimum": "512", "hv:core_minimum": "1", "hv:size": "121243136", "hv:version": "3.3.0-1",
        "hv:uri": f"https://example.org/{name}.ova", "sl:arch": "x86_64", "sl:comments": "", "sl:os": "Linux",
        "sl:osname": "Scientific Linux", "sl:osversion": "6.0", "sl:checksum:sha512": "ab" * 64}
    body.update({key.replace("_", ":"): value for key, value in changed.items()})
    return body
