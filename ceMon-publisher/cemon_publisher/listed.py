"""What the image lists that a site follows say, verified: each list once, whatever the number of its images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from vmjob.ads.site_ad import line
from vmjob.core.errors import EndorsementRefused, PolicyBroken, VmjobError
from vmjob.core.model import Manifest
from vmjob.core.progress import Reporter
from vmjob.image.trust.endorsement import Endorsement
from vmjob.image.trust.subscriptions import Subscription, listed, message_of, outdated
from vmjob.image.trust.verify import SignedList, verify_list, vouched
from vmjob.policy.admission import followed
from vmjob.policy.file import Policy

MOST = 20000  # images that a site ad can have
_TOLD = 3  # images of one list that are told of by name


@dataclass(frozen=True)
class Entry:
    """An image in a list. ``version``, ``os``, ``os_version``, ``uri``: as the list has them."""

    manifest: Manifest
    endorsement: Endorsement
    version: str
    os: str
    os_version: str
    uri: str


@dataclass
class Known:
    """What one policy goes by. ``entries``: by digest; ``withdrawn``: why, by digest."""

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    withdrawn: dict[str, str] = field(default_factory=dict)


Place = tuple[Path, Subscription]


def read(policies: Sequence[Policy], now: float, told: Reporter) -> list[Known]:
    """For each policy, what the lists say that any of them follows, as it judges them (authorities, withdrawals).
    ``now``: seconds since 1970. A list that does not count is told of, and so is an image in one.

    Raises PolicyBroken where what is followed cannot be read, as a job would be refused then; CommandMissing."""
    followed_by = [[(folder, one) for folder in followed(policy) for one in _subscriptions(policy, folder)]
                   for policy in policies]
    places = {(folder, one.identifier): (folder, one) for known in followed_by for folder, one in known}
    # one list that is too large must not crowd out the others
    room, chosen = MOST, list[Place]()
    for folder, one in sorted(places.values(), key=lambda place: (len(place[1].images), place[1].identifier)):
        room -= len(one.images)
        if room >= 0:
            chosen.append((folder, one))
        else:
            told.note(f"the list {_name(one)} is left out: its {len(one.images)} images with those of others are more "
                      f"than {MOST}")
    found, seen = [], dict[tuple[Path, Path], dict[str, Entry]]()
    with told.bar("lists", len(chosen) * len(policies), "list") as bar:
        for policy, own in zip(policies, followed_by):
            known = Known(withdrawn={digest: why for _, one in reversed(own) for digest, why in one.withdrawn.items()})
            for folder, one in chosen:
                key = (message_of(folder, one), policy.authorities)
                if key not in seen:
                    seen[key] = dict(_entries(policy, folder, one, now, told.note))
                for digest, entry in seen[key].items():
                    known.entries.setdefault(digest, []).append(entry)
                bar.advance(1)
            found.append(known)
    return found


def _subscriptions(policy: Policy, folder: Path) -> list[Subscription]:
    try:
        return listed(folder)
    except EndorsementRefused as unreadable:
        raise PolicyBroken(f"{policy.file}: subscriptions: {unreadable}", unreadable.hint) from unreadable


def _entries(policy: Policy, folder: Path, one: Subscription, now: float,
             note: Callable[[str], None]) -> Iterator[tuple[str, Entry]]:
    """The images of a list that counts, by digest."""
    try:
        signed = verify_list(message_of(folder, one), policy.authorities, now)
        old = outdated(signed, [folder])
        if old:
            raise EndorsementRefused(old, "subscribe to it again")
    except EndorsementRefused as refused:
        note(f"the list {_name(one)} does not count: {refused.message}")
        return
    out: list[str] = []
    for digest, place in signed.listing.digests.items():
        try:
            entry = _entry(signed, digest, signed.listing.entries[place], now)
        except VmjobError as refused:
            out.append(refused.message)
            continue
        if entry:
            yield digest, entry
    for why in out[:_TOLD]:
        note(f"an image of the list {_name(one)} is left out: {why}")
    if out[_TOLD:]:
        note(f"… and {len(out) - _TOLD} more images of the list {_name(one)}")
    others = len(signed.listing.entries) - len(signed.listing.digests)
    if others:
        note(f"images of the list {_name(one)} are left out: {others} without a manifest of vmjob's, which is what a "
             "job names")


def _entry(signed: SignedList, digest: str, body: Mapping[str, object], now: float) -> Optional[Entry]:
    image = vouched(signed, digest, now)
    if image is None or image.manifest is None:
        return None
    manifest = image.manifest
    fetched = [one for one in (image.uri, *manifest.sources) if not one.startswith("file:")]
    return Entry(manifest, signed.endorsement(image), line(image.version), _word(body, "sl:os"),
                 _word(body, "sl:osversion"), line(fetched[0]) if fetched else "")


def _word(body: Mapping[str, object], key: str) -> str:
    """``-`` is how lists say that there is none."""
    value = body.get(key)
    return line(value, 100) if isinstance(value, str) and value != "-" else ""


def _name(one: Subscription) -> str:
    return line(one.title or one.identifier, 100)
