"""``vmjob image subscribe``: follow the lists of endorsers."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from vmjob.cli import report
from vmjob.core import config
from vmjob.core.errors import EndorsementRefused, ImageOutOfReach, Interrupted, JobError, VmjobError
from vmjob.core.escapes import shown
from vmjob.core.progress import Reporter
from vmjob.image.store.images import Store
from vmjob.image.trust import smime, subscriptions, verify
from vmjob.image.trust.endorsement import Endorser
from vmjob.image.trust.imagelist import time_text
from vmjob.image.trust.subscriptions import Subscription
from vmjob.image.trust.verify import SignedList
from vmjob.stage.transfer import document
from vmjob.stage.transfer.flow import PATIENCE, Failed, Patience

_LONGEST = 600  # seconds for one list, where VMJOB_STAGE_TIMEOUT allows more


def subscribe(args: argparse.Namespace) -> int:
    """``vmjob image subscribe``: one of follow, refresh, show and forget."""
    folder: Path = args.at or subscriptions.user_folder()
    asked = [word for word, given in (("URL", args.url), ("--refresh", args.refresh), ("--list", args.show),
                                      ("--remove", args.remove)) if given]
    if len(asked) != 1:
        raise JobError(f"{' and '.join(asked)}: one at a time" if asked else "which list?",
                       "vmjob image subscribe URL, --refresh, --list or --remove ID")
    if args.show:
        return _show(subscriptions.listed(folder), args)
    if args.remove:
        return _remove(folder, subscriptions.find(folder, args.remove), args)
    if args.refresh:
        return _refresh(folder, args)
    return _follow(folder, args)


def _follow(folder: Path, args: argparse.Namespace) -> int:
    reporter, now = report.choose(json=args.json), time.time()
    if bool(args.endorser) != bool(args.ca):
        raise JobError("--endorser and --ca belong together", "both DNs, as vmjob image verify FILE prints them")
    if "://" not in args.url:
        args.url = str(Path(args.url).absolute())
    message = fetch(args.url, reporter)
    signed = verify.verify_list(message, config.ca_dir(), now)
    known = subscriptions.newest(signed.listing.identifier, [folder])
    wanted = Endorser(args.endorser, args.ca) if args.endorser else known.endorser if known else None
    if wanted and wanted != signed.endorser:
        raise EndorsementRefused(f"{args.url}: signed by {signed.endorser.dn} (certified by {signed.endorser.ca}), "
                                 f"not by {wanted.dn} (certified by {wanted.ca})",
                                 "trust it only if you know why that changed")
    if not wanted and not args.dry_run:
        _ask(args.url, signed)
    if args.dry_run:
        subscriptions.renewed(known, args.url, signed, now)
        return _tell([_json(subscriptions.renewed(None, args.url, signed, now))], [], args)
    one = subscriptions.follow(folder, args.url, signed, message, now)
    one, notes = _register(folder, one, signed, args, reporter)
    return _tell([_json(one)], notes, args)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _ask(url: str, signed: SignedList) -> None:
    """The first time somebody must say whom she trusts."""
    listing = signed.listing
    lines = [f"{url}: {listing.title or listing.identifier}, version {listing.version}, "
             f"{_images(len(listing.entries))}",
             f"signed by {signed.endorser.dn}", f"certified by {signed.endorser.ca}"]
    if not sys.stdin.isatty():
        raise EndorsementRefused("; ".join(lines) + ": nobody here said that this endorser is trusted",
                                 f"--endorser '{signed.endorser.dn}' --ca '{signed.endorser.ca}'")
    for line in lines:
        report.say(line)
    report.say("from now on this list is followed, as long as the same endorser signs it. Trust it? [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise EndorsementRefused(f"{url}: not followed, as you said", "")


def _refresh(folder: Path, args: argparse.Namespace) -> int:
    """Every list is tried, whatever another one's endorser or server does. What fails is told; the verb fails as a list
    that cannot be trusted where there is one, else as the first that failed."""
    reporter = report.choose(json=args.json)
    every, failures = subscriptions.readable(folder) if args.refresh == "all" else (
        [subscriptions.find(folder, args.refresh)], [])
    told, notes = [], [failure.message for failure in failures]
    for one in every:
        try:
            new, more = _renew(folder, one, args, reporter)
            told.append(_json(new))
            notes += more
        except Interrupted:
            raise
        except Exception as failed:  # a list that finds a fault in us must not keep us from the others
            error = _as_error(one, failed)
            failures.append(error)
            notes.append(f"{one.title or one.identifier}: {error.message}")
            told.append(_json(replace(one, trouble=error.message, checked=time.time())))
            if not args.dry_run:
                with contextlib.suppress(OSError, EndorsementRefused):  # a full disk
                    subscriptions.note(folder, one, trouble=error.message, now=time.time())
    _tell(told, notes if len(told) > 1 or not failures else notes[:-1], args)
    if failures:
        raise next((error for error in failures if isinstance(error, EndorsementRefused)), failures[0])
    return 0


def _as_error(one: Subscription, failed: Exception) -> VmjobError:
    if isinstance(failed, VmjobError):
        return failed
    if isinstance(failed, OSError):
        return EndorsementRefused(f"{one.url}: {failed}")
    return EndorsementRefused(f"{one.url}: what came cannot be read: {type(failed).__name__}: {failed}",
                              "tell the endorser, and the authors of vmjob")


def _renew(folder: Path, one: Subscription, args: argparse.Namespace,
           reporter: Reporter) -> tuple[Subscription, list[str]]:
    now = time.time()
    message = fetch(one.url, reporter)
    signed = verify.verify_list(message, config.ca_dir(), now)
    new = subscriptions.renewed(one, one.url, signed, now)  # also where it is another list by now
    if args.dry_run:
        return new, []
    new = subscriptions.follow(folder, one.url, signed, message, now)
    gone = [f"withdrawn: {digest[:19]}…: {why}" for digest, why in new.withdrawn.items() if digest not in one.withdrawn]
    new, notes = _register(folder, new, signed, args, reporter)
    return new, [*gone, *notes]


def _register(folder: Path, one: Subscription, signed: SignedList, args: argparse.Namespace,
              reporter: Reporter) -> tuple[Subscription, list[str]]:
    """Put the images of a list into the user's store by their names; those that it no longer has lose theirs."""
    if args.at:
        return one, []
    store, notes = Store(config.store_dir()), []
    taken, names = store.names(), {}
    with reporter.bar("images", len(one.images), "image") as bar:
        for digest in one.images:
            image = signed.listing.by_digest(digest)
            bar.advance(1)
            if image is None or image.manifest is None or digest in one.withdrawn:
                continue
            name = image.manifest.name
            if taken.get(name, digest) not in (digest, one.names.get(name)):  # the user's own, or another list's
                name = f"{name[:90]}-{digest[7:15]}"
                notes.append(f"{image.manifest.name} means another image here: this one is {name}")
            if taken.get(name) != digest:
                store.describe(image.manifest, name)
            elif one.names.get(name) != digest:
                continue  # she has named it so herself
            names[name] = digest
    for name, digest in one.names.items():
        if name not in names:
            store.unname(name, digest)
    subscriptions.note(folder, one, names=names)
    return replace(one, names=names), notes


def _remove(folder: Path, one: Subscription, args: argparse.Namespace) -> int:
    if not args.dry_run:
        subscriptions.forget(folder, one)
        for name, digest in one.names.items():
            Store(config.store_dir()).unname(name, digest)
    report.show(json.dumps({"removed": one.identifier}) if args.json else
                f"{one.title or one.identifier} is no longer followed, and its names are gone")
    return 0


# ---------------------------------------------------------------- answers


def _show(every: list[Subscription], args: argparse.Namespace) -> int:
    if args.json:
        report.show(json.dumps([_json(one) for one in every]))
        return 0
    if not every:
        report.say("no list is followed; vmjob image subscribe URL")
    for one in every:
        report.show(_lines(_json(one)))
    return 0


def _tell(told: list[dict[str, Any]], notes: list[str], args: argparse.Namespace) -> int:
    if args.json:
        report.show(json.dumps({"lists": told, "notes": notes}))
        return 0
    for one in told:
        report.show(_lines(one))
    for note in notes:
        report.say(note)
    return 0


def _json(one: Subscription) -> dict[str, Any]:
    return {"list": one.identifier, "title": one.title, "url": one.url, "version": one.version,
            "endorser": one.endorser.dn, "ca": one.endorser.ca, "expires": one.expires, "checked": one.checked,
            "expired": one.expires <= time.time(), "trouble": one.trouble, "images": one.names or list(one.images),
            "withdrawn": one.withdrawn}


def _lines(one: dict[str, Any]) -> str:
    state = "EXPIRED on" if one["expired"] else "valid until"
    images: Optional[str] = ", ".join(list(one["images"])[:20]) if isinstance(one["images"], dict) else None
    lines = [f"{one['title'] or one['list']}, version {one['version']}, {state} {time_text(one['expires'])}",
             f"  {one['list']}  {one['url']}", f"  signed by {one['endorser']}", f"  certified by {one['ca']}",
             f"  {_images(len(one['images']))}" + (f": {images}" if images else "")
             + (f"; {len(one['withdrawn'])} withdrawn" if one["withdrawn"] else "")]
    if one["trouble"]:
        lines.append(f"  not renewed on {time_text(one['checked'])}: {one['trouble']}")
    return "\n".join(map(shown, lines))


def fetch(url: str, reporter: Reporter, patience: Patience = PATIENCE) -> bytes:
    """The signed message at an http(s) address or in a file, within config.stage_timeout() and ten minutes at most.
    Raises ImageOutOfReach, EndorsementRefused, JobError."""
    if "://" not in url:
        return verify.read_message(Path(url))
    if not url.startswith(("http://", "https://")):
        raise JobError(f"{url}: a list is fetched by http or https", "or give the path of a file that has it")
    try:
        with reporter.bar("fetch the list", None) as bar:
            return document.fetch(url, smime.LARGEST, min(config.stage_timeout(), _LONGEST), bar, reporter.note,
                                  patience)
    except document.TooLarge as large:
        raise EndorsementRefused(f"{url}: {large}", "it is no image list") from large
    except Failed as failed:
        raise ImageOutOfReach(f"{url}: {failed}", "try again later; is the address right?") from failed
