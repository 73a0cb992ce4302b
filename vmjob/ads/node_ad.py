"""A node's ad on its way: lines for HTCondor's startd, which makes them attributes of its machine ads; JSON; and back
from either. Pure, and distrustful of what comes back: a machine ad says what some startd was told to say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from vmjob.ads import site_ad
from vmjob.ads.site_ad import KVM, TCG, NodeAd
from vmjob.core import classads, codec
from vmjob.core.site_errors import SiteBroken

ADVERTISED = f"{site_ad.HAS} =!= undefined"  # constraint: machine ads of nodes with the hook
# what nodes_of reads of a machine ad, and what the expressions in it are made of
PROJECTION = (
    site_ad.HAS, site_ad.ACCEL, site_ad.REASON, site_ad.IMAGES, site_ad.NETWORKS, site_ad.MAX_MEMORY, site_ad.MAX_CPUS,
    site_ad.VERSION, site_ad.FREE, site_ad.RUNNING, site_ad.OCCUPIED, site_ad.OFFLINE, site_ad.CHECKED,
    site_ad.PROBLEMS,
    site_ad.FAILING, site_ad.EXPIRES, "Machine", "Name", "Cpus", "Memory", "TotalSlotCpus", "TotalSlotMemory",
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
    alive = f"time() < {site_ad.EXPIRES}"
    lost = classads.literal("the startd's hook of vmjob has said nothing for too long")
    if ad.has:
        has, offline = alive, f'{alive} ? "" : {lost}'
    else:
        has, offline = "false", classads.literal(ad.offline[:_LONGEST] or "no reason was told")
    slot = f"(TotalSlotMemory - {overhead // _MIB}) * 256 / 257"  # as slot.grant has it
    free = (f"{site_ad.HAS} =!= true || {_DYNAMIC} || ({_PARTITIONABLE}) =!= true && State =!= \"Unclaimed\" ? 0 : "
            f"min({{Cpus, Memory / {-(-guest // _MIB)}}})")
    occupied = (f"{_DYNAMIC} ? 0 : {_PARTITIONABLE} ? TotalSlotCpus - Cpus : "
                "State =!= \"Unclaimed\" && State =!= \"Owner\" ? Cpus : 0")
    values = {
        site_ad.HAS: has, site_ad.OFFLINE: offline, site_ad.EXPIRES: classads.literal(ad.expires),
        site_ad.ACCEL: classads.literal(ad.accel), site_ad.REASON: classads.literal(ad.reason[:_LONGEST]),
        site_ad.IMAGES: classads.words(ad.images[:MOST_IMAGES]), site_ad.NETWORKS: classads.words(ad.networks),
        site_ad.MAX_MEMORY: f"max({{0, min({{{ad.max_memory // _MIB}, {slot}}})}})",
        site_ad.MAX_CPUS: f"min({{{ad.max_cpus}, TotalSlotCpus}})", site_ad.VERSION: classads.literal(ad.version),
        site_ad.FREE: free, site_ad.RUNNING: classads.literal(ad.running), site_ad.OCCUPIED: occupied,
        site_ad.CHECKED: classads.literal(ad.checked), site_ad.FAILING: classads.words(ad.failing[:_MOST_WORDS]),
        site_ad.PROBLEMS: classads.literal("; ".join(ad.problems)[:_LONGEST])}
    return [*(f"{name} = {value}" for name, value in values.items()), "-"]


# ---------------------------------------------------------------- back from a collector


def nodes_of(ads: Iterable[Any]) -> tuple[NodeAd, ...]:
    """The nodes that say what they do with VMs, from the machine ads of a collector (classad2's, with at least
    PROJECTION, or plain mappings): one for each machine, whatever its slots, by name. Pure."""
    machines: dict[str, list[Any]] = {}
    for ad in ads:
        name = _text(ad, "Machine")[:255]
        if name and isinstance(value(ad, site_ad.HAS), bool):
            machines.setdefault(name, []).append(ad)
    return tuple(_node(name, machines[name]) for name in sorted(machines))


def _node(name: str, slots: Sequence[Any]) -> NodeAd:
    one = next((ad for ad in slots if value(ad, site_ad.HAS) is True), slots[0])
    has = value(one, site_ad.HAS) is True
    return NodeAd(
        machine=name, has=has, accel=KVM if _text(one, site_ad.ACCEL) == KVM else TCG,
        reason=_text(one, site_ad.REASON),
        images=tuple(word for word in _words(one, site_ad.IMAGES) if _DIGEST.fullmatch(word)),
        networks=_words(one, site_ad.NETWORKS)[:10],
        max_memory=max(_number(ad, site_ad.MAX_MEMORY) for ad in slots) * _MIB,
        max_cpus=max(_number(ad, site_ad.MAX_CPUS) for ad in slots), version=_text(one, site_ad.VERSION),
        free=sum(_number(ad, site_ad.FREE) for ad in slots) if has else 0,
        running=max(_number(ad, site_ad.RUNNING) for ad in slots),
        occupied=sum(_number(ad, site_ad.OCCUPIED) for ad in slots), offline=_text(one, site_ad.OFFLINE),
        checked=_number(one, site_ad.CHECKED), cpus=_number(one, "TotalCpus"),
        memory=_number(one, "TotalMemory") * _MIB,
        problems=tuple(filter(None, _text(one, site_ad.PROBLEMS).split("; "))), arch=_text(one, "Arch").lower(),
        os=_text(one, "OpSysName").lower(), os_version=str(_number(one, "OpSysMajorVer") or ""),
        failing=_words(one, site_ad.FAILING), expires=_number(one, site_ad.EXPIRES))


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
    return {"schema": 1, **codec.write(ad)}


def from_json(document: Any, where: str) -> NodeAd:
    """Back from what ``vmjob site advertise --json`` printed; ``where`` names it in messages. Raises SiteBroken."""
    from vmjob.core import schema

    return codec.read(NodeAd, schema.check(document, "node-ad", where, SiteBroken), where, error=SiteBroken)
