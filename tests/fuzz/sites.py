"""What sites tell of themselves: entries of BDIIs, ads of collectors, documents."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.fuzz.target import target
from vmjob import nodead
from vmjob.site_errors import SitesRefused
from vmjob.sitead import Element, Nodes, SiteAd, SiteImage, to_json
from vmjob.sites import collector, documents, glue1, glue2
from vmjob.sites.asking import Answer, ad_of, document
from vmjob.sites.glue import Entry, entry
from vmjob.sites.sources import Source

_SOURCE = Source("condor-ce://ce.example.org", "condor-ce", "ce.example.org", 9619)


def _travels(ads: Sequence[SiteAd]) -> None:
    """Who asked takes them from the process that read them: one odd ad must not cost all others."""
    body = json.loads(json.dumps(document(Answer(tuple(ads)))).encode())
    assert [ad_of(one, "x") for one in body["ads"]] == list(ads)


def _entries(data: bytes, notes: list[str]) -> list[Entry]:
    """Of LDIF, simple enough to be fuzzed: what a server sends is names and values, in BER."""
    found = []
    for part in re.split(rb"\n\n+", data):
        dn, values = b"", dict[str, list[bytes]]()
        for line in part.split(b"\n"):
            key, colon, value = line.partition(b": ")
            if colon and key == b"dn":
                dn = value
            elif colon:
                values.setdefault(key.decode("latin-1"), []).append(value)
        found.append(entry(dn, values, notes))
    return found


def _golden(name: str) -> list[bytes]:
    return [(ROOT / "tests/golden" / name).read_bytes()]


@target(lambda: _golden("glue2.ldif"))
def glue_2(data: bytes, place: Path) -> None:
    """Entries of GLUE 2: the first is the service."""
    notes = list[str]()
    service, *parts = _entries(data, notes)
    ad = glue2.site(service, parts, notes)
    _travels([ad] if ad else [])


@target(lambda: _golden("glue1.ldif"))
def glue_1(data: bytes, place: Path) -> None:
    """Entries of GLUE 1.3."""
    notes = list[str]()
    _travels(glue1.sites(_entries(data, notes), notes))


def _documents() -> list[bytes]:
    ad = SiteAd("S", ("v",), (Element("h", "condor-ce://h"),), (Nodes("n"),), (SiteImage("i", f"sha256:{'a' * 64}"),))
    return [json.dumps(to_json(ad)).encode(), json.dumps([to_json(ad), to_json(SiteAd("T"))]).encode()]


@target(_documents, SitesRefused)
def site_document(data: bytes, place: Path) -> None:
    """Site ads as JSON."""
    answer = documents.parse(data, "w")
    assert answer.ads
    _travels(answer.ads)


def _ads() -> list[bytes]:
    own = {"VmjobSite": "S", "Machine": "ce.example.org", "VmjobVOs": "star,atlas", "HasVmjob": True, "VmjobFree": 3,
           "VmjobCatalog": [{"Name": "i", "Digest": f"sha256:{'a' * 64}", "AllowedVOs": ["star"], "Size": 5.0}],
           "VmjobElements": [{"Host": "ce.example.org", "Url": "condor-ce://ce.example.org", "Kind": "condor-ce"}],
           "VmjobNodes": [{"Name": "new", "Accel": "kvm", "Networks": ["nat"], "Total": 4, "Online": 3}],
           "VmjobExpires": 1800000000, "VmjobImages": "vm_star_sl5,vm_sha256_" + "a" * 64}
    return [json.dumps(own).encode(), json.dumps({key: value for key, value in own.items() if key not in
                                                  ("VmjobCatalog", "VmjobElements", "VmjobNodes")}).encode()]


@target(_ads, ValueError)
def collector_ad(data: bytes, place: Path) -> None:
    """An ad of a compute element's collector and of a pool's machine, as plain values."""
    try:
        ad: Any = json.loads(data)
    except RecursionError:
        raise ValueError("too deep for an ad") from None
    if not isinstance(ad, dict):
        raise ValueError("no ad")
    found = collector.site_ad(ad, _SOURCE)
    _travels([found] if found else [])
    nodes = nodead.nodes_of([ad, ad])
    for one in nodes:
        assert nodead.from_json(json.loads(json.dumps(nodead.to_json(one))), "x") == one
    _travels([collector.pool_ad(_SOURCE, nodes)] if nodes else [])
