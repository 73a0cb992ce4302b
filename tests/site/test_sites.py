"""``vmjob sites`` and real daemons: a slapd as BDIIs have it, the collectors of a pool and of a compute element."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cemon_publisher.example import example
from cemon_publisher.render import classad, glue1, glue2

from tests.conftest import Cli, Done
from tests.site import slapd
from tests.site.jobs import eventually
from tests.site.site import Site
from vmjob.ads import site_ad
from vmjob.ads.site_ad import Element, SiteAd, SiteImage

pytestmark = [pytest.mark.site, pytest.mark.timeout(120)]

GROUP = "GLUE2GroupID=resource,o=glue"
SERVICE = f"""\
dn: GLUE2ServiceID=s,{GROUP}
objectClass: GLUE2Entity
objectClass: GLUE2Service
GLUE2ServiceID: s
GLUE2ServiceType: org.vmjob
GLUE2ServiceQualityLevel: production
GLUE2ServiceAdminDomainForeignKey: LIAR
GLUE2ServiceCapability: executionmanagement.dynamicvmdeploy
GLUE2EntityOtherInfo: VmjobSite=LIAR
"""


@pytest.fixture
def cli(site: Site, tmp_path: Path) -> Cli:
    """Ada's, who has asked nobody before."""
    return Cli(tmp_path, tmp_path, {**site.environment(), "XDG_CONFIG_HOME": str(tmp_path)})


def ask(cli: Cli, address: str, *more: str) -> Done:
    return cli("sites", "--fresh", "--from", address, *more)


def test_what_is_published_in_a_bdii_is_read_back(cli: Cli) -> None:
    ad = example(int(time.time()))
    with slapd.running(glue=glue2.render(ad), grid=glue1.render(ad)) as where:
        both = ask(cli, f"ldap://{where}", "--json")
        assert both.status == 0, both.err
        assert [one["site"] for one in both.json["sites"]] == [json.loads(json.dumps(site_ad.to_json(ad)))]
        assert both.json["notes"] == []
        of_grid = ask(cli, f"ldap://{where}/o=grid", "--json")
        assert of_grid.json["sites"][0]["site"]["vos"] == list(ad.vos)
        assert len(of_grid.json["sites"][0]["site"]["images"]) == len(ad.images)
        table = ask(cli, f"ldap://{where}/o=glue").out.decode().splitlines()
    assert table[1].split()[:5] == ["EXAMPLE-T2", "condor-ce://ce01.example.org:9619", "+1", "kvm", "1240"]


def test_a_bdii_with_100000_entries_is_not_believed(cli: Cli) -> None:
    many = "".join(f"\ndn: GLUE2PolicyID={number},GLUE2ServiceID=s,{GROUP}\nobjectClass: GLUE2Entity\n"
                   f"objectClass: GLUE2Policy\nobjectClass: GLUE2MappingPolicy\nGLUE2PolicyID: {number}\n"
                   "GLUE2PolicyScheme: basic\nGLUE2PolicyRule: VO:star\nGLUE2MappingPolicyShareForeignKey: x\n"
                   for number in range(100000))
    with slapd.running(glue=SERVICE + many) as where:
        (cli.cwd / "vmjob").mkdir()
        (cli.cwd / "vmjob/sites.yaml").write_text(f"timeout: 60s\nsources: ['ldap://{where}']\n")  # a busy machine
        done = cli("sites")
    assert done.status == 207, done.err
    assert "more than 20000 entries" in done.err


def test_a_bdii_that_gives_only_some_of_its_entries_is_not_believed(cli: Cli) -> None:
    ad = example(int(time.time()))
    with slapd.running("sizelimit 5", glue=glue2.render(ad)) as where:
        done = ask(cli, f"ldap://{where}/o=glue")
    assert done.status == 207, done.err
    assert "does not give all its entries" in done.err
    assert "sizelimit is too low" in done.err


def test_loops_and_odd_values_of_a_bdii_do_no_harm(cli: Cli, site: Site) -> None:
    loop = f"""
dn: cn=around,GLUE2ServiceID=s,{GROUP}
objectClass: referral
objectClass: extensibleObject
cn: around
ref: ldap://{site.vo.split(":")[0]}:{slapd.PORT}/GLUE2ServiceID=s,{GROUP}

dn: GLUE2LocationID=l,GLUE2ServiceID=s,{GROUP}
objectClass: GLUE2Entity
objectClass: GLUE2Location
GLUE2LocationID: l
GLUE2LocationCountry:: G1syShtdMDt4B1BvbGFuZA==
GLUE2LocationLatitude: 1e999
GLUE2LocationServiceForeignKey: l

dn: GLUE2ResourceID=r,GLUE2ServiceID=s,{GROUP}
objectClass: GLUE2Entity
objectClass: GLUE2Resource
objectClass: GLUE2ExecutionEnvironment
GLUE2ResourceID: r
GLUE2ExecutionEnvironmentPlatform: amd64
GLUE2ExecutionEnvironmentMainMemorySize: 999999999999999999
GLUE2ExecutionEnvironmentTotalInstances: -7
GLUE2ExecutionEnvironmentOSFamily: linux
GLUE2ExecutionEnvironmentConnectivityIn: false
GLUE2ExecutionEnvironmentConnectivityOut: true
GLUE2ResourceManagerForeignKey: r
GLUE2EntityName: {"x" * 300000}
GLUE2EntityOtherInfo: HasVmjob=true
GLUE2EntityOtherInfo: VmjobMaxMemory=much
"""
    with slapd.running(glue=SERVICE + loop) as where:
        done = ask(cli, f"ldap://{where}", "--json")
    assert done.status == 0, done.err
    body = done.json["sites"][0]["site"]
    assert (body["name"], body["country"], body["latitude"]) == ("LIAR", "", 0.0)
    assert [(one["name"], one["memory"], one["total"], one["max_memory"]) for one in body["nodes"]] == [("r", 0, 0, 0)]
    notes = "\n".join(done.json["notes"])
    assert "points to another server" in notes
    assert "a binary value in GLUE2LocationCountry" in notes
    assert "a value of 293 KiB in GLUE2EntityName" in notes


def test_collectors_that_say_nothing_of_virtual_machines_are_told_so(cli: Cli, site: Site) -> None:
    done = cli("sites", "--from", f"condor://{site.ce}", "--from", f"condor-ce://{site.ce}", "--from",
               f"condor://{site.vo}")
    assert done.status == 0, done.err
    assert "none of its 2 machines says HasVmjob" in done.err
    assert "none of its 1 schedds says VmjobSite" in done.err
    assert f"condor://{site.vo}: it has no machines" in done.err


def test_what_a_schedd_and_startds_say_is_read_back(cli: Cli, broken: Site) -> None:
    ad = example(int(time.time()))
    ad = replace(ad, images=ad.images + tuple(
        SiteImage(f"image-{number}", f"sha256:{number:064x}", expires=ad.expires) for number in range(1000)))
    broken.config("ce", classad.render(ad))
    broken.config("n1", 'HasVmjob = true\nVmjobAccel = "kvm"\nVmjobFree = 3\nVmjobMaxMemory = 2048\n'
                        "STARTD_ATTRS = $(STARTD_ATTRS), HasVmjob, VmjobAccel, VmjobFree, VmjobMaxMemory\n")
    sources = f"condor-ce://{broken.ce}", f"condor://{broken.ce}"
    found: dict[str, SiteAd] = {}

    def told() -> bool:
        done = cli("sites", "--json", "--fresh", "--from", sources[0], "--from", sources[1])
        assert done.status == 0, done.err
        found.update({one["site"]["name"]: site_ad.from_json(one["site"]) for one in done.json["sites"]})
        return len(found) == 2

    eventually(told, 40)
    assert found[ad.name] == replace(ad, description="", web="", contact="", country="", latitude=0.0, longitude=0.0)
    pool = found[broken.ce.split(":")[0]]
    assert pool.elements == (Element(pool.name, sources[1], "condor", queue=""),)
    assert [(one.name, one.accel, one.free, one.max_memory) for one in pool.nodes] == [
        ("kvm-4cpus-4gib", "kvm", 3, 2**31)]


def test_a_collector_that_does_not_know_us_is_told(cli: Cli, site: Site, tmp_path: Path) -> None:
    configuration = tmp_path / "nobody.config"
    configuration.write_text("SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS\nSEC_CLIENT_AUTHENTICATION = REQUIRED\n"
                             f"SEC_TOKEN_DIRECTORY = {tmp_path}\nENABLE_IPV6 = False\nLOCAL_CONFIG_FILE =\n")
    done = cli("sites", "--from", f"condor-ce://{site.ce}", env={"CONDOR_CONFIG": str(configuration)})
    assert done.status == 206, done.err
    assert "does not accept who we are" in done.err
