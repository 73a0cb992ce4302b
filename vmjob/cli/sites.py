"""``vmjob sites``: which sites run virtual machines, and what each has."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmjob.cli.sites_options import found, source_options

if TYPE_CHECKING:
    from vmjob.ads.site_ad import SiteAd, SiteImage
    from vmjob.sites.read import Found, Known

_EXAMPLES = """\
examples:
  vmjob sites                                        all that your sites.yaml leads to
  vmjob sites --from ldap://bdii.example.org:2170    ask this BDII instead
  vmjob sites --from condor-ce://ce.example.org --from https://example.org/site.json --vo star
  vmjob sites --for job.yaml                         why each fits this job or not, the best first
  vmjob sites EXAMPLE-SITE                           all that is known of one, its images too

Where to ask is in ~/.config/vmjob/sites.yaml (vmjob schema sites describes it). The exit status is 206 where nothing
that tells of sites answers, and 207 where what it tells cannot be believed.
"""


def add_verbs(verbs: Any) -> None:
    """The verb ``sites``."""
    from vmjob.cli.sites_options import for_options

    one = verbs.add_parser("sites", epilog=_EXAMPLES,
                           description="Which sites run virtual machines, what each has, and whose jobs it takes.",
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    one.add_argument("name", metavar="NAME", nargs="?", help="all that is known of this site")
    source_options(one)
    for_options(one)
    one.add_argument("--json", action="store_true", help="print it as JSON")
    one.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    one.set_defaults(handler=sites)


def sites(args: argparse.Namespace) -> int:
    """List them. Raises what ``found`` does, and NoSiteFits for a site that nobody tells of."""
    from vmjob.ads.site_ad import covers
    from vmjob.cli import sites_for

    if sites_for.forget(args):
        return 0
    if sites_for.asked(args):
        return sites_for.sites(args)
    answer, vo = found(args)
    shown = tuple(one for one in answer.known if not vo or not one.ad.vos or covers(one.ad.vos, vo))
    if args.name:
        shown = (_named(args.name, answer),)
    if args.json:
        print(json.dumps(_document(shown, answer), indent=1))
    elif args.name:
        _tell("\n".join(_details(shown[0], vo)))
    elif shown:
        _tell(_table(shown, vo))
    else:
        there = f"; {len(answer.known)} take others' jobs" if answer.known else ""
        _tell(f"no site is known that runs virtual machines{f' of the VO {vo}' if vo else ''}{there}")
    return 0


def _named(name: str, answer: Found) -> Known:
    from difflib import get_close_matches

    from vmjob.core.site_errors import NoSiteFits

    by_name = {one.ad.name: one for one in answer.known}
    if name not in by_name:
        low = {one.lower(): one for one in by_name}
        if [one.lower() for one in by_name].count(name.lower()) == 1:
            return by_name[low[name.lower()]]
        close = get_close_matches(name.lower(), list(low), 1)
        raise NoSiteFits(f"nobody tells of a site '{name}'",
                         f"did you mean '{low[close[0]]}'?" if close else "vmjob sites lists those that are known")
    return by_name[name]


def _document(shown: Sequence[Known], answer: Found) -> dict[str, Any]:
    from vmjob.ads.site_ad import to_json

    return {"sites": [{"site": to_json(one.ad), "source": str(one.source), "asked": round(one.asked),
                       "stale": one.stale} for one in shown],
            "troubles": [{"kind": one.kind, "message": one.message, "hint": one.hint, "transient": one.transient}
                         for one in answer.troubles],
            "notes": list(answer.notes)}


def _tell(text: str) -> None:
    from vmjob.cli.report import show

    show(text)


# ---------------------------------------------------------------- for people


def _table(shown: Sequence[Known], vo: str) -> str:
    from vmjob.cli.tables import table

    return table(["SITE", "CE", "ACCEL", "FREE", "RUNNING", "MEMORY", "CPUS", "WALLTIME", "IMAGES", "VOS", "AGE"],
                 [_row(one, vo) for one in shown])


def _row(one: Known, vo: str) -> list[str]:
    """``vo``: whose images count, empty: all."""
    from vmjob.ads.site_ad import covers
    from vmjob.core.units import format_size

    ad = one.ad
    nodes = ad.online
    offline = "offline" if ad.nodes and not nodes else "?"
    count = sum(not vo or covers(image.vos, vo) for image in ad.images)
    more = covers(ad.unlisted, vo) if vo else ad.unlisted
    first = ad.elements[0].url if ad.elements else ""
    return [ad.name, first + (f" +{len(ad.elements) - 1}" if len(ad.elements) > 1 else ""),
            nodes[0].accel if nodes else offline, _sum(ad, "free"), _sum(ad, "running"),
            format_size(most) if (most := max((node.max_memory for node in nodes), default=0)) else "",
            str(cpus) if (cpus := max((node.max_cpus for node in nodes), default=0)) else "",
            _walltime(ad.max_walltime), f"{count}{'+' if more else ''}", _vos(ad.vos, 3), _age(one)]


def _sum(ad: SiteAd, key: str) -> str:
    return str(sum(getattr(node, key) for node in ad.online)) if ad.online else ""


def _walltime(seconds: int) -> str:
    """Whole hours as batch systems have them; no limit is nothing."""
    from vmjob.core.units import format_duration

    whole = seconds >= 3600 and seconds % 3600 == 0
    return f"{seconds // 3600}h" if whole else format_duration(seconds) if seconds else ""


def _vos(vos: Sequence[str], most: int) -> str:
    more = f" +{len(vos) - most}" if len(vos) > most else ""
    return ("all" if "*" in vos else ", ".join(vos[:most]) + more) if vos else "?"


def _age(one: Known) -> str:
    """Since the site said it, or if that is not known since it was asked."""
    seconds = max(0, int(time.time() - (one.ad.created or one.asked)))
    text = f"{seconds} s" if seconds < 60 else f"{seconds // 60}m" if seconds < 5400 else f"{seconds // 3600}h"
    return f"{text}, stale" if one.stale else text


def _details(one: Known, vo: str) -> list[str]:
    """``vo``: whose images are shown, empty: all."""
    from vmjob.ads.site_ad import covers
    from vmjob.core.units import format_size

    ad = one.ad
    images = [image for image in ad.images if not vo or covers(image.vos, vo)]
    facts = [("site", ad.name), ("says", ad.description), ("web", ad.web), ("contact", ad.contact),
             ("country", ad.country), ("vmjob", ad.version), ("VOs", _vos(ad.vos, 1000)),
             ("walltime", _walltime(ad.max_walltime)),
             ("images", f"{len(images)}, and what jobs of {_vos(ad.unlisted, 1000)} VOs bring" if "*" in ad.unlisted
              else f"{len(images)}, and what jobs of {_vos(ad.unlisted, 1000)} bring" if ad.unlisted
              else str(len(images))),
             ("told by", f"{one.source}, {_age(one)} old" if not one.stale else f"{one.source}: {_age(one)}")]
    lines = [f"{word:<10}{text}" for word, text in facts if text]
    lines += [f"{'CE':<10}{ce.url}  ({ce.batch}, queue {ce.queue}"
              + (f", {_walltime(ce.max_walltime)}" if ce.max_walltime else "") + ")" for ce in ad.elements]
    for node in ad.nodes:
        about = ", ".join(filter(None, (
            node.accel + (f" ({node.reason})" if node.reason else ""), f"networks {' '.join(node.networks)}",
            f"guests of {node.max_cpus} CPUs and {format_size(node.max_memory)}" if node.max_memory else "",
            f"{node.free} free, {node.running} running, {node.occupied} CPUs taken")))
        lines.append(f"{'nodes':<10}{node.name}: {node.online} of {node.total} take VMs, {about}")
    return [*lines, *(["", _images(images)] if images else [])]


def _images(images: Sequence[SiteImage]) -> str:
    from vmjob.cli.tables import table
    from vmjob.core.units import format_size

    rows = [[one.name, one.version, one.digest[:19], " ".join(filter(None, (one.os, one.os_version))), one.arch,
             format_size(one.size) if one.size else "", _vos(one.vos, 3), one.endorser[:60],
             time.strftime("%Y-%m-%d", time.gmtime(one.expires)) if one.expires else ""]
            for one in sorted(images, key=lambda image: image.name)]
    return table(["IMAGE", "VERSION", "DIGEST", "SYSTEM", "ARCH", "SIZE", "VOS", "ENDORSED BY", "UNTIL"], rows)
