"""What vmjob-publish classad says, in the ad of a real schedd; what cemon says, in a real collector."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.site.jobs import eventually
from tests.site.layout import HOSTS
from tests.site.site import Site
from vmjob.ads.site_ad import SiteImage

classad2 = pytest.importorskip("classad2", reason="needs HTCondor's Python bindings: pip install htcondor")
publisher = pytest.importorskip("cemon_publisher.example")

pytestmark = [pytest.mark.site, pytest.mark.timeout(120)]

# a title as nobody should have it: macros, the end of a string, of a line, of a here-document and of a list
HOSTILE = 'a $(COLLECTOR_HOST) $ENV(HOME) $$(X) $(DOLLAR)\\ "; Evil = true; ] } \\\n@=end\nuse ROLE : Execute # é'
READ = 'a $ (COLLECTOR_HOST) $ ENV(HOME) $ $ (X) $ (DOLLAR)/ "; Evil = true; ] } / @=end use ROLE : Execute # é'


def schedd_ad(site: Site) -> Any:
    done = site.exec("ce", "root", ["condor_status", "-schedd", "-long"])
    assert not done.returncode, done.stderr
    return classad2.parseOne(done.stdout)


def told(site: Site, text: str, name: Optional[str]) -> Any:
    """The schedd's ad when it has been told; ``name``: what it then says as VmjobSite."""
    def there() -> bool:
        return bool(schedd_ad(site).get("VmjobSite") == name)

    site.config("ce", text)
    eventually(there, 30)
    return schedd_ad(site)


def test_the_schedd_says_what_the_site_has(broken: Site) -> None:
    from cemon_publisher.render import classad

    now = int(time.time())
    ad = publisher.example(now)
    ad = replace(ad, images=(replace(ad.images[0], description=HOSTILE), *ad.images[1:]))
    before = set(schedd_ad(broken))
    assert "HasVmjob" not in before

    found = told(broken, classad.render(ad), ad.name)
    assert found.eval("HasVmjob") is True
    assert found["VmjobMaxMemory"] == 128 * 1024
    assert ad.images[0].tags[1] in found["VmjobImages"].split(",")
    assert found["OSG_BatchSystems"] == "Condor"
    entries = found.eval("OSG_ResourceCatalog")
    assert [one["Name"] for one in entries] == ["EXAMPLE-T2-kvm-vm", "EXAMPLE-T2-tcg-vm"]
    assert [str(vo) for vo in entries[0]["AllowedVOs"]] == list(ad.vos)
    wanted = classad2.ClassAd({"RequestCPUs": 4, "RequestMemory": 2000, "VO": "star"})
    assert entries[0].lookup("Requirements").eval(entries[0], wanted) is True
    wanted["VO"] = "nobody"
    assert entries[0].lookup("Requirements").eval(entries[0], wanted) is False
    catalog = found.eval("VmjobCatalog")
    assert catalog[0]["Description"] == READ
    assert [one["Digest"] for one in catalog] == [one.digest for one in ad.images]
    assert set(found) - before == set(classad.attributes(ad))  # so nothing broke out
    # what people and factories ask of a collector
    asked = broken.exec("ce", "root", ["condor_status", "-schedd", "-af", "Name", "-constraint",
                                       'HasVmjob && stringListMember("vm_star_sl5", VmjobImages)'])
    assert asked.stdout.split() == [HOSTS["ce"].full_name]

    stale = told(broken, classad.render(replace(ad, name="stale", expires=now - 1)), "stale")
    assert stale.eval("HasVmjob") is False
    # osg-configure's own catalog stays
    own = 'OSG_ResourceCatalog = { [ Name = "own"; ] }\nSCHEDD_ATTRS = $(SCHEDD_ATTRS), OSG_ResourceCatalog\n'
    beside = told(broken, own + classad.render(replace(ad, name="beside")), "beside")
    assert [one["Name"] for one in beside.eval("OSG_ResourceCatalog")] == ["own"]

    many = replace(ad, name="many", images=tuple(
        SiteImage(f"image-{number:04}", f"sha256:{number:064x}", ("star",), f"list:{number}", "1", HOSTILE)
        for number in range(1000)))
    large = told(broken, classad.render(many), "many")
    assert len(large.eval("VmjobCatalog")) == 1000
    assert len(large["VmjobImages"].split(",")) == 2000
    assert large.eval("VmjobCatalog")[999]["Description"] == READ

    gone = told(broken, "", None)
    assert set(gone) <= before
    log = Path(HOSTS["ce"].log / "SchedLog").read_text(errors="replace")
    assert "CONFIGURATION PROBLEM" not in log


@pytest.mark.parametrize(("dialect", "member"), [("OLD_CLASSAD", "stringListIMember"), ("NEW_CLASSAD", "member")])
def test_a_collector_with_cemons_ads_answers_as_ress_did(broken: Site, dialect: str, member: str) -> None:
    from cemon_publisher.render import cemon

    text = cemon.files(publisher.EXAMPLE)[dialect]
    ads = "\n".join(ad.printOld() for ad in classad2.parseAds(text))  # as its gatherer told them to the collector
    try:
        done = broken.exec("vo", "root", ["condor_advertise", "-multiple", "UPDATE_AD_GENERIC", "-"], input=ads)
        assert not done.returncode, done.stderr
        for vo, image, places in (("star", "vm_star_sl5", 4), ("atlas", "vm_star_sl5", 0), ("belle", "vm_debian-12", 4),
                                  ("nobody", "vm_debian-12", 0)):
            # glideinWMS and Swift asked so
            which = (f'(GlueCEInfoContactString =!= undefined) && {member}("VO:{vo}", GlueCEAccessControlBaseRule) && '
                     f'GlueCEStateStatus =?= "Production" && GlueCEPolicyMaxObtainableWallClockTime >= 60 && '
                     f'{member}("{image}", GlueHostApplicationSoftwareRunTimeEnvironment)')
            asked = broken.exec("vo", "root", ["condor_status", "-any", "-af", "GlueCEInfoContactString",
                                               "-constraint", which])
            assert sorted(asked.stdout.split()) == sorted(
                2 * [one.url for one in publisher.EXAMPLE.elements])[:places], asked.stderr
    finally:
        broken.exec("vo", "root", ["condor_advertise", "INVALIDATE_ADS_GENERIC", "-"], input=(
            'MyType = "Query"\nTargetType = "Generic"\nRequirements = GlueSiteName =!= undefined\n'))
