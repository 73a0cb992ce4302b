"""``vmjob image cache …``: what a node keeps of images, for its users and for its admin."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from vmjob.cli import report
from vmjob.cli.options import verb
from vmjob.core import config
from vmjob.core.errors import ImageCorrupt, ImageMissing, JobError
from vmjob.core.units import format_size, parse_size

if TYPE_CHECKING:
    from vmjob.core.model import Manifest
    from vmjob.image.store.blobs import Blobs
    from vmjob.image.store.eviction import Pruned
    from vmjob.image.store.inventory import Group

_EXAMPLES = """\
examples:
  vmjob image cache list                            what is here, when was it used, is it in use?
  vmjob image cache warm pythia                     have it here before the first job
  vmjob image cache prune --to 20GiB --dry-run      what would go?
  vmjob image cache verify                          hash everything again
  vmjob image cache warm pythia --to /srv/images    fill a cache that all users of the node read

The cache is $VMJOB_CACHE, $VMJOB_NODE_CACHE/uid-UID or ~/.cache/vmjob: see docs/site-admin.md.
"""
_IN = "another cache, such as the one that all users read (default: yours)"
_NAMED = "name in the cache, or digest"


def add_verbs(nouns: Any) -> None:
    """The noun ``cache`` with its verbs."""
    cache = nouns.add_parser("cache", help="what this machine keeps of images for jobs", epilog=_EXAMPLES,
                             description="What this machine keeps of images for jobs, and what it evicts.",
                             formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = cache.add_subparsers(dest="how", metavar="HOW", required=True)
    _verb(verbs, list_, "list", "tell what is in the cache", "vmjob image cache list --json")
    one = _verb(verbs, verify, "verify", "hash all of it again, and remove what is wrong",
                "vmjob image cache verify\n\nThe exit status is 212 where something was wrong.")
    one.add_argument("--keep", action="store_true", help="only name it; jobs do not use it either way")
    one = _verb(verbs, prune, "prune", "evict what was used longest ago, down to the limit",
                "vmjob image cache prune --to 20GiB --dry-run")
    how = one.add_mutually_exclusive_group()
    how.add_argument("--to", metavar="SIZE", help="until no more than this is there (default: VMJOB_CACHE_LIMIT, else "
                                                  "until a tenth of the disk is free)")
    how.add_argument("--all", action="store_true", help="all that is neither in use nor pinned")
    one.add_argument("-n", "--dry-run", action="store_true", help="only say what would go")
    one = _verb(verbs, warm, "warm", "bring images in ahead of jobs", "vmjob image cache warm pythia --pin",
                place=False)
    one.add_argument("image", metavar="IMAGE", nargs="+", help="name, digest or path of a manifest.yaml")
    one.add_argument("--to", metavar="FOLDER", dest="place", help=_IN)
    one.add_argument("--pin", action="store_true", help="and never evict them")
    for function, text in ((pin, "never evict images"), (unpin, "let images be evicted again")):
        one = _verb(verbs, function, function.__name__, text, f"vmjob image cache {function.__name__} pythia")
        one.add_argument("image", metavar="IMAGE", nargs="+", help=_NAMED)


def _verb(verbs: Any, function: Any, name: str, text: str, example: str, place: bool = True) -> argparse.ArgumentParser:
    one = verb(verbs, name, text, f"example:\n  {example}\n", function)
    if place:
        one.add_argument("--in", metavar="FOLDER", dest="place", help=_IN)
    one.add_argument("--json", action="store_true", help="print the answer as JSON")
    one.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    return one


# ---------------------------------------------------------------- what they do


def list_(args: argparse.Namespace) -> int:
    """Print what is in the cache, what was used last first."""
    from vmjob.image.store.check import describe
    from vmjob.image.store.inventory import survey, used_bytes

    blobs = _blobs(args.place)
    found = [describe(blobs, group) for group in reversed(survey(blobs))]
    total, limit = used_bytes(blobs.root), config.cache_limit()
    if args.json:
        print(json.dumps({"cache": str(blobs.root), "size": total, "limit": limit, "entries": found}))
        return 0
    if not found:
        report.say(f"the cache {blobs.root} is empty")
        return 0
    from vmjob.cli.tables import table

    print(table(["IMAGE", "DIGEST", "SIZE", "USED", ""], [
        [one["name"] or {"file": "(file)", "layer": "(layer)", "part": "(part)"}[one["kind"]],
         (one["digest"].partition(":")[2] or one["files"][0])[:12], format_size(one["size"]), _ago(one["used"]),
         ", ".join(_words(one))] for one in found]))
    print(f"{format_size(total)} in {blobs.root}" + (f", of at most {format_size(limit)}" if limit else ""))
    return 0


def _words(one: dict[str, Any]) -> list[str]:
    return [word for word, here in (
        ("in use", one["in_use"]), ("pinned", one["pinned"]), ("verified", one["verified"]),
        ("incomplete", not one["whole"])) if here]


def verify(args: argparse.Namespace) -> int:
    """Hash the cache; the status is ImageCorrupt's where a file was wrong."""
    from vmjob.image.store import check

    blobs = _own(args.place)
    found = check.verify(blobs, report.choose(json=args.json), keep=args.keep)
    if args.json:
        print(json.dumps({"cache": str(blobs.root), "wrong": [
            {"file": str(one.path), "why": one.why, "images": list(one.images), "in_use": one.in_use,
             "removed": one.removed} for one in found]}))
    for one in () if args.json else found:
        print(f"{one.path}: {one.why.partition(': ')[2] or one.why}"
              + (f"; of {', '.join(one.images)}" if one.images else "") + ("; in use" if one.in_use else "")
              + ("; removed" if one.removed else "; kept"))
    if not found and not args.json:
        print(f"{blobs.root}: all is well")
    return ImageCorrupt.status if found else 0


def prune(args: argparse.Namespace) -> int:
    """Evict, and say what and why."""
    from vmjob.image.store import eviction
    from vmjob.image.store.inventory import used_bytes

    blobs = _own(args.place)
    if args.all:
        wanted = math.inf
    elif args.to:
        wanted = used_bytes(blobs.root) - parse_size(args.to, "--to")
    else:
        wanted = eviction.excess(blobs.root, 0)
    found = eviction.prune(blobs, wanted, dry_run=args.dry_run)
    left = used_bytes(blobs.root) - (found.freed if args.dry_run else 0)
    if args.json:
        print(json.dumps({"cache": str(blobs.root), "dry_run": args.dry_run, "freed": found.freed, "left": left,
                          "removed": [_short(group) for group in found.removed],
                          "kept": [{**_short(group), "why": why} for group, why in found.kept]}))
        return 0
    _tell(found, "would remove" if args.dry_run else "removed")
    print(f"{format_size(found.freed)} {'would be ' if args.dry_run else ''}freed, {format_size(left)} "
          f"{'would be ' if args.dry_run else ''}left in {blobs.root}")
    return 0


def _tell(found: Pruned, verb: str) -> None:
    for group in found.removed:
        print(f"{verb} {_name(group)} ({format_size(group.size)}, used {_ago(group.used)})")
    for group, why in found.kept:
        print(f"kept {_name(group)} ({format_size(group.size)}, used {_ago(group.used)}): {why}")


def warm(args: argparse.Namespace) -> int:
    """Bring images into a cache: from the user's store or the manifest's folder, else from their sources."""
    from vmjob.image.store.images import Store
    from vmjob.image.store.inventory import pin as pin_one
    from vmjob.stage.transfer.fetch import fetcher

    if args.place:
        os.umask(0o022)  # for all users: they read what we write, and nobody but us evicts it
    store = Store(_own(args.place, make=True).root, cache=not args.place)
    reporter, done = report.choose(json=args.json), []
    for ref in args.image:
        manifest, files = _resolve(store, ref)
        store.warm(manifest, files, reporter, fetcher(
            manifest, timeout=config.stage_timeout(), rate=config.stage_rate(), note=reporter.note))
        if args.pin:
            pin_one(store.root, manifest, True)
        done.append(manifest)
        if not args.json:
            print(f"{manifest.name}: {format_size(manifest.size)} in {store.root}{', pinned' if args.pin else ''}")
    if args.json:
        print(json.dumps({"cache": str(store.root), "images": [
            {"name": one.name, "digest": one.digest, "size": one.size, "pinned": args.pin} for one in done]}))
    return 0


def pin(args: argparse.Namespace) -> int:
    """Keep images in the cache."""
    return _pin(args, True)


def unpin(args: argparse.Namespace) -> int:
    """Let images go when there is no more room."""
    return _pin(args, False)


def _pin(args: argparse.Namespace, on: bool) -> int:
    from vmjob.image.store.inventory import find, survey
    from vmjob.image.store.inventory import pin as pin_one

    blobs = _own(args.place)
    groups = survey(blobs)
    found = [manifest for manifest in (find(groups, ref).manifest for ref in args.image) if manifest]
    for manifest in found:
        pin_one(blobs.root, manifest, on)
    names = [one.name for one in found]
    print(json.dumps({"pinned" if on else "unpinned": [one.digest for one in found]}) if args.json
          else f"{', '.join(names)}: {'pinned' if on else 'not pinned'}")
    return 0


# ---------------------------------------------------------------- details


def _blobs(place: Optional[str]) -> Blobs:
    """Those of the cache meant. Raises JobError where it is none."""
    from vmjob.image.store.blobs import Blobs
    from vmjob.image.store.inventory import refuse_store

    root = Path(place).absolute() if place else config.cache_dir()
    refuse_store(root)
    return Blobs(root)


def _own(place: Optional[str], make: bool = False) -> Blobs:
    """As _blobs, to be changed: of somebody else's cache the files would be ours then, and of no use to her."""
    blobs = _blobs(place)
    if make:
        blobs.root.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        owner = blobs.root.stat().st_uid
    except FileNotFoundError as missing:
        raise JobError(f"{blobs.root}: no such folder",
                       "check --in; vmjob image cache warm --to makes one") from missing
    if owner != os.getuid():
        raise JobError(f"{blobs.root} belongs to user {owner}", f"do it as that user: setpriv --reuid={owner} …")
    return blobs


def _resolve(store: Any, ref: str) -> tuple[Manifest, dict[str, Path]]:
    """The image, and where its files may be: the user's store, the path given, or what the cache knows by that name."""
    from vmjob.image.store.images import Store
    from vmjob.image.store.inventory import find, survey

    try:
        found: tuple[Manifest, dict[str, Path]] = Store(config.store_dir()).resolve(ref)
    except ImageMissing:
        with contextlib.suppress(ImageMissing):
            manifest = find(survey(store.blobs), ref).manifest
            if manifest:
                return manifest, {}
        raise
    return found


def _short(group: Group) -> dict[str, Any]:
    return {"kind": group.kind, "name": group.title, "digest": group.manifest.digest if group.manifest else "",
            "files": [item.name for item in group.items], "size": group.size, "used": round(group.used, 3)}


def _name(group: Group) -> str:
    what = {"image": "the image", "file": "the file", "layer": "the layer", "part": "the part of"}[group.kind]
    return f"{what} {group.title or group.names[0][:14]}"


def _ago(when: float) -> str:
    import time

    minutes = max(0, int(time.time() - when)) // 60
    for size, unit in ((24 * 60, "day"), (60, "hour"), (1, "minute")):
        if minutes >= size:
            return f"{minutes // size} {unit}{'s' if minutes >= 2 * size else ''} ago"
    return "just now"
