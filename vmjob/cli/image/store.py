"""``vmjob image …``: what each of its verbs does."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmjob.cli import report
from vmjob.core import config
from vmjob.core.escapes import shown
from vmjob.core.model import Manifest
from vmjob.core.units import format_size


def _store() -> Any:
    from vmjob.image.store.images import Store

    return Store(config.store_dir())


def micro(args: argparse.Namespace) -> int:
    """Build and register the micro image."""
    from vmjob.image.build.micro import build_micro

    with tempfile.TemporaryDirectory(prefix="vmjob-") as spare:
        folder = Path(args.out) if args.out else Path(spare)
        manifest = _with_sources(build_micro(folder, report.choose(json=args.json)), folder, args)
        _store().add(manifest, folder)
    return _done(manifest, args, "try it: vmjob run --image micro -- uname -a")


def build(args: argparse.Namespace) -> int:
    """Build an image from a recipe, and register it."""
    from vmjob.image.build.from_recipe import build as make

    out = Path(args.out)
    manifest = _with_sources(make(Path(args.recipe), out, report.choose(json=args.json)), out, args)
    if not args.no_register:
        _store().add(manifest, out)
    return _done(manifest, args, f"written to {out}/")


def import_(args: argparse.Namespace) -> int:
    """Register a disk image, or an image that a manifest describes."""
    from vmjob.image import manifest as manifests
    from vmjob.image.build.importer import import_disk

    path, store = Path(args.file), _store()
    if path.suffix in (".yaml", ".yml") or path.is_dir():
        where = path / "manifest.yaml" if path.is_dir() else path
        manifest = manifests.load(where)
        if args.source:
            manifest = replace(manifest, sources=tuple(args.source))
        if manifest.sources and not any((where.parent / file.path).exists() for file in manifest.files):
            store.describe(manifest, manifest.name)  # its files come when they are needed
        else:
            store.add(manifest, where.parent)
    else:
        manifest = import_disk(path, args.name or path.stem, store, firmware=args.firmware, user=args.user,
                               reporter=report.choose(json=args.json))
    return _done(manifest, args, f"try it: vmjob run --image {manifest.name} -- uname -a")


def _with_sources(manifest: Manifest, folder: Path, args: argparse.Namespace) -> Manifest:
    """With the addresses of --source in the manifest in ``folder``, which is checked as any."""
    from vmjob.image import manifest as manifests

    if not args.source:
        return manifest
    document = {**manifests.to_document(manifest), "sources": args.source}
    made = manifests.from_document(document, "--source")
    (folder / manifests.FILE_NAME).write_text(manifests.dump(made))
    return made


def inspect(args: argparse.Namespace) -> int:
    """Print a manifest."""
    from vmjob.image import manifest as manifests

    manifest, _ = _store().resolve(args.image)
    print(_json(manifest) if args.json else manifests.dump(manifest), end="" if not args.json else "\n")
    return 0


def list_(args: argparse.Namespace) -> int:
    """Print what the store holds."""
    from vmjob.image.trust.subscriptions import own_withdrawal

    store = _store()
    images: list[Manifest] = store.list()
    named: dict[str, list[str]] = {}
    for name, digest in store.names().items():
        named.setdefault(digest, []).append(name)
    here, gone = _files_here(), {one.digest: why for one in images if (why := own_withdrawal(one))}
    if args.json:
        print(json.dumps([{**json.loads(_json(one)), "names": named.get(one.digest, []), "here": here(one),
                           "withdrawn": gone.get(one.digest)} for one in images]))
        return 0
    if not images:
        report.say(f"the store {config.store_dir()} is empty; vmjob image micro makes a first image")
    if any(one.digest not in {**named, **gone} for one in images):
        report.say("- is an image whose name means a newer one by now: vmjob image rm DIGEST removes it")
    for one in images:
        boots = ",".join(boot.value for boot in one.boot)
        state = " (withdrawn)" if one.digest in gone else "" if here(one) else " (not here yet: fetched when used)"
        size = format_size(one.size)
        # a name means the image that was added last; the older ones are still there by their digest
        for name in sorted(named.get(one.digest, ["-"])):
            print(f"{name:<20} {one.digest[7:19]}  {size:>9}  {boots:<12} {shown(one.description)}{state}".rstrip())
    return 0


def _files_here() -> Callable[[Manifest], bool]:
    """Whether all files of an image are on this machine, in the store or where jobs fetch them to; not verified. A list
    that is followed names images before anybody fetched them."""
    from vmjob.image.store.blobs import Blobs

    shared = config.shared_cache()
    places = [Blobs(root) for root in (config.store_dir(), config.cache_dir(), *([shared] if shared else []))]
    return lambda one: all(any(place.path(file.sha256).exists() for place in places) for file in one.files)


def remove(args: argparse.Namespace) -> int:
    """Remove images from the store."""
    store = _store()
    gone = []
    for name in args.image:
        store.remove(name)
        gone.append(name)
    print(json.dumps({"removed": gone}) if args.json else f"removed {', '.join(gone)}")
    return 0


def _done(manifest: Manifest, args: argparse.Namespace, next_action: str) -> int:
    if args.json:
        print(_json(manifest))
        return 0
    print(f"{manifest.name}: {format_size(manifest.size)}, {manifest.digest[:19]}…, "
          f"boots as {', '.join(b.value for b in manifest.boot)}")
    print(next_action)
    return 0


def _json(manifest: Manifest) -> str:
    from vmjob.image.manifest import to_document

    return json.dumps({**to_document(manifest), "digest": manifest.digest})
