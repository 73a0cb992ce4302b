"""What a site's policy decides, case by case, and what of it is not believed."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml

from vmjob.core import config
from vmjob.core.errors import PolicyBroken
from vmjob.core.model import Boot, ImageFile, Job, Manifest, Network, Payload, Resources, Slot
from vmjob.image.trust.endorsement import Endorsement, Endorser
from vmjob.policy import admission, identity
from vmjob.policy.admission import admit
from vmjob.policy.file import Limits, load
from vmjob.policy.identity import who
from vmjob.policy.verdict import Asked, Fact, Verdict, decide

pytestmark = pytest.mark.unit

GIB = 2**30
HEX, FILE, OTHER = "a" * 64, "b" * 64, "c" * 64
DN, CA = "/DC=org/DC=example/CN=Software", "/DC=org/DC=example/CN=CA"
SOFTWARE = {"software": {"dn": DN, "ca": CA, "lists": "list-1"}}
ENDORSED = Endorsement("list-1", "7", Endorser(DN, CA), "image-1", "Our image", f"sha256:{HEX}", 2000.0, tested=900.0)
ADA = (Fact("user", "ada", "the kernel", True), Fact("group", "staff", "the kernel", True),
       Fact("group", "kvm", "the kernel", True))
ASKED = Asked("micro", f"sha256:{HEX}", (FILE,), ADA, now=1000.0)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes policy.yaml, which only its owner may change; its path."""
    def call(document: Any) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False))
        path.chmod(0o644)
        return path

    return call


@pytest.fixture
def say(write: Any) -> Any:
    """The verdict of a policy on ASKED, changed."""
    def call(document: dict[str, Any], **changes: Any) -> Verdict:
        return decide(load(write(document)), replace(ASKED, **changes))

    return call


# ---------------------------------------------------------------- who, what, whose


@pytest.mark.parametrize(("rule", "allowed"), [
    ({}, True),
    ({"user": "ada"}, True), ({"user": "a*"}, True), ({"user": "bob"}, False), ({"user": ["bob", "ada"]}, True),
    ({"group": "staff"}, True), ({"group": "k?m"}, True), ({"group": "ada"}, False),
    ({"user": "ada", "group": "wheel"}, False),
    ({"image": f"sha256:{HEX}"}, True), ({"image": f"sha256:{OTHER}"}, False),
    ({"image": "micro"}, False),  # what an image is called, its maker chooses
])
def test_a_rule_is_for_whom_and_what_it_names(say: Any, rule: dict[str, Any], allowed: bool) -> None:
    said = say({"rules": [{"allow": "it", "unsigned": True, **rule}]})
    assert said.allowed is allowed, said.reason
    assert "rule 1 (it)" in said.reason
    assert bool(said.hint) is not allowed


@pytest.mark.parametrize(("rule", "endorsement", "allowed"), [
    ({}, {}, True),
    ({"endorser": "software"}, {}, True),
    ({"endorser": "site"}, {}, False),
    ({"image": "Our*"}, {}, True), ({"image": "image-1"}, {}, True), ({"image": "image-2"}, {}, False),
    ({"tested": True}, {}, True), ({"tested": True}, {"tested": 0.0}, False),
    ({}, {"list": "list-2"}, False),
    ({}, {"endorser": Endorser(DN, "/CN=Another CA")}, False), ({}, {"endorser": Endorser("/CN=Eve", CA)}, False),
    ({}, {"digest": f"sha256:{OTHER}"}, False),
    ({}, {"expires": 999.0}, False),
])
def test_an_endorsement_counts_by_list_signer_and_authority(say: Any, rule: dict[str, Any], endorsement: dict[str, Any],
                                                            allowed: bool) -> None:
    said = say({"endorsers": SOFTWARE, "rules": [{"allow": "ours", **rule}]},
               endorsements=(replace(ENDORSED, **endorsement),))
    assert said.allowed is allowed, said.reason
    assert said.endorser == (DN if allowed else "")


def test_without_an_endorsement_the_reason_tells_which_would_do_and_why_others_do_not(say: Any) -> None:
    said = say({"endorsers": SOFTWARE, "rules": [{"allow": "ours"}]}, uncounted=("old.smime: expired yesterday",))
    assert not said.allowed
    assert "expired yesterday" in said.reason
    assert "software: list-1" in said.hint


def test_a_digest_that_the_site_trusts_needs_no_list(say: Any) -> None:
    policy = {"trust": [f"sha256:{HEX} checked by hand"], "rules": [{"allow": "checked", "endorser": "site"}]}
    assert say(policy).allowed
    assert not say(policy, digest=f"sha256:{OTHER}").allowed


def test_the_first_rule_that_fits_decides(say: Any) -> None:
    staff, everybody = {"allow": "staff", "group": "staff", "unsigned": True}, {"allow": "all", "unsigned": True}
    assert say({"rules": [{"refuse": "no guests", "user": "ada"}, everybody]}).reason.count("no guests") == 1
    assert not say({"rules": [{"refuse": "no guests", "user": "ada"}, everybody]}).allowed
    assert say({"rules": [everybody, {"refuse": "too late"}]}).allowed
    # it decides with its limits: a later rule does not widen them
    assert not say({"rules": [{**staff, "cpus": 1}, everybody]}, cpus=2).allowed
    steps = say({"rules": [{"refuse": "x", "user": "bob"}, staff, everybody]}).steps
    assert [step.fits for step in steps] == [False, True]


@pytest.mark.parametrize(("document", "allowed"), [
    ({}, True), ({"rules": []}, False), ({"limits": {"cpus": 1}}, True), ({"rules": [{"refuse": "closed"}]}, False)])
def test_without_rules_all_may_run_and_with_none_that_fits_nobody(say: Any, document: Any, allowed: bool) -> None:
    assert say(document).allowed is allowed


# ---------------------------------------------------------------- who vouches


VOS = {"vos": {"atlas": {"groups": "atl*", "issuers": "https://atlas.example.org/"}},
       "rules": [{"allow": "ATLAS", "vo": "atlas", "unsigned": True}]}


@pytest.mark.parametrize(("fact", "allowed"), [
    (Fact("group", "atlprd", "the kernel", True), True),
    (Fact("issuer", "https://atlas.example.org/", "HTCondor's token", True), True),
    (Fact("issuer", "https://atlas.example.org/", "the file /tmp/ad", False), False),
    (Fact("issuer", "https://atlas.example.org.evil/", "HTCondor's token", True), False),
    (Fact("vo", "atlas", "the job's X.509 proxy", False), False),
])
def test_a_vo_is_known_by_what_others_vouch_for(say: Any, fact: Fact, allowed: bool) -> None:
    said = say(VOS, facts=(*ADA, fact))
    assert said.allowed is allowed
    if fact.kind == "vo":
        assert "proxy says so of this one, but does not prove it" in said.reason


def test_a_rule_that_refuses_takes_the_users_word(say: Any) -> None:
    rules = {"rules": [{"refuse": "not that VO", "vo": "evil"}, {"allow": "all", "unsigned": True}]}
    assert not say(rules, facts=(*ADA, Fact("vo", "evil", "the job's X.509 proxy", False))).allowed
    assert say(rules).allowed


# ---------------------------------------------------------------- denied, limits


def test_a_denied_digest_does_not_start_whatever_else_is_said(say: Any) -> None:
    for digest in (HEX, FILE):  # the image, or one file of it
        said = say({"deny": [f"sha256:{digest} CVE-2026-1"], "trust": [f"sha256:{HEX}"], "rules": [{"allow": "all"}]})
        assert not said.allowed
        assert "CVE-2026-1" in said.reason
    assert say({"deny": [f"sha256:{OTHER}"]}).allowed


def test_a_withdrawn_image_does_not_start(say: Any) -> None:
    said = say({}, withdrawn="list list-1 version 8 no longer has it")
    assert not said.allowed
    assert "version 8" in said.reason


def test_a_feed_of_digests_counts_at_the_next_start(write: Any, tmp_path: Path) -> None:
    folder = tmp_path / "deny.d"
    folder.mkdir(0o755)
    path = write({"deny_files": [f"{folder}/*.txt"]})
    assert decide(load(path), ASKED).allowed
    (folder / ".half.txt").write_text("sha25")  # still being written
    (folder / "feed.txt").write_text(f"# revoked\n\nsha256:{OTHER}\nsha256:{HEX} key was stolen\n")
    said = decide(load(path), ASKED)
    assert not said.allowed
    assert f"{folder}/feed.txt:4: key was stolen" in said.reason
    (folder / "feed.txt").unlink()
    assert decide(load(path), ASKED).allowed


@pytest.mark.parametrize(("limits", "asked", "words"), [
    ({"memory": "2GiB"}, {"memory": 2 * GIB}, None),
    ({"memory": "2GiB"}, {"memory": 2 * GIB + 1}, ["memory", "2.0 GiB", "2048MiB"]),
    ({"memory": "2GiB"}, {"needs_memory": 3 * GIB}, ["the image needs 3.0 GiB"]),
    ({"cpus": 2}, {"cpus": 2}, None), ({"cpus": 2}, {"cpus": 4}, ["cpus", "asks for 4", "resources.cpus to 2"]),
    ({"cpus": 2}, {"needs_cpus": 4}, ["the image needs 4"]),
    ({"lifetime": "2h"}, {"walltime": 7200}, None), ({"lifetime": "2h"}, {"walltime": 7201}, ["lifetime", "walltime"]),
    ({"networks": ["none"]}, {"network": Network.NONE}, None),
    ({"networks": ["none", "isolated"]}, {}, ["asks for nat", "none or isolated"]),
])
@pytest.mark.parametrize("where", ["rule", "all"])
def test_limits(say: Any, where: str, limits: Any, asked: Any, words: Optional[list[str]]) -> None:
    rule = {"allow": "all", "unsigned": True}
    said = say({"rules": [{**rule, **limits}]} if where == "rule" else {"rules": [rule], "limits": limits}, **asked)
    assert said.allowed is (words is None)
    for word in words or ():
        assert word in said.reason + said.hint


def test_the_smaller_of_two_limits_holds() -> None:
    nat, none, isolated = Network.NAT, Network.NONE, Network.ISOLATED
    both = Limits(1, None, 5, (nat, none)).also(Limits(2, 3, None, (none, isolated)))
    assert both == Limits(1, 3, 5, (none,))


# ---------------------------------------------------------------- broken policies


@pytest.mark.parametrize(("text", "words"), [
    ("", ["expected object"]),
    ("rules: [", ["policy.yaml:1", "YAML"]),
    ("rulez: []", ["unknown key 'rulez'", "did you mean 'rules'"]),
    ("rules: [{allow: x, grup: staff}]", ["rules.0", "unknown key 'grup'", "did you mean 'group'"]),
    ("rules: [{user: ada}]", ["rules.0", "allow and refuse"]),
    ("rules: [{allow: x, refuse: y}]", ["rules.0", "allow and refuse"]),
    ("rules: [{allow: x, user: []}]", ["rules.0.user", "empty"]),
    ("rules: [{refuse: x, user: ''}]", ["rules.0.user", "empty"]),
    ("rules: [{allow: x, endorser: y}]", ["rules.0.endorser", "'y'", "site"]),
    ("rules: [{allow: x, vo: atlas}]", ["rules.0.vo", "'atlas'", "vos"]),
    ("rules: [{refuse: x, unsigned: true}]", ["rules.0", "unsigned"]),
    ("rules: [{allow: x, unsigned: true, endorser: site}]", ["rules.0", "not both"]),
    ("rules: [{allow: x, unsigned: yes}]", ["rules.0.unsigned", "yes"]),
    ("rules: [{allow: x, memory: much}]", ["rules.0.memory", "much"]),
    ("limits: {lifetime: soon}", ["limits.lifetime", "soon"]),
    ("limits: {cpus: 0}", ["limits.cpus"]),
    ("limits: {networks: [lan]}", ["networks", "lan"]),
    ("limits: {cpus: 1}\nlimits: {cpus: 9}", ["limits", "twice", ":2"]),
    ('{"limits": {"cpus": 1}, "limits": {}}', ["limits", "twice"]),
    ("endorsers: {a: {dn: /CN=a, ca: /CN=b}}", ["endorsers without rules"]),
    ("endorsers: {a: {dn: /CN=a}}", ["endorsers.a", "'ca' is missing"]),
    ("endorsers: {site: {dn: /CN=a, ca: /CN=b}}\nrules: []", ["endorsers.site"]),
    ("deny: [sha256:123]", ["deny.0", "64 hexadecimal"]),
    ("deny_files: deny.d/*.txt", ["deny_files", "absolute"]),
    ("deny_files: /nowhere/at/all/*.txt", ["/nowhere", "No such file"]),
    ("deny_files: /*/deny.txt", ["/*"]),
])
def test_a_broken_policy_is_named_and_never_taken_for_none(write: Any, text: str, words: list[str]) -> None:
    with pytest.raises(PolicyBroken) as caught:
        load(write(text))
    said = caught.value.message + caught.value.hint
    for word in [*words, "policy.yaml"]:
        assert word in said
    assert caught.value.hint
    assert caught.value.transient


def test_a_line_of_a_feed_that_is_no_digest(write: Any, tmp_path: Path) -> None:
    (tmp_path / "deny.txt").write_text(f"sha256:{HEX}\nsha1:123\n")
    with pytest.raises(PolicyBroken, match=r"deny\.txt:2: 'sha1:123'"):
        load(write({"deny_files": [str(tmp_path / "deny.txt")]}))


def broken(path: Path) -> str:
    with pytest.raises(PolicyBroken) as caught:
        load(path)
    return caught.value.message + "; " + caught.value.hint


def test_a_policy_that_others_can_write(write: Any, tmp_path: Path) -> None:
    path = write({})
    load(path)
    path.chmod(0o664)
    assert "can be written by its group" in broken(path)
    assert f"chmod go-w {path}" in broken(path)
    path.chmod(0o646)
    assert "everybody" in broken(path)
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    assert f"{tmp_path} can be written by everybody" in broken(path)
    tmp_path.chmod(0o1777)  # as /tmp: nobody can replace the file there
    load(path)


def test_a_link_leads_to_what_is_as_safe(write: Any, tmp_path: Path) -> None:
    path, folder, link = write({}), tmp_path / "open", tmp_path / "link.yaml"
    link.symlink_to(path.name)
    load(link)
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "policy.yaml").write_text("{}")
    (folder / "policy.yaml").chmod(0o644)
    link.unlink()
    link.symlink_to("open/policy.yaml")
    assert f"{folder} can be written by everybody" in broken(link)
    link.unlink()
    link.symlink_to(link)
    assert "too many symbolic links" in broken(link)


def test_what_is_no_file_or_not_there(tmp_path: Path) -> None:
    assert "No such file" in broken(tmp_path / "policy.yaml")
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is no file" in broken(tmp_path / "pipe")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give files away")
def test_the_sites_policy_is_roots_alone(write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write({"deny_files": [str(tmp_path / "deny.txt")]})
    (tmp_path / "deny.txt").write_text("")
    monkeypatch.setattr(config, "SITE_POLICY", path)
    load(path)
    os.chown(tmp_path / "deny.txt", 12345, -1)
    assert "deny.txt belongs to 12345" in broken(path)
    os.chown(tmp_path / "deny.txt", 0, -1)
    os.chown(path, 12345, -1)
    assert "belongs to 12345" in broken(path)
    os.chown(path, 0, -1)
    os.chown(tmp_path, 12345, -1)
    assert f"{tmp_path} belongs to 12345" in broken(path)


# ---------------------------------------------------------------- admission


MANIFEST = Manifest("micro", (ImageFile("kernel", "k", "elf", 1, FILE), ImageFile("initrd", "i", "cpio", 1, OTHER)),
                    (Boot.JOB,))
SLOT = Slot("htcondor", Path("/tmp"), cpus=8, memory=16 * GIB, disk=GIB, batch=True, sources=("cpus=htcondor",))


def payload(**wants: Any) -> Payload:
    return Payload(Job("j", "micro", ("true",), resources=Resources(**wants)), MANIFEST, {})


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the site's policy would be; there is none yet."""
    place = tmp_path / "etc/policy.yaml"
    place.parent.mkdir(0o755)
    monkeypatch.setattr(config, "SITE_POLICY", place)
    monkeypatch.setattr("vmjob.policy.file.owners", lambda path: {0, os.getuid()})
    monkeypatch.delenv("VMJOB_POLICY", raising=False)
    monkeypatch.delenv("_CONDOR_JOB_AD", raising=False)
    monkeypatch.setenv("VMJOB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(admission, "DEV_LOG", str(tmp_path / "log"))
    return place


def policy_at(path: Path, document: Any) -> None:
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o644)


def test_without_a_policy_nothing_is_decided(site: Path) -> None:
    assert admit(payload(), SLOT) == admission.Admission(None, SLOT)


def test_a_job_that_asks_for_nothing_gets_what_the_policy_leaves(site: Path) -> None:
    policy_at(site, {"limits": {"memory": "2GiB", "cpus": 2, "lifetime": "1h"}})
    got = admit(payload(), SLOT)
    assert got.decision
    assert got.decision.allowed
    assert got.decision.policies == (str(site),)
    from vmjob.slot.grant import grant, overhead_of

    for accel in ("kvm", "tcg"):
        granted = grant(got.slot, payload().job, MANIFEST, overhead_of(accel))
        assert (granted.cpus, granted.walltime, granted.memory) == (2, 3600, 2 * GIB)
    assert got.slot.sources == ("cpus=policy", "time_left=policy")
    # who says what she wants is refused or gets it
    assert admit(payload(memory=GIB, cpus=1, walltime=60), SLOT).slot == SLOT
    small = replace(SLOT, cpus=1, memory=GIB, time_left=60)
    left = admit(payload(), small).slot
    assert (left.cpus, left.memory, left.time_left) == (1, GIB, 60)


def test_the_users_own_policy_only_forbids_more(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.yaml"
    monkeypatch.setenv("VMJOB_POLICY", str(own))
    policy_at(own, {"rules": [{"allow": "all", "unsigned": True}], "limits": {"cpus": 4}})
    policy_at(site, {"limits": {"cpus": 2}})
    assert admit(payload(), SLOT).slot.cpus == 2
    policy_at(site, {"rules": [{"refuse": "closed today"}]})
    refused = admit(payload(), SLOT).decision
    assert refused
    assert not refused.allowed
    assert "closed today" in refused.reason
    policy_at(site, {})
    policy_at(own, {"rules": []})
    refused = admit(payload(), SLOT).decision
    assert refused
    assert not refused.allowed


def test_a_policy_that_is_named_and_not_there_is_no_missing_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMJOB_POLICY", str(site.with_name("gone.yaml")))
    with pytest.raises(PolicyBroken, match=r"gone\.yaml"):
        admit(payload(), SLOT)


def test_a_folder_that_is_closed_to_us_is_no_missing_policy(site: Path) -> None:
    site.parent.rmdir()
    site.parent.symlink_to(site.parent.name)  # any error but "no such file", for root too
    assert config.policy_files() == [site]
    with pytest.raises(PolicyBroken):
        admit(payload(), SLOT)


def test_syslog_gets_one_line_that_nobody_can_add_to(site: Path, tmp_path: Path) -> None:
    policy_at(site, {"rules": [{"refuse": "no"}]})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        log.settimeout(5)
        evil = replace(payload().job, name='x"\nvmjob[1]: allowed \x1b[2J é' + "x" * 5000)
        admit(replace(payload(), job=evil), SLOT)
        line = log.recv(65536).decode("ascii")
    assert line.startswith("<85>")
    assert f"vmjob[{os.getpid()}]: refused job=\"x\\\"\\n" in line
    assert "(no) refuses" in line
    assert line.isprintable()
    assert len(line) < 1500


def test_a_syslog_that_takes_nothing_stops_no_job(site: Path, tmp_path: Path) -> None:
    policy_at(site, {})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))  # never read: full after some lines
        for _ in range(600):
            admission._tell("allowed", payload(), (), "")
    assert admit(payload(), SLOT).decision  # nobody listens at all


# ---------------------------------------------------------------- old payloads


@pytest.mark.parametrize(("least", "has", "allowed"), [
    ("0.2.1", "0.2.1", True), ("0.2.1", "0.2.0", False), ("0.2.1", "0.1.9", False), ("0.2.1", "0.10.0", True),
    ("0.2.1", "1.0.0", True), ("0.2.1", "0.2.1.dev3", False), ("0.2.1", "0.2.1rc1", False),
    ("0.2.1", "0.2.1+local", True),
    ("0.2.1", "0.2.1.post1", True), ("0.2.1", "", False), ("0.2.1", "\u0662.0.0", False), ("0.0.0", "nonsense", False)])
def test_payloads_with_an_old_vmjob(write: Any, least: str, has: str, allowed: bool) -> None:
    policy = load(write({"min_version": least}))
    found = decide(policy, replace(ASKED, version=has))
    assert found.allowed is allowed
    if not allowed:
        assert f"min_version: this payload has vmjob {has}, and none before {least} may run here" in found.reason
        assert f"install vmjob {least} or later where the job is submitted" in found.hint
    assert decide(load(write({})), replace(ASKED, version=has)).allowed


def test_a_payloads_version_is_its_own(site: Path) -> None:
    import vmjob

    policy_at(site, {"min_version": vmjob.__version__})
    allowed = admit(payload(), SLOT).decision
    assert allowed and allowed.allowed
    policy_at(site, {"min_version": "999.0.0"})
    refused = admit(payload(), SLOT)
    assert refused.decision and not refused.decision.allowed and "999.0.0 or later" in refused.hint


@pytest.mark.parametrize("value", [0.2, 1, "0.2", "1", "0.2.1rc1", "v0.2.1", "", ["0.2.1"], "0.2.\u0661"])
def test_a_least_version_that_is_none_breaks_the_policy(write: Any, value: Any) -> None:
    with pytest.raises(PolicyBroken, match="min_version"):
        load(write({"min_version": value}))


def test_vmjob_0_1_0_refuses_where_a_least_version_is_asked_for(write: Any, tmp_path: Path) -> None:
    """It knows no such word, so that the policy is broken for it: refused too, by another name."""
    import subprocess
    import sys

    from tests.conftest import ROOT

    old = ROOT / "tests/data/vmjob-0.1.0.pyz"
    path = write({"min_version": "0.2.1"})
    done = subprocess.run([sys.executable, str(old), "policy", "check", "--policy", str(path)], capture_output=True,
                          text=True, env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 227 and "min_version" in done.stderr


# ---------------------------------------------------------------- who asks


AD = ('AuthTokenIssuer = "https://atlas.example.org/"\nAuthTokenGroups = "/atlas,/atlas/production"\n'
      'x509UserProxyVOName = "cms"\nx509UserProxyFirstFQAN = "/cms/Role=NULL"\norig_AuthTokenIssuer = "evil"\n')


def test_user_and_groups_are_the_processes_own() -> None:
    facts = who({"USER": "somebody", "LOGNAME": "else"})
    assert all(fact.vouched and fact.said_by == "the kernel" for fact in facts)
    assert [fact.value for fact in facts if fact.kind == "user"] == [identity.user_name(os.getuid())]
    assert len([fact for fact in facts if fact.kind == "group"]) == len({os.getgid(), *os.getgroups()})


def of_ad(path: Path) -> list[tuple[str, str, bool]]:
    return [(fact.kind, fact.value, fact.vouched) for fact in who({"_CONDOR_JOB_AD": str(path)})
            if fact.kind not in ("user", "group")]


def test_a_job_ad_counts_where_the_user_cannot_have_written_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ad = tmp_path / ".job.ad"
    ad.write_text(AD)
    ad.chmod(0o644)
    claimed = [("issuer", "https://atlas.example.org/", False), ("fqan", "/atlas", False),
               ("fqan", "/atlas/production", False), ("vo", "cms", False), ("fqan", "/cms/Role=NULL", False)]
    with monkeypatch.context() as patched:
        patched.setattr(identity, "_by_htcondor", lambda found: False)
        assert of_ad(ad) == claimed
    monkeypatch.setattr(identity, "_by_htcondor", lambda found: True)
    vouched = [(kind, value, n < 3) for n, (kind, value, _) in enumerate(claimed)]
    assert of_ad(ad) == vouched
    assert of_ad(ad.rename(tmp_path / "StarterLog")) == claimed  # a file of HTCondor's, but not that one
    (tmp_path / ".job.ad").symlink_to("StarterLog")
    assert of_ad(tmp_path / ".job.ad") == []
    assert of_ad(tmp_path / "gone") == []


def test_a_file_is_htcondors_by_owner_and_mode(tmp_path: Path) -> None:
    ad = tmp_path / ".job.ad"
    ad.write_text("")
    ad.chmod(0o644)
    assert identity._by_htcondor(ad.stat()) is (os.getuid() == 0)
    ad.chmod(0o666)
    assert not identity._by_htcondor(ad.stat())
    if os.getuid() == 0:
        ad.chmod(0o644)
        os.chown(ad, 12345, -1)
        assert not identity._by_htcondor(ad.stat())


def test_the_policy_of_the_docs_says_what_they_say(write: Any, tmp_path: Path) -> None:
    """The example is the first thing of its section."""
    import re

    from tests.conftest import ROOT

    text = (ROOT / "docs/site-admin.md").read_text().partition("\n## Policy\n")[2]
    found = re.search(r"```yaml\n(.*?)```", text, re.S)
    assert found
    policy = load(write(found.group(1).replace("/etc/vmjob/deny.d", str(tmp_path))))
    assert [rule.allow for rule in policy.rules or ()] == [False, True, True]
    assert decide(policy, ASKED).hint == "set network (--network): isolated or none"  # rule 3: ada is staff
    assert decide(policy, replace(ASKED, network=Network.NONE)).allowed
    assert not decide(policy, replace(ASKED, network=Network.NONE, facts=ADA[:1])).allowed
