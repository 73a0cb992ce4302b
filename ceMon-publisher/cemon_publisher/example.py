"""A site as there might be one, to see what each rendering looks like (``--example``), and for tests."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from vmjob.ads.site_ad import KVM, TCG, Element, Nodes, SiteAd, SiteImage
from vmjob.core.version import __version__

_GIB = 2**30
_NOW = 1795003200  # 2026-11-18T12:00:00Z
_ADA = "/DC=org/DC=example/CN=Ada Lovelace"
_LIST = "4f1a6d0e-9d1c-4b5e-8f0a-3c2f6e1d7b44"


def _image(name: str, vos: tuple[str, ...], *, version: str = "1", description: str = "", os: str = "",
           os_version: str = "", size: int = 2 * _GIB, memory: int = 2 * _GIB, cpus: int = 1,
           days: int = 30) -> SiteImage:
    return SiteImage(
        name, "sha256:" + sha256(name.encode()).hexdigest(), vos, f"{_LIST}:{name}", version, description, _ADA, _LIST,
        "x86_64", os, os_version, size, memory, cpus, _NOW + days * 86400,
        f"https://images.example.org/{name}/")


EXAMPLE = SiteAd(
    name="EXAMPLE-T2",
    vos=("star", "atlas", "belle"),
    elements=(
        Element("ce01.example.org", "condor-ce://ce01.example.org:9619", "condor-ce", "condor", "23.9.6", "vm", 172800),
        Element("ce02.example.org", "https://ce02.example.org", "arc", "slurm", "24.11", "grid", 86400),
    ),
    nodes=(
        Nodes("kvm", KVM, "", ("nat", "isolated"), 40, 38, 64, 256 * _GIB, 128 * _GIB, 32, 1216, 96, 512, "x86_64",
              "debian", "12"),
        Nodes("tcg", TCG, "/dev/kvm opens, but the test guest hung", ("nat",), 2, 2, 16, 64 * _GIB, 32 * _GIB, 8, 24, 1,
              9, "x86_64", "debian", "12"),
    ),
    images=(
        _image("star_sl5", ("star",), version="3", description="STAR library SL08e on Scientific Linux 5", os="sl",
               os_version="5.11", size=1_346_371_584),
        _image("atlas-athena-25", ("atlas",), description="Athena 25.0 with its conditions data", os="almalinux",
               os_version="9.4", size=7_516_192_768, memory=4 * _GIB, cpus=4),
        _image("belle2-light", ("belle",), version="2.1-b3", description="basf2 \"light\", no CVMFS needed",
               os="debian", os_version="12", size=612_368_384, days=7),
        replace(_image("debian-12", ("*",), os="debian", os_version="12", size=151_257_088, memory=_GIB // 2),
                identifier="", version="", endorser="", list="", expires=0,
                description="Debian 12 with Python and matplotlib"),
    ),
    unlisted=("star",),
    max_walltime=172800,
    version="0.6.0",
    created=_NOW,
    expires=_NOW + 3600,
    description="An example: a medium site with one room of new nodes and two old ones",
    web="https://www.example.org/grid",
    contact="mailto:grid-admin@example.org",
    country="Poland",
    latitude=52.21,
    longitude=20.98,
)


def example(now: int) -> SiteAd:
    """The same as if it were made by this vmjob at ``now`` (seconds since 1970), so that it has not expired."""
    later = now - EXAMPLE.created
    return replace(EXAMPLE, created=now, expires=EXAMPLE.expires + later, version=__version__, images=tuple(
        replace(one, expires=one.expires + later) if one.expires else one for one in EXAMPLE.images))
