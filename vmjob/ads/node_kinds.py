"""The worker nodes of a site or a pool together, by kind. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from vmjob.ads.site_ad import KVM, NodeAd, Nodes, line
from vmjob.core.units import GIB

KINDS = 200  # that a site can have; more are put together


def kinds(on: Sequence[NodeAd], off: Sequence[NodeAd]) -> tuple[Nodes, ...]:
    """The nodes of a site, those of one kind together; KVM first. ``off``: those that take no VMs now. Each is with
    those that it is like, if there are any: what its probe would say is not known."""
    groups: dict[tuple[Any, ...], list[NodeAd]] = {}
    for ad in on:
        groups.setdefault((ad.accel, *_like(ad), ad.networks, _rough(ad.max_memory), ad.max_cpus), []).append(ad)
    groups = groups if len(groups) <= KINDS else _coarser(on)
    idle: dict[tuple[Any, ...], list[NodeAd]] = {}
    for ad in off:
        key = next((key for key in groups if key[1:6] == _like(ad)), None)
        idle.setdefault(key or (ad.accel, *_like(ad)), []).append(ad)
    made = [_nodes(ads, idle.pop(key, [])) for key, ads in groups.items()]
    made += [_nodes([], ads) for ads in idle.values()]
    return _named(sorted(made[:KINDS], key=lambda one: (one.accel != KVM, not one.online, -one.cpus, -one.memory)))


def _like(ad: NodeAd) -> tuple[Any, ...]:
    return ad.arch, ad.os, ad.os_version, ad.cpus, _rough(ad.memory)


def _rough(size: int) -> int:
    """Machines of one kind do not have the same memory to the byte."""
    return round(math.log2(size) * 8) if size else 0


def _coarser(ads: Iterable[NodeAd]) -> dict[tuple[Any, ...], list[NodeAd]]:
    groups: dict[tuple[Any, ...], list[NodeAd]] = {}
    for ad in ads:
        groups.setdefault((ad.accel, ad.arch, "", "", 0, 0), []).append(ad)
    return groups


def _nodes(on: Sequence[NodeAd], off: Sequence[NodeAd]) -> Nodes:
    """One kind; what is said of one node is what each has."""
    first, ads = (on or off)[0], on or off
    offline = next((ad.offline or ad.reason for ad in off), "")
    networks = tuple(line(word, 40) for word in first.networks[:10] if all(word in ad.networks for ad in ads))
    return Nodes(
        "", first.accel, line(first.reason if on else offline), networks, len(on) + len(off), len(on),
        min(ad.cpus for ad in ads), min(ad.memory for ad in ads), min(ad.max_memory for ad in ads),
        min(ad.max_cpus for ad in ads), sum(ad.free for ad in on), sum(ad.running for ad in (*on, *off)),
        sum(ad.occupied for ad in (*on, *off)), line(first.arch, 40),
        line(first.os, 40), line(first.os_version, 40))


def _named(made: Iterable[Nodes]) -> tuple[Nodes, ...]:
    """Names that stay the same from one update to the next, as others keep them: kvm-64cpus-256gib."""
    names: dict[str, int] = {}
    found = []
    for one in made:
        name = f"{one.accel}-{one.cpus}cpus-{round(one.memory / GIB)}gib"
        names[name] = names.get(name, 0) + 1
        found.append(replace(one, name=name if names[name] == 1 else f"{name}-{names[name]}"))
    return tuple(found)
