"""``vmjob image verify``: what a signed list says, and who vouches for an image."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmjob.cli import report
from vmjob.core import config
from vmjob.core.errors import EndorsementRefused, ImageCorrupt
from vmjob.core.escapes import shown
from vmjob.core.progress import Reporter
from vmjob.core.units import format_size
from vmjob.image.store.images import Store
from vmjob.image.trust import imagelist, sign, subscriptions
from vmjob.image.trust import verify as trust
from vmjob.image.trust.endorsement import Endorsement
from vmjob.image.trust.imagelist import ListedImage
from vmjob.image.trust.verify import SignedList

_HEAD = 16 * 2**10  # bytes that tell a message from a disk


def verify(args: argparse.Namespace) -> int:
    """``vmjob image verify``."""
    ca_dir, now, path = args.authorities or config.ca_dir(), time.time(), Path(args.subject)
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        if b"multipart/signed" in _head(path).lower():
            return _show_list(trust.verify_list(path, ca_dir, now), args, now)
        return _show_file(path, _lists(args), args, ca_dir, now)
    return _show_image(args, ca_dir, now)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _folders() -> list[Path]:
    return [subscriptions.user_folder(), subscriptions.SITE]


def _lists(args: argparse.Namespace) -> list[Path]:
    if args.lists:
        return list(args.lists)
    found = [subscriptions.message_of(folder, one) for folder in _folders() for one in subscriptions.listed(folder)]
    if not found:
        raise EndorsementRefused(f"{args.subject}: no list is followed here that could vouch for it",
                                 "vmjob image subscribe URL, or --list FILE")
    return found


def _show_list(signed: SignedList, args: argparse.Namespace, now: float) -> int:
    listing, store, reporter = signed.listing, Store(config.store_dir()), report.choose(json=args.json)
    here = {path.stem for path in (store.root / "images").glob("*.yaml")}
    images, wrong = [], []
    for place in range(len(listing.entries)):
        image = listing.image(place)
        state = _state(image, here, store, reporter)
        if state == "wrong":
            wrong.append(image.title)
        images.append((image, state))
    if args.json:
        report.show(json.dumps({
            "list": listing.identifier, "version": listing.version, "title": listing.title,
            "endorser": signed.endorser.dn, "ca": signed.endorser.ca, "expires": signed.expires,
            "withdrawn": list(listing.withdrawn), "images": [_image_json(one, state) for one, state in images]}))
    else:
        report.show("\n".join(_list_lines(signed, images, now)))
    if wrong:
        raise EndorsementRefused(f"{', '.join(wrong)}: the bytes here are not what the list says",
                                 "remove the image, and fetch it again: vmjob image rm")
    return 0


def _list_lines(signed: SignedList, images: Sequence[tuple[ListedImage, str]], now: float) -> list[str]:
    from vmjob.cli.tables import table

    listing = signed.listing
    lines = [shown(f"{listing.title or listing.identifier}, version {listing.version} ({listing.identifier})"),
             f"signed by {signed.endorser.dn}", f"certified by {signed.endorser.ca}",
             f"valid until {imagelist.time_text(signed.expires)}; made {imagelist.time_text(listing.created)}"]
    rows = [[shown(image.title), image.manifest.digest[7:19] if image.manifest else f"sha512:{image.sha512[:12]}",
             format_size(image.manifest.size if image.manifest else image.size), state,
             f"tested {imagelist.time_text(image.tested)[:10]}" if image.tested else "",
             "expired" if image.expires is not None and image.expires <= now else ""] for image, state in images]
    if rows:
        lines.append(table(["IMAGE", "DIGEST", "SIZE", "BYTES HERE", "TESTED", "STATE"], rows))
    return lines + [f"withdrawn: {digest}" for digest in listing.withdrawn]


def _state(image: ListedImage, here: set[str], store: Store, reporter: Reporter) -> str:
    if image.manifest is None:
        return "no manifest"
    if image.manifest.digest[7:] not in here:
        return "none"
    try:
        with reporter.bar(f"verify {image.title}", image.manifest.size) as bar:
            every = [store.blobs.check(file.sha256, file.size, bar) for file in image.manifest.files]
    except ImageCorrupt:
        return "wrong"
    return "right" if all(every) else "not fetched yet"


def _image_json(image: ListedImage, state: str) -> dict[str, Any]:
    return {"identifier": image.identifier, "title": image.title, "version": image.version, "uri": image.uri,
            "size": image.size, "sha512": image.sha512, "group": image.group, "tested": image.tested or None,
            "digest": image.manifest.digest if image.manifest else None, "here": state}


def _show_image(args: argparse.Namespace, ca_dir: Path, now: float) -> int:
    store = Store(config.store_dir())
    manifest, paths = store.resolve(args.subject)
    found, reasons = trust.endorsements(manifest, _lists(args), ca_dir, now)
    gone = subscriptions.withdrawn(manifest.digest, _folders())
    if gone or not found:
        raise EndorsementRefused(f"{manifest.name}: {gone or 'no list vouches for it: ' + '; '.join(reasons)}",
                                 "use the version that the list has now: vmjob image list" if gone else
                                 "a newer list may (vmjob image subscribe --refresh), or one that its maker knows")
    state = "none"
    if all(path.exists() for path in paths.values()):
        store.open(manifest, paths, report.choose(json=args.json))  # raises where they are others
        state = "right"
    if args.json:
        report.show(json.dumps({"image": manifest.name, "digest": manifest.digest, "here": state,
                                "endorsements": [_endorsement_json(one) for one in found], "others": reasons}))
        return 0
    report.show("\n".join([f"{manifest.name} ({manifest.digest[:19]}…), bytes here: {state}",
                           *(_endorsed(one) for one in found)]))
    for reason in reasons:
        report.say(reason)
    return 0


def _endorsed(one: Endorsement) -> str:
    tested = f", tested {imagelist.time_text(one.tested)}" if one.tested else ""
    return shown(f"endorsed by {one.endorser.dn} (certified by {one.endorser.ca}) in the list {one.list}, version "
                 f"{one.version}, until {imagelist.time_text(one.expires)}{tested}")


def _endorsement_json(one: Endorsement) -> dict[str, Any]:
    return {**vars(one), "endorser": one.endorser.dn, "ca": one.endorser.ca}


def _show_file(path: Path, lists: Sequence[Path], args: argparse.Namespace, ca_dir: Path, now: float) -> int:
    """A disk by its SHA-512, as lists without manifests have it."""
    with report.choose(json=args.json).bar(f"hash {path.name}", path.stat().st_size) as bar:
        sha512, _, size = sign.digests_of(path, bar)
    for message in lists:
        signed = trust.verify_list(message, ca_dir, now)
        image = signed.listing.by_sha512(sha512)
        if image is None:
            continue
        trust.checked(image, sha512, size, now)
        until = imagelist.time_text(signed.expires if image.expires is None else min(signed.expires, image.expires))
        who = signed.endorser
        report.show(json.dumps({"file": str(path), "list": signed.listing.identifier, "endorser": who.dn, "ca": who.ca,
                                "image": _image_json(image, "right")}) if args.json else
                    shown(f"{path}: {image.title}, endorsed by {who.dn} (certified by {who.ca}) in the list "
                           f"{signed.listing.identifier}, until {until}") + f"\ntake it in: vmjob image import {path}")
        return 0
    raise EndorsementRefused(f"{path}: no list names a file with these bytes (sha512 {sha512[:16]}…)",
                             "it is another file, or not whole: fetch it again")
