"""HEPiX image lists as text: others' are read, ours are written, nonsense is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ca import Pair, entry, image_list
from vmjob.core.errors import EndorsementRefused, ImageError, JobError
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.image.manifest import from_document, to_document
from vmjob.image.trust import imagelist, sign, subscriptions, x509
from vmjob.image.trust.endorsement import Endorser
from vmjob.image.trust.verify import SignedList

pytestmark = pytest.mark.unit

ADA = Pair(Path(), Path(), "/DC=org/CN=Ada", "/DC=org/CN=CA")
ONE = Manifest("one", (ImageFile("disk", "disk.qcow2", "qcow2", 1000, "ab" * 32, 4096),), (Boot.DISK,),
               sources=("file:/nfs/one/", "https://example.org/one/"), made_from=("a=1", "b=2"))
ENDORSER = Endorser("/CN=Ada", "/CN=CA")
HEADING = sign.Heading("list-1", "7", 1_000_000.0, 2_000_000.0, "Tests", "https://example.org/list")


def parse(body: Any) -> imagelist.ImageList:
    return imagelist.parse(json.dumps({"hv:imagelist": body}).encode())


def refused(body: Any) -> str:
    with pytest.raises(EndorsementRefused) as wrong:
        parse(body).image(0)
    return wrong.value.message


def test_what_is_written_is_read() -> None:
    test = {"passed": True, "time": 1234567890}
    body = sign.document(HEADING, Endorser(ADA.dn, ADA.ca),
                            [sign.entry(ONE, "cd" * 64, HEADING, group="pheno", test=test)], [f"sha256:{'e' * 64}"])
    found = imagelist.parse(imagelist.render(body))
    assert (found.identifier, found.version, found.created, found.expires, found.endorser, found.withdrawn) == (
        "list-1", "7", 1_000_000.0, 2_000_000.0, Endorser(ADA.dn, ADA.ca), (f"sha256:{'e' * 64}",))
    image = found.by_digest(ONE.digest)
    assert image and image == found.by_sha512("CD" * 64)
    assert image.manifest == replace(ONE, sources=("https://example.org/one/",))  # no paths of ours
    assert (image.uri, image.size, image.group, image.tested) == (
        "https://example.org/one/disk.qcow2", 1000, "pheno", 1234567890.0)


def test_what_hepix_tools_demand_is_there() -> None:
    """The keys without which hepixvmitrust refuses a list, none of them empty."""
    body = sign.document(HEADING, Endorser(ADA.dn, ADA.ca), [sign.entry(ONE, "cd" * 64, HEADING)])
    image, x509 = body["hv:images"][0]["hv:image"], body["hv:endorser"]["hv:x509"]
    for place, keys in (
            (body, "dc:date:created dc:date:expires dc:identifier dc:description dc:title dc:source hv:version hv:uri"),
            (image, "dc:title dc:description hv:size sl:checksum:sha512 sl:arch hv:uri dc:identifier sl:os "
                    "sl:osversion sl:comments hv:hypervisor hv:version"),
            (x509, "hv:ca hv:dn hv:email dc:creator")):
        assert all(place[key] not in (None, "") for key in keys.split()), place


def test_identifiers_stay_and_versions_go_up() -> None:
    first = sign.image_identifier("a", "x")
    assert sign.image_identifier("a", "x") == first != sign.image_identifier("b", "x")
    assert [sign.next_version(one) for one in ("1", "9", "1.9", "20260101-3", "v", "")] == [
        "2", "10", "1.10", "20260101-4", "v.1", "1"]
    assert [sign.next_version(one) for one in ("1.²", "²", "٣")] == ["2.²", "².1", "٣.1"]


def test_an_image_without_an_address_is_not_listed() -> None:
    for sources in ((), ("file:/nfs/one/",)):
        with pytest.raises(JobError, match="needs an address"):
            sign.entry(replace(ONE, sources=sources), "cd" * 64, HEADING)


def test_lists_of_others() -> None:
    few = {"dc:identifier": "x", "hv:size": 5}  # CernVM's and vmcaster's are shorter than AppDB's
    found = parse(image_list(ADA, [entry(), few, entry("empty", hv_size="", dc_description="", sl_osversion="")],
                             ad_vo="pheno", ad_swid=810))
    assert found.image(0).size == 121243136 and found.image(1).size == 5 and found.image(2).size == 0
    assert found.image(0).manifest is None and found.digests == {}
    assert parse(image_list(ADA, hv_version=20150618211400)).version == "20150618211400"


# the host is another one, as other programs read them
AMBIGUOUS = [f"{scheme}://{host}/x" for scheme in ("https", "root", "davs", "pelican", "osdf")
             for host in ("a\\@b", "a?@b", "a#@b", "a@b@c", "a b", "@", "a@", "a?b")]


@pytest.mark.parametrize("uri", [
    "https://h/a/", "https://h", "http://u:p@h:80/a?b#c@d@e", "root://h//a/b", "davs://[::1]/a/{path}", "osdf:///a/b",
    "osdf://a/b", "pelican://f/a/{sha256}", "condor:chirp/x", "file:/a/"])
def test_addresses(uri: str) -> None:
    assert imagelist.file_path(uri) == uri.startswith("file:")
    listed = {**to_document(replace(ONE, sources=(uri,)))}
    assert from_document(listed, "test").sources == (uri,)


def test_a_manifest_has_no_address_of_two_hosts() -> None:
    for uri in (*AMBIGUOUS, "https://h/x\n", "https:///x", "osdf://h/ x", "file:/ x"):
        with pytest.raises(ImageError, match="sources"):
            from_document({**to_document(replace(ONE, sources=())), "sources": [uri]}, "test")


@pytest.mark.parametrize("uri", [
    "/etc/passwd", "etc/passwd", "../x.img", "file:///etc/passwd", "FILE:/x", "https://example.org/a/../../x",
    "https://example.org/..", "data:text/plain,x", "https://example.org/\nx", "-o x", "~/x", "ssh://host/x",
    *AMBIGUOUS])
def test_file_paths(uri: str) -> None:
    assert "names a file path" in refused(image_list(ADA, [entry(hv_uri=uri)]))
    inside = {**entry(), "vmjob:manifest": {**to_document(replace(ONE, sources=())), "sources": [uri]}}
    assert "names a file path" in refused(image_list(ADA, [inside]))


@pytest.mark.parametrize("change, said", [
    ({"hv_images": [{"hv:image": entry()}, {"hv:image": entry()}]}, "two images have the identifier id-one"),
    ({"hv_images": {}}, "hv:images: expected a list"), ({"hv_images": [1]}, "hv:images.0: expected an hv:image"),
    ({"hv_images": [{"hv:image": {}}]}, "hv:images.0"), ({"hv_version": None}, "hv:version: is missing"),
    ({"dc_identifier": ""}, "dc:identifier: is missing"), ({"dc_identifier": ["x"]}, "dc:identifier: is no text"),
    ({"dc_identifier": "x" * 2000}, "longer than"), ({"dc_date_expires": "soon"}, "'soon' is no time"),
    ({"dc_date_expires": "2026-02-31T00:00:00Z"}, "is no time"), ({"hv_endorser": None}, "hv:endorser: expected"),
    ({"hv_endorser": {"hv:x509": []}}, "hv:endorser.hv:x509: expected"),
    ({"vmjob_withdrawn": ["x"]}, "vmjob:withdrawn: expected"), ({"vmjob_withdrawn": {}}, "vmjob:withdrawn: expected"),
    ({"hv_images": [{"hv:image": {**entry(), "vmjob:manifest": {}}}]}, "the digest is missing"),
    ({"hv_images": [{"hv:image": {**entry(), "vmjob:manifest": {"digest": "sha256:" + "0" * 64}}}]},
     "key 'name' is missing"),
    ({"hv_images": [{"hv:image": {**entry(str(n)), "vmjob:manifest": to_document(ONE)}} for n in (1, 2)]},
     "names a file path"),
    ({"hv_images": [{"hv:image": {**entry(str(n)), "vmjob:manifest": to_document(replace(ONE, sources=()))}}
                    for n in (1, 2)]}, "two images have the same digest"),
    ({"hv_images": [{"hv:image": entry(hv_size="many")}]}, "hv:size: 'many'"),
    ({"hv_images": [{"hv:image": entry(hv_size=1e3)}]}, "hv:size"),
    ({"hv_images": [{"hv:image": entry(sl_checksum_sha512="ab")}]}, "is no SHA-512"),
    ({"hv_images": [{"hv:image": entry(hv_uri=7)}]}, "an address is no text")])
def test_nonsense(change: dict[str, Any], said: str) -> None:
    assert said in refused(image_list(ADA, **change))


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"hv:imagelist": 1}', b"\xff", b"{" * 10, b'{"a": NaN}',
                                  b'{"a": 1e999999}', b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"\0"])
def test_text_that_is_no_list(text: bytes) -> None:
    with pytest.raises(EndorsementRefused):
        imagelist.parse(text)


@pytest.mark.parametrize("older, newer", [
    ("1", "2"), ("9", "10"), ("1.9", "1.10"), ("1", "1.1"), ("20150618211400", "20260101000000"),
    ("3.3.0-1", "3.3.0-2"), ("1.a", "1.b"), ("1.a", "1.1"), ("2.0", "10.0"), ("", "1"),
    ("1.²", "1.1"), ("1.³", "1.٣³"), ("1.٩", "1.1"), ("1", "9" * 5000)])  # digits are those of ASCII
def test_versions(older: str, newer: str) -> None:
    assert imagelist.version_key(older) < imagelist.version_key(newer)


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes([tag, 0x84]) + len(body).to_bytes(4, "big") + body


def certificate(key: bytes = b"\x55\x04\x03", value: bytes = b"x", time: bytes = b"260101000000Z") -> bytes:
    name = der(0x30, der(0x31, der(0x30, der(6, key), der(0x0C, value))))
    dates = der(0x30, der(0x17, b"260101000000Z"), der(0x17, time))
    return der(0x30, der(0x30, der(2, b"1"), der(0x30), name, dates, name))


def test_what_a_certificate_may_hold_before_anybody_has_verified_it() -> None:
    assert x509.certificate(certificate()).subject == "/CN=x"
    for wrong, said in ((certificate(key=b"\x60" + b"\xff" * 64 + b"\x01"), "identifier of 66 bytes"),
                        (certificate(key=b""), "identifier of 0 bytes"), (certificate(value=b"x" * 5000), "a name of"),
                        (certificate(time=b"2" * 100), "a time that is none"),
                        (certificate(time=b"x"), "does not match")):
        with pytest.raises(ValueError, match=said):
            x509.certificate(wrong)


def test_times() -> None:
    assert imagelist.moment("2026-03-01T12:00:00Z", "x") == imagelist.moment("2026-03-01T14:00:00+02:00", "x")
    assert imagelist.moment("2026-03-01", "x") == imagelist.moment("2026-03-01T00:00:00.5Z", "x")
    assert imagelist.time_text(imagelist.moment("2499-12-31T22:00:00Z", "x")) == "2499-12-31T22:00:00Z"


# ---------------------------------------------------------------- lists that are followed


def signed(version: str = "1", created: float = 1000.0, digests: tuple[str, ...] = ("sha256:a", "sha256:b"),
           endorser: Endorser = ENDORSER, identifier: str = "list-1", message: str = "",
           withdrawn: tuple[str, ...] = ()) -> SignedList:
    listing = imagelist.ImageList(identifier, version, created, 9e9, endorser, "Tests", withdrawn=withdrawn,
                                  digests={one: place for place, one in enumerate(digests)})
    return SignedList(listing, 8e9, message or f"{version}{created}{digests}".encode().hex()[:64])


def test_following_a_list(tmp_path: Path) -> None:
    first = subscriptions.follow(tmp_path, "https://a/", signed(), b"one", 5.0)
    assert subscriptions.listed(tmp_path) == [first] and first.expires == 8e9
    assert subscriptions.message_of(tmp_path, first).read_bytes() == b"one"
    assert subscriptions.withdrawn("sha256:a", [tmp_path]) is None
    assert subscriptions.naming("sha256:a", [tmp_path]) == [subscriptions.message_of(tmp_path, first)]
    subscriptions.follow(tmp_path, "https://a/", signed("2", 2000.0, ("sha256:b", "sha256:c")), b"two", 6.0)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".json", ".smime"]
    assert "version 2, no longer has it" in (subscriptions.withdrawn("sha256:a", [tmp_path / "none", tmp_path]) or "")
    third = signed("3", 3000.0, ("sha256:c",), withdrawn=("sha256:d",))
    last = subscriptions.follow(tmp_path, "https://a/", third, b"3", 7)
    assert set(last.withdrawn) == {"sha256:a", "sha256:b", "sha256:d"} and "withdrew it" in last.withdrawn["sha256:d"]
    assert "version 2" in last.withdrawn["sha256:a"]  # since when
    back = subscriptions.follow(tmp_path, "https://a/", signed("4", 4000.0, ("sha256:a",)), b"4", 8)
    assert "sha256:a" not in back.withdrawn and "sha256:c" in back.withdrawn
    subscriptions.forget(tmp_path, back)
    assert subscriptions.listed(tmp_path) == [] and subscriptions.withdrawn("sha256:c", [tmp_path]) is None


@pytest.mark.parametrize("other, said", [
    (signed("1", 999.0), "an older version"), (signed("2", 2000.0, ("sha256:x",)), "again, with other content"),
    (signed("3", 1500.0), "an older version"), (signed("1.9", 3000.0), "an older version"),
    (signed("3", 3000.0, endorser=Endorser("/CN=Eve", "/CN=CA")), "is signed by /CN=Eve"),
    (signed("3", 3000.0, endorser=Endorser("/CN=Ada", "/CN=Other")), "certified by /CN=Other")])
def test_what_a_followed_list_never_becomes(tmp_path: Path, other: SignedList, said: str) -> None:
    now = subscriptions.follow(tmp_path, "https://a/", signed("2", 2000.0), b"good", 5.0)
    with pytest.raises(EndorsementRefused, match=said):
        subscriptions.follow(tmp_path, "https://a/", other, b"bad", 6.0)
    assert subscriptions.listed(tmp_path) == [now]
    assert subscriptions.message_of(tmp_path, now).read_bytes() == b"good"
    assert said in (subscriptions.outdated(other, [tmp_path]) or "")
    assert subscriptions.outdated(signed("2", 2000.0), [tmp_path]) is None
    assert subscriptions.outdated(signed("3", 3000.0), [tmp_path]) is None
    assert subscriptions.outdated(signed(identifier="other"), [tmp_path]) is None


def test_a_list_under_another_identifier_is_another_list(tmp_path: Path) -> None:
    subscriptions.follow(tmp_path, "https://a/", signed(), b"one", 5.0)
    old = subscriptions.find(tmp_path, "https://a/")
    with pytest.raises(EndorsementRefused, match="is another one now: evil"):
        subscriptions.renewed(old, "https://a/", signed("2", 2000.0, identifier="evil"), 6.0)


def test_a_broken_state_is_told(tmp_path: Path) -> None:
    subscriptions.follow(tmp_path, "https://a/", signed(), b"one", 5.0)
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    with pytest.raises(EndorsementRefused, match="cannot be read"):
        subscriptions.withdrawn("sha256:a", [tmp_path])
