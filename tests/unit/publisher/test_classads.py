"""classad, cemon and arc-rte: golden files of the example site (VMJOB_GOLDEN=write writes them anew; read the diff),
and names that nobody should have."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import replace

import pytest
from cemon_publisher.example import EXAMPLE, example
from cemon_publisher.render import RENDERINGS, arc_rte, cemon, classad, files, render

from tests.conftest import ROOT
from vmjob.ads.site_ad import Element, Nodes, SiteAd, SiteImage

classad2 = pytest.importorskip("classad2", reason="needs HTCondor's Python bindings: pip install htcondor")

pytestmark = pytest.mark.golden

GOLDEN = ROOT / "tests/golden"
NASTY = 'a $(HOME) $ENV(HOME) $$(X) \\ "; Evil = true; ] } \' $(id) `id` \\\n@=end\nuse ROLE : Execute # dn: é\x1b'
HOSTILE = SiteAd(
    NASTY, (NASTY, "star"), (Element(NASTY, NASTY, "condor-ce", NASTY, NASTY, NASTY), Element(NASTY, NASTY, "arc")),
    (Nodes(NASTY, "kvm", NASTY, (NASTY,), 1, 1, 8, 2**35, 2**35, 8, os=NASTY, os_version=NASTY),),
    (SiteImage(NASTY, "sha256:" + 64 * "0", (NASTY,), NASTY, NASTY, NASTY, NASTY, NASTY, os=NASTY, os_version=NASTY,
               uri=NASTY), SiteImage(NASTY, "sha256:" + 64 * "1", ("*",), version=NASTY)),
    (NASTY,), version=NASTY, description=NASTY, web=NASTY, contact=NASTY)
SITES = [EXAMPLE, HOSTILE, SiteAd("EMPTY"), replace(EXAMPLE, vos=("*",), elements=(), images=())]


def texts(name: str) -> dict[str, str]:
    if name == "classad":
        return {"publish-classad.conf": render("classad", EXAMPLE)}
    if name == "cemon":
        return {f"publish-cemon-{dialect}.txt": text for dialect, text in files("cemon", EXAMPLE).items()}
    return {"publish-arc-rte.sh": files("arc-rte", EXAMPLE)["ENV/VMJOB/star_sl5-3"]}


@pytest.mark.parametrize("name", ["classad", "cemon", "arc-rte"])
def test_golden(name: str) -> None:
    for file, text in texts(name).items():
        if os.environ.get("VMJOB_GOLDEN") == "write":
            (GOLDEN / file).write_text(text)
        assert text == (GOLDEN / file).read_text()


@pytest.mark.parametrize("ad", SITES, ids=["example", "hostile", "empty", "bare"])
@pytest.mark.parametrize("name", ["classad", "cemon", "arc-rte"])
def test_the_same_site_gives_the_same_text(name: str, ad: SiteAd) -> None:
    assert name in RENDERINGS
    assert render(name, ad) == render(name, replace(ad))


# ---------------------------------------------------------------- classad


@pytest.mark.parametrize("ad", SITES, ids=["example", "hostile", "empty", "bare"])
def test_each_attribute_is_one_line_of_configuration(ad: SiteAd) -> None:
    lines = classad.render(ad).splitlines()
    names = classad.attributes(ad)
    allowed = re.compile(r"#.*|if ! defined OSG_\w+|endif|SCHEDD_ATTRS = \$\(SCHEDD_ATTRS\), [\w, ]+|  (OSG_\w+) = .*|"
                         r"(HasVmjob|Vmjob\w+) = .*")
    told = [found for line in lines if (found := allowed.fullmatch(line))]
    assert len(told) == len(lines)
    assert [found[1] or found[2] for found in told if found[1] or found[2]] == list(names)
    for line in lines[1:-1]:
        assert not re.search(r"\$[\w$]*\(", line) and not line.endswith("\\")
    assert lines[-1].split("), ")[1].split(", ") == list(names)


@pytest.mark.parametrize("ad", SITES, ids=["example", "hostile", "empty", "bare"])
def test_each_attribute_is_a_classad(ad: SiteAd) -> None:
    made = classad2.ClassAd()
    for name, expression in classad.attributes(ad).items():
        made[name] = classad2.ExprTree(expression)
    assert len(made.eval("VmjobCatalog")) == len(ad.images)
    assert len(made.eval("VmjobNodes")) == len(ad.nodes)
    for one, image in zip(made.eval("VmjobCatalog"), ad.images):
        assert one["Digest"] == image.digest
        assert set(one) <= {"Name", "Digest", "AllowedVOs", "Identifier", "Version", "Description", "Endorser", "List",
                            "Arch", "OS", "OSVersion", "Size", "Memory", "CPUs", "Expires", "Uri"}
    entries = made.eval("OSG_ResourceCatalog")
    assert len(entries) == len(ad.online) * len({one.queue for one in ad.elements if one.kind == "condor-ce"})


def test_vmjob_sites_reads_back_what_was_said() -> None:
    from vmjob.sites.collector import plain, site_ad
    from vmjob.sites.sources import parse

    now = example(2_000_000_000)
    made = classad2.ClassAd()
    for name, expression in classad.attributes(now).items():
        made[name] = classad2.ExprTree(expression)
    made["Machine"] = "ce01.example.org"
    assert site_ad(plain(made), parse("condor-ce://ce01.example.org", "--from")) == replace(
        now, description="", web="", contact="", country="", latitude=0.0, longitude=0.0)


def test_what_a_pilot_factory_asks_of_the_catalog() -> None:
    """As osg-configure's own entries: TARGET is the request."""
    entries = classad2.ExprTree(classad.attributes(EXAMPLE)["OSG_ResourceCatalog"]).eval()
    for cpus, memory, vo, fits in ((32, 131072, "star", [True, False]), (8, 2000, "atlas", [True, True]),
                                   (1, 1000, "nobody", [False, False])):
        wanted = classad2.ClassAd({"RequestCPUs": cpus, "RequestMemory": memory, "VO": vo})
        assert [one.lookup("Requirements").eval(one, wanted) for one in entries] == fits
    assert entries[0]["MaxWallTime"] == 2880
    open_to_all = classad2.ExprTree(classad.attributes(replace(EXAMPLE, vos=("*",)))["OSG_ResourceCatalog"]).eval()
    assert "AllowedVOs" not in open_to_all[0]


# ---------------------------------------------------------------- cemon


@pytest.mark.parametrize("ad", SITES, ids=["example", "hostile", "empty", "bare"])
def test_an_ad_for_each_element_vo_and_kind_of_nodes(ad: SiteAd) -> None:
    for text in cemon.files(ad).values():
        found = list(classad2.parseAds(text))
        assert len(found) == len(ad.elements) * len(ad.vos) * len(ad.nodes)
        assert len({one["Name"] for one in found}) == len(found)
        assert all(re.match("Glue|MyType|TargetType|Name|Requirements|isClassadValid", name) for one in found
                   for name in one)


def test_an_ad_tells_of_its_own_vo_and_nodes() -> None:
    [ad] = [one for one in cemon.ads(EXAMPLE) if one["GlueVOViewLocalID"] == "atlas"
            and one["GlueSubClusterName"] == "tcg" and one["GlueCEInfoHostName"] == "ce02.example.org"]
    assert ad["GlueHostApplicationSoftwareRunTimeEnvironment"] == (
        *EXAMPLE.images[1].tags, *EXAMPLE.images[3].tags)
    assert ad["GlueCEAccessControlBaseRule"] == ("VO:atlas",)
    assert ad["GlueHostMainMemoryRAMSize"] == 32768
    assert ad["GlueCEInfoContactString"] == "https://ce02.example.org"
    assert ad["GlueCEPolicyMaxObtainableWallClockTime"] == 1440


def test_the_dialects_differ_in_what_repeats() -> None:
    both = [next(iter(classad2.parseAds(text))) for text in cemon.files(EXAMPLE).values()]
    old, new = both
    rule = "GlueCEAccessControlBaseRule"
    assert (old[rule], [str(one) for one in new[rule]]) == ("VO:star", ["VO:star"])
    tags = "GlueHostApplicationSoftwareRunTimeEnvironment"
    assert old[tags].split(",") == list(new[tags]) and len(new[tags]) == 4
    assert {name for name in new if isinstance(new[name], list)} == {
        rule, tags, "GlueCECapability", "GlueForeignKey", "GlueChunkKey"}
    assert all(old[name] == new[name] for name in new if not isinstance(new[name], (list, classad2.ExprTree)))
    # what a site of ReSS looked like to Condor-G's matchmaker
    job = classad2.ClassAd({"JobUniverse": 9})
    job["Requirements"] = classad2.ExprTree('stringListIMember("VO:star", TARGET.GlueCEAccessControlBaseRule)')
    assert old.symmetricMatch(job)
    job["JobUniverse"] = 5
    assert not old.symmetricMatch(job)


def test_where_all_may_come_those_have_views_too_of_whom_something_is_said() -> None:
    ads = list(cemon.ads(replace(EXAMPLE, vos=("*",), elements=EXAMPLE.elements[:1], nodes=EXAMPLE.nodes[:1])))
    rules = {str(one["GlueVOViewLocalID"]): one["GlueCEAccessControlBaseRule"] for one in ads}
    assert list(rules.values()) == [("ALL",), ("VO:star",), ("VO:atlas",), ("VO:belle",)]


# ---------------------------------------------------------------- arc-rte


def test_a_script_for_each_image_with_a_name_that_arc_takes() -> None:
    twice = replace(EXAMPLE, images=(*EXAMPLE.images, replace(EXAMPLE.images[0], name="star sl5", digest="sha256:00"),
                                     replace(EXAMPLE.images[0], name="star/sl5", digest="sha256:11")))
    made = arc_rte.files(twice)
    assert list(made) == [
        "ENV/VMJOB/star_sl5-3", "ENV/VMJOB/atlas-athena-25-1", "ENV/VMJOB/belle2-light-2.1-b3", "ENV/VMJOB/debian-12",
        "ENV/VMJOB/star_sl5-3-00", "ENV/VMJOB/star_sl5-3-11"]
    for path in arc_rte.files(HOSTILE):
        assert re.fullmatch(r"ENV/VMJOB/[A-Za-z0-9_+][A-Za-z0-9._+-]*", path) and ".." not in path


@pytest.mark.parametrize("ad", [EXAMPLE, HOSTILE], ids=["example", "hostile"])
def test_what_stands_before_the_common_part_is_comments_and_quoted_words(ad: SiteAd) -> None:
    for text, image in zip(arc_rte.files(ad).values(), ad.images):
        head = text.partition("\n# A-REX sources this")[0]
        values = {}
        body = "".join(line for line in head.splitlines(keepends=True) if not line.startswith("#"))
        for word in shlex.split(body):
            key, _, value = word.partition("=")
            values[key] = value
        assert list(values) == ["vmjob_name", "vmjob_digest", "vmjob_expires", "vmjob_vos", "vmjob_needs"]
        assert values["vmjob_digest"] == image.digest
        assert "\n" not in values["vmjob_name"]
