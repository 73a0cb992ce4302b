"""The RPMs, by rpm itself with its scripts, in a Debian root: what they install works, and goes away again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bare import bare, why_not
from tests.dist.conftest import version
from tests.dist.test_installed import INCLUDE, listing

pytestmark = [pytest.mark.fresh, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]


def test_installed_upgraded_and_removed_by_rpm(tmp_path: Path, built: Path) -> None:
    with bare("bookworm", INCLUDE, folder=tmp_path) as root:
        before = listing(root)
        root.put(built, "/tmp/packages")
        # what they require is there, under Debian's names
        rpm = "rpm --nodeps --force-debian"
        root.run("sh", "-c", f"{rpm} -i /tmp/packages/*.rpm")
        assert root.run("rpm", "-V", "--nodeps", "vmjob", "vmjob-site").stdout == ""  # no file differs
        assert root.run("vmjob", "--version", user="ada").stdout.split()[1] == version(built)
        assert '"EXAMPLE-T2"' in root.run("vmjob-publish", "json", "--example", user="ada").stdout
        assert "vmjob" in root.run("id", "vmjob-publish").stdout
        assert root.run("rpm", "-q", "--requires", "vmjob").stdout.startswith("python3 >= 3.9")
        root.write("/etc/vmjob/site.yaml.example", "# the admin's own\n")
        root.run("sh", "-c", f"{rpm} -U --replacepkgs --replacefiles /tmp/packages/*.rpm")
        assert (root.path / "etc/vmjob/site.yaml.example").read_text() == "# the admin's own\n"
        root.run("sh", "-c", f"{rpm} -e vmjob vmjob-site")
        after = listing(root)
        kept = {"/etc/vmjob", "/etc/vmjob/site.yaml.example.rpmsave"}
        # the last two are of the package filesystem where there are RPMs
        assert after.keys() - before.keys() == kept | {"/usr/share/licenses", "/usr/share/zsh/site-functions"}
        assert before.keys() - after.keys() == set()
        assert "vmjob" not in (root.path / "etc/passwd").read_text()
