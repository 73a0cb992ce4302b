"""``vmjob policy check``: what a site's policy says, to its admin and to whoever was refused. Starts nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from vmjob.core.model import Job, Manifest
    from vmjob.policy.file import Limits, Policy, Rule
    from vmjob.policy.verdict import Fact, Verdict

_EXAMPLES = """\
examples:
  vmjob policy check                                is the policy of this node well, and what does it say?
  vmjob policy check micro                          may I run this image here?
  vmjob policy check pythia --as alice --memory 4GiB --list atlas.smime
  vmjob policy check pythia --vo atlas --policy new-policy.yaml

The exit status is 0 where the job may run, 226 where it may not, 227 where a policy is broken.
"""


def add_verbs(verbs: Any) -> None:
    """The verb ``policy`` with its own verbs."""
    policy = verbs.add_parser("policy", epilog=_EXAMPLES,
                              description="What a site lets run, and why.",
                              formatter_class=argparse.RawDescriptionHelpFormatter)
    nouns = policy.add_subparsers(dest="what", metavar="WHAT", required=True)
    one = nouns.add_parser("check", help="explain the decision on an image; without one, the policy", epilog=_EXAMPLES,
                           description="Explain what the policy of this node says of an image, rule by rule; without "
                                       "an image, check the policy itself and tell what it says. Starts nothing.",
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    one.add_argument("image", metavar="IMAGE", nargs="?", help="name, digest or path of a manifest.yaml")
    one.add_argument("--as", metavar="USER", dest="user", help="as this user of the node (default: you)")
    one.add_argument("--group", metavar="GROUP", action="append", default=[],
                     help="in this group too (repeatable); with --as a user who need not exist")
    one.add_argument("--vo", metavar="VO", action="append", default=[], help="as a job of this VO (repeatable)")
    one.add_argument("--fqan", metavar="FQAN", action="append", default=[], help="with this group or role in the VO")
    one.add_argument("--policy", metavar="FILE", action="append", default=[],
                     help="this policy instead of those of the node (repeatable)")
    one.add_argument("--list", metavar="FILE", action="append", default=[], dest="lists",
                     help="signed image list that would travel with the job (repeatable)")
    one.add_argument("--payload-version", metavar="VERSION",
                     help="as if the payload had this vmjob (default: this one)")
    one.add_argument("--memory", metavar="SIZE", help="as if the job asked for this much memory")
    one.add_argument("--cpus", metavar="N", type=int, help="… this many CPUs")
    one.add_argument("--walltime", metavar="TIME", help="… this much time")
    one.add_argument("--network", choices=("nat", "isolated", "none"), default="nat", help="… this network")
    one.add_argument("--json", action="store_true", help="print the answer as JSON")
    one.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    one.set_defaults(handler=check)


def check(args: argparse.Namespace) -> int:
    """Explain; the exit status is 0 or that of PolicyRefused. Raises PolicyBroken."""
    from vmjob.core import config
    from vmjob.policy.file import load

    paths = [Path(path).absolute() for path in args.policy] or config.policy_files()
    policies = [load(path) for path in paths]
    if not args.image:
        return _summary(policies, args.json)
    return _explain(policies, args)


# ---------------------------------------------------------------- one image


def _explain(policies: Sequence[Policy], args: argparse.Namespace) -> int:
    import time
    from dataclasses import replace

    from vmjob.core import config
    from vmjob.core.errors import PolicyRefused
    from vmjob.core.progress import Reporter
    from vmjob.image.store.images import Store
    from vmjob.job.resolve import lists_of
    from vmjob.policy import admission
    from vmjob.policy.verdict import decide

    manifest, _ = Store(config.store_dir()).resolve(args.image)
    facts, job = _facts(args), _job(args)
    now, lists = time.time(), [Path(name) for name in args.lists]
    if not args.user:  # what would travel with a job of hers
        lists += lists_of(manifest, Reporter())
    asked = [admission.question(policy, job, manifest, lists, facts, now) for policy in policies]
    if args.payload_version:
        asked = [replace(one, version=args.payload_version) for one in asked]
    verdicts = [decide(policy, one) for policy, one in zip(policies, asked)]
    allowed = all(verdict.allowed for verdict in verdicts)
    if args.json:
        print(json.dumps(_document(policies, verdicts, manifest, facts, allowed), indent=1))
    else:
        _print(policies, verdicts, manifest, facts)
    return 0 if allowed else PolicyRefused.status


def _facts(args: argparse.Namespace) -> tuple[Fact, ...]:
    """Who asks: the user named, or whoever runs this, and what the options add."""
    import os

    from vmjob.policy.identity import known_user, who
    from vmjob.policy.verdict import Fact

    known = known_user(args.user, bool(args.group)) if args.user else who(os.environ)
    return (*known, *(Fact(kind, value, f"--{kind}", True) for kind in ("group", "vo", "fqan")
                      for value in getattr(args, kind)))


def _job(args: argparse.Namespace) -> Job:
    from vmjob.core.model import Job, Network, Resources
    from vmjob.core.units import parse_duration, parse_size

    return Job("check", args.image, ("true",), network=Network(args.network), resources=Resources(
        args.cpus, parse_size(args.memory, "--memory") if args.memory else None, None,
        parse_duration(args.walltime, "--walltime") if args.walltime else None))


def _print(policies: Sequence[Policy], verdicts: Sequence[Verdict], manifest: Manifest, facts: Sequence[Fact]) -> None:
    lines = [f"image     {manifest.name}  {manifest.digest}"]
    for kind in ("user", "group", "issuer", "vo", "fqan"):
        values = [fact.value + ("" if fact.vouched else f" (said by {fact.said_by}, not proved)") for fact in facts
                  if fact.kind == kind]
        lines += [f"{kind:<9} {', '.join(values)}"] if values else []
    for policy, verdict in zip(policies, verdicts):
        lines += ["", str(policy.file)]
        lines += [f"  {'fits' if step.fits else 'no  '}  rule {step.rule.number} ({step.rule.name}): {step.why}"
                  for step in verdict.steps]
        lines.append(f"{'allowed' if verdict.allowed else 'refused'}: {verdict.reason}")
        if verdict.allowed and (limits := _limits(verdict.limits)):
            lines.append(f"at most: {limits}")
        if verdict.hint:
            lines.append(f"→ {verdict.hint}")
    _tell("\n".join(lines if policies else [*lines, "", "allowed: there is no policy on this node"]))


def _document(policies: Sequence[Policy], verdicts: Sequence[Verdict], manifest: Manifest, facts: Sequence[Fact],
              allowed: bool) -> dict[str, Any]:
    from dataclasses import asdict

    return {"allowed": allowed, "image": manifest.name, "digest": manifest.digest,
            "asked_by": [asdict(fact) for fact in facts],
            "policies": [{"file": str(policy.file), "allowed": one.allowed, "reason": one.reason, "hint": one.hint,
                          "endorser": one.endorser, "limits": asdict(one.limits),
                          "rules": [{"number": step.rule.number, "name": step.rule.name, "fits": step.fits,
                                     "why": step.why} for step in one.steps]}
                         for policy, one in zip(policies, verdicts)]}


# ---------------------------------------------------------------- the policy itself


def _summary(policies: Sequence[Policy], as_json: bool) -> int:
    if as_json:
        print(json.dumps({"policies": [{"file": str(one.file), "rules": _count(one.rules), "denied": len(one.denied),
                                        "min_version": one.min_version,
                                        "trusted": len(one.trusted), "endorsers": [who.name for who in one.endorsers]}
                                       for one in policies]}, indent=1))
        return 0
    _tell("\n\n".join(map(_read, policies)) or "there is no policy on this node: every image may run")
    return 0


def _count(rules: Optional[Sequence[Rule]]) -> Optional[int]:
    return None if rules is None else len(rules)


def _read(policy: Policy) -> str:
    """The policy in words."""
    lines = [f"{policy.file}: well"]
    lines += [f"  payloads with a vmjob before {policy.min_version} may run nothing"] if policy.min_version else []
    lines += [f"  endorser {one.name}: {one.dn}, issued by {one.ca}"
              + (f", lists {' or '.join(one.lists)}" if one.lists else "") for one in policy.endorsers]
    lines += [f"  VO {one.name}: " + " or ".join(f"{kind} {' or '.join(globs)}" for kind, globs in (
        ("user", one.users), ("group", one.groups), ("token of", one.issuers)) if globs) for one in policy.vos]
    for rule in policy.rules or ():
        who = " and ".join(f"{kind} {' or '.join(globs)}" for kind, globs in rule.who) or "everybody"
        lines.append(f"  {rule.number}. {who} {_may(rule)}" + (f"; at most {limits}" if (limits := _limits(rule.limits))
                                                              else "") + f"  ({rule.name})")
    lines.append("  everybody may run every image" if policy.rules is None else "  nobody else may run anything")
    if limits := _limits(policy.limits):
        lines.append(f"  at most, for all: {limits}")
    lines += [f"  {len(policy.denied)} digests are denied, whatever else is said"] if policy.denied else []
    lines += [f"  {len(policy.trusted)} digests are trusted (endorser site)"] if policy.trusted else []
    return "\n".join(lines)


def _may(rule: Rule) -> str:
    images = f"the image {' or '.join(rule.images)}" if rule.images else "every image"
    by = f" endorsed by {' or '.join(rule.endorsers)}" if rule.endorsers else ""
    if not rule.allow:
        return f"may not run {images}{by}" if rule.images or by else "may run nothing"
    by = by or (", signed or not" if rule.unsigned else " that any endorser endorses")
    return f"may run {images}{by}" + (" and whose functionality test passed" if rule.tested else "")


def _tell(text: str) -> None:
    from vmjob.cli.report import show

    show(text)


def _limits(limits: Limits) -> str:
    from vmjob.core.units import format_duration, format_size

    return ", ".join(text for text in (
        f"memory {format_size(limits.memory)}" if limits.memory is not None else "",
        f"{limits.cpus} CPUs" if limits.cpus is not None else "",
        f"lifetime {format_duration(limits.lifetime)}" if limits.lifetime is not None else "",
        f"network {' or '.join(one.value for one in limits.networks) or 'none at all'}"
        if limits.networks is not None else "") if text)
