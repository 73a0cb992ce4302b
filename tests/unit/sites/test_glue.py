"""GLUE in LDIF: golden files of the example site, and text that would take a BDII apart."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import fields, replace
from typing import Any

import pytest
from cemon_publisher import check
from cemon_publisher.example import EXAMPLE
from cemon_publisher.ldif import Entry, clean, distinct, identifier
from cemon_publisher.render import glue1, glue2

from tests.conftest import ROOT
from tests.glue import HOSTILE, hostile_site, many
from vmjob.ads.site_ad import SiteAd
from vmjob.core.errors import VmjobError

pytestmark = pytest.mark.unit

GOLDEN = ROOT / "tests/golden"
RENDERINGS = {"glue1": glue1, "glue2": glue2}
both = pytest.mark.parametrize("name", RENDERINGS)


def parsed(text: str) -> dict[str, dict[str, list[str]]]:
    """Entries by DN, read as RFC 2849 has it."""
    found: dict[str, dict[str, list[str]]] = {}
    for block in text.split("\n\n"):
        lines = block.strip("\n").split("\n")
        assert lines[0].startswith("dn: "), block
        made = found.setdefault(lines[0][4:], {})
        for line in lines[1:]:
            name, _, value = line.partition(":")
            plain = base64.b64decode(value[2:]).decode() if value.startswith(": ") else value[1:]
            made.setdefault(name, []).append(plain)
    return found


@pytest.mark.golden
@both
def test_golden(name: str) -> None:
    text, golden = RENDERINGS[name].render(EXAMPLE), GOLDEN / f"{name}.ldif"
    if os.environ.get("VMJOB_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()


@both
@pytest.mark.parametrize("bad", HOSTILE)
def test_no_text_begins_an_entry_or_a_line(name: str, bad: str) -> None:
    text = RENDERINGS[name].render(hostile_site(bad))
    assert text.count("dn:") == len(re.findall("(?m)^dn: [ -~]+$", text)) == len(parsed(text))
    quiet = len(parsed(RENDERINGS[name].render(hostile_site("quiet"))))
    assert len(parsed(text)) == quiet, "the same entries whatever the names"
    for entry in parsed(text).values():
        for value in (value for values in entry.values() for value in values):
            assert value and value == value.strip() and "dn:" not in value
            assert not any(ord(letter) < 32 for letter in value)
            assert name == "glue2" or value.isascii()


@both
def test_values_are_there_once_as_the_schema_compares_them(name: str) -> None:
    one = EXAMPLE.images[0]
    twins = replace(EXAMPLE, images=(one, replace(one, name=one.name.upper()), replace(one, name="star sl5")))
    entries = parsed(RENDERINGS[name].render(twins))
    for entry in entries.values():
        for values in entry.values():
            same = [value.lower() for value in values] if name == "glue1" else values
            assert len(set(same)) == len(same)
    assert len({dn.lower() for dn in entries}) == len(entries)


@both
def test_a_thousand_images(name: str) -> None:
    text = RENDERINGS[name].render(many(1000))
    assert all(f"vm_image-{number}\n" in text for number in range(1000))


def tags(text: str) -> set[str]:
    return set(re.findall("(?m)^(?:GlueHost|GLUE2App)[A-Za-z]+: (vm_[a-z].*)$", text))


@both
def test_what_cannot_run_is_not_published(name: str) -> None:
    render = RENDERINGS[name].render
    off = replace(EXAMPLE, nodes=tuple(replace(one, online=0) for one in EXAMPLE.nodes))
    assert tags(render(EXAMPLE)) and not tags(render(off)) and not tags(render(replace(EXAMPLE, nodes=())))
    assert "dynamicvmdeploy" not in render(off) and "HasVmjob=true" not in render(off)
    assert not re.search("(?m)^GlueCECapability: HasVmjob$", render(off))
    large = replace(EXAMPLE.images[0], memory=1 << 50)
    assert large.tags[0] not in render(replace(EXAMPLE, images=(large,)))
    foreign = replace(EXAMPLE.images[0], arch="aarch64")
    assert foreign.tags[0] not in render(replace(EXAMPLE, images=(foreign,)))


@both
def test_a_site_with_nothing(name: str) -> None:
    """No images, no VOs, no elements, no nodes: still LDIF that says so."""
    empty = SiteAd("EMPTY")
    assert parsed(RENDERINGS[name].render(empty))
    assert parsed(RENDERINGS[name].render(replace(EXAMPLE, images=())))


def test_whose_an_image_is_stands_in_the_views() -> None:
    views = [entry for dn, entry in parsed(glue1.render(EXAMPLE)).items() if dn.startswith("GlueVOViewLocalID=star,")]
    star, debian, atlas = (EXAMPLE.images[number] for number in (0, 3, 1))
    for view in views:
        assert {star.tags[0], debian.tags[0], f"{star.tags[0]}={star.digest}"} <= set(view["GlueCECapability"])
        assert atlas.tags[0] not in view["GlueCECapability"]
    everybody = glue1.render(replace(EXAMPLE, vos=("*",)))
    found = {dn.split(",")[0]: entry for dn, entry in parsed(everybody).items() if dn.startswith("GlueVOView")}
    assert set(found) == {f"GlueVOViewLocalID={vo}" for vo in ("%2A", "star", "atlas", "belle")}
    assert star.tags[0] not in found["GlueVOViewLocalID=%2A"]["GlueCECapability"]
    assert found["GlueVOViewLocalID=%2A"]["GlueCEAccessControlBaseRule"] == ["ALL"]


def test_glue2_tells_all_that_a_site_ad_has() -> None:
    """Every field of every part: change it, and the rendering changes."""
    before = glue2.render(EXAMPLE)
    for part, ad in ((None, EXAMPLE), ("elements", EXAMPLE.elements[0]), ("nodes", EXAMPLE.nodes[0]),
                     ("images", EXAMPLE.images[0])):
        for field in fields(ad):
            value: Any = getattr(ad, field.name)
            if field.name in ("elements", "nodes", "images"):
                continue
            other: Any = (*value, "zeus") if isinstance(value, tuple) else "arc" if value == "condor-ce" else \
                value * 2 or 7 if isinstance(value, (int, float)) else f"{value}x"
            one: Any = replace(ad, **{field.name: other})
            after = glue2.render(replace(EXAMPLE, **{part: (one, *getattr(EXAMPLE, part)[1:])}) if part else one)
            if field.name == "arch" and part == "images":
                assert f"VmjobArch={other}" not in after  # no node runs it
            assert after != before, (part, field.name)


def test_clean() -> None:
    assert clean(" a\n b\0c\u202ed ") == "a b c d"
    assert clean("xdn: y dn:z") == "xdn%3A y dn%3Az"
    assert clean("https://x.cdn:443/pdn:1") == "https://x.cdN:443/pdn%3A1"
    assert identifier("a", "b c,+=\"\\<>;#é~", "dn") == "a:b%20c%2C%2B%3D%22%5C%3C%3E%3B%23%C3%A9%7E:dn"
    assert "dn:" not in identifier("dn", "x") and identifier("dn", "x") == "dn%3Ax"
    assert distinct(["a", "A", "b", "a"]) == ["a", "A/2", "b", "a/3"]


@both
def test_a_word_with_a_comma_is_no_two(name: str) -> None:
    text = RENDERINGS[name].render(replace(EXAMPLE, vos=("a,*", "b c"), unlisted=("a,*",), images=(
        replace(EXAMPLE.images[0], vos=("a,*", "b\nc")),)))
    lists = set(re.findall("(?m)(?:VOs|Unlisted)=(.*)$", text))
    assert lists == ({"a_*,b_c", "a_*"} if name == "glue2" else {"a_*"})


def test_a_subcluster_says_what_a_guest_gets() -> None:
    found = [(entry["GlueHostMainMemoryRAMSize"], entry["GlueHostArchitectureSMPSize"])
             for dn, entry in parsed(glue1.render(EXAMPLE)).items() if dn.startswith("GlueSubCluster")]
    assert found == [([f"{one.max_memory >> 20}"], [f"{one.max_cpus}"]) for one in EXAMPLE.nodes]


@both
def test_contradictions_are_not_published(name: str) -> None:
    """The check finds what slapd would not: each of these changes of a good rendering."""
    entries = list(RENDERINGS[name].entries(EXAMPLE))
    look = check.glue1 if name == "glue1" else check.glue2
    assert look(entries) == entries
    key = "GlueCEUniqueID" if name == "glue1" else "GLUE2ManagerID"
    missing = [one for one in entries if not one.get(key)]

    def changed(name: str, value: str) -> list[Entry]:
        return [Entry(one.dn, tuple((key, (value,) if key == name else values) for key, values in one.attributes))
                for one in entries]

    wrong = [missing, [*entries, entries[-1]], entries[1:] if name == "glue2" else [*entries[2:], entries[0]]]
    if name == "glue2":
        wrong += [changed("GLUE2EndpointHealthState", "fine"), changed("GLUE2ShareEndpointForeignKey", "urn:none"),
                  changed("GLUE2ExecutionEnvironmentConnectivityIn", "TRUE"), changed("GLUE2EntityName", "a dn: b")]
    else:
        wrong += [changed("GlueChunkKey", "GlueClusterUniqueID=none"), changed("GlueCEName", "a\nb")]
    for these in wrong:
        with pytest.raises(VmjobError):
            look(these)
