"""A real BDII, run by an ordinary user: what the GIP provider and plugin put there, and what slapd takes."""

from __future__ import annotations

import base64
import json
import shutil
import time
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cemon_publisher.example import EXAMPLE
from cemon_publisher.render import render

from tests.glue import HOSTILE, hostile_sites, many
from tests.site import bdii as place
from tests.site import hosts
from tests.site.bdii import Bdii
from tests.site.site import Site
from vmjob.ads.site_ad import NodeAd, SiteAd, to_json

pytestmark = [pytest.mark.site, pytest.mark.timeout(120)]

TAGS = "GlueHostApplicationSoftwareRunTimeEnvironment"
WNODES = f"({TAGS}=vm_*)"
APP = "GLUE2ApplicationEnvironmentAppName"
CAN = "(&(objectClass=GLUE2ComputingService)(GLUE2ServiceCapability=executionmanagement.dynamicvmdeploy))"
SUFFIXES = {"glue1": "o=grid", "glue2": "o=glue"}
BASE = {"o=grid": "dn: o=grid\nobjectClass: organization\no: grid\n\ndn: mds-vo-name=resource,o=grid\n"
                  "objectClass: MDS\nmds-vo-name: resource\n\n",
        "o=glue": "dn: o=glue\nobjectClass: organization\no: glue\n\ndn: GLUE2GroupID=resource,o=glue\n"
                  "objectClass: GLUE2Group\nGLUE2GroupID: resource\n\n"}
GROUPS = {"mds-vo-name=resource,o=grid", "glue2groupid=resource,o=glue"}
STAR, ATLAS = "sha256:" + "51" * 32, "sha256:" + "a7" * 32


@pytest.fixture
def bdii(site: Site) -> Iterator[Bdii]:
    made = place.prepare()
    hosts_file(made, "n1", True)
    configure(made, trust=[STAR])
    yield made
    shutil.rmtree(made.folder)


def configure(bdii: Bdii, **policy: object) -> None:
    """A site that trusts these digests."""
    bdii.put("site.yaml", yaml.safe_dump({
        "name": "TEST-T3", "vos": ["star"], "nodes": {"files": f"{bdii.inside}/nodes/*.json"},
        "elements": [{"host": "ce.vmjob.test", "queue": "vm", "max_walltime": "2d"}],
        "names": {STAR: "star_sl5", ATLAS: "athena"}}))
    bdii.put("policy.yaml", yaml.safe_dump({"vos": {"star": {"groups": "star*"}}, **policy,
                                            "rules": [{"allow": "star", "vo": "star", "endorser": "site"}]}))


def hosts_file(bdii: Bdii, name: str, has: bool) -> Path:
    ad = NodeAd(name, has, "tcg", "no /dev/kvm", networks=("nat",), max_memory=2**33, max_cpus=4, version="0.6",
                free=8, cpus=8, memory=2**34, checked=int(time.time()), offline="" if has else "broken")
    return bdii.put(f"nodes/{name}.json", json.dumps({"schema": 1, **asdict(ad)}))


def within(seconds: float, what: Callable[[], object], bdii: Bdii) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, bdii.log
        time.sleep(0.1)


def tags(bdii: Bdii) -> set[str]:
    return {line.partition(": ")[2] for line in bdii.search("o=grid", WNODES, TAGS) if line.startswith(TAGS)}


def apps(bdii: Bdii, name: str = "vm_*") -> set[str]:
    found = bdii.search("o=glue", f"(&(objectClass=GLUE2ApplicationEnvironment)({APP}={name}))", APP)
    return {line.partition(": ")[2] for line in found if line.startswith(APP)}


def gone(bdii: Bdii) -> None:
    """Images at once, all of it one level a round."""
    bdii.next_round()
    assert not apps(bdii) and not tags(bdii)
    within(60, lambda: not bdii.search("o=grid", "(objectClass=GlueTop)") and not bdii.search(
        "o=glue", "(objectClass=GLUE2Entity)"), bdii)


def test_the_provider_publishes_what_may_run_and_nothing_else(bdii: Bdii) -> None:
    star = {"vm_star_sl5", "vm_sha256_" + "51" * 32}
    with place.running(bdii):
        within(60, lambda: tags(bdii) and apps(bdii), bdii)
        bdii.next_round()
        assert tags(bdii) == star
        assert apps(bdii) == {"vm_star_sl5"} == apps(bdii, "vm_star_sl5") and not apps(bdii, "vm_athena")
        assert len([line for line in bdii.search("o=glue", CAN, "dn") if line.startswith("dn: ")]) == 1
        view = bdii.search("o=grid", "(&(objectClass=GlueVOView)(GlueCEAccessControlBaseRule=VO:star))",
                           "GlueCECapability")
        assert "GlueCECapability: vm_star_sl5" in view
        # updated: one more, then the first is withdrawn
        configure(bdii, trust=[STAR, ATLAS])
        bdii.next_round()
        assert tags(bdii) == star | {"vm_athena", "vm_sha256_" + "a7" * 32}
        assert apps(bdii) == {"vm_star_sl5", "vm_athena"}
        configure(bdii, trust=[STAR, ATLAS], deny=[f"{STAR} stolen key"])
        bdii.next_round()
        assert apps(bdii) == {"vm_athena"} and not star & tags(bdii)
        # a probe that fails, a file that is broken: what was good stays, and nothing else comes
        (bdii.folder / "nodes/n1.json").unlink()
        bdii.put("site.yaml", "name: [half\n")
        bdii.next_round()
        assert apps(bdii) == {"vm_athena"} and "vmjob-publish: " in bdii.log
        # nothing that is good any more: nothing at all
        for kept in (bdii.folder / "vmjob").iterdir():
            kept.unlink()
        gone(bdii)
        # the node is there again, and offline: the site says so, and has no images
        configure(bdii, trust=[ATLAS])
        hosts_file(bdii, "n1", False)
        bdii.next_round()
        assert "GlueCEStateStatus: Closed" in bdii.search("o=grid", "(objectClass=GlueCE)", "GlueCEStateStatus")
        assert not apps(bdii) and not tags(bdii) and not bdii.search("o=glue", CAN, "dn")
        # removed
        (bdii.folder / "gip/provider/vmjob").unlink()
        gone(bdii)
    assert not bdii.rejected()


def test_the_plugin_adds_to_what_another_provider_publishes(bdii: Bdii) -> None:
    """Its own words stay, ours come and go."""
    dn = "GlueSubClusterUniqueID=ce.vmjob.test, GlueClusterUniqueID=ce.vmjob.test, mds-vo-name=resource,o=grid"
    bdii.put("gip/ldif/theirs.ldif", f"""dn: {dn.partition(", ")[2]}
objectClass: GlueClusterTop
objectClass: GlueCluster
GlueClusterUniqueID: ce.vmjob.test

dn: {dn}
objectClass: GlueClusterTop
objectClass: GlueSubCluster
GlueSubClusterUniqueID: ce.vmjob.test
{TAGS}: VO-star-SL08e
{TAGS}: vm_star_sl5

""")
    with (bdii.folder / "vmjob-gip.conf").open("a") as conf:
        conf.write(f"RENDERINGS=glue2\nSUBCLUSTERS='{dn}\n'\n")
    configure(bdii, trust=[STAR, ATLAS])
    with place.running(bdii):
        bdii.next_round()
        more = {"vm_sha256_" + "51" * 32, "vm_athena", "vm_sha256_" + "a7" * 32}
        assert tags(bdii) == {"VO-star-SL08e", "vm_star_sl5"} | more
        assert not bdii.search("o=grid", "(objectClass=GlueCE)")
        configure(bdii, trust=[])
        bdii.next_round()
        assert tags(bdii) == {"VO-star-SL08e", "vm_star_sl5"}
    assert not bdii.rejected()


@pytest.mark.parametrize("kind", ["provider", "plugin"])
def test_half_an_output_is_none(bdii: Bdii, kind: str) -> None:
    """bdii-update would publish it."""
    with (bdii.folder / "vmjob-gip.conf").open("a") as conf:
        conf.write("SUBCLUSTERS='GlueSubClusterUniqueID=a,o=grid'\n")
    whole = bdii.sh(f"VMJOB_GIP_CONF={bdii.inside}/vmjob-gip.conf {bdii.inside}/gip/{kind}/vmjob")
    assert whole.startswith("dn: ") and "vm_star_sl5" in whole
    start = f"#!/bin/sh\nPYTHONPATH={bdii.inside}/lib/vmjob.pyz:{bdii.inside}/lib python3 -m cemon_publisher"
    for end, left in (("kill -9 $$", 0), ("exit 204", whole.count("dn: "))):
        bdii.put("bin/vmjob-publish", f'{start} "$@"\n{end}\n', 0o755)
        text = bdii.sh(f"VMJOB_GIP_CONF={bdii.inside}/vmjob-gip.conf {bdii.inside}/gip/{kind}/vmjob || :")
        assert text.count("dn: ") == left


def add(bdii: Bdii, suffix: str, text: str, *options: str) -> str:
    """What slapadd complains of."""
    bdii.sh(f"rm -rf {bdii.inside}/db/*/*")
    done = hosts.execute(bdii.host, place.USER, ["slapadd", *options, "-o", "value-check=yes", "-f",
                                                 f"{bdii.inside}/slapd.conf", "-b", suffix], input=text)
    return done.stderr if done.returncode else ""


SITES = {"example": [EXAMPLE], "many": [many(1000)], "hostile": hostile_sites(), "empty": [SiteAd("EMPTY")],
         "off": [replace(EXAMPLE, nodes=tuple(replace(one, online=0) for one in EXAMPLE.nodes))]}


def test_slapd_takes_every_rendering(bdii: Bdii) -> None:
    """Schema, values and parents; and the same text with a fault in it is not taken."""
    for name, suffix in SUFFIXES.items():
        for what, ads in SITES.items():
            whole = "\n".join(render(name, ad) for ad in ads)
            assert not add(bdii, suffix, whole, "-u"), (name, what)
            assert not add(bdii, suffix, BASE[suffix] + whole), (name, what)
        text = render(name, EXAMPLE)
        assert add(bdii, suffix, text), "without parents"
        start, end = text.index("FreeJobSlots: " if name == "glue1" else "FreeSlots: "), len(text)
        assert add(bdii, suffix, text[:start] + "FreeSlots: many" + text[text.index("\n", start):end], "-u")


def contents(lines: list[str]) -> dict[str, dict[str, list[str]]]:
    """Entries by DN, without what a BDII changes: order, and case of names."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, _, value in (line.partition(":") for line in lines if line):
        plain = base64.b64decode(value[2:]).decode() if value.startswith(": ") else value[1:]
        if name == "dn":
            entry = found.setdefault(plain.lower(), {})
        else:
            insort(entry.setdefault(name.lower(), []), plain)
    return found


def test_strangers_names_come_through_bdii_update(bdii: Bdii) -> None:
    """It cuts text at every dn:, decodes base64 before it does, and hands changes on as they are. As many sites as
    there are bad texts; then each gets the text of another."""
    (bdii.folder / "gip/provider/vmjob").unlink()

    def publish(texts: Sequence[str]) -> dict[str, dict[str, list[str]]]:
        whole = "\n".join(render(name, ad) for ad in hostile_sites(texts) for name in SUFFIXES)
        bdii.put("gip/ldif/sites.ldif", whole)
        return contents(whole.splitlines())

    def there() -> dict[str, dict[str, list[str]]]:
        found = contents([line for base in SUFFIXES.values() for line in bdii.search(base, "(objectClass=*)")])
        return {dn: entry for dn, entry in found.items() if "=resource," in dn and dn not in GROUPS}

    wanted = publish(HOSTILE)
    with place.running(bdii):
        bdii.next_round()
        assert there() == wanted
        wanted = publish((*HOSTILE[1:], HOSTILE[0]))
        bdii.next_round()
        within(60, lambda: len(there()) == len(wanted), bdii)
        assert there() == wanted
    assert not bdii.rejected()


def test_vmjob_sites_reads_back_what_was_published(bdii: Bdii, tmp_path: Path) -> None:
    from vmjob.sites.ldap import ask
    from vmjob.sites.sources import parse

    (bdii.folder / "gip/provider/vmjob").unlink()
    bdii.put("gip/ldif/glue2.ldif", render("glue2", EXAMPLE))
    with place.running(bdii):
        bdii.next_round()
        found = ask(parse(f"ldap://{bdii.address}/o=glue", "")).ads
    assert [ordered(one) for one in found] == [ordered(EXAMPLE)]


def ordered(ad: SiteAd) -> dict[str, Any]:
    """As JSON, without the order in which things stand, which bdii-update turns round."""
    body = to_json(ad)
    return {key: sorted(value, key=str) if isinstance(value, (list, tuple)) else value for key, value in body.items()}
