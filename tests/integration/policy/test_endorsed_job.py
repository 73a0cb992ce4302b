"""The whole road of an endorsed image: signed by one, followed and submitted by another, admitted and fetched by a node
that has neither the image nor the list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import servers
from tests.ca import Ca
from tests.conftest import Cli

pytestmark = pytest.mark.integration


def node(cli: Cli, folder: Path, payload: Path, ca: Ca, policy: Path) -> dict[str, object]:
    """What the payload's wrapper comes to in a slot; its result."""
    folder.mkdir()
    env = {**os.environ, "VMJOB_CACHE": str(folder.parent / "node"), "VMJOB_HOME": str(folder / "none"),
           "TMPDIR": str(folder), "VMJOB_POLICY": str(policy), "VMJOB_PYTHON": sys.executable, "no_proxy": "*"}
    subprocess.run(["sh", payload / "vmjob-wrapper.sh"], cwd=folder, env=env, timeout=100, capture_output=True)
    found: dict[str, object] = json.loads((folder / "result.json").read_text())
    return found


def test_from_the_endorser_to_a_node(cli: Cli, tmp_path: Path) -> None:
    ca, www = Ca(tmp_path / "ca"), tmp_path / "www"
    maker = Cli(cli.cwd, tmp_path / "maker")
    user = Cli(cli.cwd, tmp_path / "user", {"X509_CERT_DIR": str(ca.certificates), "no_proxy": "*"})
    policy = cli.cwd / "policy.yaml"
    policy.write_text(yaml.safe_dump({
        "endorsers": {"ada": {"dn": ca.ada.dn, "ca": ca.root.dn}}, "authorities": str(ca.certificates),
        "rules": [{"allow": "what Ada endorses", "endorser": "ada"}]}))
    policy.chmod(0o644)
    assert maker("image", "micro", "-o", www / "micro").status == 0
    with servers.nginx(www) as web:
        sign = ("image", "sign", www / "micro", "--cert", ca.ada.cert, "--key", ca.ada.key, "--title", "Ada's",
                "--uri", f"{web.url}/list", "--source", f"{web.url}/{{name}}/", "-o", www / "list")
        assert maker(*sign).status == 0
        follow = user("image", "subscribe", f"{web.url}/list", "--endorser", ca.ada.dn, "--ca", ca.root.dn)
        assert follow.status == 0, follow.err
        packed = user("pack", "--image", "micro", "-o", cli.cwd / "payload.tar", "--", "uname")
        assert packed.status == 0, packed.err
        (cli.cwd / "payload").mkdir()
        subprocess.run(["tar", "xf", "payload.tar", "-C", "payload"], cwd=cli.cwd, check=True)
        assert (cli.cwd / "payload/list-0.smime").exists() and not [*(cli.cwd / "payload").glob("image/*")]
        result = node(cli, cli.cwd / "slot1", cli.cwd / "payload", ca, policy)
        assert result["outcome"] == "ok" and result["bytes_image"] > 10e6, result["failure"]  # type: ignore[operator]
        assert result["policy"]["endorser"] == ca.ada.dn  # type: ignore[index]
        document = json.loads((cli.cwd / "payload/payload.json").read_text())
        document["lists"] = []  # nobody vouches for it then
        (cli.cwd / "payload/payload.json").write_text(json.dumps(document))
        result = node(cli, cli.cwd / "slot2", cli.cwd / "payload", ca, policy)
        assert result["failure"]["kind"] == "PolicyRefused" and result["status"] == 226  # type: ignore[index]
        assert [stage["name"] for stage in result["stages"]] == ["stage", "teardown"]  # type: ignore[attr-defined]
