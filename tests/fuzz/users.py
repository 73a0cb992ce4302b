"""What a user, or the admin of a site, writes: jobs, payloads, policies, settings, tokens, addresses."""

from __future__ import annotations

import base64
import json
import math
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

from tests.fuzz.images import _MANIFEST
from tests.fuzz.target import target
from vmjob import escapes, policy, schema, siteconfig, submission, tokens, units
from vmjob.batch import jobs, targets
from vmjob.errors import (
    ClockWrong,
    ImageCorrupt,
    ImageMissing,
    JobError,
    OutputMissing,
    OutputRefused,
    PolicyBroken,
    TokenRefused,
    WalltimeTooShort,
)
from vmjob.image import feed as feeds
from vmjob.job import load_job
from vmjob.manifests import manifest_from_dict, manifest_to_dict
from vmjob.model import Payload
from vmjob.parameters import _table
from vmjob.payload import _job_from_dict, payload_document, read_payload
from vmjob.progress import Reporter
from vmjob.site_errors import SiteBroken
from vmjob.sites import sources
from vmjob.stage import addresses, credentials
from vmjob.stage.flow import Failed

_IMAGE = manifest_from_dict(json.loads(json.dumps(_MANIFEST)), "seed")


def _jobs() -> list[bytes]:
    return [b"name: j\nimage: debian\ncommand: [sh, -c, exit 7]\ninputs: [a*, {from: b, to: d}]\noutputs: ['*.root']\n"
            b"environment: {A: 1, B: x}\nresources: {cpus: 2, memory: 1GiB, disk: 2GB, walltime: 1h30m}\n"
            b"network: none\nuser: me\nboot: system\n",
            b"image: i\nscript: |\n  echo x\noutputs: {files: [a], to: 'https://h.example/${A}/'}\n",
            b'{"image": "i", "glidein": {"pool": "cm.example.org", "token": "t", "idle": "10m", "attributes": '
            b'{"A": "b"}}, "resources": {"walltime": "8h"}}']


@target(_jobs, JobError, WalltimeTooShort)
def job(data: bytes, place: Path) -> None:
    """job.yaml: what is taken can travel, and is the same job where it arrives."""
    (place / "job.yaml").write_bytes(data)
    found = load_job(place / "job.yaml")
    document = payload_document(Payload(found, _IMAGE, {}, None))
    document = json.loads(json.dumps(document, allow_nan=False).encode())
    schema.check(document, "payload", "its payload", AssertionError)  # type: ignore[arg-type]
    there = _job_from_dict(document["job"], place)
    assert there == replace(found, glidein=found.glidein and replace(found.glidein, token=there.glidein.token))


def _payloads() -> list[bytes]:
    from vmjob.model import Input, Job, Resources

    one = Job("j", "deb", ("sh", "-c", "exit 7"), inputs=(Input("a*", "d"),), outputs=("*.root",),
              environment=(("A", "1"),), resources=Resources(2, 2**30, 2**31, 3600))
    return [json.dumps(payload_document(Payload(one, _IMAGE, {}, None))).encode()]


@target(_payloads, JobError, ImageMissing, ImageCorrupt)
def payload(data: bytes, place: Path) -> None:
    """payload.json, where it arrives."""
    (place / "payload.json").write_bytes(data)
    found = read_payload(place, fetchable=True)
    json.dumps(manifest_to_dict(found.manifest)).encode()
    units.format_size(found.manifest.needs_memory + sum(file.size for file in found.manifest.files))
    for path in (*found.image_files.values(), *found.lists):
        assert path.is_relative_to(place), f"{path} is none of the payload's"


def _policies() -> list[bytes]:
    return [b'endorsers:\n  a: {dn: /CN=x, ca: /CN=y, lists: l}\nvos:\n  v: {groups: [g], issuers: "https://x/"}\n'
            b"rules:\n  - refuse: no\n    group: g\n  - allow: yes1\n    vo: v\n    endorser: a\n    networks: [nat]\n"
            b'limits: {memory: 16GiB, cpus: 8, lifetime: 3d}\ndeny: ["sha256:' + b"a" * 64 + b' x"]\n'
            b'min_version: 0.2.1\n\0sha256:' + b"b" * 64 + b" why\n# c\n"]


@target(_policies, PolicyBroken)
def site_policy(data: bytes, place: Path) -> None:
    """policy.yaml, and a file of digests: a rule that allows says whom or what, a denied digest is a digest."""
    text, _, digests = data.partition(b"\0")
    path = place / "policy.yaml"
    path.write_bytes(text)
    path.chmod(0o644)
    found = policy.load(path)
    denied = policy._digests(digests.decode(errors="replace").split("\n"), "digests")
    assert all(len(one) == 64 and set(one) <= set("0123456789abcdef") for one in (*found.denied, *denied))
    for limit in (found.limits.memory, found.limits.cpus, found.limits.lifetime):
        assert limit is None or limit > 0


def _sites() -> list[bytes]:
    return [b"name: EXAMPLE-T2\nvos: [star]\nelements:\n  - {host: ce.example.org, max_walltime: 48h}\n"
            b"nodes: {collector: cm.example.org}\nlocation: {latitude: 52.2, longitude: 21}\n"
            b"accounting: {format: apel-cloud, spool: /var/spool/vmjob, benchmark: {name: hs06, value: 10.5}}\n"]


@target(_sites, SiteBroken)
def site(data: bytes, place: Path) -> None:
    """site.yaml."""
    (place / "site.yaml").write_bytes(data)
    found = siteconfig.load(place / "site.yaml")
    assert found.validity > 0 and math.isfinite(found.latitude) and math.isfinite(found.longitude)


def _settings() -> list[bytes]:
    return [b"vo: star\ntimeout: 5s\nsources:\n  - ldap://bdii.example.org:2170/o=glue\n"
            b"  - {url: 'https://h.example/site.json', timeout: 20}\n  - condor-ce://[::1]\n  - site.json\n"]


@target(_settings, JobError)
def site_sources(data: bytes, place: Path) -> None:
    """sites.yaml: a source is shown as one line."""
    (place / "sites.yaml").write_bytes(data)
    with mock.patch.dict(os.environ, {"XDG_CONFIG_HOME": str(place)}), \
            mock.patch.object(sources, "sites_file", lambda: place / "sites.yaml"):
        for one in sources.load().sources:
            assert str(one).isprintable() and 0 <= one.port < 65536 and one.timeout >= 1


def _targets() -> list[bytes]:
    return [b"condor-ce://ce.example.org:9619", b"condor://cm.example.org/schedd@x", b"condor://[::1]", b"42.3"]


@target(_targets, JobError)
def place_to_submit(data: bytes, place: Path) -> None:
    """An address to submit to, or the number of a job, from the command line."""
    text = data.decode(errors="surrogateescape")
    with suppress(JobError):
        jobs.parse_id(text)
    targets.at(text) if "://" in text else jobs.parse_id(text) if text[:1].isdigit() else None


def _numbers() -> list[bytes]:
    return [b"2 GiB", b"500MB", b"1h30m", b"2d", b"01:30:00", b"90", b"1.5TiB"]


@target(_numbers)
def number(data: bytes, place: Path) -> None:
    """Sizes and times as people write them: more than nothing, and never another number than what stands there."""
    text = data.decode(errors="replace")
    with suppress(JobError):
        assert 0 < units.parse_size(text, "x") < 10**28
    with suppress(JobError):
        seconds = units.parse_duration(text, "x")
        assert 0 < seconds < 10**16
        if text.strip().isascii() and text.strip().isdigit():
            assert seconds == int(text.strip())
        units.format_duration(seconds)


def _feeds() -> list[bytes]:
    return [b"title: t\nexpires: 2099-01-01\npackages:\n  - {name: openssl, system: dpkg, bad: ['>= 3.0, < 3.0.11'], "
            b"os: [debian-12], severity: high}\n  - {name: 'lib*', fixed: 1.2-3}\n"]


@target(_feeds, JobError)
def feed(data: bytes, place: Path) -> None:
    """A feed of packages that are known to be bad."""
    from vmjob.image.packages import Listing, Package

    (place / "feed.yaml").write_bytes(data)
    found = feeds.load(place / "feed.yaml", 1.75e9)
    many = tuple(Package(system, "openssl", "3.0.1") for system in ("dpkg", "rpm", "apk", "pip"))
    feeds.findings([found], Listing("sha256:" + "a" * 64, "debian-12", ("dpkg",), many, 1.0))


def _tables() -> list[bytes]:
    return [b"SEED,EVENTS\n1,100\n2,200\n"]


@target(_tables, JobError)
def parameter_table(data: bytes, place: Path) -> None:
    """A table of parameters."""
    (place / "t.csv").write_bytes(data)
    for row in _table(place / "t.csv"):
        assert all(name.isidentifier() and name.isascii() for name in row), row


# ---------------------------------------------------------------- results


def _results() -> list[bytes]:
    empty = dict.fromkeys(("job", "qemu_version", "image", "image_digest", "boot", "network", "slot", "stop",
                           "host"), "")
    none = dict.fromkeys(("status", "exit_status", "boot_attempts", "cpus", "memory", "bytes_in", "bytes_image",
                          "bytes_out", "cpu_seconds", "peak_memory", "started", "ended"), 0)
    return [json.dumps({**empty, **none, "vmjob": "0.2.1", "schema": 1, "outcome": "ok", "signal": None,
                        "failure": None, "stages": [{"name": "boot", "seconds": 1.5}], "accelerator": None,
                        "outputs": ["a.root"], "console_tail": ["bye"]}).encode()]


@target(_results, OutputRefused, OutputMissing)
def result(data: bytes, place: Path) -> None:
    """result.json of a job that is fetched."""
    import io
    import tarfile

    with tarfile.open(place / "r.tar", "w") as archive:
        member = tarfile.TarInfo("result.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    (place / "out").mkdir()
    document = submission._unpack(place / "r.tar", place / "out", Reporter())
    json.dumps(document, allow_nan=False)
    units.format_size(document["memory"])
    units.format_duration(document["ended"] - document["started"])
    assert document["outcome"] != "begun"


# ---------------------------------------------------------------- tokens and addresses


def _token(**claims: object) -> bytes:
    return b"e30." + base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=") + b".c2ln"


def _tokens() -> list[bytes]:
    return [_token(iss="cm.example.org", sub="glidein@example.org", iat=1.7e9, exp=1.9e9),
            _token(aud=["https://storage.example.org", "x"], iss="i", sub="s")]


@target(_tokens, JobError, TokenRefused, ClockWrong)
def token(data: bytes, place: Path) -> None:
    """A token: its claims, and for which hosts it was made. The first part is a token's body where it has no dots."""
    text = data.decode(errors="replace").strip()
    if "." not in text:
        text = f"e30.{base64.urlsafe_b64encode(data).decode().rstrip('=')}.c2ln"
    for url in ("https://storage.example.org/x", "https://evil.example/x"):
        environ = {"BEARER_TOKEN": text}
        credentials.token_for(url, environ)
        if credentials.token_for(url, environ, trusted=True):
            assert text.isascii() and text.isprintable() and " " not in text
    claims = tokens.check(text, "t", 1.75e9)
    assert claims.subject.isprintable() and claims.issuer.isprintable()


def _addresses() -> list[bytes]:
    return [b"https://user:pw@host.example.org:8443/path?x=y#f", b"http://[::1]:80/x", b"https://a@b/c"]


@target(_addresses, Failed)
def address(data: bytes, place: Path) -> None:
    """An address of a file: shown without secrets, and of one host for all who read it."""
    import urllib3

    text = data.decode(errors="replace")
    assert escapes.shown(credentials.shown(text)).isprintable()
    found = addresses.origin(text)
    addresses.is_own(found.host)
    addresses.refused(found.host, "x")
    if found.scheme in ("http", "https"):
        try:
            other = urllib3.util.parse_url(text)
        except urllib3.exceptions.LocationParseError:
            return
        assert (other.host or "").strip("[]").lower() == found.host, (text, other.host, found.host)


