"""A node's ad on its way: lines for HTCondor's startd, which makes them attributes of its machine ads; JSON; and back
from either. Pure, and distrustful of what comes back: a machine ad says what some startd was told to say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from vmjob import classads, sitead
from vmjob.site_errors import SiteBroken
from vmjob.sitead import KVM, TCG, NodeAd

ADVERTISED = f"{sitead.HAS} =!= undefined"  # constraint: machine ads of nodes with the hook
# what nodes_of reads of a machine ad, and what the expressions in it are made of
PROJECTION = (
    sitead.HAS, sitead.ACCEL, sitead.REASON, sitead.IMAGES, sitead.NETWORKS, sitead.MAX_MEMORY, sitead.MAX_CPUS,
    sitead.VERSION, sitead.FREE, sitead.RUNNING, sitead.OCCUPIED, sitead.OFFLINE, sitead.CHECKED, sitead.PROBLEMS,
    sitead.FAILING, sitead.EXPIRES, "Machine", "Name", "Cpus", "Memory", "TotalSlotCpus", "TotalSlotMemory",
    "TotalCpus", "TotalMemory", "State", "PartitionableSlot", "DynamicSlot", "Arch", "OpSysName", "OpSysMajorVer")

MOST_IMAGES = 200  # 14 KB of each slot's ad
_MOST_WORDS, _LONGEST, _LARGEST = 1000, 1000, 2**53
_MIB = 2**20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# of a partitionable slot Cpus and Memory are what is left: its dynamic slots add nothing
_DYNAMIC, _PARTITIONABLE = "DynamicSlot =?= true", "PartitionableSlot =?= true"


def node_ad_lines(ad: NodeAd, overhead: int, guest: int) -> list[str]:
    """``Attr = value``, as a STARTD_CRON job prints them; the last line, ``-``, ends the ad. ``overhead``: bytes of a
    slot beside a guest's memory; ``guest``: bytes of a slot that a guest of the default size takes.

    What differs between the slots of a node are expressions over the slot's own attributes, so that sums over all of
    them are right. HasVmjob is one over the time: what nobody renews is not true for ever."""
    alive = f"time() < {sitead.EXPIRES}"
    lost = classads.literal("the startd's hook of vmjob has said nothing for too long")
    if ad.has:
        has, offline = alive, f'{alive} ? "" : {lost}'
    else:
        has, offline = "false", classads.literal(ad.offline[:_LONGEST] or "no reason was told")
    slot = f"(TotalSlotMemory - {overhead // _MIB}) * 256 / 257"  # as slot.grant has it
    free = (f"{sitead.HAS} =!= true || {_DYNAMIC} || ({_PARTITIONABLE}) =!= true && State =!= \"Unclaimed\" ? 0 : "
            f"min({{Cpus, Memory / {-(-guest // _MIB)}}})")
    occupied = (f"{_DYNAMIC} ? 0 : {_PARTITIONABLE} ? TotalSlotCpus - Cpus : "
                "State =!= \"Unclaimed\" && State =!= \"Owner\" ? Cpus : 0")
    values = {
        sitead.HAS: has, sitead.OFFLINE: offline, sitead.EXPIRES: classads.literal(ad.expires),
        sitead.ACCEL: classads.literal(ad.accel), sitead.REASON: classads.literal(ad.reason[:_LONGEST]),
        sitead.IMAGES: classads.words(ad.images[:MOST_IMAGES]), sitead.NETWORKS: classads.words(ad.networks),
        sitead.MAX_MEMORY: f"max({{0, min({{{ad.max_memory // _MIB}, {slot}}})}})",
        sitead.MAX_CPUS: f"min({{{ad.max_cpus}, TotalSlotCpus}})", sitead.VERSION: classads.literal(ad.version),
        sitead.FREE: free, sitead.RUNNING: classads.literal(ad.running), sitead.OCCUPIED: occupied,
        sitead.CHECKED: classads.literal(ad.checked), sitead.FAILING: classads.words(ad.failing[:_MOST_WORDS]),
        sitead.PROBLEMS: classads.literal("; ".join(ad.problems)[:_LONGEST])}
    return [*(f"{name} = {value}" for name, value in values.items()), "-"]


# ---------------------------------------------------------------- back from a collector


def nodes_of(ads: Iterable[Any]) -> tuple[NodeAd, ...]:
    """The nodes that say what they do with VMs, from the machine ads of a collector (classad2's, with at least
    PROJECTION, or plain mappings): one for each machine, whatever its slots, by name. Pure."""
    machines: dict[str, list[Any]] = {}
    for ad in ads:
        name = _text(ad, "Machine")[:255]
        if name and isinstance(value(ad, sitead.HAS), bool):
            machines.setdefault(name, []).append(ad)
    return tuple(_node(name, machines[name]) for name in sorted(machines))


def _node(name: str, slots: Sequence[Any]) -> NodeAd:
    one = next((ad for ad in slots if value(ad, sitead.HAS) is True), slots[0])
    has = value(one, sitead.HAS) is True
    return NodeAd(
        machine=name, has=has, accel=KVM if _text(one, sitead.ACCEL) == KVM else TCG,
        reason=_text(one, sitead.REASON),
        images=tuple(word for word in _words(one, sitead.IMAGES) if _DIGEST.fullmatch(word)),
        networks=_words(one, sitead.NETWORKS)[:10],
        max_memory=max(_number(ad, sitead.MAX_MEMORY) for ad in slots) * _MIB,
        max_cpus=max(_number(ad, sitead.MAX_CPUS) for ad in slots), version=_text(one, sitead.VERSION),
        free=sum(_number(ad, sitead.FREE) for ad in slots) if has else 0,
        running=max(_number(ad, sitead.RUNNING) for ad in slots),
        occupied=sum(_number(ad, sitead.OCCUPIED) for ad in slots), offline=_text(one, sitead.OFFLINE),
        checked=_number(one, sitead.CHECKED), cpus=_number(one, "TotalCpus"),
        memory=_number(one, "TotalMemory") * _MIB,
        problems=tuple(filter(None, _text(one, sitead.PROBLEMS).split("; "))), arch=_text(one, "Arch").lower(),
        os=_text(one, "OpSysName").lower(), os_version=str(_number(one, "OpSysMajorVer") or ""),
        failing=_words(one, sitead.FAILING), expires=_number(one, sitead.EXPIRES))


def value(ad: Any, key: str) -> Any:
    """What an attribute comes to, expressions worked out; None where there is none."""
    try:
        return ad.eval(key)
    except (KeyError, AttributeError, ValueError, TypeError):  # none there; a plain mapping
        return ad.get(key)


def _text(ad: Any, key: str) -> str:
    found = value(ad, key)
    return classads.line(found[:_LONGEST]) if isinstance(found, str) else ""


def _words(ad: Any, key: str) -> tuple[str, ...]:
    found = value(ad, key)
    words = re.split(r"[\s,]+", found[:100 * _MOST_WORDS]) if isinstance(found, str) else []
    return tuple(dict.fromkeys(classads.line(word) for word in words if 0 < len(word) <= 255))[:_MOST_WORDS]


def _number(ad: Any, key: str) -> int:
    found = value(ad, key)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or found != found:
        return 0
    return int(min(max(found, 0), _LARGEST))


# ---------------------------------------------------------------- as JSON (schemas/node-ad.schema.json)


def to_json(ad: NodeAd) -> dict[str, Any]:
    """The document that node-ad.schema.json describes."""
    return {"schema": 1, **asdict(ad)}


def from_json(document: Any, where: str) -> NodeAd:
    """Back from what ``vmjob site advertise --json`` printed; ``where`` names it in messages. Raises SiteBroken."""
    from vmjob import schema

    body: Mapping[str, Any] = schema.check(document, "node-ad", where, SiteBroken)
    known = {one.name for one in fields(NodeAd)}
    found: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in body.items()
                             if key in known}
    return NodeAd(**found)
