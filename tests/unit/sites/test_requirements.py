"""Requirement expressions, and ClassAds as text, in the eyes of HTCondor's own library."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cemon_publisher.example import EXAMPLE, example
from cemon_publisher.render import cemon, classad

from vmjob.ads.site_ad import KVM, SiteAd
from vmjob.core.classads import listing, literal, record, words
from vmjob.sites.matching import CARRIED, Needs
from vmjob.sites.requirements import CE, CLASSAD, JDL, OLD, evaluate, expression

classad2 = pytest.importorskip("classad2", reason="needs HTCondor's Python bindings: pip install htcondor")

pytestmark = pytest.mark.unit

STAR = EXAMPLE.images[0]
WITH = EXAMPLE
WITHOUT = replace(EXAMPLE, name="WITHOUT", images=EXAMPLE.images[1:])
NEEDS = Needs("star_sl5", STAR.digest, 2 * 2**30, 4, 3600, 4000, vo="star")
DIALECTS = (JDL, CLASSAD, OLD)
NASTY = 'x", y) || true || member("\\'


def matched(needs: Needs, dialect: str, *sites: SiteAd) -> list[tuple[str, str]]:
    """Names of the sites and their kinds of nodes."""
    found = []
    for site in sites:
        text = cemon.old(site) if dialect == OLD else cemon.new(site)
        for ad in classad2.parseAds(text):
            if evaluate(expression(needs, dialect), str(ad)):
                found.append((ad["GlueSiteName"], ad["GlueSubClusterName"]))
    return list(dict.fromkeys(found))


def at_ce(needs: Needs, site: SiteAd) -> bool:
    return evaluate(expression(needs, CE), record(classad.attributes(site)))


def test_what_a_person_reads() -> None:
    assert expression(Needs("star_sl5", "", 2**31, vo="star"), JDL) == (
        'Member("vm_star_sl5", other.GlueHostApplicationSoftwareRunTimeEnvironment) && '
        'other.GlueCEStateStatus == "Production" && other.GlueHostArchitecturePlatformType == "x86_64" && '
        '(Member("VO:star", other.GlueCEAccessControlBaseRule) || Member("ALL", other.GlueCEAccessControlBaseRule)) && '
        "other.GlueHostMainMemoryRAMSize >= 2048 && other.GlueHostArchitectureSMPSize >= 1 && "
        "other.GlueHostNetworkAdapterOutboundIP =!= false")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_site_with_the_image_matches_and_the_one_without_does_not(dialect: str) -> None:
    assert matched(NEEDS, dialect, WITH, WITHOUT) == [("EXAMPLE-T2", "kvm"), ("EXAMPLE-T2", "tcg")]
    assert matched(replace(NEEDS, digest=""), dialect, WITH, WITHOUT) == [("EXAMPLE-T2", "kvm"), ("EXAMPLE-T2", "tcg")]
    # brought along, where the VO may
    brought = matched(replace(NEEDS, way=CARRIED), dialect, WITH, WITHOUT)
    assert {site for site, _ in brought} == {"EXAMPLE-T2", "WITHOUT"}
    assert matched(replace(NEEDS, way=CARRIED), dialect, replace(WITHOUT, unlisted=("belle",))) == []


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("needs", "kinds"), [
    (replace(NEEDS, kvm=True), ["kvm"]),
    (replace(NEEDS, memory=40 * 2**30), ["kvm"]),
    (replace(NEEDS, memory=200 * 2**30), []),
    (replace(NEEDS, cpus=9), ["kvm"]),
    (replace(NEEDS, vo="belle"), []),
    (replace(NEEDS, vo="nobody"), []),
    (replace(NEEDS, walltime=3 * 86400), []),
    (replace(NEEDS, arch="aarch64"), []),
    (replace(NEEDS, image=NASTY, digest=""), []),
    (replace(NEEDS, vo=NASTY, way=CARRIED), []),
])
def test_each_need_counts(needs: Needs, kinds: list[str], dialect: str) -> None:
    assert [kind for _, kind in matched(needs, dialect, WITH)] == kinds


def test_nodes_without_a_way_out_do_not_match_nat() -> None:
    shut = replace(WITH, nodes=(replace(WITH.nodes[0], networks=("isolated",)),))
    assert matched(NEEDS, CLASSAD, shut) == []
    assert matched(replace(NEEDS, network="isolated"), CLASSAD, shut) == [("EXAMPLE-T2", "kvm")]


def test_a_site_that_is_shut_does_not_match() -> None:
    shut = replace(WITH, nodes=tuple(replace(one, online=0) for one in WITH.nodes))
    assert [matched(NEEDS, dialect, shut) for dialect in DIALECTS] == [[], [], []]


def test_a_dialect_is_no_other() -> None:
    """A comma string is no list, and the reverse."""
    many = classad2.ClassAd({"A": ["x", "y"], "B": "x,y"})
    for ask, there in (('member("x", TARGET.A)', True), ('member("x", TARGET.B)', False),
                       ('stringListIMember("X", TARGET.B)', True), ('stringListIMember("X", TARGET.A)', False)):
        assert evaluate(ask, str(many)) is there
    [ad] = [one for one in cemon.old(WITH).split("\n\n") if '"star"' in one and '"tcg"' in one and "ce01" in one]
    assert not evaluate(expression(NEEDS, CLASSAD), ad)


@pytest.mark.parametrize(("change", "fits"), [
    ({}, True), ({"digest": ""}, True), ({"kvm": True}, True), ({"memory": 200 * 2**30}, False), ({"cpus": 64}, False),
    ({"vo": "belle"}, True), ({"vo": "nobody"}, False), ({"walltime": 3 * 86400}, False),
    ({"network": "isolated"}, True), ({"image": "other", "digest": ""}, False),
    ({"image": "other", "digest": "", "way": CARRIED}, True),
    ({"image": "other", "digest": "", "way": CARRIED, "vo": "atlas"}, False), ({"vo": NASTY}, False),
])
def test_a_compute_element(change: dict[str, object], fits: bool) -> None:
    now = example(2_000_000_000)  # it says itself until when it counts
    assert at_ce(replace(NEEDS, **change), now) is fits  # type: ignore[arg-type]


def test_a_compute_element_that_is_offline_expired_or_has_no_kvm() -> None:
    now = example(2_000_000_000)
    assert not at_ce(NEEDS, replace(now, nodes=tuple(replace(one, online=0) for one in now.nodes)))
    assert not at_ce(NEEDS, replace(now, created=1, expires=2))
    assert not at_ce(replace(NEEDS, kvm=True), replace(now, nodes=tuple(
        one for one in now.nodes if one.accel != KVM)))
    assert at_ce(replace(NEEDS, walltime=10**6), replace(now, max_walltime=0))


def test_no_classad() -> None:
    with pytest.raises(ValueError, match="no ClassAd"):
        evaluate("a &&", "[ ]")
    with pytest.raises(ValueError, match="no ClassAd"):
        evaluate("true", "[ a = ; ]")


@pytest.mark.parametrize("text", ["", "plain", 'a "b" c', "back\\", 'end\\"', "two\nlines\r\t", "żółw 日本",
                                  "\x00\x1b[1m", '"; Evil = true; ] }', "$(HOME) $$(X)"])
def test_literals_are_one_string_in_old_and_new_classads(text: str) -> None:
    said = literal(text)
    assert "\n" not in said and "\\" not in said.replace('\\"', "")
    new = classad2.parseOne(f"[ a = {said}; b = 1 ]")
    old = classad2.parseOne(f"a = {said}\nb = 1\n", classad2.ParserType.Old)
    assert new["a"] == old["a"] and set(new) == set(old) == {"a", "b"}
    assert classad2.ExprTree(listing([text, text])).eval() == [new["a"]] * 2
    assert "," not in words([text]) and " " not in words([text])[1:-1]


@pytest.mark.parametrize(("value", "said"), [(True, "true"), (3, "3"), (2.5, "2.5"), (float("nan"), "undefined")])
def test_plain_values(value: float, said: str) -> None:
    assert literal(value) == said
