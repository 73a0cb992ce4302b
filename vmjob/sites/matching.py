"""Which sites fit a job, and which of them is best: pure functions of what the job needs and what sites say of
themselves. Every answer comes with its reasons, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vmjob.ads.site_ad import KVM, Element, Nodes, SiteAd, SiteImage, covers, tag_of_name
from vmjob.batch.memory import FORGOTTEN, Mishap
from vmjob.core.model import Network
from vmjob.core.units import counted, format_duration, format_size

SOURCES, CARRIED = "sources", "carried"
SUBMITTED_TO = ("condor-ce", "condor")  # kinds of elements


@dataclass(frozen=True)
class Needs:
    """What a job asks of a site; ``needs_of`` in submit.anywhere makes it. ``digest``: empty: any image of this name.
    ``memory`` (bytes), ``cpus``: of the guest; ``walltime``: of the guest, and ``slot_walltime`` of the batch job
    around it, seconds, 0: not said. ``kvm``: fail rather than crawl. ``vo``: whose job it is, empty: not said.
    ``way``: how the image gets to a site: from its ``sources``, or ``carried`` with the job; empty: it must be there
    already."""

    image: str
    digest: str
    memory: int = 0
    cpus: int = 1
    walltime: int = 0
    slot_walltime: int = 0
    network: str = Network.NAT.value
    kvm: bool = False
    vo: str = ""
    way: str = ""
    arch: str = "x86_64"


@dataclass(frozen=True)
class Reason:
    """One thing that speaks for or against. ``sure`` is False where the site does not say enough to know, and for what
    would do, and is not good."""

    good: bool
    text: str
    sure: bool = True


@dataclass(frozen=True)
class Match:
    """One compute element of one site. ``score``: the higher, the better; it means nothing by itself."""

    site: str
    element: Element
    ok: bool
    reasons: tuple[Reason, ...]
    score: float = 0.0
    free: int = 0

    @property
    def against(self) -> tuple[Reason, ...]:
        return tuple(one for one in self.reasons if not one.good)

    @property
    def unsure(self) -> tuple[Reason, ...]:
        return tuple(one for one in self.reasons if one.good and not one.sure)


# What counts, most first: that it did not just fail, that KVM is real, that the image is known there, that slots are
# free. Sums of the lower never outweigh the higher, but for a failure that fades.
_KVM, _THERE, _PERHAPS, _FREE, _UNSURE = 8.0, 4.0, 2.0, 2.0, -0.5
_MISHAP, _MOST = -16.0, -48.0
HALF_LIFE = 900.0  # seconds


def match(needs: Needs, ad: SiteAd, element: Element, now: float) -> Match:
    """Does the site with this element fit? ``now``: seconds since 1970."""
    needs = _of_image(needs, ad, now)
    nodes, reasons = _nodes(needs, ad)
    image, value = _image(needs, ad, now)
    reasons = [*_element(needs, ad, element, now), _vo(needs, ad), *_walltime(needs, ad, element), *reasons, image]
    free = sum(one.free for one in nodes)
    score = value + (_FREE if free else 0) + sum(_UNSURE for one in reasons if not one.sure)
    score += _KVM if any(one.accel == KVM for one in nodes) else 0
    return Match(ad.name, element, all(one.good for one in reasons), tuple(reasons), score, free)


def matches(needs: Needs, ads: Iterable[SiteAd], now: float) -> list[Match]:
    """Each element of each site. A site that names none is there too, with none that could be sent to."""
    found = []
    for ad in ads:
        for element in ad.elements or (Element("", "", ""),):
            found.append(match(needs, ad, element, now))
    return found


def rank(found: Sequence[Match], memory: Mapping[str, Sequence[Mishap]], now: float) -> list[Match]:
    """Best first, those that do not fit last; of equal ones the one with more free, then with less that waits.
    ``memory``: recent failures by the element's URL; each weighs half as much after HALF_LIFE."""
    known = [_remembered(one, memory.get(one.element.url, ()), now) for one in found]
    return sorted(known, key=lambda one: (not one.ok, -round(one.score, 3), -one.free, one.element.waiting, one.site,
                                          one.element.url))


def _remembered(one: Match, mishaps: Sequence[Mishap], now: float) -> Match:
    fresh = sorted((each for each in mishaps if now - each.time < FORGOTTEN), key=lambda each: -each.time)
    if not fresh:
        return one
    weight = sum(_MISHAP * 0.5 ** (max(0.0, now - each.time) / HALF_LIFE) for each in fresh)
    last = fresh[0]
    times = f"{len(fresh)} times, last" if fresh[1:] else "once,"
    text = f"failed {times} {_ago(now - last.time)} ago ({last.kind}: {last.message})"
    return replace(one, score=one.score + max(weight, _MOST), reasons=(*one.reasons, Reason(True, text, False)))


# ---------------------------------------------------------------- one reason each


def _element(needs: Needs, ad: SiteAd, element: Element, now: float) -> list[Reason]:
    found = []
    if ad.expires and ad.expires <= now:
        found.append(Reason(False, f"what it says of itself expired {_ago(now - ad.expires)} ago"))
    if not element.url:
        found.append(Reason(False, "it names no compute element"))
    elif element.kind not in SUBMITTED_TO:
        what = "an ARC compute element" if element.kind == "arc" else f"a compute element of the kind {element.kind}"
        found.append(Reason(False, f"{element.url} is {what}: vmjob submits to HTCondor-CEs only (for others: vmjob "
                                   "pack)"))
    return found


def _vo(needs: Needs, ad: SiteAd) -> Reason:
    if not ad.vos:
        return Reason(True, "it does not say whose jobs it takes", False)
    if covers(ad.vos, needs.vo):
        return Reason(True, f"it takes jobs of {needs.vo or 'all VOs'}")
    names = ", ".join(ad.vos[:5]) + (" …" if ad.vos[5:] else "")
    if not needs.vo:
        return Reason(True, f"it takes jobs of {names}; of which VO this one is, was not said (--vo)", False)
    return Reason(False, f"it takes no jobs of {needs.vo}, only of {names}")


def _walltime(needs: Needs, ad: SiteAd, element: Element) -> list[Reason]:
    limits = [(ad.max_walltime, needs.walltime, "a guest"), (element.max_walltime, needs.slot_walltime,
                                                           f"a job in its queue {element.queue}")]
    for most, asked, what in limits:
        if most and asked > most:
            return [Reason(False, f"{what} gets {_time(most)}, and {_time(asked)} are asked for")]
    told = [most for most, _, _ in limits if most]
    if told and not needs.walltime:
        return [Reason(True, f"it gives {_time(min(told))}; how long the job runs was not said (--walltime)", False)]
    return [Reason(True, f"{_time(needs.walltime)} are within its limit")] if told else []


def _nodes(needs: Needs, ad: SiteAd) -> tuple[list[Nodes], list[Reason]]:
    """The nodes that fit, and why; where none does why not, of the kind that comes closest."""
    if not ad.nodes:
        return [], [Reason(not needs.kvm, "it tells nothing of its nodes" + (", so not that they have KVM" if needs.kvm
                                                                              else ""), needs.kvm)]
    if not ad.online:
        return [], [Reason(False, "none of its nodes takes VMs now" + _why(ad))]
    lacks = [(_lacks(needs, one), one) for one in ad.online]
    fit = [one for lack, one in lacks if not lack]
    if not fit:
        closest, one = min(lacks, key=lambda each: len(each[0]))
        return [], [Reason(False, f"{one.name}: {text}") for text in closest]
    best = fit[0]
    like = [one for one in fit if (one.accel, one.max_memory, one.max_cpus) ==
            (best.accel, best.max_memory, best.max_cpus)]
    total, these = (sum(one.online for one in some) for some in (fit, like))
    size = [f"{format_size(best.max_memory)} memory"] * bool(best.max_memory) + \
        [counted(best.max_cpus, "CPU")] * bool(best.max_cpus)
    of_these = f" for guests of up to {' and '.join(size)}" if size else ""
    others = f", and {counted(total - these, 'other')}" if total > these else ""
    free, real = sum(one.free for one in fit), best.accel == KVM
    fast = sum(one.online for one in fit if one.accel == KVM)
    some = f", on {fast} of the {total}" if fast < total else ""
    return fit, [Reason(True, counted(these, "node") + of_these + others),
                 Reason(True, f"KVM is real there{some}" if real else "no KVM: guests are emulated, and slow"
                        + (f" ({best.reason})" if best.reason else ""), real),
                 Reason(True, f"room for {counted(free, 'more guest')} now" if free
                        else "no room now: the job would wait", bool(free))]


def _of_image(needs: Needs, ad: SiteAd, now: float) -> Needs:
    """With what the site says that the image needs, where the image is not here to say so."""
    mine = [] if needs.digest else [one for one in ad.images if one.name == needs.image and _for(one, needs.vo)
                                    and not 0 < one.expires <= now]
    return replace(needs, memory=max(needs.memory, min(one.memory for one in mine)),
                   cpus=max(needs.cpus, min(one.cpus for one in mine))) if mine else needs


def _lacks(needs: Needs, one: Nodes) -> list[str]:
    found = []
    if needs.arch != one.arch:
        found.append(f"they are {one.arch}, the image is {needs.arch}")
    if needs.kvm and one.accel != KVM:
        found.append("accel: kvm is asked for, and there is none" + (f" ({one.reason})" if one.reason else ""))
    most = one.max_memory or one.memory
    if most and needs.memory > most:
        found.append(f"a guest gets {format_size(most)} memory, and {format_size(needs.memory)} are asked for")
    cpus = one.max_cpus or one.cpus
    if cpus and needs.cpus > cpus:
        found.append(f"a guest gets {counted(cpus, 'CPU')}, and {needs.cpus} are asked for")
    # nodes that have nat need nothing else for the other two
    if one.networks and needs.network not in one.networks and \
            (needs.network == Network.NAT.value or Network.NAT.value not in one.networks):
        found.append(f"the network {needs.network} is asked for, and they have {' and '.join(one.networks)}")
    return found


def _why(ad: SiteAd) -> str:
    reasons = [one.reason for one in ad.nodes if one.reason]
    return f" ({reasons[0]})" if reasons else ""


def _image(needs: Needs, ad: SiteAd, now: float) -> tuple[Reason, float]:
    """Also what it is worth."""
    name, images = needs.image, [one for one in ad.images if not one.expires or one.expires > now]
    same = [one for one in images if one.digest and (one.digest == needs.digest if needs.digest else one.name == name)]
    if any(_for(one, needs.vo) for one in same):
        sure = not needs.vo or any(covers(one.vos, needs.vo) for one in same)
        return Reason(True, f"the image {name} is there", sure), _THERE
    maybe = [one for one in images if not one.digest and tag_of_name(one.name) == tag_of_name(name)]
    if maybe:
        return Reason(True, f"an image called {name} is there; whether it is the same one, the site does not say",
                      False), _PERHAPS
    other = [one for one in images if one.digest and one.digest != needs.digest and one.name == name]
    lack = f"its image {name} is for {', '.join(same[0].vos[:5])}" if same else \
        f"its image {name} is another one ({other[0].digest[:19]}…)" if other else f"the image {name} is not there"
    if not covers(ad.unlisted, needs.vo) and (needs.vo or not ad.unlisted):
        whose = f"jobs of {needs.vo}" if needs.vo else "jobs"
        return Reason(False, f"{lack}, and {whose} may not bring their own"), 0.0
    if not needs.way:
        return Reason(False, f"{lack}, and there is nowhere to fetch it from"), 0.0
    how = "nodes fetch it from its sources" if needs.way == SOURCES else "it travels with the job"
    return Reason(True, f"{lack}: {how}", bool(needs.vo) or covers(ad.unlisted, "")), 0.0


def _for(one: SiteImage, vo: str) -> bool:
    return not vo or not one.vos or covers(one.vos, vo)


def _time(seconds: float) -> str:
    """Limits are mostly whole hours."""
    for unit, letter in ((3600, "h"), (60, "m")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds // unit:.0f}{letter}"
    return format_duration(seconds) if seconds >= 60 else f"{seconds:.0f} s"


def _ago(seconds: float) -> str:
    return _time(max(0.0, seconds))
