"""What is in an image, and what a feed says of it: the guest's list, rules, findings, what is remembered."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from vmjob.core.errors import JobError, OutputRefused
from vmjob.core.model import Boot, Manifest
from vmjob.vetting import feed, packages
from vmjob.vetting.packages import Listing, Package

pytestmark = pytest.mark.unit

DIGEST = "sha256:" + "5" * 64
DEBIAN = """os\tdebian\t12
manager\tdpkg
dpkg\tlibssl3\t3.0.11-1~deb12u2+b1\tamd64\topenssl\t3.0.11-1~deb12u2
dpkg\tpython3-requests\t2.28.1+dfsg-1\tall\trequests\t2.28.1+dfsg-1
python\t/usr/lib/python3/dist-packages/requests-2.28.1.egg-info
python\t/usr/local/lib/python3.11/dist-packages/Jinja2-3.1.2.dist-info
installer\tpip\t/usr/local/lib/python3.11/dist-packages/Jinja2-3.1.2.dist-info
python\t/opt/a b/é/ruamel.yaml_clib-0.2.7-py3.11.egg-info
python\t/opt/x/unversioned.egg-info
python\t/usr/share/y/six-1.16.0.dist-info
installer\tdebian\t/usr/share/y/six-1.16.0.dist-info
end
"""


def listing(text: str) -> Listing:
    return packages.parse(text.encode(), DIGEST)


def rules(tmp_path: Path, *entries: dict[str, Any], **more: Any) -> feed.Feed:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
    path.write_text(json.dumps({"title": "test", "packages": entries, **more}))
    return feed.load(path)


def found(tmp_path: Path, text: str, *entries: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one.package.name, one.package.version, one.range)
            for one in feed.findings([rules(tmp_path, *entries)], listing(text))]


# ---------------------------------------------------------------- the guest's list


def test_a_debian_with_python_packages() -> None:
    got = listing(DEBIAN)
    assert (got.os, got.managers) == ("debian-12", ("dpkg",))
    assert Package("dpkg", "libssl3", "3.0.11-1~deb12u2+b1", "amd64", "openssl", "3.0.11-1~deb12u2") in got.packages
    # what Debian packaged is Debian's to mend, and counts as that alone
    assert [(p.name, p.version) for p in got.packages if p.system == "pip"] == [
        ("jinja2", "3.1.2"), ("ruamel-yaml-clib", "0.2.7")]


def test_an_rpm_and_an_apk_system() -> None:
    got = listing("os\talmalinux\t9.4\nmanager\trpm\n"
                  "rpm\topenssl-libs\t1:3.0.7-24.el9\tx86_64\topenssl-3.0.7-24.el9.src.rpm\t\n"
                  "rpm\tgpg-pubkey\t1-2\t(none)\t(none)\t\nend\n")
    assert Package("rpm", "openssl-libs", "1:3.0.7-24.el9", "x86_64", "openssl", "1:3.0.7-24.el9") in got.packages
    assert Package("rpm", "gpg-pubkey", "1-2", "(none)") in got.packages
    got = listing("os\talpine\t3.20.1\nmanager\tapk\napk\tlibcrypto3\t3.3.1-r0\tx86_64\topenssl\t3.3.1-r0\nend\n")
    assert got.packages == (Package("apk", "libcrypto3", "3.3.1-r0", "x86_64", "openssl", "3.3.1-r0"),)


@pytest.mark.parametrize("text", [
    "", "end\n", "os\ta\tb", "os\ta\tb\n", "os\ta\nend\n", "os\ta\tb\tc\nend\n", "os\t\x1b[2J\t1\nend\n",
    "os\ta b\t\nend\n",
    "manager\tpacman\nend\n", "dpkg\ta\t1\tall\ta\nend\n", "dpkg\t\t1\tall\ta\t1\nend\n", "dpkg\ta\t\tall\ta\t1\nend\n",
    "dpkg\ta\té\tall\ta\t1\nend\n", "dpkg\t" + "a" * 257 + "\t1\t\t\t\nend\n", "python\ta\x07\nend\n",
    "python\t\nend\n", "installer\tpip\nend\n", "nonsense\nend\n", "\nend\n", "end\nend\n", "os\ta\tb\r\nend\n"])
def test_what_a_list_never_holds(text: str) -> None:
    if text == "end\n":  # but for the shortest that is whole
        assert listing(text).packages == ()
        return
    with pytest.raises(OutputRefused) as refused:
        listing(text)
    assert "packages.tsv" in refused.value.message and refused.value.message.isprintable()


def test_a_list_without_end() -> None:
    with pytest.raises(OutputRefused, match="too many"):
        listing("dpkg\ta\t1\t\t\t\n" * 200_001 + "end\n")


def test_the_script_itself(tmp_path: Path) -> None:
    """On this machine, with package systems of our own making."""
    text = (ROOT / "vmjob/vetting/packages.sh").read_text()
    places = {"/var/lib/dpkg/status": "status", " /lib/apk/db/installed": "installed",
              "/var/lib/rpm": "rpmdb", "/etc/os-release": "os-release", "find / ": f"find {tmp_path}/root "}
    for place, name in places.items():
        assert place in text
        text = text.replace(place, name if name.startswith("find") else f" {tmp_path}/{name}")
    (tmp_path / "status").write_text("x")
    (tmp_path / "rpmdb").mkdir()
    (tmp_path / "os-release").write_text('NAME="A $(touch pwned) B"\nID=\'odd\'\nVERSION_ID="1.2"\n')
    (tmp_path / "installed").write_text("P:musl\nV:1.2.5-r0\nA:x86_64\no:musl\nF:lib\n\nP:zlib\nV:1.3-r2\nA:x86_64\n")
    info = tmp_path / "root/o p/numpy-2.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").touch()
    (info / "INSTALLER").write_text("uv\n")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "dpkg-query").write_text("#!/bin/sh\nprintf 'ii \\tdpkg\\ta\\t1\\tall\\ta\\t1\\n"
                                     "rc \\tdpkg\\tb\\t1\\tall\\tb\\t1\\nhi \\tdpkg\\tc\\t2\\tall\\ts\\t3\\n'\n")
    (bin_ / "rpm").write_text("#!/bin/sh\nprintf 'rpm\\tbash\\t5.1-9\\tx86_64\\tbash-5.1-9.src.rpm\\t\\n'\n")
    for tool in bin_.iterdir():
        tool.chmod(0o755)
    done = subprocess.run(["sh", "-c", text], cwd=tmp_path, env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"})
    assert done.returncode == 0 and not (tmp_path / "pwned").exists()
    got = packages.parse((tmp_path / "packages.tsv").read_bytes(), DIGEST)
    assert (got.os, got.managers) == ("odd-1.2", ("dpkg", "rpm", "apk"))
    assert [(p.system, p.name, p.version, p.source) for p in got.packages] == [
        ("apk", "musl", "1.2.5-r0", "musl"), ("apk", "zlib", "1.3-r2", ""), ("dpkg", "a", "1", "a"),
        ("dpkg", "c", "2", "s"), ("pip", "numpy", "2.1.0", ""), ("rpm", "bash", "5.1-9", "bash")]
    (bin_ / "dpkg-query").write_text("#!/bin/sh\nexit 1\n")  # a package system that is broken is not an empty one
    done = subprocess.run(["sh", "-c", text], cwd=tmp_path, env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"},
                          capture_output=True)
    assert done.returncode == 1 and b"dpkg-query failed" in done.stderr


def test_real_dpkg_query_knows_the_format(tmp_path: Path) -> None:
    if not shutil.which("dpkg-query"):
        pytest.skip("needs dpkg-query: apt-get install dpkg")
    text = (ROOT / "vmjob/vetting/packages.sh").read_text().replace("find / ", f"find {tmp_path} ")
    assert subprocess.run(["sh", "-c", text], cwd=tmp_path).returncode == 0
    got = packages.parse((tmp_path / "packages.tsv").read_bytes(), DIGEST)
    told = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n"], capture_output=True)
    lines = told.stdout.decode().splitlines()
    assert {p.name for p in got.packages} == {line.split()[1] for line in lines if line[1] not in "nc"}
    assert all(p.source and p.source_version for p in got.packages)


# ---------------------------------------------------------------- feeds


def test_by_source_name_with_the_source_version(tmp_path: Path) -> None:
    # +b1 makes the package newer than the source it is made of
    assert found(tmp_path, DEBIAN, {"name": "openssl", "bad": ["= 3.0.11-1~deb12u2"]}) == [
        ("libssl3", "3.0.11-1~deb12u2+b1", "= 3.0.11-1~deb12u2")]
    assert found(tmp_path, DEBIAN, {"name": "libssl3", "bad": ["= 3.0.11-1~deb12u2"]}) == []


def test_fixed_alone_means_all_older_ones(tmp_path: Path) -> None:
    assert len(found(tmp_path, DEBIAN, {"name": "openssl", "fixed": "3.0.13-1~deb12u1"})) == 1
    assert found(tmp_path, DEBIAN, {"name": "openssl", "fixed": "3.0.11-1~deb12u2"}) == []
    assert found(tmp_path, DEBIAN, {"name": "openssl", "bad": ["< 3.0"], "fixed": "3.1"}) == []


def test_system_and_os(tmp_path: Path) -> None:
    every = {"name": "requests", "bad": ["*"]}
    assert [name for name, _, _ in found(tmp_path, DEBIAN, every)] == ["python3-requests"]
    assert found(tmp_path, DEBIAN, {**every, "system": "pip"}) == []
    assert found(tmp_path, DEBIAN, {**every, "os": ["debian-13", "ubuntu"]}) == []
    for os_ in ("debian", "debian-12"):
        assert len(found(tmp_path, DEBIAN, {**every, "os": ["ubuntu", os_]})) == 1
    # who does not say what it is cannot get out of a rule by that
    assert len(found(tmp_path, DEBIAN.replace("os\tdebian\t12", "os\t\t"), {**every, "os": ["debian-13"]})) == 1


def test_names_with_stars_and_of_python_packages(tmp_path: Path) -> None:
    assert [n for n, _, _ in found(tmp_path, DEBIAN, {"name": "lib*", "bad": ["*"]})] == ["libssl3"]
    for name in ("ruamel.yaml_clib", "ruamel-yaml-clib", "Ruamel_YAML.clib"):
        assert len(found(tmp_path, DEBIAN, {"name": name, "bad": ["<0.2.8"]})) == 1, name


def test_several_feeds_the_gravest_first_nothing_twice(tmp_path: Path) -> None:
    one = rules(tmp_path, {"name": "jinja2", "bad": ["< 4"], "severity": "low", "reference": "CVE-1"},
                {"name": "openssl", "bad": ["< 4", "< 5"], "severity": "critical", "reference": "CVE-2"},
                {"name": "libssl3", "bad": ["< 4"], "severity": "critical", "reference": "CVE-2"})
    two = replace(rules(tmp_path, {"name": "openssl", "bad": ["*"]}), title="two")
    got = feed.findings([one, two], listing(DEBIAN), (Package("dpkg", "libssl3", "3.0.11-1~deb12u2+b1"),))
    assert [(f.package.name, f.rule.reference) for f in got] == [
        ("libssl3", "CVE-2"), ("jinja2", "CVE-1"), ("libssl3", "")]


def test_what_the_manifest_says_counts() -> None:
    said = ("debian/bookworm", "busybox-static=1:1.35.0-4+b1", "Num_py==1.2", "disk.qcow2", "a=\x1b[2J")
    assert packages.made_from(Manifest("m", (), (Boot.JOB,), made_from=said)) == (
        Package("dpkg", "busybox-static", "1:1.35.0-4+b1"), Package("pip", "num-py", "1.2"))


@pytest.mark.parametrize(("text", "words"), [
    ("title: x\n", "'packages' is missing"),
    ("title: x\npackages: [{name: a, bda: ['< 1']}]\n", "did you mean 'bad'"),
    ("title: x\npackages: [{name: a}]\n", r"packages\[0\] \(a\): neither bad nor fixed"),
    ("title: x\npackages: [{name: b, bad: ['*']}, {name: a, bad: ['1.0']}]\n", r"\[1\] \(a\): bad: '1.0' is no range"),
    ("title: x\npackages: [{name: a, bad: ['*'], system: deb}]\n", "system"),
    ("title: x\nexpires: 2026-02-30\npackages: []\n", "no such day"),
    ("title: x\nexpires: tomorrow\npackages: []\n", "expires"),
    ("title: x\nexpires: 2020-01-01T00:00:00Z\npackages: []\n", "has expired on 2020-01-01"),
    ("title: x\npackages: [\n", "YAML"),
])
def test_what_is_no_feed(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(JobError) as refused:
        feed.load(path)
    assert re.search(words, f"{refused.value.message} {refused.value.hint}") and str(path) in refused.value.message


def test_a_feed_lasts_to_its_day(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("title: x\nexpires: 2026-01-31\npackages: []\n")
    assert feed.load(path, now=1769817599.0).title == "x"
    with pytest.raises(JobError):
        feed.load(path, now=1769817600.0)


# ---------------------------------------------------------------- remembered


def test_remembered_until_it_is_something_else(tmp_path: Path) -> None:
    got = listing(DEBIAN)
    assert packages.remembered(DIGEST, tmp_path) is None
    packages.remember(got, tmp_path)
    assert packages.remembered(DIGEST, tmp_path) == got
    (place,) = (tmp_path / "packages").iterdir()
    text = place.read_text()
    for broken in ("", "[]", "null", "{", text.replace("5" * 64, "6" * 64), text.replace('"script": "', '"script": "x'),
                   text.replace('"all"', '"all", 1, 1')):
        place.write_text(broken)
        assert packages.remembered(DIGEST, tmp_path) is None


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "packages").touch()
    packages.remember(listing(DEBIAN), tmp_path)
    assert packages.remembered(DIGEST, tmp_path) is None
