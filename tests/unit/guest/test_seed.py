"""The seed disk, read back by another implementation of its file system."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pycdlib
import pytest
import yaml

from vmjob.guest import seed

pytestmark = pytest.mark.unit


def files(disk: Path) -> dict[str, str]:
    iso = pycdlib.PyCdlib()
    iso.open(str(disk))
    found = {}
    for child in iso.list_children(rr_path="/"):
        if child.is_file():
            data = io.BytesIO()
            iso.get_file_from_iso_fp(data, rr_path=f"/{child.rock_ridge.name().decode()}")
            found[child.rock_ridge.name().decode()] = data.getvalue().decode()
    assert iso.pvd.volume_identifier.rstrip() == b"cidata"
    iso.close()
    return found


def test_holds_what_cloud_init_reads(tmp_path: Path) -> None:
    card = seed.network_config("52:54:00:00:00:01", "10.0.2.15/24", "10.0.2.2", "10.0.2.3")
    seed.write_seed(tmp_path / "seed", "one", card)
    found = files(tmp_path / "seed")
    assert set(found) == {"user-data", "meta-data", "vendor-data", "network-config"}
    assert yaml.safe_load(found["meta-data"])["instance-id"] == "one"
    (read,) = yaml.safe_load(found["network-config"])["config"]
    assert read["mac_address"] == "52:54:00:00:00:01" and read["subnets"][0]["address"] == "10.0.2.15/24"
    assert found["vendor-data"].startswith("#cloud-config\n")


def test_without_a_card_or_an_address(tmp_path: Path) -> None:
    seed.write_seed(tmp_path / "seed", "one")
    assert "network-config" not in files(tmp_path / "seed")
    (card,) = json.loads(seed.network_config("52:54:00:00:00:01"))["config"]
    assert card["subnets"] == [{"type": "manual"}]


def test_hook_writes_the_agent_as_it_is() -> None:
    """Its here-documents hold whatever the agent's text holds; and it is itself a shell script."""
    agent = seed.agent_text()
    text = seed.user_data(agent)
    assert text.startswith("#cloud-boothook\n#!/bin/sh\n") and agent in text and agent.startswith("#!/bin/sh\n")
    assert "VMJOB-END" not in agent
    checked = subprocess.run(["sh", "-n"], input=text.encode(), capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, b"")
