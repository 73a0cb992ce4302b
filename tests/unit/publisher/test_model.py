"""What the publisher makes of a site: its nodes by kind, its images by VO, and what nobody may write."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cemon_publisher import images, model, probing, texts
from cemon_publisher.listed import Entry, Known
from cemon_publisher.probing import Seen

from vmjob.ads import node_ad, node_kinds, site_ad, site_yaml
from vmjob.ads.site_ad import KVM, TCG, NodeAd, Nodes, SiteImage
from vmjob.ads.site_yaml import Site
from vmjob.core.errors import PolicyBroken
from vmjob.core.model import Boot, ImageFile, Manifest, Network
from vmjob.core.site_errors import SiteBroken, SitesUnreachable
from vmjob.image.trust.endorsement import Endorsement, Endorser
from vmjob.policy import file as policy
from vmjob.policy.file import Limits

pytestmark = pytest.mark.unit

GIB = 2**30
NOW = 1795003200.0
DN, CA = "/DC=org/DC=example/CN=Ada", "/DC=org/DC=example/CN=CA"
NODE = NodeAd("n1.example.org", True, KVM, "", (), ("nat", "isolated", "none"), 128 * GIB, 32, "0.6", 10, 2, 5, "",
              int(NOW) - 60, 64, 256 * GIB, (), "x86_64", "debian", "12", (), int(NOW) + 900)


# ---------------------------------------------------------------- nodes


def test_nodes_of_one_kind_are_put_together() -> None:
    """Also where their memory differs by what the kernel took, and the one that is off."""
    ads = [replace(NODE, machine=f"n{n}", memory=NODE.memory - n * 2**20) for n in range(5)]
    off = replace(NODE, machine="n9", has=False, accel=TCG, offline="3 runs failed", networks=(), max_memory=0, free=0)
    old = replace(NODE, machine="old", accel=TCG, reason="no /dev/kvm", cpus=8, memory=32 * GIB, max_memory=16 * GIB,
                  max_cpus=4, networks=("nat",))
    kvm, tcg = probing.kinds([Seen(one) for one in (old, *ads, off)])
    assert (kvm.name, kvm.accel, kvm.total, kvm.online) == ("kvm-64cpus-256gib", KVM, 6, 5)
    assert (kvm.free, kvm.running, kvm.occupied) == (50, 12, 30)  # what runs on the one that is off runs
    assert (kvm.max_memory, kvm.max_cpus, kvm.networks) == (128 * GIB, 32, ("nat", "isolated", "none"))
    assert kvm.memory == NODE.memory - 4 * 2**20  # what each of them has
    assert (tcg.name, tcg.total, tcg.online, tcg.reason) == ("tcg-8cpus-32gib", 1, 1, "no /dev/kvm")


def test_nodes_that_differ_in_what_a_guest_gets_are_told_apart() -> None:
    found = probing.kinds([Seen(NODE), Seen(replace(NODE, machine="2", networks=("none",))),
                         Seen(replace(NODE, machine="3", max_memory=2 * GIB))])
    assert [one.total for one in found] == [1, 1, 1] and len({one.name for one in found}) == 3


def test_only_nodes_that_are_off() -> None:
    (one,) = probing.kinds([Seen(replace(NODE, has=False, offline="the test guest hung")), Seen(NODE, "old")])
    assert (one.total, one.online, one.free, one.reason) == (2, 0, 0, "the test guest hung")
    assert probing.kinds([]) == ()


def test_what_nodes_write_becomes_one_line() -> None:
    (one,) = probing.kinds([Seen(replace(NODE, reason="no\nkvm\x1b[2J", os="de\nbian", networks=("nat", "x\ny")))])
    assert (one.reason, one.os, one.networks) == ("no kvm [2J", "de bian", ("nat", "x y"))


def test_a_site_has_so_many_kinds_at_most() -> None:
    ads = [Seen(replace(NODE, machine=str(n), max_cpus=n, cpus=n)) for n in range(1000)]
    found = probing.kinds(ads)
    assert len(found) <= node_kinds.KINDS and sum(one.online for one in found) == 1000


@pytest.fixture
def site(tmp_path: Path) -> Any:
    def call(**changed: Any) -> Site:
        file = tmp_path / "site.yaml"
        body = {"name": "EXAMPLE", "nodes": {"files": f"{tmp_path}/nodes/*.json"}, **changed}
        file.write_text(yaml.safe_dump(body))
        (tmp_path / "nodes").mkdir(exist_ok=True)
        return site_yaml.load(file)

    return call


def put(site: Site, name: str, body: Any, age: float = 0) -> None:
    path = site.file.parent / "nodes" / name
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    os.utime(path, (NOW - age, NOW - age))


def test_files_of_nodes(site: Any) -> None:
    here, notes = site(), list[str]()
    put(here, "a.json", node_ad.to_json(NODE))
    put(here, "a-before.json", node_ad.to_json(replace(NODE, free=99)), age=60)  # the same node
    put(here, ".a.json.new", "{")
    put(here, "b.json", node_ad.to_json(replace(NODE, machine="late", expires=int(NOW) - 7200)))
    put(here, "c.json", node_ad.to_json(replace(NODE, machine="old", expires=0)), age=9 * 3600)
    put(here, "d.json", "{" * 100_000)
    put(here, "e.json", {"schema": 1, "machine": "odd", "has": "yes"})
    found = {one.ad.machine: one for one in probing.probe(here, NOW, notes.append)}
    assert sorted(found) == ["late", "n1.example.org", "old"]
    assert not found["n1.example.org"].trouble and found["n1.example.org"].ad.free == 10
    assert "2.0 hours ago" in found["late"].trouble and "9.0 hours ago" in found["old"].trouble
    assert [kind.online for kind in probing.kinds(list(found.values()))] == [1]
    assert len(notes) == 4 and any("d.json" in one for one in notes) and any("e.json" in one for one in notes)


def test_a_pipe_among_the_files_of_nodes_does_not_hang(site: Any) -> None:
    here, notes = site(), list[str]()
    os.mkfifo(here.file.parent / "nodes/a.json")
    (here.file.parent / "nodes/b.json").symlink_to("/dev/zero")
    (here.file.parent / "nodes/c.json").symlink_to("nowhere")
    put(here, "n.json", node_ad.to_json(NODE))
    assert [one.ad.machine for one in probing.probe(here, NOW, notes.append)] == [NODE.machine]
    assert [note.rpartition(": ")[2] for note in notes] == ["this is no file"] * 2 + ["No such file or directory"]


def test_who_may_not_open_kvm_is_told(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, notes = site(nodes={"here": True}), list[str]()
    monkeypatch.setattr(probing, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(probing, "_here", lambda: replace(NODE, accel=TCG))
    monkeypatch.setattr(os, "access", lambda *_: False)
    probing.probe(here, NOW, notes.append)
    assert notes == []  # there is none
    (tmp_path / "kvm").touch()
    probing.probe(here, NOW, notes.append)
    assert len(notes) == 1 and f"may not open {tmp_path}/kvm" in notes[0] and "collector" in notes[0]


def test_no_node_at_all_is_a_failure_and_not_an_empty_site(site: Any) -> None:
    here = site()
    with pytest.raises(SitesUnreachable, match="no file tells of a node"):
        probing.probe(here, NOW, lambda _: None)
    put(here, "a.json", "")
    with pytest.raises(SitesUnreachable, match=r"a\.json"):
        probing.probe(here, NOW, lambda _: None)
    with pytest.raises(SitesUnreachable, match="No such file"):
        probing.probe(site(nodes={"files": "/nonexistent/*.json"}), NOW, lambda _: None)
    with pytest.raises(SiteBroken, match="only in the last part"):
        probing.probe(site(nodes={"files": "/*/x.json"}), NOW, lambda _: None)
    with pytest.raises(SiteBroken, match="nodes: the key is missing"):
        probing.probe(replace(here, nodes=None), NOW, lambda _: None)


# ---------------------------------------------------------------- what an admin writes


@pytest.mark.parametrize(("changed", "said"), [
    ({"description": "all well\ndn: o=grid"}, "description"),
    ({"description": "all well dn: o=grid"}, "description: 'dn:' begins a new entry"),
    ({"contact": "DN:x"}, "contact"),
    ({"country": "Pol\u202eand"}, r"country: there is a character U\+202E"),
    ({"description": "one\u2028two"}, r"U\+2028"), ({"description": "one\x85two"}, r"U\+0085"),
    ({"names": {"sha256:" + "a" * 64: "dn: x"}}, r"names\.sha256:a+: 'dn:'"),
    ({"names": {"star": "star"}}, "'star' is no digest"),
    ({"vos": ["star", "star"]}, "vos: star stands there twice"),
    ({"elements": [{"host": "ce"}, {"host": "ce"}]}, "elements: ce/default stands there twice"),
    ({"elements": [{"host": "a", "url": "condor-ce://ce"}, {"host": "b", "url": "condor-ce://ce"}]}, "condor-ce://ce"),
    ({"elements": [{"host": "a", "url": "ldap://h/dn:x"}]}, r"elements\.0\.url"),
    ({"elements": [{"host": "a", "url": "https://h/" + "x" * 250}]}, r"elements\.0\.url"),
    ({"elements": [{"host": "h" * 250}]}, r"elements\.0\.host"),
    ({"web": "https://h/" + "x" * 1000}, "web"),
])
def test_what_cannot_be_published_names_its_key(site: Any, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(SiteBroken, match=said) as wrong:
        texts.check(site(**changed))
    assert "site.yaml" in wrong.value.message and wrong.value.hint


def test_a_good_configuration(site: Any) -> None:
    texts.check(site(description="Gdańsk – „małe” <Tier-2> & co", vos=["star", "atlas"],
                     elements=[{"host": "ce"}, {"host": "ce", "queue": "long"}, {"host": "vm-dn"}]))


@pytest.mark.parametrize(("text", "line"), [
    ("one\ntwo\0three\x1b[31m", "one two three [31m"), ("a\u202eb\u2028c\x85d", "a b c d"), ("\ud800x", "x"),
    ("  ", ""), ("x" * 2000, "x" * 999 + "…"), ("żółw", "żółw"), ("dn: o=grid", "dn: o=grid")])
def test_what_endorsers_write_becomes_one_line(text: str, line: str) -> None:
    assert site_ad.line(text) == line
    site_ad.line(text).encode()


# ---------------------------------------------------------------- images


def manifest(name: str, number: int = 0, **changed: Any) -> Manifest:
    return Manifest(name, (ImageFile("disk", "disk.qcow2", "qcow2", 1000, f"{number:064x}", 4096),), (Boot.DISK,),
                    **changed)


def entry(made: Manifest, dn: str = DN, tested: float = 0.0, identifier: str = "list-1") -> Entry:
    said = Endorsement(identifier, "7", Endorser(dn, CA), f"id-{made.name}", made.name, made.digest, NOW + 86400,
                       tested=tested)
    return Entry(made, said, "3", "Debian", "12", "https://example.org/")


def known(*entries: Entry, withdrawn: tuple[str, ...] = ()) -> Known:
    found = Known(withdrawn={digest: "the list withdrew it" for digest in withdrawn})
    for one in entries:
        found.entries.setdefault(one.manifest.digest, []).append(one)
    return found


@pytest.fixture
def may(tmp_path: Path) -> Any:
    """What a policy (or several) makes of entries."""
    def call(document: Any, known: Known, **changed: Any) -> images.Allowed:
        rules = []
        for number, one in enumerate(document if isinstance(document, list) else [document]):
            path = tmp_path / f"policy{number}.yaml"
            path.write_text(yaml.safe_dump(one))
            path.chmod(0o644)
            rules.append(policy.load(path))
        return images.allowed(Site(tmp_path / "site.yaml", "EXAMPLE", **changed), rules, [known] * len(rules), NOW)

    return call


ADA = {"ada": {"dn": DN, "ca": CA}}
VOS = {"star": {"groups": ["star", "starprod"]}, "atlas": {"groups": "atl*", "issuers": "https://atlas.example.org/"}}
ONE, TWO = manifest("one", 1), manifest("two", 2)
SIGNED = {"endorsers": ADA, "vos": VOS, "rules": [{"allow": "signed", "endorser": "ada"}]}


def names(found: images.Allowed) -> dict[str, tuple[str, ...]]:
    return {one.name: one.vos for one in found.images}


def test_a_vo_sees_what_its_jobs_may_run(may: Any) -> None:
    rules = [{"allow": "star", "vo": "star", "image": "*one"}, {"allow": "atlas", "vo": "atlas", "image": "*two"}]
    found = may({"endorsers": ADA, "vos": VOS, "rules": rules}, known(entry(ONE), entry(TWO)), vos=("star", "atlas"))
    assert names(found) == {"one": ("star",), "two": ("atlas",)}
    assert found.vos == ("star", "atlas") and found.unlisted == ()
    (one, _) = found.images
    assert (one.version, one.identifier, one.endorser, one.list, one.os) == ("3", "id-one", DN, "list-1", "Debian")
    assert one.expires == NOW + 86400 and one.uri == "https://example.org/"


@pytest.mark.parametrize(("rule", "seen"), [
    ({"allow": "x"}, True),
    ({"allow": "x", "tested": True}, False),
    ({"allow": "x", "memory": "128MiB"}, False),  # the image needs more
    ({"allow": "x", "networks": "isolated"}, True),
    ({"allow": "x", "networks": []}, None),
    ({"allow": "x", "group": "starprod", "vo": "star"}, True),  # some job of hers may
    ({"allow": "x", "user": "bob"}, False),
    ({"allow": "x", "fqan": "/star/Role=production"}, False),
    ({"refuse": "x", "vo": "star"}, False),
])
def test_the_verdict_is_the_policys(may: Any, rule: dict[str, Any], seen: object) -> None:
    document = {"endorsers": ADA, "vos": VOS, "rules": [rule]}
    if seen is None:
        with pytest.raises(Exception, match="it is empty"):
            may(document, known(entry(ONE)), vos=("star",))
    else:
        assert bool(may(document, known(entry(ONE)), vos=("star",)).images) is seen


def test_a_rule_against_one_group_leaves_the_others(may: Any) -> None:
    """All facts of a VO at once would make one job of them that is refused."""
    rules = [{"refuse": "no production here", "group": "starprod"}, {"allow": "star", "vo": "star"}]
    assert names(may({"endorsers": ADA, "vos": VOS, "rules": rules}, known(entry(ONE)), vos=("star",)))
    rules = [{"refuse": "none at all", "group": "star*"}, {"allow": "star", "vo": "star"}]
    assert not names(may({"endorsers": ADA, "vos": VOS, "rules": rules}, known(entry(ONE)), vos=("star",)))


def test_a_vo_that_the_policy_does_not_know_is_only_said_to_be_one(may: Any) -> None:
    rules = {"endorsers": ADA, "vos": VOS, "rules": [{"allow": "all VOs", "vo": "*"}]}
    found = may(rules, known(entry(ONE)), vos=("star", "cms"))
    assert names(found) == {"one": ("star",)} and found.vos == ("star",)
    assert names(may(SIGNED, known(entry(ONE)), vos=("star", "cms"))) == {"one": ("star", "cms")}


def test_without_vos_of_the_site_those_of_the_policy_and_all_others(may: Any) -> None:
    assert names(may(SIGNED, known(entry(ONE)))) == {"one": ("*",)}
    rules = [{"allow": "star", "vo": "star"}]
    assert names(may({**SIGNED, "rules": rules}, known(entry(ONE)))) == {"one": ("star",)}
    rules = [{"refuse": "not these", "vo": "star"}, {"allow": "all"}]
    found = may({**SIGNED, "rules": rules}, known(entry(ONE)))
    assert names(found) == {"one": ("atlas",)}  # all but star: "*" would be a lie


def test_denied_and_withdrawn_images_are_gone(may: Any) -> None:
    both = known(entry(ONE), entry(TWO))
    assert sorted(names(may(SIGNED, both))) == ["one", "two"]
    assert sorted(names(may({**SIGNED, "deny": [ONE.digest]}, both))) == ["two"]
    assert sorted(names(may({**SIGNED, "deny": [f"sha256:{TWO.files[0].sha256}"]}, both))) == ["one"]
    assert sorted(names(may(SIGNED, known(entry(ONE), entry(TWO), withdrawn=(TWO.digest,))))) == ["one"]
    assert sorted(names(may({"deny": [ONE.digest]}, both))) == ["two"]


def test_one_network_must_pass_all_policies(may: Any) -> None:
    def rules(networks: list[str]) -> dict[str, Any]:
        return {**SIGNED, "rules": [{"allow": "x", "endorser": "ada", "networks": networks}]}

    found = may([rules(["nat"]), rules(["isolated"])], known(entry(ONE)))
    assert (found.images, found.vos) == ((), ())
    found = may([rules(["nat", "none"]), rules(["isolated", "none"])], known(entry(ONE)))
    assert list(names(found)) == ["one"] and found.limits.networks == (Network.NONE,)
    assert list(names(may([rules(["isolated"]), SIGNED], known(entry(ONE))))) == ["one"]


def test_all_policies_must_allow(may: Any) -> None:
    found = may([SIGNED, {"deny": [ONE.digest], "limits": {"memory": "4GiB"}}], known(entry(ONE), entry(TWO)))
    assert sorted(names(found)) == ["two"] and found.limits.memory == 4 * GIB
    assert found.unlisted == ()  # the second one would


def test_who_is_not_believed_endorses_nothing(may: Any) -> None:
    eve = entry(ONE, dn="/CN=Eve")
    assert not names(may(SIGNED, known(eve)))
    # nor names what others endorse
    other = entry(replace(ONE, name="evil"), dn="/CN=Eve", identifier="list-0")
    assert list(names(may(SIGNED, known(other, entry(ONE))))) == ["one"]


def test_trusted_digests_are_published_without_a_list(may: Any) -> None:
    rules = {"trust": [ONE.digest], "rules": [{"allow": "x", "endorser": "site"}]}
    assert list(names(may(rules, known()))) == [ONE.digest[7:19]]
    assert list(names(may(rules, known(), names=((ONE.digest, "ours"),)))) == ["ours"]


def test_unlisted_is_for_whom_the_policy_asks_no_endorsement(may: Any) -> None:
    rules = [{"allow": "star", "vo": "star", "unsigned": True, "lifetime": "2h"}, {"allow": "atlas", "vo": "atlas"}]
    found = may({"endorsers": ADA, "vos": VOS, "rules": rules}, known(), vos=("star", "atlas", "cms"))
    assert (found.images, found.unlisted) == ((), ("star",))
    assert found.vos == ("star", "atlas")  # atlas brings a signed list with the job
    assert found.limits.lifetime is None  # of atlas' jobs
    free = may({"limits": {"lifetime": "3d", "cpus": 8}}, known(), vos=("star",))
    assert (free.unlisted, free.limits.lifetime, free.limits.cpus) == (("star",), 3 * 86400, 8)


def test_limits_are_the_most_that_anybody_gets(may: Any) -> None:
    rules = [{"allow": "star", "vo": "star", "memory": "4GiB", "networks": ["isolated"], "cpus": 2},
             {"allow": "atlas", "vo": "atlas", "memory": "8GiB", "networks": ["none"], "cpus": 1}]
    limits = may({"endorsers": ADA, "vos": VOS, "rules": rules, "limits": {"lifetime": "1d"}}, known(entry(ONE)),
                 vos=("star", "atlas")).limits
    assert (limits.memory, limits.cpus, limits.lifetime) == (8 * GIB, 2, 86400)
    assert limits.networks == (Network.ISOLATED, Network.NONE)
    nobody = may({"endorsers": ADA, "vos": VOS, "rules": [], "limits": {"cpus": 3}}, known(entry(ONE)))
    assert (nobody.images, nobody.vos, nobody.limits.cpus) == ((), (), 3)


@pytest.mark.parametrize("other", ["one", "ONE"])
def test_two_images_with_one_name(may: Any, other: str) -> None:
    """And one that is not published is in nobody's way."""
    twin = manifest(other, 9)
    if other == "ONE":
        assert len(names(may(SIGNED, known(entry(ONE), entry(twin))))) == 2
        return
    with pytest.raises(SiteBroken, match="two images are called one") as wrong:
        may(SIGNED, known(entry(ONE), entry(twin)))
    assert ONE.digest in wrong.value.message and twin.digest in wrong.value.message and "names:" in wrong.value.hint
    assert len(names(may(SIGNED, known(entry(ONE), entry(twin)), names=((twin.digest, "one-new"),)))) == 2
    assert len(names(may({**SIGNED, "deny": [twin.digest]}, known(entry(ONE), entry(twin))))) == 1
    with pytest.raises(SiteBroken):  # vm_one_x is asked for by both
        may(SIGNED, known(entry(manifest("one+x")), entry(manifest("one_x", 3))))


@pytest.mark.parametrize("vo", ["dn: x", "a\nb", "a,*", "*", "", "ż"])
def test_vos_of_the_policy_that_cannot_be_published(tmp_path: Path, vo: str) -> None:
    """Where the site names its own, those of the policy are not published."""
    rules = [policy.Policy(tmp_path / "policy.yaml", vos=(policy.Vo("star", groups=("s",)), policy.Vo(vo)))]
    with pytest.raises(PolicyBroken, match=r"policy\.yaml: vos\.") as wrong:
        texts.check_vos(Site(tmp_path / "site.yaml", "EXAMPLE"), rules)
    assert "\n" not in wrong.value.message and "site.yaml: vos" in wrong.value.hint
    texts.check_vos(Site(tmp_path / "site.yaml", "EXAMPLE", ("star",)), rules)


# ---------------------------------------------------------------- what comes together


@pytest.mark.parametrize(("has", "allowed", "left"), [
    (("nat",), None, ("nat",)), (("nat",), (Network.ISOLATED,), ("isolated",)),
    (("nat", "isolated", "none"), (Network.NAT, Network.NONE), ("nat", "none")),
    ((), (Network.ISOLATED,), ("isolated",)), (("isolated",), (Network.NAT,), None), (("nat",), (), None)])
def test_networks_within_the_policys(has: tuple[str, ...], allowed: Any, left: Any) -> None:
    """A kind of nodes without any is not online: nothing said would be read as not known."""
    one = model._narrowed(Nodes("kvm", networks=has, total=2, online=2, free=3), Limits(networks=allowed))
    if left is None:
        assert (one.networks, one.total, one.online, one.free) == ((), 2, 0, 0) and has[0] in one.reason
    else:
        assert (one.networks, one.online, one.free) == (left, 2, 3)


def test_images_that_no_node_can_run_are_left_out() -> None:
    """By one rule for all renderings; and those whose name is another's digest tag."""
    kinds = (Nodes("a", online=1, max_memory=2 * GIB), Nodes("b", max_memory=64 * GIB))
    good, big = SiteImage("good", "sha256:" + "a" * 64), SiteImage("big", "sha256:" + "b" * 64, memory=8 * GIB)
    poser = SiteImage("sha256_" + "A" * 64, "sha256:" + "c" * 64)
    notes: list[str] = []
    assert list(model._runnable((good, big, poser), kinds, notes.append)) == [good]
    assert len(notes) == 2 and "big: no node" in notes[0] and "8.0 GiB" in notes[0] and "another image" in notes[1]
    notes.clear()
    assert not list(model._runnable((good, big), (kinds[1],), notes.append)) and notes == []
    assert not list(model._runnable([big] * 100, kinds, notes.append)) and len(notes) == 6


def test_what_an_admin_may_not_have_meant_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    here = Site(tmp_path / "site.yaml", "EXAMPLE", ("star", "cms"), (site_ad.Element("ce", "condor-ce://ce"),))
    may = images.Allowed((SiteImage("one", "sha256:" + "a" * 64),), ("star",), (), Limits())
    model._tell(here, may, (Nodes("a", online=1),), notes.append)
    (note,) = notes
    assert "cms" in note and "star" not in note
    notes.clear()
    model._tell(replace(here, elements=(), vos=()), may, (Nodes("a"),), notes.append)
    assert "no elements" in notes[0] and "no node takes virtual machines now" in notes[1] and len(notes) == 2
