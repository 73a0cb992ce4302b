"""What BDIIs, collectors and documents tell, as site ads: mapped, merged, and not believed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cemon_publisher.example import EXAMPLE
from cemon_publisher.render import classad, glue1, glue2

from vmjob.ads import site_ad
from vmjob.ads.site_ad import KVM, TCG, Element, NodeAd, SiteAd, SiteImage
from vmjob.core.errors import JobError
from vmjob.core.site_errors import SitesRefused
from vmjob.sites import cache, child, collector, documents, read, sources
from vmjob.sites import glue as text
from vmjob.sites import glue1 as read1
from vmjob.sites import glue2 as read2
from vmjob.sites.answer import Answer
from vmjob.sites.sources import Source, parse

pytestmark = pytest.mark.unit

DIGEST = "sha256:" + "7" * 64
NOW = EXAMPLE.created


def came(entries: Iterable[Any], notes: list[str]) -> list[text.Entry]:
    """The publisher's entries as a server sends them."""
    return [text.entry(one.dn.encode(), {key: [value.encode() for value in values] for key, values in one.attributes},
                       notes) for one in entries]


def entry(dn: str, *classes: str, **values: Any) -> text.Entry:
    raw = {key: [value] if isinstance(value, (str, bytes)) else value for key, value in values.items()}
    return text.entry(dn.encode(), {"objectClass": [one.encode() for one in classes], **{
        key: [one.encode() if isinstance(one, str) else one for one in many] for key, many in raw.items()}}, [])


# ---------------------------------------------------------------- GLUE 2


def test_what_is_published_as_glue2_comes_back_whole() -> None:
    notes: list[str] = []
    service, *parts = came(glue2.entries(EXAMPLE), notes)
    assert read2.site(service, parts, notes) == EXAMPLE
    assert notes == []
    closed = replace(EXAMPLE, nodes=tuple(replace(one, online=0) for one in EXAMPLE.nodes), images=())
    service, *parts = came(glue2.entries(closed), notes)
    assert read2.site(service, parts, notes) == closed


def test_another_publishers_glue2_is_shown_with_what_is_known() -> None:
    below = "GLUE2ServiceID=s,GLUE2GroupID=resource,GLUE2DomainID=ROME,GLUE2GroupID=grid,o=glue"
    service = entry(below, "GLUE2Service", "GLUE2ComputingService", GLUE2ServiceID="s",
                    GLUE2ServiceCapability=read2.CAN_RUN_VMS)
    parts = [
        entry(f"a,{below}", "GLUE2Endpoint", "GLUE2ComputingEndpoint", GLUE2EndpointURL="https://ce.rome.it:8443/cream",
              GLUE2EndpointInterfaceName="org.glite.ce.CREAM"),
        entry(f"b,{below}", "GLUE2Endpoint", GLUE2EndpointURL="ldap://bdii.rome.it:2170",
              GLUE2EndpointInterfaceName="bdii"),
        entry(f"c,{below}", "GLUE2ExecutionEnvironment", GLUE2ExecutionEnvironmentTotalInstances="7",
              GLUE2ExecutionEnvironmentUnavailableInstances="2", GLUE2ExecutionEnvironmentPlatform="amd64",
              GLUE2ExecutionEnvironmentMainMemorySize="4096", GLUE2ExecutionEnvironmentConnectivityOut="true"),
        entry(f"d,{below}", "GLUE2ApplicationEnvironment", GLUE2ApplicationEnvironmentAppName="vm_etics_slc44"),
        entry(f"e,{below}", "GLUE2ApplicationEnvironment", GLUE2ApplicationEnvironmentAppName="VO-atlas-gcc"),
        entry(f"f,{below}", "GLUE2MappingPolicy", GLUE2PolicyRule=["VO:atlas", "VOMS:/star/Role=x", "/C=IT/CN=Ada"]),
        entry(f"g,{below}", "GLUE2ComputingShare", GLUE2ComputingShareMaxWallTime="3600"),
    ]
    ad = read2.site(service, parts, [])
    assert ad is not None
    assert (ad.name, ad.vos, ad.max_walltime) == ("ROME", ("atlas", "star"), 3600)
    assert ad.images == (SiteImage("etics_slc44", ""),)
    assert [(one.host, one.kind) for one in ad.elements] == [("ce.rome.it", "org.glite.ce.CREAM")]
    nodes = ad.nodes[0]
    assert (nodes.total, nodes.online, nodes.memory, nodes.accel, nodes.arch, nodes.networks) == \
        (7, 5, 4 * 2**30, TCG, "x86_64", ("nat",))
    assert "does not say" in nodes.reason


@pytest.mark.parametrize("key, value", [
    ("GLUE2EntityCreationTime", "yesterday"), ("GLUE2EntityValidity", "-5"), ("GLUE2EntityValidity", "9" * 5000),
    ("GLUE2EntityCreationTime", "9999-99-99T99:99:99Z")])
def test_values_of_wrong_types_are_not_known(key: str, value: str) -> None:
    ad = read2.site(entry("s", "GLUE2Service", GLUE2EntityOtherInfo="VmjobSite=A", **{key: value}), [], [])
    assert ad == SiteAd("A")


def test_a_site_without_a_name_is_left_out() -> None:
    notes: list[str] = []
    assert read2.site(entry("s", "GLUE2Service", GLUE2EntityOtherInfo="VmjobSite=" + "x" * 256), [], notes) is None
    assert "without a site's name" in notes[0]


# ---------------------------------------------------------------- hostile values


@pytest.mark.parametrize("value, note", [
    (b"\xff\xfe", "a binary value in Name of a"), (b"a\x1b[2Jb", "a binary value"), (b"a\nb", "a binary value"),
    (b"x" * 2**20, "a value of 1.0 MiB in Name of a")])
def test_a_value_that_no_terminal_and_no_schema_takes_is_left_out(value: bytes, note: str) -> None:
    notes: list[str] = []
    made = text.entry(b"a", {"Name": [value, b"good"]}, notes)
    assert made.all("name") == ("good",)
    assert notes[0].startswith(f"left out: {note}")


def test_even_a_dn_and_a_name_can_be_binary() -> None:
    notes: list[str] = []
    made = text.entry(b"\xff" * 2**20, {"\x1b[2J": [b"\xff"]}, notes)
    assert made.dn == "\ufffd"
    assert notes == ["left out: a binary value in \ufffd[2J of \ufffd"]


def test_what_a_bdii_cannot_take_is_written_back() -> None:
    assert text.entry(b"a", {"k": [b"/O=x/CN=Edn%3AZ"]}, []).one("k") == "/O=x/CN=Edn:Z"


# ---------------------------------------------------------------- GLUE 1.3


def test_what_is_published_as_glue1_comes_back_as_far_as_glue1_has_words() -> None:
    notes: list[str] = []
    ad, = read1.sites(came(glue1.entries(EXAMPLE), notes), notes)
    assert notes == []
    assert (ad.name, ad.vos, ad.elements, ad.unlisted, ad.version, ad.max_walltime) == (
        EXAMPLE.name, EXAMPLE.vos, EXAMPLE.elements, EXAMPLE.unlisted, EXAMPLE.version, EXAMPLE.max_walltime)
    assert {(one.name, one.digest) for one in ad.images} == {(one.name, one.digest) for one in EXAMPLE.images}
    assert {one.name: one.vos for one in ad.images} == \
        {one.name: EXAMPLE.vos if one.vos == ("*",) else one.vos for one in EXAMPLE.images}
    nodes, = ad.nodes
    best = EXAMPLE.nodes[0]
    assert (nodes.accel, nodes.networks, nodes.max_memory, nodes.max_cpus, nodes.memory) == \
        (KVM, best.networks, best.max_memory, best.max_cpus, best.max_memory)
    assert (nodes.total, nodes.free) == (42, 1240)


def wnodes(**more: Any) -> list[text.Entry]:
    base = "mds-vo-name=BOLOGNA,mds-vo-name=local,o=grid"
    return [
        entry(f"GlueClusterUniqueID=c1,{base}", "GlueCluster", GlueClusterUniqueID="c1",
              GlueForeignKey=["GlueCEUniqueID=ce:8443/cream-pbs-q", "GlueSiteUniqueID=INFN-CNAF"]),
        entry(f"GlueSubClusterUniqueID=s,{base}", "GlueSubCluster", GlueChunkKey="GlueClusterUniqueID=C1",
              GlueHostApplicationSoftwareRunTimeEnvironment=["vm_etics_slc44", "GLITE-3_2_0", f"vm_sha256_{'7' * 64}"],
              GlueHostMainMemoryRAMSize="16384", **more),
        entry(f"GlueCEUniqueID=ce,{base}", "GlueCE", GlueCEUniqueID="ce:8443/cream-pbs-q", GlueCEInfoHostName="ce",
              GlueForeignKey="GlueClusterUniqueID=c1", GlueCEAccessControlBaseRule=["VO:ops", "VO:lhcb"],
              GlueCEPolicyMaxWallClockTime="444444"),
    ]


def test_a_site_with_tags_as_wnodes_has_them_is_shown() -> None:
    ad, = read1.sites(wnodes(), [])
    assert (ad.name, ad.vos, ad.max_walltime) == ("INFN-CNAF", ("ops", "lhcb"), 0)
    assert ad.images == (SiteImage("etics_slc44", ""), SiteImage("sha256_777777777777", DIGEST))
    assert ad.elements == (Element("ce", "ce:8443/cream-pbs-q", "unknown", "unknown"),)
    assert (ad.nodes[0].total, ad.nodes[0].online, ad.nodes[0].memory) == (1, 1, 2**34)


def test_sites_without_virtual_machines_are_not() -> None:
    plain = [replace(one, values={key: value for key, value in one.values.items() if "runtime" not in key})
             for one in wnodes()]
    assert read1.sites(plain, []) == []


def test_keys_that_go_in_circles_lead_nowhere() -> None:
    base = "mds-vo-name=X,o=grid"
    loop = [
        entry(f"a,{base}", "GlueCluster", GlueClusterUniqueID="c1", GlueForeignKey="GlueClusterUniqueID=c2"),
        entry(f"b,{base}", "GlueCluster", GlueClusterUniqueID="c2", GlueForeignKey="GlueClusterUniqueID=c1"),
        entry(f"c,{base}", "GlueCE", GlueCEUniqueID="e", GlueForeignKey=["GlueCEUniqueID=e", "GlueClusterUniqueID=c3"]),
        entry(f"d,{base}", "GlueVOView", GlueChunkKey=["GlueVOViewLocalID=v", "GlueCEUniqueID=e"]),
        entry(f"e,{base}", "GlueSubCluster", GlueChunkKey="GlueClusterUniqueID=c1",
              GlueHostApplicationSoftwareRunTimeEnvironment="vm_a"),
    ]
    assert [one.name for one in read1.sites(loop, [])] == ["X"]


# ---------------------------------------------------------------- ClassAds


def test_what_is_published_as_a_classad_comes_back() -> None:
    classad2 = pytest.importorskip("classad2", reason="needs HTCondor's Python bindings: pip install htcondor")
    later = replace(EXAMPLE, expires=2**31)
    ad = classad2.parseOne("".join(f"{key} = {value}\n" for key, value in classad.attributes(later).items()))
    source = parse("condor-ce://ce.example.org", "test")
    back = collector.site_ad(collector.plain(ad), source)
    assert back == replace(later, description="", web="", contact="", country="", latitude=0.0, longitude=0.0)
    ad["VmjobExpires"] = 1
    old = collector.site_ad(collector.plain(ad), source)
    assert old is not None
    assert old.online == ()


def test_an_ad_of_words_only_is_enough() -> None:
    ad = collector.site_ad({site_ad.SITE: "A", site_ad.HAS: True, site_ad.ACCEL: "kvm", site_ad.MAX_MEMORY: 2048,
                            site_ad.IMAGES: f"vm_a,vm_sha256_{'7' * 64},vm_b", site_ad.VOS: "star, atlas",
                            site_ad.FREE: 3, "Machine": "ce.example.org"}, parse("condor-ce://1.2.3.4", "test"))
    assert ad is not None
    assert ad.elements == (Element("ce.example.org", "condor-ce://1.2.3.4", queue=""),)
    assert ad.images == (SiteImage("a", DIGEST), SiteImage("b", ""))
    assert (ad.vos, ad.nodes[0].accel, ad.nodes[0].max_memory, ad.nodes[0].free) == (("star", "atlas"), KVM, 2**31, 3)


@pytest.mark.parametrize("ad", [
    {site_ad.SITE: "A", collector.CATALOG: "text", collector.NODES: 7, collector.ELEMENTS: [[[]]]},
    {site_ad.SITE: "A", collector.CATALOG: [None, {"Name": 7}], collector.NODES: [{"Total": "many", "Networks": 7}],
     collector.ELEMENTS: [{"Host": "x"}]},
    {site_ad.SITE: "A\x1b[2J", "VmjobCreated": float("nan")}])
def test_ads_of_wrong_types_do_no_harm(ad: dict[str, Any]) -> None:
    made = collector.site_ad(ad, parse("condor-ce://ce", "test"))
    assert made is not None
    assert read.answer_of({"ads": [site_ad.to_json(made)], "notes": []}).ads == (made,)


def test_a_pool_is_a_site_of_its_nodes() -> None:
    nodes = [NodeAd("n1", True, KVM, images=(DIGEST,), networks=("nat",), max_memory=2**31, max_cpus=4, free=4,
                    running=1, version="1"),
             NodeAd("n2", True, KVM, networks=("nat",), max_memory=2**31, max_cpus=4, free=2),
             NodeAd("n3", False, offline="the test guest hung", cpus=8)]
    ad = collector.pool_ad(parse("condor://cm.example.org:9618", "test"), nodes)
    assert (ad.name, ad.unlisted, ad.elements[0].kind) == ("cm.example.org", ("*",), "condor")
    assert [(one.total, one.online, one.free, one.running) for one in ad.nodes] == [(2, 2, 6, 1), (1, 0, 0, 0)]
    assert ad.nodes[1].reason == "the test guest hung"
    assert [one.digest for one in ad.images] == [DIGEST]


# ---------------------------------------------------------------- documents


def test_a_document_is_one_site_or_a_list() -> None:
    body = site_ad.to_json(EXAMPLE)
    assert documents.parse(json.dumps(body).encode(), "x").ads == (EXAMPLE,)
    both = documents.parse(json.dumps([body, {**body, "name": 7}, {**body, "name": "B"}]).encode(), "x")
    assert [one.name for one in both.ads] == ["EXAMPLE-T2", "B"]
    assert both.notes == ("left out: x: site 1: name: expected string, found 7",)
    assert documents.parse(b"[]", "x") == Answer(())


@pytest.mark.parametrize("data, why", [
    (b"<html>", "this is no JSON"), (b"\xff", "this is no JSON"), (b"[" * 100000, "this is no JSON"),
    (b"7", "expected object"),
    (b'{"schema": 1}', "the key 'name' is missing"), (b'{"schema": 2, "name": "A"}', "schema"),
    (b'{"schema": 1, "name": "A\\u001b[2J"}', "not of the right form"),
    (b'{"schema": 1, "name": "A", "nodes": [{"name": "n", "free": -1}]}', "nodes.0.free"),
    (b'{"schema": 1, "name": "' + b"x" * 2**20 + b'"}', "name")])
def test_a_bad_document_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(SitesRefused) as refused:
        documents.parse(data, "site.json")
    assert refused.value.message.startswith("site.json: ")
    assert why in refused.value.message
    assert len(refused.value.message) < 600


@pytest.mark.parametrize("change, why", [
    ({"name": "a\ud800"}, "half a character"), ({"description": "\udfff"}, "half a character"),
    ({"x\ud800": 1}, "half a character"), ({"latitude": float("nan")}, "NaN"), ({"x": float("inf")}, "NaN")])
def test_what_only_python_takes_is_refused_from_all(change: dict[str, Any], why: str) -> None:
    body = {**site_ad.to_json(EXAMPLE), **change}
    with pytest.raises(SitesRefused, match=why):
        documents.parse(json.dumps(body).encode(), "x")
    answer = read.answer_of({"ads": [body], "notes": []})
    assert answer.ads == () and why in answer.notes[0]
    assert documents.parse(json.dumps([body, site_ad.to_json(EXAMPLE)]).encode(), "x").ads == (EXAMPLE,)


def test_an_image_whose_digest_nobody_tells_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path))
    ad, = read1.sites(wnodes(), [])
    assert ad.images[0].digest == ""
    answer = Answer((ad,))
    assert read.answer_of(json.loads(json.dumps(child.document(answer)))) == answer
    cache.keep(ONE, answer, NOW)
    assert cache.last(ONE) == cache.Kept((ad,), (), NOW)


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize("url, made", [
    ("ldap://bdii.example.org", Source("ldap://bdii.example.org", "ldap", "bdii.example.org", 2170)),
    ("ldap://[::1]:389/mds-vo-name=X%2Co=grid",
     Source("ldap://[::1]:389/mds-vo-name=X%2Co=grid", "ldap", "::1", 389, "mds-vo-name=X,o=grid")),
    ("condor-ce://ce", Source("condor-ce://ce", "condor-ce", "ce", 9619)),
    ("condor://cm:9620", Source("condor://cm:9620", "condor", "cm", 9620)),
    ("https://a/b?c", Source("https://a/b?c", "https", place="https://a/b?c")),
    ("/a/b.json", Source("/a/b.json", "file", place="/a/b.json"))])
def test_a_source_is_an_address_or_a_path(url: str, made: Source) -> None:
    assert parse(url, "test") == made


@pytest.mark.parametrize("url", ["", "gopher://x", "ldap://", "ldap://a:0", "ldap://a:99999", "ldap://a/dc=example",
                                 "condor://a/b", "ldap://a b", "https://a b", "a\nb", "x" * 3000])
def test_anything_else_is_not(url: str) -> None:
    with pytest.raises(JobError, match=r"^test: "):
        parse(url, "test")


def test_settings_are_read_from_sites_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(JobError, match=r"sites\.yaml is not there"):
        sources.chosen([])
    (tmp_path / "vmjob").mkdir()
    file = tmp_path / "vmjob/sites.yaml"
    file.write_text("vo: star\ntimeout: 3s\nsources:\n- ldap://bdii\n- url: own.json\n  timeout: 1m\n")
    found = sources.chosen([])
    assert found.vo == "star"
    assert [(one.kind, one.timeout) for one in found.sources] == [("ldap", 3), ("file", 60)]
    assert found.sources[1].place == str(tmp_path / "vmjob/own.json")
    assert [one.url for one in sources.chosen(["condor://cm", "condor://cm"]).sources] == ["condor://cm"]
    for wrong, where in (("sources: [gopher://x]", "sources.0: this is nothing"), ("vo: a b", "vo: 'a b'"),
                         ("sources: [7]", "sources.0: expected string or object"),
                         ("sources: [{timeout: 3s}]", "'url' is missing"), ("source: []", "unknown key 'source'"),
                         ("sources: [a]\ntimeout: soon", "timeout: 'soon' is not a duration")):
        file.write_text(wrong)
        with pytest.raises(JobError, match=r"sites\.yaml") as refused:
            sources.chosen([])
        assert where in refused.value.message


def test_an_address_is_shown_without_its_secrets() -> None:
    assert str(parse("https://ada:secret@x/site.json?key=secret", "t")) == "https://x/site.json?key=…"


# ---------------------------------------------------------------- together

ONE, TWO = parse("ldap://one", "t"), parse("ldap://two", "t")


def known(source: Source, **changed: Any) -> read.Known:
    return read.Known(replace(EXAMPLE, **changed), source, NOW)


def test_a_site_that_two_tell_of_is_one_and_the_newest_counts() -> None:
    here, there = Element("a", "condor-ce://a"), Element("b", "condor-ce://b")
    old = known(ONE, created=NOW - 60, elements=(here,), max_walltime=1)
    new = known(TWO, created=NOW - 30, elements=(there,), description="", country="")
    found, = read.merged([old, new], NOW)
    assert (found.source, found.ad.max_walltime) == (TWO, EXAMPLE.max_walltime)
    assert found.ad.elements == (there, here)  # each compute element may speak for its own
    assert (found.ad.description, found.ad.country) == (EXAMPLE.description, "Poland")


def test_what_has_expired_does_not_live_on_without_its_date() -> None:
    """GLUE 1.3 has none."""
    old, twin = known(ONE, expires=NOW - 1), known(ONE, created=0, expires=0)
    alive, notes = read._alive([twin, old], NOW)
    assert alive == [] and len(notes) == 1
    other, fresh = known(TWO, expires=0), known(ONE, expires=NOW + 9)
    assert read._alive([twin, old, other, fresh, known(ONE, name="B", expires=0)], NOW)[0][:2] == [other, fresh]


def test_an_ad_of_the_future_does_not_win_for_ever() -> None:
    true, lie = known(ONE, created=NOW), known(TWO, created=NOW * 100)
    assert read.merged([lie, true], NOW)[0].source == ONE


def test_what_is_kept_serves_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path))
    assert cache.last(ONE) is None
    cache.keep(ONE, Answer((EXAMPLE,), ("a note",)), NOW)
    assert cache.last(ONE) == cache.Kept((EXAMPLE,), ("a note",), NOW)
    assert cache.fresh(ONE, NOW + 59) and not cache.fresh(ONE, NOW + 61) and not cache.fresh(ONE, NOW - 1)
    for path in (tmp_path / "sites").iterdir():
        path.write_text("{")
    assert cache.last(ONE) is None


def test_a_source_that_is_bad_throughout_is_told_of_in_a_few_lines() -> None:
    from vmjob.sites.answer import few

    assert few(tuple(f"note {number}" for number in range(1000)))[-1] == "and 995 more such things"
