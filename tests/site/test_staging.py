"""Files of images through the transfer plug-ins of a node's own HTCondor."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import pytest

from tests.site import hosts, web
from tests.site.layout import HOSTS
from tests.site.site import Site
from vmjob.job.pyz import carried_pyz

pytestmark = [pytest.mark.site, pytest.mark.timeout(120)]

_CODE = """
import hashlib, sys
from vmjob.core.errors import VmjobError
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.stage.transfer.fetch import fetcher
file = ImageFile("disk", "disk.raw", "raw", int(sys.argv[1]), "0" * 64)
for source in sys.argv[2:]:
    fetch = fetcher(Manifest("one", (file,), (Boot.DISK,), sources=(source,)), timeout=30)
    try:
        print(hashlib.sha256(b"".join(fetch(file, 1000))).hexdigest())
    except VmjobError as failure:
        print(failure.message.replace("\\n", " "))
"""


def test_the_plugins_of_htcondor(site: Site, tmp_path: Path) -> None:
    body = os.urandom(3_000_000)
    served = tmp_path / "served"
    served.mkdir()
    (served / "disk.raw").write_bytes(body)
    script = ('set -e; cd "$(mktemp -d)"; base64 -d >vmjob.pyz; export PYTHONPATH="$PWD/vmjob.pyz" TMPDIR="$PWD" '
              'VMJOB_CACHE="$PWD/cache"; python3 -c "$@"; ls -d vmjob-stage-* || rm -r "$PWD"')
    with web.serving(served) as server:
        done = hosts.execute(HOSTS["n1"], "alice", [
            "sh", "-c", script, "sh", _CODE, str(len(body)), f"condor:{server.url}", f"condor:{server.url}none/",
            "condor:s3://bucket/"], input=base64.b64encode(carried_pyz().read_bytes()).decode())
    assert done.returncode == 0 and "vmjob-stage" not in done.stdout, done.stderr
    got, missing, unknown = done.stdout.splitlines()
    assert got == hashlib.sha256(body[1000:]).hexdigest()
    assert "404" in missing and "no plug-in of HTCondor here fetches s3: (there are " in unknown
