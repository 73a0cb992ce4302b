"""The YAML that admins copy from docs/site-admin.md, as vmjob reads it; decimals; spools; hooks that lack files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vmjob.accounting import spool_check
from vmjob.ads import site_yaml
from vmjob.cli.main import main
from vmjob.core import schema
from vmjob.core.site_errors import RecordSpoolFull, SiteBroken
from vmjob.node import advertise, check, snippets
from vmjob.node.doctor import FAILURE, OK, WARNING, Check
from vmjob.policy import file

pytestmark = pytest.mark.unit

BLOCKS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/site-admin.md").read_text(), re.S | re.M)
SITES = [text for text in BLOCKS if re.search(r"^name: ", text, re.M)]
POLICIES = [text for text in BLOCKS if re.search(r"^(rules|endorsers|limits): ?", text, re.M)]


def test_every_site_and_policy_of_the_docs_is_read(tmp_path: Path) -> None:
    assert len(SITES) >= 2 and POLICIES
    for text in SITES:
        (tmp_path / "site.yaml").write_text(text)
        site = site_yaml.load(tmp_path / "site.yaml")
        assert site.latitude or (site.accounting and site.accounting.benchmark == ("HEPscore23", 17.25))
    for text in POLICIES:
        (tmp_path / "policy.yaml").write_text(text.replace("/etc/vmjob/deny.d", str(tmp_path)))
        assert file.load(tmp_path / "policy.yaml")


def test_a_decimal_is_a_number_only_where_nothing_else_can_stand(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: X\nlocation: {latitude: -0.50, longitude: 4}\ndescription: 1.10\n"
                    "elements: [{host: ce, batch_version: 23.10}]\n")
    body = schema.load_yaml(path, "site", SiteBroken)
    assert body["location"] == {"latitude": -0.5, "longitude": 4}
    assert (body["description"], body["elements"][0]["batch_version"]) == ("1.10", "23.10")
    assert type(body["description"]) is str
    path.write_text("name: X\nlocation: {latitude: '0.5', longitude: 4}\n")
    with pytest.raises(SiteBroken, match="latitude: expected number"):
        schema.load_yaml(path, "site", SiteBroken)
    path.write_text("image: x\ncommand: [run, 1.10, 2]\n")
    assert schema.load_yaml(path, "job")["command"] == ["run", "1.10", 2]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its site.yaml, and a spool as the docs have it."""
    path, place = tmp_path / "site.yaml", tmp_path / "spool"
    place.mkdir(mode=0o755)
    for name, mode in spool_check.MODES.items():
        (place / name).mkdir()
        (place / name).chmod(mode)
    path.write_text(json.dumps({"name": "X", "accounting": {"format": "json", "spool": str(place)}}))
    path.chmod(0o644)
    monkeypatch.setattr(site_yaml, "SITE_CONFIG", path)
    return path


def accounting() -> list[Check]:
    return [one for one in check._site() if one.name != "site"]


def test_a_spool_that_is_missing_or_closed(site: Path) -> None:
    place = site.parent / "spool"
    if place.stat().st_uid == 0:
        assert [one.level for one in accounting()] == [OK]
        (place / "open").chmod(0o1777)
        assert [one.level for one in accounting()] == [WARNING]
        advertise._accounted()
        (place / "open").chmod(0o755)
        assert [one.level for one in accounting()] == [FAILURE] and "chmod 3777" in accounting()[0].action
    (place / "ledger").rmdir()
    [gone] = accounting()
    assert gone.level == FAILURE and f"{place}/ledger: no such folder" in gone.text
    assert f"install -d -m 3733 -g vmjob-acct {place}/outgoing" in gone.action
    with pytest.raises(RecordSpoolFull, match="ledger"):
        advertise._accounted()


def test_a_node_is_offline_where_every_job_would_fail(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advertise, "_limits", lambda: None)
    monkeypatch.setenv("VMJOB_CACHE", str(site.parent / "cache"))
    monkeypatch.setenv("VMJOB_RUNS", str(site.parent / "runs"))
    (site.parent / "spool/open").rmdir()
    ad = advertise.answer().ad
    assert not ad.has and "spool/open: no such folder" in ad.offline
    site.write_text("name: [")
    ad = advertise.answer().ad
    assert not ad.has and str(site) in ad.offline


def test_a_hook_that_lacks_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippets, "CONDOR", tmp_path / "config.d")
    monkeypatch.setattr(snippets, "ETC", tmp_path / "etc")
    (tmp_path / "config.d").mkdir()
    assert "no file in" in next(check._hook()).text
    named = tmp_path / "config.d/99-vmjob-node.conf"
    named.write_text(f"# vmjob-startd.sh\nSTARTD_CRON_VMJOB_EXECUTABLE = {tmp_path}/etc/vmjob-startd.sh\n")
    [bare] = check._hook()
    assert bare.level == WARNING and all(name in bare.text for name in (snippets.HOOK, *snippets.BESIDE))
    assert main(["site", "hook", str(tmp_path / "etc")]) == 0  # makes the folder
    assert (tmp_path / "etc").stat().st_mode & 0o777 == 0o755
    assert [one.level for one in check._hook()] == [OK]
    assert main(["site", "hook", str(tmp_path / "no/such")]) == 200
