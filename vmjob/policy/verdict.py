"""What a policy says of a job: a pure function of the policy, who asks, what the job wants, and who endorses its
image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Optional

from vmjob.core.model import Network
from vmjob.core.units import format_duration, format_size
from vmjob.core.version import __version__
from vmjob.image.trust.endorsement import Endorsement
from vmjob.policy.file import SITE, Limits, Policy, Rule


@dataclass(frozen=True)
class Fact:
    """One thing known of who asks. ``kind``: user, group, vo, fqan or issuer (of a token). ``vouched``: not the user's
    own word, so a rule may allow by it; by one that is not vouched rules only refuse."""

    kind: str
    value: str
    said_by: str
    vouched: bool


@dataclass(frozen=True)
class Asked:
    """``files``: SHA-256 of each file of the image. ``memory``, ``cpus``, ``walltime``: what the job asks for, None
    where it takes what it gets; ``needs_*``: what the image needs. ``uncounted``: why lists do not count that were
    looked at. ``withdrawn``: the list that no longer has the image, and why. ``version``: of the vmjob that is to run
    it, which is the payload's own. Bytes, seconds; ``now`` since 1970."""

    image: str
    digest: str
    files: tuple[str, ...]
    facts: tuple[Fact, ...]
    now: float
    memory: Optional[int] = None
    cpus: Optional[int] = None
    walltime: Optional[int] = None
    needs_memory: int = 0
    needs_cpus: int = 0
    network: Network = Network.NAT
    endorsements: tuple[Endorsement, ...] = ()
    uncounted: tuple[str, ...] = ()
    withdrawn: str = ""
    version: str = __version__


@dataclass(frozen=True)
class Step:
    """What became of one rule: ``fits``, or ``why`` not."""

    rule: Rule
    fits: bool
    why: str


@dataclass(frozen=True)
class Verdict:
    """``reason`` names the file and the rule; ``hint``: what whoever was refused can do. ``endorser``: the DN that
    counted; ``limits``: what the guest may have at most; ``steps``: the rules looked at, the last one decided."""

    allowed: bool
    reason: str
    hint: str = ""
    endorser: str = ""
    limits: Limits = field(default_factory=Limits)
    steps: tuple[Step, ...] = ()


_ADMIN = "ask the admin of this site; vmjob policy check IMAGE tells what each rule says"


def decide(policy: Policy, asked: Asked) -> Verdict:
    """Whether the job may run: nothing denied or withdrawn, then the first rule that fits, then its limits."""
    image = f"the image {asked.image} ({asked.digest[:19]}…)"
    if policy.min_version and _release(asked.version) < _release(policy.min_version):
        least = policy.min_version
        return Verdict(False, f"{policy.file}: min_version: this payload has vmjob {asked.version}, and none before "
                       f"{least} may run here", f"install vmjob {least} or later where the job is submitted, and "
                       "submit it again: a payload carries the vmjob that packed it")
    for digest in (asked.digest, *asked.files):
        why = policy.denied.get(digest.rpartition(":")[2])
        if why:
            what = image if digest == asked.digest else f"{image} has a file (sha256:{digest[:12]}…) that"
            return Verdict(False, f"{policy.file}: {what} is denied: {why}",
                           "use another version of the image: this one may not start here any more")
    if asked.withdrawn:
        return Verdict(False, f"{policy.file}: {image} was withdrawn: {asked.withdrawn}",
                       "use the version that the list has now")
    if policy.rules is None:
        found = Verdict(True, f"{policy.file}: it has no rules, and does not deny {image}")
        return _within(policy.limits, asked, found, str(policy.file))
    facts = (*asked.facts, *vos_of(policy, asked.facts))
    believed = _believed(policy, asked)
    steps = []
    for rule in policy.rules:
        fits, why, endorser = _fits(rule, asked, facts, believed)
        steps.append(Step(rule, fits, why))
        if not fits:
            continue
        where = f"{policy.file}: rule {rule.number} ({rule.name})"
        if not rule.allow:
            return Verdict(False, f"{where} refuses {image}: {why}", _ADMIN, steps=tuple(steps))
        found = Verdict(True, f"{where}: {why}", endorser=endorser, steps=tuple(steps))
        return _within(rule.limits.also(policy.limits), asked, found, where)
    return _no_rule(policy, asked, image, steps)


def vos_of(policy: Policy, facts: Sequence[Fact]) -> list[Fact]:
    """The VOs that who asks is of, by what the policy says of them."""
    found = []
    for vo in policy.vos:
        for kind, globs in (("user", vo.users), ("group", vo.groups), ("issuer", vo.issuers)):
            found += [Fact("vo", vo.name, f"{kind} {fact.value}", True) for fact in facts
                      if fact.kind == kind and fact.vouched and _any(fact.value, globs)]
    return found


def _believed(policy: Policy, asked: Asked) -> list[tuple[str, Optional[Endorsement]]]:
    """Who endorses the image and is believed, by the policy's name for it; None is the policy itself (trust)."""
    found: list[tuple[str, Optional[Endorsement]]] = []
    if asked.digest.rpartition(":")[2] in policy.trusted:
        found.append((SITE, None))
    for one in asked.endorsements:
        if one.digest == asked.digest and one.expires > asked.now:
            signer = (one.endorser.dn, one.endorser.ca)
            found += [(who.name, one) for who in policy.endorsers
                      if (who.dn, who.ca) == signer and (not who.lists or _any(one.list, who.lists))]
    return found


def _fits(rule: Rule, asked: Asked, facts: Sequence[Fact],
          believed: Sequence[tuple[str, Optional[Endorsement]]]) -> tuple[bool, str, str]:
    """Does the rule fit, why (not), and whose endorsement counted."""
    because = []
    for kind, globs in rule.who:
        known = [fact for fact in facts if fact.kind == kind and _any(fact.value, globs)]
        fact = next((fact for fact in known if fact.vouched or not rule.allow), None)
        if fact is None:
            said = f" ({known[0].said_by} says so of this one, but does not prove it)" if known else ""
            return False, f"it is for {kind} {' or '.join(globs)}{said}", ""
        because.append(f"{kind} {fact.value}" + (f" by {fact.said_by}" if kind in ("vo", "fqan") else ""))
    if rule.unsigned or not (rule.allow or rule.endorsers):
        names = [asked.digest, *(text for _, one in believed if one for text in (one.image, one.title))]
        names += [] if rule.allow else [asked.image]  # whose name the user can choose
        if rule.images and not any(_any(name, rule.images) for name in names):
            return False, f"it is for the image {' or '.join(rule.images)}", ""
        because += ["an endorsement is not asked for"] if rule.allow else []
        return True, "; ".join(because) or "all jobs", next((one.endorser.dn for _, one in believed if one), "")
    names_of = ((name, one, [asked.digest, *((one.image, one.title) if one else ())]) for name, one in believed)
    chosen = [(name, one) for name, one, names in names_of if not rule.endorsers or _any(name, rule.endorsers)
              if not rule.images or any(_any(text, rule.images) for text in names)]
    if not chosen:
        which = f" {' or '.join(rule.images)}" if rule.images else "s"
        return False, f"it is for image{which} endorsed by {' or '.join(rule.endorsers) or 'anybody in endorsers'}", ""
    if rule.tested:
        chosen = [(name, one) for name, one in chosen if one and one.tested]
        if not chosen:
            return False, "it is for images whose signed functionality test passed", ""
    name, one = chosen[0]
    by = f"endorsed by {name}, list {one.list} version {one.version}" if one else "a digest in trust"
    return True, "; ".join([*because, by]), one.endorser.dn if one else ""


def _within(limits: Limits, asked: Asked, found: Verdict, where: str) -> Verdict:
    """``found``, unless the job wants more than the limits."""
    over = _over(limits, asked)
    if over:
        return Verdict(False, f"{where}: {over[0]}", over[1], found.endorser, limits, found.steps)
    return Verdict(True, found.reason, "", found.endorser, limits, found.steps)


def _over(limits: Limits, asked: Asked) -> Optional[tuple[str, str]]:
    """The first limit that does not do, and what to do. None: all is well."""
    most = limits.memory
    if most is not None and max(asked.memory or 0, asked.needs_memory) > most:
        return _more("memory", asked.memory, asked.needs_memory, most, format_size, f"{most // 2**20}MiB")
    if limits.cpus is not None and max(asked.cpus or 0, asked.needs_cpus) > limits.cpus:
        return _more("cpus", asked.cpus, asked.needs_cpus, limits.cpus, lambda n: f"{n:.0f}", str(limits.cpus))
    if limits.lifetime is not None and (asked.walltime or 0) > limits.lifetime:
        return _more("walltime", asked.walltime, 0, limits.lifetime, format_duration, f"{limits.lifetime}s", "lifetime")
    if limits.networks is not None and asked.network not in limits.networks:
        names = " or ".join(one.value for one in limits.networks) or "none at all"
        return (f"networks: the job asks for {asked.network.value}, allowed is {names}",
                f"set network (--network): {names}")
    return None


def _more(key: str, asked: Optional[int], needs: int, most: int, text: object, value: str,
          limit: str = "") -> tuple[str, str]:
    assert callable(text)
    if needs > most:
        return (f"{limit or key}: the image needs {text(needs)}, the limit is {text(most)}",
                "use a smaller image, or ask the admin of this site")
    return (f"{limit or key}: the job asks for {text(asked)}, the limit is {text(most)}",
            f"set resources.{key} to {value} or less")


def _no_rule(policy: Policy, asked: Asked, image: str, steps: Sequence[Step]) -> Verdict:
    """Refused because no rule fits. What would have done is told for the first rule that is for this user."""
    user = next((fact.value for fact in asked.facts if fact.kind == "user"), "this user")
    why = "; ".join(f"rule {step.rule.number} ({step.rule.name}): {step.why}" for step in steps if step.rule.allow)
    lists = "; ".join(one[:300] for one in asked.uncounted[:3])
    hint = _ADMIN
    near = next((step.rule for step in steps if step.rule.allow and step.why.startswith("it is for image")), None)
    if near:
        names = [one for one in policy.endorsers if not near.endorsers or _any(one.name, near.endorsers)]
        known = "; ".join(f"{one.name}: {' '.join(one.lists) or one.dn}" for one in names[:5])
        hint = f"take an image of a list that this site believes ({known}), or ask its admin" if known else hint
    return Verdict(False, f"{policy.file}: no rule allows {image} for {user}: {why or 'it has none that allows'}"
                   + (f"; lists that do not count: {lists}" if lists else ""), hint, steps=tuple(steps))


def _release(version: str) -> tuple[int, int, int, bool]:
    """To compare by; 0.2.1.dev1 and 0.2.1rc1 are before 0.2.1, and what is no version is before all."""
    found = re.match(r"([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})(.*)", version, re.ASCII | re.DOTALL)
    if not found:
        return 0, 0, 0, False
    final = not re.match(r"[-_.]?(dev|a|b|c|rc|alpha|beta|pre)", found[4])
    return int(found[1]), int(found[2]), int(found[3]), final


def _any(value: str, globs: Sequence[str]) -> bool:
    return any(value == glob or fnmatchcase(value, glob) for glob in globs)
