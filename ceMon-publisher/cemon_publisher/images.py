"""Which images the jobs of which VO may run at a site, as its policies decide (vmjob.policy.verdict)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Optional

from cemon_publisher.listed import Entry, Known
from vmjob.ads.site_ad import ANYBODY, SiteImage, line, tag_of_name
from vmjob.ads.site_yaml import Site
from vmjob.core.model import Network
from vmjob.core.site_errors import SiteBroken
from vmjob.image.trust.endorsement import Endorsement, Endorser
from vmjob.policy.file import Limits, Policy
from vmjob.policy.verdict import Asked, Fact, Verdict, decide

_NOBODY_KNOWS = "sha256:" + "0" * 64
_NETWORKS = (Network.NAT, Network.ISOLATED, Network.NONE)


@dataclass(frozen=True)
class Allowed:
    """``vos``: whose jobs may run anything at all; ``unlisted``: whose may bring images that nobody endorses.
    ``limits``: the most that any of them gets."""

    images: tuple[SiteImage, ...]
    vos: tuple[str, ...]
    unlisted: tuple[str, ...]
    limits: Limits


def allowed(site: Site, policies: Sequence[Policy], known: Sequence[Known], now: float) -> Allowed:
    """What may run. ``known``: what each policy goes by; ``now``: seconds since 1970. Raises SiteBroken where two of
    the images have one name."""
    vos, granted = vos_of(site, policies), list[Limits]()
    names = dict(site.names)
    images, may = [], set[str]()
    digests = dict.fromkeys(digest for one in known for digest in one.entries)
    digests.update(dict.fromkeys(f"sha256:{digest}" for policy in policies for digest in policy.trusted))
    for digest in digests:
        entries = [one.entries.get(digest, []) for one in known]
        questions = [_question(digest, its, one.withdrawn.get(digest, ""), now) for its, one in zip(entries, known)]
        answers = {vo: found for vo in vos if (found := _all_allow(policies, questions, vo))}
        if not answers:
            continue
        may.update(answers)
        granted += [_together(one) for one in answers.values()]
        believed = next((one.endorser for answer in answers.values() for one in answer if one.endorser), "")
        images.append(_image(digest, _folded(answers, vos), [one for its in entries for one in its], believed, names))
    unlisted = {vo: found for vo in vos if (found := _all_allow(policies, [_unlisted(now)] * len(policies), vo))}
    brought = {vo: found for vo in vos
               if (found := _all_allow(policies, [_endorsed(policy, now) for policy in policies], vo))}
    granted += [_together(one) for one in (*unlisted.values(), *brought.values())]
    may.update(unlisted, brought)
    return Allowed(_unambiguous(site, images), _folded(may, vos), _folded(unlisted, vos),
                   Limits.widest(granted) if granted else reduce(Limits.also, (one.limits for one in policies)))


def vos_of(site: Site, policies: Sequence[Policy]) -> tuple[str, ...]:
    """The VOs that are asked for: the site's; where it names none, those that its policies know, and all others."""
    return site.vos or (*dict.fromkeys(vo.name for policy in policies for vo in policy.vos), ANYBODY)


# ---------------------------------------------------------------- what is asked


def who(policy: Policy, vo: str) -> list[tuple[Fact, ...]]:
    """As whom jobs of a VO come, one after the other: by each way in which this policy knows them. All facts at once
    would fit a rule for one group of a VO, and be refused by one against another."""
    if vo == ANYBODY:
        return [()]
    own = next((one for one in policy.vos if one.name == vo), None)
    # a VO that the policy does not know is only the job's own word
    name = Fact("vo", vo, str(policy.file), own is not None)
    if own is None:
        return [(name,)]
    words = [(name, Fact(kind, word, str(policy.file), True)) for kind, globs in
             (("group", own.groups), ("user", own.users), ("issuer", own.issuers)) for word in globs]
    ways: list[tuple[Fact, ...]] = [(name, word) for name, word in words if not set("*?[") & set(word.value)]
    return ways if len(ways) == len(words) else [*ways, (name,)]


def _question(digest: str, entries: Sequence[Entry], withdrawn: str, now: float) -> Asked:
    if not entries:
        return Asked(digest[7:19], digest, (), (), now, withdrawn=withdrawn)
    manifest = entries[0].manifest  # the same in all lists, but for names: the digest is over it
    return Asked(manifest.name, digest, tuple(one.sha256 for one in manifest.files), (), now,
                 needs_memory=min(one.manifest.needs_memory for one in entries),
                 needs_cpus=min(one.manifest.needs_cpus for one in entries),
                 endorsements=tuple(one.endorsement for one in entries), withdrawn=withdrawn)


def _unlisted(now: float) -> Asked:
    """An image that nobody knows."""
    return Asked("unlisted", _NOBODY_KNOWS, (), (), now)


def _endorsed(policy: Policy, now: float) -> Asked:
    """An image that all whom the policy believes endorse, in a list that comes with the job."""
    return Asked("endorsed", _NOBODY_KNOWS, (), (), now, endorsements=tuple(
        Endorsement(one.lists[0] if one.lists else "any", "1", Endorser(one.dn, one.ca), "any", "any", _NOBODY_KNOWS,
                    now + 86400, tested=now) for one in policy.endorsers))


def _all_allow(policies: Sequence[Policy], questions: Sequence[Asked], vo: str) -> Optional[list[Verdict]]:
    """What they say, if all let some job of the VO in: one with one network, which must pass them all."""
    for network in _NETWORKS:
        found = []
        for policy, asked in zip(policies, questions):
            verdicts = list(_verdicts(policy, replace(asked, network=network), vo))
            if not any(one.allowed or one.limits.networks is not None for one in verdicts):
                return None  # another network would make no difference
            found.append(verdicts[-1])
        if all(one.allowed for one in found):
            return found
    return None


def _verdicts(policy: Policy, asked: Asked, vo: str) -> Iterator[Verdict]:
    """Up to the first that allows."""
    for facts in who(policy, vo):
        verdict = decide(policy, replace(asked, facts=facts))
        yield verdict
        if verdict.allowed:
            break


# ---------------------------------------------------------------- what comes of it


def _together(verdicts: Sequence[Verdict]) -> Limits:
    return reduce(Limits.also, (one.limits for one in verdicts))


def _folded(some: Collection[str], vos: Sequence[str]) -> tuple[str, ...]:
    """Of ``vos`` those among ``some``. ``*`` is said only where nobody who has a name is refused."""
    if ANYBODY in some and set(vos) <= set(some):
        return (ANYBODY,)
    return tuple(vo for vo in vos if vo in some and vo != ANYBODY)


def _image(digest: str, vos: tuple[str, ...], entries: Sequence[Entry], believed: str,
           names: dict[str, str]) -> SiteImage:
    if not entries:  # trusted by the policy, and in no list
        return SiteImage(names.get(digest, digest[7:19]), digest, vos)
    one = next((entry for entry in entries if entry.endorsement.endorser.dn == believed), entries[0])
    said, manifest = one.endorsement, one.manifest
    return SiteImage(
        names.get(digest, manifest.name), digest, vos, line(said.image), one.version, line(manifest.description),
        line(said.endorser.dn), line(said.list), manifest.arch, one.os, one.os_version, manifest.size,
        manifest.needs_memory, manifest.needs_cpus, int(said.expires), one.uri)


def _unambiguous(site: Site, images: Sequence[SiteImage]) -> tuple[SiteImage, ...]:
    """By name. Raises SiteBroken where two have one: a job that asks by name would get one or the other."""
    seen: dict[str, SiteImage] = {}
    for one in sorted(images, key=lambda one: (one.name, one.digest)):
        tag = tag_of_name(one.name)  # which is what people ask for
        other = seen.setdefault(tag, one)
        if other is not one:
            raise SiteBroken(
                f"two images are called {one.name}: {_where(other)}, and {_where(one)}",
                f"give one another name in {site.file}: names: {{\"{one.digest}\": {one.name}-2}}; or deny it in the "
                "policy")
    return tuple(seen.values())


def _where(image: SiteImage) -> str:
    return f"{image.digest} ({f'list {image.list} of {image.endorser}' if image.list else 'trusted by the policy'})"
