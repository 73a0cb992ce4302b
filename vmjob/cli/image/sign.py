"""``vmjob image sign``."""

from __future__ import annotations

import argparse
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from vmjob.cli import report
from vmjob.core import config, schema
from vmjob.core.errors import EndorsementRefused, ImageCorrupt, ImageMissing, JobError
from vmjob.core.files import write_whole
from vmjob.core.model import Manifest
from vmjob.core.progress import Reporter
from vmjob.core.units import counted, parse_duration
from vmjob.image.store.images import Store
from vmjob.image.trust import imagelist, smime, verify
from vmjob.image.trust import sign as endorse
from vmjob.image.trust.endorsement import Endorser
from vmjob.image.trust.imagelist import ImageList
from vmjob.image.trust.sign import Heading


def sign(args: argparse.Namespace) -> int:
    """``vmjob image sign``."""
    says = _settings(args)
    reporter = report.choose(json=args.json)
    certificate = smime.certificate_of(Path(says["cert"]))
    endorser = Endorser(certificate.subject, certificate.issuer)
    old = _previous(args, endorser)
    heading = _heading(args, says, old)
    gone = [_digest(old, one) for one in args.withdraw]
    images = _renewed(old, _new_images(args, says, heading, reporter), gone)
    if not images and not old:
        raise JobError("a list of no images", "name images of the store: vmjob image list")
    present = {one.get(imagelist.MANIFEST, {}).get("digest") for one in images}
    withdrawn = {digest for digest in (*(old.withdrawn if old else ()), *gone) if digest not in present}
    document = endorse.document(heading, endorser, images, withdrawn)
    text = imagelist.render(document)
    _readable(text)
    if args.dry_run:
        report.show(text.decode().rstrip("\n"))
        return 0
    write_whole(args.out, smime.sign(text, Path(says["cert"]), Path(says["key"])))
    until = min(heading.expires, certificate.expires)
    if until < heading.expires:
        report.say(f"the certificate {says['cert']} ends before the list does: from then on nobody believes it")
    told = {"list": heading.identifier, "version": heading.version, "expires": imagelist.time_text(until),
            "endorser": endorser.dn, "ca": endorser.ca, "images": len(images), "withdrawn": len(withdrawn),
            "file": str(args.out)}
    report.show(json.dumps(told) if args.json else
                f"{args.out}: {heading.title}, version {heading.version}, {counted(len(images), 'image')}"
                f"{f', {len(withdrawn)} withdrawn' if withdrawn else ''}; valid until {told['expires']}\n"
                f"put it at {heading.uri}; others follow it: vmjob image subscribe {heading.uri}")
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The words of --from, and over them those of the command line."""
    says: dict[str, Any] = schema.load_yaml(args.settings, "list") if args.settings else {}
    for key in ("cert", "key"):
        if key in says:
            says[key] = args.settings.parent / Path(says[key]).expanduser()
    for key in ("cert", "key", "title", "identifier", "uri", "expires", "group"):
        if getattr(args, key) is not None:
            says[key] = getattr(args, key)
    needed = ["cert", *([] if args.dry_run else ["key"]), *([] if args.add_to else ["title", "uri"])]
    for key in needed:
        if not says.get(key):
            raise JobError(f"--{key} is missing", f"give --{key}, or the word '{key}' in the file of --from")
    _check_files(args)
    return says


def _check_files(args: argparse.Namespace) -> None:
    if not args.dry_run and not args.out:
        raise JobError("-o is missing", "-o FILE: where the signed list goes")
    if args.out and args.out.exists() and not args.dry_run and not (
            args.add_to and args.add_to.exists() and args.out.samefile(args.add_to)):
        raise JobError(f"{args.out} exists", f"a new version of that list: --add-to {args.out}")
    if args.withdraw and not args.add_to:
        raise JobError("--withdraw: from which list?", "--add-to FILE: the version of the list that has it")


def _previous(args: argparse.Namespace, endorser: Endorser) -> Optional[ImageList]:
    if not args.add_to:
        return None
    old = verify.verify_list(args.add_to, config.ca_dir(), time.time(), expired=True)
    if old.endorser != endorser:
        raise JobError(f"{args.add_to}: this list is {old.endorser.dn}'s, not {endorser.dn}'s",
                       "whoever follows it would refuse another endorser: make a list of your own")
    return old.listing


def _heading(args: argparse.Namespace, says: Mapping[str, Any], old: Optional[ImageList]) -> Heading:
    now = time.time()
    before: Mapping[str, Any] = old.document if old else {}
    if old and says.get("identifier") not in (None, old.identifier):
        raise JobError(f"{args.add_to}: its identifier is {old.identifier}, not {says['identifier']}",
                       "it stays the same for ever: leave --id out")
    version = args.version or (endorse.next_version(old.version) if old else "1")
    if old and imagelist.version_key(version) <= imagelist.version_key(old.version):
        raise JobError(f"--version {version} is not after {old.version}", "whoever follows the list would refuse it")
    known = before.get("hv:endorser", {}).get("hv:x509", {})
    return Heading(
        says.get("identifier") or (old.identifier if old else str(uuid.uuid4())), version, now,
        now + parse_duration(says.get("expires") or "90d", "--expires"),
        *(str(says.get(word) or place.get(key, "")) for word, key, place in (
            ("title", "dc:title", before), ("uri", "hv:uri", before), ("description", "dc:description", before),
            ("source", "dc:source", before), ("creator", "dc:creator", known), ("email", "hv:email", known))))


def _digest(old: Optional[ImageList], ref: str) -> str:
    """The digest that somebody means who withdraws ``ref``."""
    assert old
    start = ref if ref.startswith("sha256:") else f"sha256:{ref}"
    names = {digest: old.entries[place][imagelist.MANIFEST].get("name") for digest, place in old.digests.items()}
    fits = [digest for digest in names if (len(ref) >= 6 and digest.startswith(start)) or names[digest] == ref]
    if len(fits) == 1:
        return fits[0]
    if imagelist.is_digest(ref):
        return ref  # of an earlier version
    raise JobError(f"--withdraw {ref}: {len(fits)} images of the list are called so" if fits else
                   f"--withdraw {ref}: the list has no such image", "give its digest: vmjob image verify LIST")


def _new_images(args: argparse.Namespace, says: Mapping[str, Any], heading: Heading,
                reporter: Reporter) -> list[dict[str, Any]]:
    tests = _tests(args.test)
    store, made = Store(config.store_dir()), []
    for ref in args.image:
        manifest, paths = store.resolve(ref)
        more = [one.replace("{name}", manifest.name) for one in (args.source or says.get("sources", []))]
        known = dict.fromkeys((*more, *manifest.sources))
        listed = Manifest(**{**vars(manifest), "sources": tuple(known)})
        main = endorse.main_file(listed)
        try:
            with reporter.bar(f"hash {manifest.name}", main.size) as bar:
                sha512, sha256, size = endorse.digests_of(paths[main.role], bar)
        except FileNotFoundError as missing:
            raise ImageMissing(f"{manifest.name}: its {main.role} is not on this machine",
                               "sign where the image was built") from missing
        if (sha256, size) != (main.sha256, main.size):
            raise ImageCorrupt(f"{paths[main.role]}: not the bytes of its manifest", "build or fetch the image again")
        made.append(endorse.entry(listed, sha512, heading, group=says.get("group", ""),
                                  test=tests.pop(manifest.digest, None)))
    if tests:
        raise JobError(f"--test: {next(iter(tests))} is none of the images given", "name that image too")
    return made


def _tests(paths: Sequence[Path]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        body = schema.load_yaml(path, "test")
        if not body["passed"]:
            raise JobError(f"{path}: the image {body['image']} failed its functionality test",
                           "fix the image and test it again; nobody should vouch for this one")
        found[str(body["digest"])] = body
    return found


def _renewed(old: Optional[ImageList], new: Sequence[dict[str, Any]], gone: Sequence[str]) -> list[Mapping[str, Any]]:
    """The images of before but those that are withdrawn or renewed, and the new ones."""
    names = {one["dc:identifier"] for one in new}
    if len(names) < len(new):
        raise JobError("two of the images have the same name", "a list names each once: build one under another name")
    kept = [one for one in (old.entries if old else ()) if one["dc:identifier"] not in names
            and one.get(imagelist.MANIFEST, {}).get("digest") not in gone]
    return [*kept, *new]


def _readable(text: bytes) -> None:
    """What nobody could read is not signed. Raises JobError."""
    try:
        parsed = imagelist.parse(text)
        for place in range(len(parsed.entries)):
            parsed.image(place)
    except EndorsementRefused as wrong:
        raise JobError(f"nobody could use this list: {wrong.message}",
                       "an image's source ends with / where it is the folder of its files (--source)") from wrong
