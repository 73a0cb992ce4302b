"""Signed image lists against a real authority: what is believed, and each way in which one is not."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ca import Ca, Pair, entry, image_list
from vmjob.errors import EndorsementRefused, JobError
from vmjob.image import authorities, smime, trust, x509
from vmjob.manifests import manifest_to_dict
from vmjob.model import Boot, ImageFile, Manifest

pytestmark = pytest.mark.integration

now = time.time
ONE = Manifest("one", (ImageFile("disk", "disk.qcow2", "qcow2", 1000, "ab" * 32, 4096),), (Boot.DISK,),
               sources=("https://example.org/one/",))


def own(name: str = "one", manifest: Manifest = ONE, **changed: Any) -> dict[str, Any]:
    return {**entry(name, **changed), "vmjob:manifest": manifest_to_dict(manifest)}


def refused(ca: Ca, message: bytes, when: float = 0.0) -> str:
    with pytest.raises(EndorsementRefused) as wrong:
        trust.verify_list(message, ca.certificates, when or now())
    assert wrong.value.hint
    return wrong.value.message


def test_a_good_list(ca: Ca) -> None:
    found = trust.verify_list(ca.sign(image_list(ca.ada, [entry(), own("two")])), ca.certificates, now())
    assert (found.endorser.dn, found.endorser.ca) == (ca.ada.dn, ca.root.dn)
    assert now() < found.expires < now() + 2 * 86400 < found.certificate_expires
    image = found.listing.by_digest(ONE.digest)
    assert image and image.manifest == ONE and image.identifier == "id-two"
    other = found.listing.by_sha512("AB" * 64)
    assert other and (other.size, other.group, other.manifest) == (121243136, "General group", None)


@pytest.mark.parametrize("words", [(), ("-text",), ("-md", "sha512")], ids=["plain", "text", "sha512"])
@pytest.mark.parametrize("command", ["cms", "smime"])
@pytest.mark.parametrize("breaks", [b"\r\n", b"\n"], ids=["crlf", "lf"])
def test_what_other_tools_sign_is_read(ca: Ca, command: str, words: tuple[str, ...], breaks: bytes) -> None:
    text = json.dumps({"hv:imagelist": image_list(ca.ada, [entry()])}, indent=4).encode() + b"\n\n"
    message = ca.openssl(command, "-sign", "-signer", ca.ada.cert, "-inkey", ca.ada.key, *words, stdin=text)
    message = message.replace(b"\r\n", b"\n").replace(b"\n", breaks)
    assert trust.verify_list(message, ca.certificates, now()).listing.identifier == "list-1"


def test_what_we_sign_is_read_by_other_tools(ca: Ca) -> None:
    text = json.dumps({"hv:imagelist": image_list(ca.ada)}, indent=4).encode()
    message = smime.sign(text, ca.ada.cert, ca.ada.key)
    assert message.startswith(b"MIME-Version: 1.0\nContent-Type: multipart/signed;") and b'micalg="sha-256"' in message
    for command in ("smime", "cms"):
        read = ca.openssl(command, "-verify", "-CApath", ca.certificates, "-purpose", "any", stdin=message)
        assert json.loads(read) == json.loads(text)
    assert trust.verify_list(message, ca.certificates, now()).listing.version == "1"


def test_a_key_of_somebody_else_signs_nothing(ca: Ca, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="did not sign"):
        smime.sign(b"{}", ca.ada.cert, ca.root.key)
    (tmp_path / "key").write_bytes(ca.ada.key.read_bytes())
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(JobError, match="everybody on this machine"):
        smime.sign(b"{}", ca.ada.cert, tmp_path / "key")
    (tmp_path / "cert").write_text("-----BEGIN CERTIFICATE-----\nMIIBx\n-----END CERTIFICATE-----\n")
    with pytest.raises(JobError, match="not in base64"):
        smime.sign(b"{}", tmp_path / "cert", ca.ada.key)
    with pytest.raises(JobError, match="not in base64"):
        smime.certificate_of(tmp_path / "cert")


# ---------------------------------------------------------------- certificates


def test_an_authority_that_is_not_trusted(ca: Ca) -> None:
    assert "the authority is not known here: /DC=org/DC=elsewhere/CN=Other CA" in refused(
        ca, ca.sign(image_list(ca.eve), ca.eve))
    with_root = ca.issue("/DC=org/CN=With its root", ca.other, chain=(ca.other,))
    assert "CN=Other CA is not trusted here" in refused(ca, ca.sign(image_list(with_root), with_root))
    assert "is not trusted here" in refused(ca, ca.sign(image_list(ca.other), ca.other))  # signs for itself


def test_authorities_come_from_the_folder_alone(ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL would take the system's, or those that the environment names, as well."""
    elsewhere = tmp_path / "certificates"
    elsewhere.mkdir()
    (elsewhere / "other.pem").write_bytes(ca.other.cert.read_bytes())
    ca.openssl("rehash", elsewhere)
    monkeypatch.setenv("SSL_CERT_DIR", str(elsewhere))
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.other.cert))
    message = ca.sign(image_list(ca.eve), ca.eve)
    done = subprocess.run(["openssl", "cms", "-verify", "-CApath", ca.certificates], input=message, capture_output=True)
    assert done.returncode == 0, "the test proves nothing where openssl itself does not fall for it"
    assert "not known here" in refused(ca, message)


def test_no_folder_of_authorities(ca: Ca, tmp_path: Path) -> None:
    with pytest.raises(EndorsementRefused, match="no such folder of trusted authorities"):
        trust.verify_list(ca.sign(image_list(ca.ada)), tmp_path / "none", now())
    with pytest.raises(EndorsementRefused, match="not known here"):
        trust.verify_list(ca.sign(image_list(ca.ada)), tmp_path, now())


def test_a_chain(ca: Ca) -> None:
    bob = ca.issue("/DC=org/DC=example/CN=Bob", ca.middle, chain=(ca.middle,))
    assert trust.verify_list(ca.sign(image_list(bob), bob), ca.certificates, now()).endorser.ca == ca.middle.dn
    alone = ca.issue("/DC=org/DC=example/CN=Bob", ca.middle)
    assert "CN=Middle CA, which certified" in refused(ca, ca.sign(image_list(alone), alone))
    lower = ca.issue("/DC=org/DC=example/CN=Lower CA", ca.middle, extensions="ca")
    gap = ca.issue("/DC=org/DC=example/CN=Bob", lower, chain=(lower,))
    said = refused(ca, ca.sign(image_list(gap), gap))
    assert "the chain of certificates is broken: /DC=org/DC=example/CN=Middle CA" in said


def test_an_authority_is_a_certificate_and_no_name(tmp_path: Path) -> None:
    """Attack ca_name.

    Another authority, trusted for names of its own, makes one below itself that is called as the endorser's."""
    ca = Ca(tmp_path / "ca", 0)
    ca.trust(ca.other)
    false = ca.issue(ca.root.dn, ca.other, extensions="ca")
    ada = ca.issue(ca.ada.dn, false, chain=(false,))
    message = ca.sign(image_list(ada), ada)
    assert f"by another authority of the name {ca.root.dn} than the one in" in refused(ca, message)
    ca.policy(ca.other, "*")  # nor where its policy is careless
    assert "another authority of the name" in refused(ca, message)
    lower = ca.issue("/DC=org/DC=example/CN=Lower CA", false, extensions="ca")
    bob = ca.issue("/DC=org/DC=example/CN=Bob", lower, chain=(lower, false))
    ca.policy(ca.root, "*")
    assert "another authority of the name" in refused(ca, ca.sign(image_list(bob), bob))
    assert trust.verify_list(ca.sign(image_list(ca.ada)), ca.certificates, now())


def test_an_authority_that_comes_with_the_message_is_named_by_the_one_above(tmp_path: Path) -> None:
    ca = Ca(tmp_path / "ca", 0)
    bob = ca.issue("/DC=org/DC=example/CN=Bob", ca.middle, chain=(ca.middle,))
    message, policy = ca.sign(image_list(bob), bob), ca.policy(ca.root, "/DC=org/DC=example/*")
    assert trust.verify_list(message, ca.certificates, now())
    policy.unlink()
    assert f"{ca.middle.dn} is not in {ca.certificates}, and {ca.root.dn}, which certified it, has no" in refused(
        ca, message)
    ca.trust(ca.middle)
    assert trust.verify_list(message, ca.certificates, now())
    renewed = ca.issue(ca.middle.dn, ca.root, extensions="ca")  # the same name with a new key, beside the old one
    ca.trust(renewed)
    carl = ca.issue("/DC=org/DC=example/CN=Carl", renewed)
    for one in (bob, carl):
        assert trust.verify_list(ca.sign(image_list(one), one), ca.certificates, now())


def test_somebody_who_is_no_authority_certifies_nobody(ca: Ca) -> None:
    mallory = ca.issue("/DC=org/DC=example/CN=Mallory", ca.ada, chain=(ca.ada,))
    assert "does not hold: invalid CA certificate" in refused(ca, ca.sign(image_list(mallory), mallory))
    proxy = ca.issue(f"{ca.ada.dn}/CN=1234", ca.ada, extensions="proxy", chain=(ca.ada,))
    assert "prox" in refused(ca, ca.sign(image_list(proxy), proxy))


def test_dates_of_certificates(ca: Ca) -> None:
    old = ca.issue("/DC=org/DC=example/CN=Old", ca.root, begins=now() - 9 * 86400, ends=now() - 86400)
    assert "does not hold: certificate has expired" in refused(ca, ca.sign(image_list(old), old))
    new = ca.issue("/DC=org/DC=example/CN=New", ca.root, begins=now() + 9 * 86400, ends=now() + 20 * 86400)
    assert "does not hold: certificate is not yet valid" in refused(ca, ca.sign(image_list(new), new))
    short = ca.issue("/DC=org/DC=example/CN=Short", ca.root, ends=now() + 1000)
    assert abs(trust.verify_list(ca.sign(image_list(short), short), ca.certificates, now()).expires - now() - 1000) < 2


@pytest.mark.parametrize("md", ["sha1", "md5"])
def test_weak_certificates(ca: Ca, md: str) -> None:
    weak = ca.issue("/DC=org/DC=example/CN=Weak", ca.root, md=md)
    assert "algorithm too weak" in refused(ca, ca.sign(image_list(weak), weak))
    above = ca.issue("/DC=org/DC=example/CN=Weak CA", ca.root, md=md, extensions="ca")
    below = ca.issue("/DC=org/DC=example/CN=Below", above, chain=(above,))
    assert "algorithm too weak" in refused(ca, ca.sign(image_list(below), below))


def test_a_root_may_have_signed_itself_with_sha1(ca: Ca) -> None:
    root = ca.authority("/DC=org/CN=Old root", md="sha1")
    ca.trust(root)
    one = ca.issue("/DC=org/CN=One", root)
    assert trust.verify_list(ca.sign(image_list(one), one), ca.certificates, now()).endorser.ca == root.dn


def test_short_keys(ca: Ca) -> None:
    small = ca.issue("/DC=org/DC=example/CN=Small", ca.root, bits=1024)
    assert "key too weak" in refused(ca, ca.sign(image_list(small), small))


def test_host_certificates_may_sign(ca: Ca) -> None:
    host = ca.issue("/DC=org/DC=example/CN=appdb.example.org", ca.root, extensions="host")
    assert trust.verify_list(ca.sign(image_list(host), host), ca.certificates, now())


# ---------------------------------------------------------------- revocation, namespaces


def test_revocation(tmp_path: Path) -> None:
    ca = Ca(tmp_path / "ca", 0)
    bob = ca.issue("/DC=org/DC=example/CN=Bob", ca.middle, chain=(ca.middle,))
    ada, bobs = ca.sign(image_list(ca.ada)), ca.sign(image_list(bob), bob)
    ca.revocations(ca.root)
    for message in (ada, bobs):  # the list of middle's is missing: that of root counts all the same
        trust.verify_list(message, ca.certificates, now())
    ca.revocations(ca.root, ca.ada)
    assert f"the certificate of {ca.ada.dn} was revoked by {ca.root.dn}" in refused(ca, ada)
    trust.verify_list(bobs, ca.certificates, now())
    ca.revocations(ca.root, ca.middle)
    assert f"the certificate of {ca.middle.dn} was revoked" in refused(ca, bobs)


def test_a_revoked_authority_does_not_hide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = Ca(tmp_path / "ca", 0)
    ca.revocations(ca.root, ca.middle)
    bob = ca.issue("/DC=org/DC=example/CN=Bob", ca.middle, chain=(ca.middle,))
    alone = bob.cert.read_bytes()
    # certificates of nobody, called as the revoked authority
    decoys = [ca.issue(ca.middle.dn, ca.other, extensions="ca").cert.read_bytes() for _ in range(3)]
    for many, said in ((8, "was revoked by"), (21, "certificates, and no chain has so many")):
        for message in (alone + b"".join(decoys), alone + b"".join(decoys[::-1])):
            bob.cert.write_bytes(message + b"".join(_renumbered(ca, n) for n in range(many - 5)))
            assert said in refused(ca, ca.sign(image_list(bob), bob))
    bob.cert.write_bytes(alone)
    # the same name for openssl, which counts neither case nor spaces
    spelt = replace(ca.middle, cert=tmp_path / "spelt.pem", dn="/DC=org/DC=example/CN=middle  ca")
    ca.openssl("req", "-x509", "-key", spelt.key, "-out", spelt.cert, "-subj", spelt.dn, "-config",
               ca.folder / "config", "-extensions", "ca")
    eve = ca.issue("/DC=org/DC=example/CN=Eve", spelt, chain=(ca.middle,))
    assert f"the certificate of {ca.middle.dn} was revoked" in refused(ca, ca.sign(image_list(eve), eve))
    (ca.certificates / f"{ca.hash(ca.root)}.r0").unlink()
    assert trust.verify_list(ca.sign(image_list(bob), bob), ca.certificates, now())
    monkeypatch.setattr(authorities, "_LOOKED_AT", 1)
    assert "more than 1 certificates" in refused(ca, ca.sign(image_list(bob), bob))


def _renumbered(ca: Ca, number: int) -> bytes:
    """Another certificate, of nobody's, quickly: the same but for its signature, which nobody looks at."""
    der = bytearray(x509.certificates_of_pem(ca.eve.cert.read_bytes())[0])
    der[-1] ^= number + 1
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(der)) + b"-----END CERTIFICATE-----\n"


def test_a_revocation_list_that_is_old(tmp_path: Path) -> None:
    ca = Ca(tmp_path / "ca", 0)
    ca.revocations(ca.root, days="1")
    assert "whether /DC=org/DC=example/CN=Ada Lovelace was revoked cannot be told: CRL has expired" in refused(
        ca, ca.sign(image_list(ca.ada, dc_date_expires="2100-01-01T00:00:00Z")), now() + 2 * 86400)


def test_what_an_authority_may_certify(tmp_path: Path) -> None:
    ca = Ca(tmp_path / "ca", 0)
    policy, message = ca.certificates / f"{ca.hash(ca.root)}.signing_policy", ca.sign(image_list(ca.ada))
    policy.write_text(f" access_id_CA X509 '{ca.root.dn}'\n pos_rights globus CA:sign\n"
                      " cond_subjects globus '\"/DC=org/DC=example/*\" \"/C=DE/*\"'\n")
    assert trust.verify_list(message, ca.certificates, now())
    policy.write_text(f"access_id_CA X509 '{ca.root.dn}'\npos_rights globus CA:sign\n"
                      "cond_subjects globus '\"/DC=org/DC=other/*\"'\n")
    assert "may not certify the name /DC=org/DC=example/CN=Ada Lovelace" in refused(ca, message)
    policy.write_text("access_id_CA X509 '/CN=Another'\npos_rights globus CA:sign\ncond_subjects globus '\"*\"'\n")
    assert "may not certify" in refused(ca, message)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("dn", [
    "/DC=org/DC=example/C=DE/ST=Hamburg/L=Bahrenfeld/O=GridKa/OU=IT/CN=Robot: images/emailAddress=ada@example.org",
    "/DC=org/UID=ada/CN=Jürgen Müller ☃", "/O=a, b; c \\+ d = \"e\"/CN=host\\/node.example.org",
    "/CN=x/title=Dr/GN=A/SN=B", "/DC=org/serialNumber=12/street=S/postalCode=1/description=d/1.3.6.1.4.1.9=own/CN=x"])
def test_names_as_grid_software_writes_them(ca: Ca, dn: str) -> None:
    one = ca.issue(dn, ca.root)
    shown = ca.openssl("x509", "-noout", "-subject", "-issuer", "-nameopt", "compat", "-in", one.cert).decode()
    found = smime.certificate_of(one.cert)
    # since 3.0 OpenSSL puts a backslash before / and +, which no list and no policy of the grid has
    assert f"subject={found.subject}\nissuer={found.issuer}\n" == re.sub(r"\\([/+])", r"\1", shown)


@pytest.mark.parametrize("dn", ["/CN=Eve\\/CN=Ada Lovelace", "/CN=Eve\\/1.2.3=x", "/CN=Ada+OU=x", "/CN=a\\\\xC3"])
def test_names_that_read_as_two(ca: Ca, dn: str) -> None:
    one = ca.issue(dn, ca.root)
    assert "a certificate cannot be read: a name with" in refused(ca, ca.sign(image_list(one), one))


def test_the_endorser_is_who_signed(ca: Ca) -> None:
    mallory = ca.issue("/DC=org/DC=example/CN=Mallory", ca.root)
    assert "names /DC=org/DC=example/CN=Ada Lovelace" in refused(ca, ca.sign(image_list(ca.ada), mallory))
    assert "but /DC=org/DC=example/CN=Ada Lovelace (certified by /DC=org/DC=example/CN=Test CA)" in refused(
        ca, ca.sign(image_list(replace(ca.ada, ca="/CN=Other")), ca.ada))
    nobody = image_list(Pair(Path(), Path(), "", ""))
    assert "names nobody (certified by nobody)" in refused(ca, ca.sign(nobody, ca.ada))


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("md", ["sha1", "md5"])
def test_weak_digests(ca: Ca, md: str) -> None:
    wanted = {"sha1": "SHA-1", "md5": "MD5"}[md]
    assert f"signed with {wanted}" in refused(ca, ca.sign(image_list(ca.ada), None, "-md", md))
    assert f"signed with {wanted}" in refused(ca, ca.sign(image_list(ca.ada), None, "-md", md, "-noattr"))


def test_two_signers(ca: Ca) -> None:
    message = ca.sign(image_list(ca.ada), None, "-signer", ca.eve.cert, "-inkey", ca.eve.key)
    assert "2 signers" in refused(ca, message)


def test_no_more_signature_than_anybody_needs(ca: Ca) -> None:
    message = ca.sign(image_list(ca.ada))
    large = re.sub(rb"(?s)\n\nMII.*?\n\n", b"\n\nMII" + b"A" * 2**21 + b"\n\n", message)
    assert "larger than 1 MiB" in refused(ca, large)


def test_a_message_that_openssl_does_not_get_done_with(ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (smime, authorities):
        with monkeypatch.context() as patch:
            patch.setattr(module, "_TIMEOUT", 1e-9)
            assert "cannot be judged: " in refused(ca, ca.sign(image_list(ca.ada)))


def test_a_message_of_boundaries_takes_no_memory() -> None:
    message = b'Content-Type: multipart/signed; boundary="x"\n' + b"\n--x" * 200_000
    tracemalloc.start()
    try:
        with pytest.raises(EndorsementRefused, match="not one text with one signature"):
            smime.verify(message, Path(), now())
        assert tracemalloc.get_traced_memory()[1] < 10 * len(message)
    finally:
        tracemalloc.stop()


def test_no_signer_at_all(ca: Ca) -> None:
    der = ca.openssl("crl2pkcs7", "-nocrl", "-certfile", ca.ada.cert, "-outform", "DER")
    message = ca.sign(image_list(ca.ada))
    head, tail = re.split(rb"(?<=\n\n)(?=MII)", message)
    mark = tail[tail.index(b"\n\n"):]
    assert "0 signers" in refused(ca, head + base64.encodebytes(der) + mark)


def _swap_text(message: bytes, ca: Ca) -> bytes:
    return message.replace(b"images for tests", b"images for texts")


def _swap_signature(message: bytes, ca: Ca) -> bytes:
    other = ca.sign(image_list(ca.ada, dc_title="Other"))
    mark, others = (re.search(rb'boundary="(.*)"', one).group(1) for one in (message, other))  # type: ignore[union-attr]
    return (message[:message.index(b"Content-Type: application")]
            + other[other.index(b"Content-Type: application"):].replace(others, mark))


def _boundary(message: bytes) -> bytes:
    found = re.search(rb'boundary="(.*)"', message)
    assert found
    return found.group(1)


def _second_part(message: bytes, ca: Ca) -> bytes:
    line = b"--" + _boundary(message)
    return message.replace(line + b"\n", line + b"\n{}\n" + line + b"\n", 1)


def _nested(message: bytes, ca: Ca) -> bytes:
    inner = b"Content-Type: multipart/mixed; boundary=\"x\"\n\n--x\n\n{}\n--x--\n"
    return ca.sign_text(inner)


def _opaque(message: bytes, ca: Ca) -> bytes:
    return ca.sign(image_list(ca.ada), None, "-nodetach")


def _second_text_inside(message: bytes, ca: Ca) -> bytes:
    opaque = ca.sign(image_list(ca.ada, dc_title="Other"), None, "-nodetach")
    body = opaque.partition(b"\n\n")[2].strip()
    return re.sub(rb"(?s)\n\nMII.*?\n\n", b"\n\n" + body + b"\n\n", message)


TRICKS: dict[str, tuple[Callable[[bytes, Ca], bytes], str]] = {
    "text": (_swap_text, "the text was changed after it was signed"),
    "signature": (_swap_signature, "the text was changed after it was signed"),
    "second part": (_second_part, "not one text with one signature"),
    "before": (lambda m, ca: b"From: eve\nContent-Type: text/plain\n" + m, "no signed message"),
    "header injected": (lambda m, ca: m.replace(b"MIME-Version: 1.0\n", b"MIME-Version: 1.0\r\n\r\n{}\r\n"),
                        "no signed message"),
    "behind": (lambda m, ca: m + b'{"hv:imagelist": {}}\n', "something behind the signature"),
    "another boundary": (lambda m, ca: m.replace(_boundary(m), b"x", 1), "not one text with one signature"),
    "nested": (_nested, "the text is no JSON"),
    "opaque": (_opaque, "no signed message"),
    "second text": (_second_text_inside, "a second text inside its signature"),
    "lone return": (lambda m, ca: m.replace(b"images for", b"images\rfor"), "line breaks that no text has"),
    "NUL": (lambda m, ca: m.replace(b"images for", b"images\0for"), "the text was changed"),
    "cut": (lambda m, ca: m[:len(m) * 2 // 3], "not one text with one signature"),
    "no signature": (lambda m, ca: m[m.index(b"{"):m.index(b"------", m.index(b"{"))], "no signed message"),
    "not base64": (lambda m, ca: m.replace(b"\n\nMII", b"\n\n?II"), "not in base64"),
    "broken DER": (lambda m, ca: m.replace(b"\n\nMII", b"\n\nMIA"), "cannot be read"),
    "empty": (lambda m, ca: b"", "no signed message"),
    "noise": (lambda m, ca: bytes(range(256)) * 100, "no signed message"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks(ca: Ca, trick: str) -> None:
    change, said = TRICKS[trick]
    message = change(ca.sign(image_list(ca.ada, [entry()])), ca)
    assert said in refused(ca, message)


def test_nul_and_depth_under_a_good_signature(ca: Ca) -> None:
    assert "no JSON" in refused(ca, ca.sign_text(b'{"a": "\0"}'))
    assert "without end" in refused(ca, ca.sign_text(b"[" * 200_000))
    assert "no JSON" in refused(ca, ca.sign_text(b'{"a": ' + b"9" * 5000 + b"}"))


# ---------------------------------------------------------------- what a list is worth for an image


def test_endorsements_and_why_others_are_none(ca: Ca, tmp_path: Path) -> None:
    other = replace(ONE, cmdline="x")
    forged = {**manifest_to_dict(other), "digest": ONE.digest}
    lists = {
        "good": image_list(ca.ada, [{**own(), "vmjob:test": {"passed": True, "time": 1700000000}}]),
        "expired": image_list(ca.ada, [own()], dc_date_expires="2020-01-01T00:00:00Z"),
        "other": image_list(ca.ada, [own(manifest=other)]),
        "image expired": image_list(ca.ada, [own(dc_date_expires="2020-01-01T00:00:00Z")]),
        "withdrawn": image_list(ca.ada, [own()], **{"vmjob_withdrawn": [ONE.digest]}),
        "forged": image_list(ca.ada, [{**entry(), "vmjob:manifest": forged}]),
        "future": image_list(ca.ada, [own()], dc_date_created="2090-01-01T00:00:00Z"),
        "path": image_list(ca.ada, [own(hv_uri="/etc/passwd")]),
    }
    paths = []
    for name, body in lists.items():
        (tmp_path / name).write_bytes(ca.sign(body))
        paths.append(tmp_path / name)
    found, reasons = trust.endorsements(ONE, [*paths, tmp_path / "none"], ca.certificates, now())
    assert len(found) == 1 and len(reasons) == len(paths)
    assert (found[0].digest, found[0].image, found[0].tested, found[0].group) == (
        ONE.digest, "id-one", 1700000000.0, "General group")
    assert found[0].endorser.dn == ca.ada.dn and found[0].expires < now() + 2 * 86400
    for name, said in (("expired", "expired on 2020-01-01"), ("other", "does not name one"),
                       ("image expired", "Image one expired on 2020"), ("withdrawn", "has withdrawn"),
                       ("forged", "is stated, but the content has"), ("future", "made in the future"),
                       ("path", "names a file path"), ("none", "cannot be read")):
        assert any(said in reason for reason in reasons), (name, reasons)


def test_hundred_thousand_images(ca: Ca) -> None:
    """That it works; how fast: bench/lists.py."""
    images = [{"dc:identifier": str(number), "hv:uri": f"https://example.org/{number}"} for number in range(99_999)]
    found = trust.verify_list(ca.sign(image_list(ca.ada, [*images, own("last")])), ca.certificates, now())
    last = found.listing.by_digest(ONE.digest)
    assert last and last.identifier == "id-last" and len(found.listing.entries) == 100_000


def test_der_of_anything_never_breaks(ca: Ca) -> None:
    der = x509.certificates_of_pem(ca.ada.cert.read_bytes())[0]
    for at in range(0, 400):
        for value in (0x00, 0x80, 0xFF):
            spoilt = der[:at] + bytes([value]) + der[at + 1:]
            try:
                x509.certificate(spoilt)
            except EndorsementRefused:
                raise
            except (ValueError, IndexError, TypeError):
                pass
