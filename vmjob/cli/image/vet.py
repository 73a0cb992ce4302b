"""``vmjob image scan`` and ``vmjob image test``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmjob.cli import report
from vmjob.core import config
from vmjob.core.errors import JobError

if TYPE_CHECKING:
    from vmjob.core.model import Manifest
    from vmjob.image.store.images import Store
    from vmjob.vetting.image_test import Outcome
    from vmjob.vetting.scan import Scanned

_SCAN = """\
examples:
  vmjob image scan pythia worker --deny site-feed.yaml
  vmjob image scan --all --deny /etc/vmjob/feed.yaml --deny vo-feed.json
  vmjob image scan --list images.list --deny site-feed.yaml

A feed lists versions of packages (vmjob schema feed; docs/site-admin.md). Exit status: 0 nothing was found, 1 something
was; that of the failure where an image could not be looked at.
"""
_TEST = """\
examples:
  vmjob image test pythia
  vmjob image test pythia --boot job --out pythia-test.json

Exit status: 0 passed; 244 a check failed; that of the failure where it did not even boot.
"""
FOUND = 1


def add_verbs(verb: Callable[..., argparse.ArgumentParser], nouns: Any) -> None:
    """``verb``: makes a parser below ``nouns``, as image_options does."""
    scanning = verb(nouns, "scan", "hold the packages in images against security feeds", _SCAN, "scan")
    scanning.set_defaults(handler=scan)
    scanning.add_argument("image", metavar="IMAGE", nargs="*", help="name, digest or path of a manifest.yaml")
    scanning.add_argument("--deny", metavar="FEED", action="append", required=True, type=Path,
                          help="YAML or JSON file of bad versions; may be given several times")
    scanning.add_argument("--all", action="store_true",
                          help="every image of the local store, with those of the lists that are followed")
    scanning.add_argument("--list", metavar="FILE", dest="lists", action="append", default=[], type=Path,
                          help="every image of this signed list")

    testing = verb(nouns, "test", "boot an image and check that jobs can count on it", _TEST, "test")
    testing.set_defaults(handler=test)
    testing.add_argument("image", metavar="IMAGE", help="name, digest or path of a manifest.yaml")
    testing.add_argument("--boot", metavar="METHOD", choices=("job", "system", "disk"),
                         help="this boot method only (default: each that the manifest names)")
    testing.add_argument("--out", metavar="FILE", type=Path,
                         help="write the outcome there, as JSON that vmjob image sign --test takes")


def _store() -> Store:
    from vmjob.image.store.images import Store

    return Store(config.store_dir())


# ---------------------------------------------------------------- scan


def scan(args: argparse.Namespace) -> int:
    """``vmjob image scan``."""
    import tempfile

    from vmjob.vetting import feed
    from vmjob.vetting import scan as scans

    store = _store()
    if not args.image and not args.all and not args.lists:
        raise JobError("which images?", "vmjob image scan --all --deny FEED looks at every image of the local store")
    feeds = [feed.load(path) for path in args.deny]
    images = [(ref, store.resolve(ref)[0]) for ref in args.image]
    if args.all:
        images += [(one.digest, one) for one in store.list()]
    with tempfile.TemporaryDirectory(prefix="vmjob-scan-") as folder:
        for path in args.lists:
            found, foreign = scans.endorsed(path, store, Path(folder))
            images += found
            if foreign:
                report.say(f"{path}: {foreign} of its images have no manifest of vmjob's: they are not looked at")
        scanned = scans.scan(images, feeds, report.choose(json=args.json))
    if args.json:
        report.show(json.dumps(_scan_document(scanned, [one.title for one in feeds]), indent=1))
    else:
        _print_scan(scanned, len(feeds))
    failed = next((one.failure.status for one in scanned if one.failure), 0)
    return failed or (FOUND if any(one.findings for one in scanned) else 0)


def _scan_document(scanned: Sequence[Scanned], feeds: Sequence[str]) -> dict[str, Any]:
    from dataclasses import asdict

    return {"feeds": feeds, "images": [{
        "image": one.manifest.name, "digest": one.manifest.digest, "verdict": one.verdict,
        "os": one.listing.os if one.listing else "", "packages": len(one.listing.packages) if one.listing else 0,
        "failure": asdict(one.failure) if one.failure else None,
        "findings": [{**asdict(found.package), "bad": found.range, "fixed": found.rule.fixed,
                      "reference": found.rule.reference, "severity": found.rule.severity, "feed": found.rule.feed}
                     for found in one.findings]} for one in scanned]}


def _print_scan(scanned: Sequence[Scanned], feeds: int) -> None:
    from collections import Counter

    from vmjob.cli.tables import table

    twice = Counter(one.manifest.name for one in scanned)

    def named(manifest: Manifest) -> str:
        return manifest.name if twice[manifest.name] == 1 else f"{manifest.name} {manifest.digest[7:19]}"

    rows = [[named(one.manifest), found.package.name, found.package.version, found.range, found.rule.fixed,
             found.rule.severity, found.rule.reference, found.rule.feed if feeds > 1 else ""]
            for one in scanned for found in one.findings]
    if rows:
        report.show(table(["IMAGE", "PACKAGE", "VERSION", "BAD", "FIXED", "SEVERITY", "REFERENCE", "FEED"], rows))
    for one in scanned:
        report.show(f"{named(one.manifest)}: {_told(one)}")
        if one.failure:
            report.say(f"{named(one.manifest)}: {one.failure.kind}: {one.failure.message}")
            report.say(f"→ {one.failure.hint}")


def _told(one: Scanned) -> str:
    many, packages = len(one.findings), len(one.listing.packages) if one.listing else 0
    found = f"{many} finding{'s' * (many != 1)}"
    if packages:
        return f"{found} in {packages} packages" if many else f"clean: {packages} packages"
    why = "no package system in it that could tell" if one.listing else "could not be asked"
    return f"{why}; by what its manifest says it was made from: {found}"


# ---------------------------------------------------------------- test


def test(args: argparse.Namespace) -> int:
    """``vmjob image test``."""
    from vmjob.core.model import Boot
    from vmjob.vetting import image_test

    manifest = _store().resolve(args.image)[0]
    methods = [Boot(args.boot)] if args.boot else list(manifest.boot)
    if args.out and not os.access(args.out.absolute().parent, os.W_OK):
        raise JobError(f"{args.out}: the outcome cannot be written there", "name another place: --out FILE")
    outcome = image_test.test(args.image, manifest, methods, report.choose(json=args.json))
    text = json.dumps(outcome.to_json(), indent=1)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    if args.json:
        report.show(text)
    else:
        _print_test(outcome)
        if args.out:
            report.say(f"outcome in {args.out}; to have it endorsed: vmjob image sign … --test {args.out}")
    return outcome.status


def _print_test(outcome: Outcome) -> None:
    from collections import Counter

    from vmjob.cli.tables import table

    rows = [[boot.boot.value, check.name, check.outcome, f"{check.seconds:.2f}" if check.seconds else "", check.text]
            for boot in outcome.boots for check in boot.checks]
    report.show(table(["BOOT", "CHECK", "OUTCOME", "SECONDS", ""], rows))
    count = Counter(row[2] for row in rows)
    report.show(f"{outcome.image}: {'passed' if outcome.passed else 'FAILED'}: "
                + ", ".join(f"{number} {name}" for name, number in sorted(count.items())))
    for failure in filter(None, (boot.failure for boot in outcome.boots)):
        report.say(f"→ {failure.hint}")
