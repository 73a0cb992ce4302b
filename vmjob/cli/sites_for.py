"""``vmjob sites --for`` and ``vmjob submit --to any``: why a site fits a job or not, and what was chosen."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from vmjob.cli import report
from vmjob.cli.jobargs import job_of
from vmjob.core.errors import ImageMissing, JobError
from vmjob.core.escapes import shown
from vmjob.core.site_errors import NoSiteFits
from vmjob.core.units import counted

if TYPE_CHECKING:
    from vmjob.sites.matching import Match, Needs
    from vmjob.sites.read import Found

# what job_of asks for besides the options that vmjob sites has
_NONE: dict[str, Any] = {"name": None, "disk": None, "input": [], "output": [], "outputs_to": None, "env": [],
                         "user": None, "boot": None}


def asked(args: argparse.Namespace) -> bool:
    """Does ``vmjob sites`` have a job to explain sites by? Raises JobError for options that need one."""
    if args.job or args.image:
        if args.name:
            raise JobError(f"{args.name}: with --for and --image all sites are explained", "leave the name out")
        return True
    for key in ("cpus", "memory", "walltime", "accel", "network", "requirements"):
        if getattr(args, key):
            raise JobError(f"--{key} is about a job", "say which: --for JOB.yaml or --image IMAGE")
    return False


def forget(args: argparse.Namespace) -> bool:
    """``--forget``; was that all that was asked for?"""
    from vmjob.batch import memory

    if args.forget:
        alone = not (args.job or args.image or args.name)
        try:
            count = memory.forget()
            if alone and args.json:
                report.show(json.dumps({"forgotten": count}))
            else:
                report.say(f"forgot {counted(count, 'failure')}")
            return alone
        except OSError as refused:
            raise JobError(f"{memory.path()}: cannot be removed: {refused.strerror}",
                           "check its folder's permissions") from refused
    return False


def needs_of(args: argparse.Namespace, vo: str) -> Needs:
    """What the job of the options needs. An image that is not in the user's store is looked for by its name."""
    from vmjob.sites.matching import Needs
    from vmjob.submit import anywhere

    job, _ = job_of(argparse.Namespace(**{**vars(args), **_NONE, "command": None if args.job else ["true"]}))
    try:
        return anywhere.needs_here(job, vo, args.carry_image)
    except ImageMissing:
        if args.job or "/" in job.image or job.image.startswith("sha256:"):
            raise
        report.say(f"the image {job.image} is not in your store: any that a site calls so will do")
        return Needs(job.image, "", job.resources.memory or 0, job.resources.cpus or 1, job.resources.walltime or 0,
                     job.resources.walltime or 0, job.network.value, args.accel == "kvm", vo)


def sites(args: argparse.Namespace) -> int:
    """``vmjob sites --for``: 0 where some site fits, else the status of NoSiteFits."""
    from vmjob.cli.sites_options import found
    from vmjob.sites import sources

    if args.requirements:
        return _requirements(args, needs_of(args, args.vo if args.vo is not None else sources.load().vo))
    needs = needs_of(args, "")  # what is wrong with the job is said before anybody is asked
    answer, vo = found(args)
    return _explain(args, answer, replace(needs, vo=vo))


def _requirements(args: argparse.Namespace, needs: Needs) -> int:
    from vmjob.sites.requirements import expression

    text = expression(needs, args.requirements)
    report.show(json.dumps({"dialect": args.requirements, "requirements": text}) if args.json else text)
    return 0


def _explain(args: argparse.Namespace, answer: Found, needs: Needs) -> int:
    from vmjob.submit.anywhere import candidates

    ranked = candidates(needs, answer.sites)
    fit = [one for one in ranked if one.ok]
    if args.json:
        report.show(json.dumps({"needs": asdict(needs), "sites": [_document(one) for one in ranked],
                                "troubles": [{"kind": one.kind, "message": one.message} for one in answer.troubles],
                                "notes": list(answer.notes)}, indent=1))
        return 0 if fit else NoSiteFits.status
    for number, one in enumerate(ranked):
        report.show("\n".join(_lines(one, number == 0 and one.ok)))
    report.say(f"{len(fit)} of {len(ranked)} compute elements fit" + (
        f"; vmjob submit --to any would take {fit[0].site}" if fit else ""))
    return 0 if fit else NoSiteFits.status


def _lines(one: Match, first: bool) -> list[str]:
    """``+`` speaks for it, ``-`` against, ``?`` cannot be known or is a doubt."""
    queue = "" if one.element.queue in ("", "default") else f"queue {one.element.queue}  "
    fits = "fits, the best" if first else "fits" if one.ok else "does not fit"
    head = f"{one.site}  {one.element.url}  {queue}{fits}"
    marks = [("-" if not each.good else "+" if each.sure else "?", each.text) for each in one.reasons]
    marks.sort(key=lambda each: "-+?".index(each[0]))
    return [shown(head), *(shown(f"  {mark} {text}") for mark, text in marks)]


def _document(one: Match) -> dict[str, Any]:
    return {"site": one.site, "url": one.element.url, "kind": one.element.kind, "queue": one.element.queue,
            "fits": one.ok, "score": round(one.score, 3), "free": one.free, "waiting": one.element.waiting,
            "reasons": [asdict(each) for each in one.reasons]}
