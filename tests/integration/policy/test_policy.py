"""A site's policy through the whole run, as the user meets it, and as its admin asks."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml

from tests.ca import Ca, Pair, entry, image_list
from tests.conftest import Cli, Done, result_of
from vmjob.core import config
from vmjob.core.errors import PolicyBroken
from vmjob.core.model import Boot, ImageFile, Job, Manifest, Payload, Slot
from vmjob.core.result import Decision
from vmjob.image.manifest import to_document
from vmjob.image.trust.subscriptions import follow
from vmjob.image.trust.verify import verify_list
from vmjob.policy.admission import admit

pytestmark = pytest.mark.integration

MINE = {"allow": "anything here", "unsigned": True}


@pytest.fixture
def policy(cli: Cli) -> Any:
    """Writes the policy that runs of ``cli`` are under, beside the machine's own."""
    path = cli.cwd / "policy.yaml"
    cli.env["VMJOB_POLICY"] = str(path)

    def write(text: Any) -> Path:
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
        path.chmod(0o644)
        return path

    return write


def refused(done: Done, status: int, *words: str) -> None:
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    assert "→" in done.err
    for word in words:
        assert word in done.err, done.err


def test_what_is_allowed_runs_within_the_limits_and_the_result_says_why(cli: Cli, policy: Any) -> None:
    path = policy({"rules": [{**MINE, "memory": "200MiB", "cpus": 1}]})
    done = cli.micro("--results", "r", "--", "sh", "-c", "cat /proc/meminfo | head -n 1")
    assert done.status == 0, done.err
    body = result_of(cli.cwd / "r")
    assert body["policy"] == {"allowed": True, "endorser": "", "policies": [str(path)],
                              "reason": f"{path}: rule 1 (anything here): an endorsement is not asked for"}
    assert body["memory"] == 200 * 2**20
    assert 0 < int(done.out.split()[1]) < 200 * 2**10


@pytest.mark.parametrize(("rules", "args", "words"), [
    ([], [], ["no rule allows the image micro"]),
    ([{"refuse": "no machines today"}, MINE], [], ["rule 1", "no machines today"]),
    ([{**MINE, "memory": "200MiB"}], ["--memory", "256MiB"], ["rule 1", "256 MiB", "200 MiB", "memory to 200MiB"]),
    ([{**MINE, "networks": ["none"]}], [], ["networks", "nat", "--network"]),
])
def test_what_is_refused_starts_nothing(cli: Cli, policy: Any, rules: Any, args: Any, words: Any) -> None:
    path = policy({"rules": rules})
    done = cli.micro("--results", "r", *args, "--", "true")
    refused(done, 226, str(path), *words)
    body = result_of(cli.cwd / "r")
    assert body["failure"]["kind"] == "PolicyRefused"
    assert body["failure"]["transient"] is False
    assert body["policy"]["allowed"] is False
    assert body["policy"]["reason"] == body["failure"]["message"]
    assert [stage["name"] for stage in body["stages"]] == ["stage", "teardown"]
    assert cli.left_over() == []


def test_a_revoked_image_stops_starting_at_once(cli: Cli, policy: Any) -> None:
    digest = cli("image", "inspect", "micro", "--json").json["digest"]
    feed = cli.cwd / "deny.d"
    feed.mkdir(0o755)
    policy({"deny_files": [f"{feed}/*.txt"]})
    assert cli.micro("--", "true").status == 0
    (feed / "today.txt").write_text(f"{digest} key stolen\n")
    refused(cli.micro("--", "true"), 226, f"{feed}/today.txt:1", "key stolen")


@pytest.mark.parametrize(("text", "mode", "words"), [
    ("rulez: []", 0o644, ["unknown key 'rulez'", "did you mean 'rules'"]),
    ("limits: [", 0o644, ["YAML"]),
    ("{}", 0o666, ["can be written by everybody", "chmod go-w"]),
])
def test_a_broken_policy_lets_nothing_start(cli: Cli, policy: Any, text: str, mode: int, words: list[str]) -> None:
    path = policy(text)
    path.chmod(mode)
    done = cli.micro("--results", "r", "--", "true")
    refused(done, 227, str(path), *words)
    body = result_of(cli.cwd / "r")
    assert body["failure"]["transient"] is True
    assert [stage["name"] for stage in body["stages"]] == ["stage", "teardown"]


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every file")
def test_a_policy_that_cannot_be_read_is_no_missing_one(cli: Cli, policy: Any) -> None:
    policy({}).chmod(0)
    refused(cli.micro("--", "true"), 227, "Permission denied")


def test_check_explains_rule_by_rule(cli: Cli, policy: Any) -> None:
    policy({"vos": {"atlas": {"groups": "atl*"}},
            "rules": [{"allow": "ATLAS", "vo": "atlas", "unsigned": True, "memory": "1GiB"},
                      {"refuse": "guests may not", "group": "guests"}]})
    allowed = cli("policy", "check", "micro", "--as", "eve", "--group", "atlprd")
    assert allowed.status == 0, allowed.err
    assert b"fits  rule 1 (ATLAS): vo atlas by group atlprd" in allowed.out
    assert b"at most: memory 1.0 GiB" in allowed.out
    assert cli("policy", "check", "micro", "--vo", "atlas").status == 0
    no = cli("policy", "check", "micro", "--as", "eve", "--group", "guests", "--json")
    assert no.status == 226
    assert [(rule["number"], rule["fits"]) for rule in no.json["policies"][0]["rules"]] == [(1, False), (2, True)]
    assert "guests may not" in no.json["policies"][0]["reason"]
    assert cli("policy", "check", "micro", "--vo", "atlas", "--memory", "2GiB").status == 226
    refused(cli("policy", "check", "micro", "--as", "nobody-like-that"), 200, "no such user")
    refused(cli("policy", "check", "nothing"), 211)


def test_check_without_an_image_reads_the_policy_aloud(cli: Cli, policy: Any) -> None:
    policy({"rules": [{**MINE, "user": "ada", "cpus": 2}], "limits": {"lifetime": "1d"}})
    done = cli("policy", "check")
    assert done.status == 0, done.err
    assert b"user ada may run every image, signed or not; at most 2 CPUs" in done.out
    assert b"nobody else may run anything" in done.out
    assert json.loads(cli("policy", "check", "--json").out)["policies"][0]["rules"] == 1
    policy("rulez: 1")
    refused(cli("policy", "check"), 227, "rulez")


# ---------------------------------------------------------------- with signed lists


IMAGE = Manifest("one", (ImageFile("kernel", "k", "elf", 1, "a" * 64), ImageFile("initrd", "i", "cpio", 1, "b" * 64)),
                 (Boot.JOB,))
GONE = replace(IMAGE, cmdline="older")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("ca"))


@dataclass
class Node:
    """A node with a policy, lists that travel with a job and those that its site is subscribed to."""

    ca: Ca
    folder: Path
    followed: Path

    def listed(self, version: str, *images: Manifest, by: Optional[Pair] = None, **changed: Any) -> Path:
        """A signed list of these images, in a file."""
        who = by or self.ca.ada
        entries = [{**entry(one.digest[7:12]), "vmjob:manifest": to_document(one)} for one in images]
        path = self.folder / f"list-{version}-{len(list(self.folder.iterdir()))}.smime"
        path.write_bytes(self.ca.sign(image_list(who, entries, hv_version=version, **changed), who))
        return path

    def follow(self, path: Path, folder: Optional[Path] = None) -> None:
        signed = verify_list(path, self.ca.certificates, time.time())
        follow(folder or self.followed, "https://example.org/list", signed, path.read_bytes(), time.time())

    def asks(self, *lists: Path, image: Manifest = IMAGE) -> Decision:
        payload = Payload(Job("j", "one", ("true",)), image, {}, lists=lists)
        decision = admit(payload, Slot("machine", self.folder, 1, 2**30, 2**30)).decision
        assert decision
        return decision


@pytest.fixture
def node(ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump({
        "endorsers": {"ada": {"dn": ca.ada.dn, "ca": ca.root.dn, "lists": "list-1"}},
        "rules": [{"allow": "what Ada endorses", "endorser": "ada"}],
        "subscriptions": str(tmp_path / "followed"), "authorities": str(ca.certificates)}))
    policy.chmod(0o644)
    (tmp_path / "followed").mkdir(0o755)
    (tmp_path / "lists").mkdir()
    monkeypatch.setenv("VMJOB_POLICY", str(policy))
    monkeypatch.setenv("VMJOB_HOME", str(tmp_path / "home"))
    # the user's own choice of authorities does not count
    monkeypatch.setenv("X509_CERT_DIR", str(tmp_path / "evil"))
    return Node(ca, tmp_path / "lists", tmp_path / "followed")


def test_a_list_that_travels_with_the_job_endorses_its_image(node: Node) -> None:
    assert not node.asks().allowed
    said = node.asks(node.listed("2", IMAGE))
    assert said.allowed
    assert said.endorser == node.ca.ada.dn
    assert "endorsed by ada, list list-1 version 2" in said.reason


def test_a_list_that_does_not_count_is_named_with_the_reason(node: Node) -> None:
    other = node.asks(node.listed("2", GONE))
    assert not other.allowed
    assert "list-1 (version 2) does not name it" in other.reason
    eve = node.asks(node.listed("2", IMAGE, by=node.ca.eve))
    assert not eve.allowed
    assert "lists that do not count" in eve.reason
    assert not node.asks(node.listed("2", IMAGE, dc_identifier="list-2")).allowed
    (node.folder / "junk").write_bytes(b"junk")
    assert "junk: this is no signed message" in node.asks(node.folder / "junk").reason


def test_a_subscribed_list_endorses_withdraws_and_outdates(node: Node) -> None:
    older = node.listed("1", IMAGE, GONE)
    node.follow(older)
    assert node.asks(image=GONE).allowed
    newer = node.listed("2", IMAGE)
    node.follow(newer)
    assert node.asks().allowed
    assert node.asks(newer).allowed
    gone = node.asks(older, image=GONE)
    assert not gone.allowed
    assert "withdrawn" in gone.reason
    node.follow(node.listed("3"))
    assert "withdrawn" in node.asks(newer).reason


def test_a_replayed_list_does_not_count_where_the_site_knows_a_newer_one(node: Node) -> None:
    node.follow(node.listed("5"))
    said = node.asks(node.listed("4", IMAGE))
    assert not said.allowed
    assert "older version" in said.reason


def test_subscriptions_that_a_user_can_write_are_a_broken_policy(node: Node) -> None:
    node.followed.chmod(0o777)
    with pytest.raises(PolicyBroken, match="can be written by everybody"):
        node.asks()
    node.followed.rmdir()
    with pytest.raises(PolicyBroken, match="subscriptions"):
        node.asks()


def test_what_a_users_own_list_withdrew_does_not_start_without_a_policy_either(
        node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMJOB_POLICY")
    own = config.store_dir() / "lists"
    node.follow(node.listed("1", IMAGE, GONE), own)
    node.follow(node.listed("2", IMAGE), own)
    said = node.asks(image=GONE)
    assert not said.allowed
    assert "withdrawn" in said.reason
    with pytest.raises(AssertionError):
        node.asks()  # nobody has a say in the other one
