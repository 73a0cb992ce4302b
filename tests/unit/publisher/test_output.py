"""Renderings and where they go: whole or not at all. VMJOB_GOLDEN=write writes the golden files anew; read the diff."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cemon_publisher import cli, example, output, render
from cemon_publisher.example import EXAMPLE
from cemon_publisher.output import Kept

from tests.conftest import ROOT
from vmjob import __version__
from vmjob.ads.site_ad import SiteAd, from_json
from vmjob.core.errors import JobError, VmjobError
from vmjob.core.interrupt import interrupted

pytestmark = pytest.mark.golden

GOLDEN = ROOT / "tests/golden"
ROUGH = 'a "quoted" \\ back\\slash, <tag> & dn: o=grid, żółw ]]> {}'


@pytest.mark.parametrize("name", ["json", "prometheus"])
def test_the_example_is_the_golden_one(name: str) -> None:
    file = GOLDEN / f"publish-{name}.{'json' if name == 'json' else 'prom'}"
    text = render.render(name, EXAMPLE)
    if os.environ.get("VMJOB_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


def rough(ad: SiteAd = EXAMPLE) -> SiteAd:
    """Whatever a text may be."""
    return replace(ad, description=ROUGH, contact=ROUGH, country=ROUGH, nodes=tuple(
        replace(one, reason=ROUGH) for one in ad.nodes), images=tuple(
            replace(one, description=ROUGH, version=ROUGH, list=ROUGH) for one in ad.images))


@pytest.mark.parametrize("ad", [EXAMPLE, rough(), SiteAd("EMPTY")], ids=["example", "rough", "empty"])
def test_json_is_what_it_was_made_from(ad: SiteAd) -> None:
    body = json.loads(render.render("json", ad))
    assert from_json(body) == ad
    jsonschema.validate(body, json.loads((ROOT / "vmjob/schemas/site-ad.schema.json").read_text()))


def test_json_that_does_not_fit_the_schema_is_not_printed() -> None:
    with pytest.raises(VmjobError, match="country"):
        render.render("json", replace(EXAMPLE, country="two\nlines"))


SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\} ([0-9.e+]+)\Z')
LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\[\\"n])*)"')


def parse(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Prometheus' text format as its documentation has it, strictly: help and type first, all of a metric together."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    done, current, lines = set(), "", text.splitlines()
    assert text.endswith("\n") and not text.endswith("\n\n")
    for number, line in enumerate(lines):
        if line.startswith("# HELP "):
            current = line.split()[2]
            assert current not in done
            done.add(current)
            assert lines[number + 1] == f"# TYPE {current} gauge"
        elif not line.startswith("# TYPE "):
            fits = SAMPLE.match(line)
            assert fits, line
            assert fits[1] == current
            labels = frozenset((key, re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value))
                               for key, value in LABEL.findall(fits[2]))
            assert (current, labels) not in found
            found[current, labels] = float(fits[3])
    return found


def test_metrics() -> None:
    found = parse(render.render("prometheus", rough()))
    site = ("site", "EXAMPLE-T2")
    assert found["vmjob_site_updated_timestamp_seconds", frozenset([site])] == EXAMPLE.created
    assert found["vmjob_site_images", frozenset([site, ("vo", "star")])] == 2
    kvm = frozenset([site, ("kind", "kvm"), ("accel", "kvm")])
    assert (found["vmjob_site_guests_running", kvm], found["vmjob_site_guests_free", kvm]) == (96, 1216)
    assert found["vmjob_site_nodes", kvm | {("state", "offline")}] == 2
    lists = {dict(labels)["list"] for name, labels in found if name == "vmjob_site_image_size_bytes"}
    assert lists == {ROUGH}
    assert len(parse(render.render("prometheus", SiteAd("EMPTY")))) == 3


# ---------------------------------------------------------------- files


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "site.prom"
    output.write(file, "old\n")
    link = tmp_path / "link"
    link.symlink_to("site.prom")
    with file.open() as reader:
        output.write(link, "new, żółw\n")
        assert reader.read() == "old\n" and link.is_symlink()
    assert file.read_text() == "new, żółw\n" and file.stat().st_mode & 0o777 == 0o644

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        output.write(file, "half")
    assert file.read_text() == "new, żółw\n" and sorted(p.name for p in tmp_path.iterdir()) == ["link", "site.prom"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(JobError, match="is no file"):
            output.write(path, "x")


def test_a_folder_is_exchanged(tmp_path: Path) -> None:
    folder = tmp_path / "rte"
    output.write_folder(folder, {"APPS/one": "#!/bin/sh\n", "APPS/two": "2"})
    assert (folder / "APPS/one").stat().st_mode & 0o777 == 0o755
    assert (folder / "APPS/two").stat().st_mode & 0o777 == 0o644 and folder.stat().st_mode & 0o777 == 0o755
    output.write_folder(folder, {"APPS/two": "3"})
    assert [p.name for p in (folder / "APPS").iterdir()] == ["two"] and (folder / "APPS/two").read_text() == "3"
    assert [p.name for p in tmp_path.iterdir()] == ["rte"]
    with pytest.raises(OSError):
        output.write_folder(folder, {"x": "1", "x/y": "2"})
    assert (folder / "APPS/two").read_text() == "3" and [p.name for p in tmp_path.iterdir()] == ["rte"]


def test_where_the_file_system_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_EXCHANGE", 2**20)  # EINVAL, as such a file system says
    for text in ("1", "2", "3"):
        output.write_folder(tmp_path / "rte", {"one": text})
        assert (tmp_path / "rte/one").read_text() == text and [p.name for p in tmp_path.iterdir()] == ["rte"]


def test_somebody_elses_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(JobError, match="what is in it would be lost"):
        output.write_folder(tmp_path, {"one": "1"})
    with pytest.raises(JobError, match="what is in it would be lost"):
        output.write_folder(tmp_path / "thesis.tex", {"one": "1"})
    assert (tmp_path / "thesis.tex").read_text() == "all of it"


# ---------------------------------------------------------------- the command


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs it here; status, stdout, stderr. ``ad``: the site, or why there is none."""
    def call(*args: Any, ad: Any = None) -> tuple[int, str, str]:
        def made(*_: Any) -> SiteAd:
            if isinstance(ad, Exception):
                raise ad
            assert isinstance(ad, SiteAd)
            return ad

        if ad is not None:
            monkeypatch.setattr("cemon_publisher.model.site_ad", made)
        status = cli.main([str(one) for one in args])
        out, err = capfd.readouterr()
        return status, out, err

    return call


DOWN = JobError("the collector is down", "look after it")


def test_nothing_is_printed_on_a_failure(publish: Any, tmp_path: Path) -> None:
    file = tmp_path / "site.json"
    assert publish("json", "--out", file, ad=EXAMPLE) == (0, "", "")
    before = file.read_text()
    assert from_json(json.loads(before)) == EXAMPLE
    assert publish("json", ad=DOWN) == (200, "", "vmjob-publish: the collector is down\n"
                                                 "vmjob-publish: → look after it\n")
    assert publish("json", "--out", file, ad=DOWN)[0] == 200 and file.read_text() == before
    status, out, err = publish("json", "--json", ad=DOWN)
    assert (status, out, json.loads(err)["failure"]["kind"]) == (200, "", "JobError")
    assert publish("json", "--json", ad=EXAMPLE)[2] == '{"notes": [], "failure": null}\n'


def test_quiet_is_for_cron(publish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(_file: Any, _policies: Any, _now: float, told: Any) -> SiteAd:
        told.note("a list has expired")
        if fails:
            raise DOWN
        return EXAMPLE

    monkeypatch.setattr("cemon_publisher.model.site_ad", noted)
    fails = False
    assert publish("json")[2] == "vmjob-publish: a list has expired\n" and publish("json", "-q")[2] == ""
    fails = True
    assert publish("json", "--quiet")[2] == publish("json")[2]


def test_a_bug_is_a_failure_too(publish: Any, tmp_path: Path) -> None:
    status, out, err = publish("json", ad=KeyError("oops"))
    assert (status, out) == (250, "") and "KeyError" in err and "this is a bug" in err
    now = example.example(int(__import__("time").time()))
    assert publish("json", "--last-good", tmp_path, ad=now)[0] == 0
    assert publish("json", "--last-good", tmp_path, ad=KeyError("oops"))[:2] == (250, render.render("json", now))


def test_what_was_good_serves_until_it_expires(publish: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = tmp_path / "cache"
    clock = float(EXAMPLE.created + 10)
    monkeypatch.setattr("time.time", lambda: clock)
    status, out, err = publish("json", "--last-good", keep, ad=DOWN)
    assert (status, out) == (200, "")
    status, good, err = publish("json", "--last-good", keep, ad=EXAMPLE)
    assert (status, err) == (0, "") and good == render.render("json", EXAMPLE)
    status, out, err = publish("json", "--last-good", keep, ad=DOWN)
    assert (status, out) == (200, good)
    assert "printed what was good at 2026-11-18T12:00:00Z; it counts until 2026-11-18T13:00:00Z" in err
    assert "the collector is down" in err
    assert publish("prometheus", "--last-good", keep, ad=DOWN)[1] == ""  # nothing of it was printed before
    clock = float(EXAMPLE.expires)
    assert publish("json", "--last-good", keep, ad=DOWN)[1] == ""
    for broken in ("", "{", "[]\nx", "{}\nx", '{"created": "a", "expires": 1}\nx'):
        (keep / "json").write_text(broken)
        assert publish("json", "--last-good", keep, ad=DOWN)[1] == ""
    output.keep(keep, "json", Kept("later", clock + 9000, clock + 9999))  # of a clock that was wrong
    assert publish("json", "--last-good", keep, ad=DOWN)[1] == ""


def test_a_disk_that_is_full_does_not_keep_from_printing(publish: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    status, out, err = publish("json", "--last-good", tmp_path / "cache", ad=EXAMPLE)
    assert (status, out) == (230, render.render("json", EXAMPLE)) and "cache" in err


@pytest.mark.parametrize("words", [["yaml"], ["json", "--out", "a", "--last-good", "b"], ["json", "--exmple"],
                                   ["json", "--out", "/nonexistent/folder/file", "--example"],
                                   ["json", "--out", "/", "--example"], ["json", "--config", "/nonexistent"]])
def test_mistakes_are_told(publish: Any, words: list[str]) -> None:
    status, out, err = publish(*words)
    assert status >= 200 and not out and "→" in err and "Traceback" not in err


def test_help_has_an_example(publish: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capfd.readouterr().out
    assert "vmjob-publish glue2 --last-good" in out and all(name in out for name in render.RENDERINGS)
    assert publish()[0] == 200


def test_who_names_cannot_steer_a_terminal(publish: Any) -> None:
    assert "\x1b" not in publish("json", ad=JobError("a\x1b[2Jb", "c"))[2]


def test_the_example_has_not_expired() -> None:
    later = example.example(2_000_000_000)
    assert later.created == 2_000_000_000 < later.expires
    assert all(one.expires > later.created for one in later.images if one.expires)
    assert example.example(EXAMPLE.created) == replace(EXAMPLE, version=__version__)


@pytest.mark.parametrize("words", [["json", "--out", ""], ["json", "--last-good", ""], ["json", "--config", ""],
                                   ["json", "--policy", ""]])
def test_what_is_empty_is_refused(publish: Any, words: list[str]) -> None:
    status, out, err = publish(*words, "--example")
    assert (status, out) == (200, "") and f"{words[1]}: it is empty" in err


@pytest.mark.parametrize("name", ["json", "arc-rte"])
def test_a_folder_that_is_missing_is_named(publish: Any, tmp_path: Path, name: str) -> None:
    status, _, err = publish(name, "--example", "--out", tmp_path / "web/site.json")
    assert status == 200 and f"there is no folder {tmp_path}/web\n" in err and f"mkdir -p {tmp_path}/web" in err


def test_who_is_told_to_end_says_so(publish: Any) -> None:
    status, out, err = publish("json", ad=interrupted(15))
    assert (status, out) == (225, "") and "told to end: stopped by SIGTERM" in err and "slot" not in err
    assert "job" not in err.replace("vmjob", "")
