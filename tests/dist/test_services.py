"""The services under a real systemd, in a machine of its own: each does its job within its limits, and none of them
anything before its configuration is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pkg.contents import TIMERS
from tests import images
from tests.ca import Ca, entry, image_list
from tests.conftest import ROOT, Cli

pytestmark = [pytest.mark.integration, pytest.mark.image]
SERVICES = [timer.replace(".timer", ".service") for timer in TIMERS]


def test_each_service_does_its_job_and_nothing_before_it_is_configured(cli: Cli, home: Path, built: Path) -> None:
    images.need({"qemu-system-x86_64": "qemu-system-x86"})
    image = images.register(Cli(home, home), images.built(ROOT / "tests/dist/services.yaml"))
    ca = Ca(cli.cwd / "ca")
    shutil.make_archive(str(cli.cwd / "certificates"), "tar", ca.certificates.parent, ca.certificates.name)
    inputs = [*built.glob("*.deb"), ROOT / "tests/dist/services.sh", ROOT / "tests/dist/remains.py",
              cli.cwd / "certificates.tar"]
    for number in ("1", "2"):
        inputs.append(cli.cwd / f"list-{number}")
        inputs[-1].write_bytes(ca.sign(image_list(ca.ada, [entry()], hv_version=number,
                                                  hv_uri="http://127.0.0.1:8000/images.list")))
    done = cli("run", "-q", "--image", image, "--boot", "system", "--accel", "tcg", "--user", "root", "--memory", "1GiB",
               "--network", "none", *(word for path in inputs for word in ("--input", path)), "--", "sh", "services.sh",
               ca.ada.dn, ca.root.dn, timeout=600)
    out = done.out.decode()
    assert done.status == 0, out + done.err
    _, before, configured, did, journal, after = re.split(r"^== .*\n", out, flags=re.M)
    assert before == "".join(f"{name}: 0 0\n" for name in SERVICES) + "disabled\n"
    for name in SERVICES:
        assert re.search(rf"^{name} - .* was skipped because", journal, re.M), out
    # 212: a file in a cache is not what its name says; 230: there is no QEMU in this machine
    failed = {"vmjob-cache-verify.service": 212, "vmjob-site-check.service": 230}
    assert configured.splitlines()[-len(SERVICES):] == [
        f"{name}: 1 {failed[name]}" if name in failed else f"{name}: 0 0" for name in SERVICES], out
    for name in SERVICES:
        assert f"Starting {name} " in journal and (name in failed) != (f"Finished {name} " in journal), out
    record = "00000000-0000-0000-0000-000000000001.json"
    assert did.splitlines()[:6] == [
        "/var/lib/vmjob-publish/site.json vmjob-publish 644", "/var/lib/vmjob-publish/vmjob.prom vmjob-publish 644",
        "site.json is the site's", record, "new.json", record], out
    assert "Tests, version 2" in did and "0" * 64 not in did, out
    assert "there is no QEMU on this machine" in journal and "expected sha256:000" in journal
    assert after.splitlines()[:2] == ["2", "0"], out
    ours = re.compile(r"/var/(cache|lib)/vmjob-|/(multi-user|timers)\.target\.wants/vmjob-(?!agent|net)|stamp-vmjob|/usr/share")
    assert [line for line in after.splitlines() if ours.search(line)] == [] and "/etc/vmjob" in after
