"""What this node says of its virtual machines: gathered again each time, but for the test guest, which runs when
something speaks for it (node.health). What is remembered is in ``node.json`` of the cache of whoever asks: the user of
the startd."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from vmjob.ads.site_ad import KVM, TCG, NodeAd
from vmjob.core import config
from vmjob.core.errors import VmjobError
from vmjob.core.files import write_whole
from vmjob.core.machinetext import lines, read
from vmjob.core.model import Network, QemuInfo
from vmjob.core.units import MIB
from vmjob.node import health
from vmjob.node.health import Health
from vmjob.slot import register

if TYPE_CHECKING:
    from vmjob.policy.file import Limits, Policy

VALIDITY = 900  # seconds for which at least an answer counts
_KVM = Path("/dev/kvm")
_DEADLINE = {KVM: 5.0, TCG: 20.0}  # seconds for a test guest: it needs 0.1, on a busy node more
_MOST = 2**24  # bytes of node.json


@dataclass(frozen=True)
class Answer:
    """``overhead``: bytes that a slot needs beside a guest's memory; ``guest``: of a slot for a default guest."""

    ad: NodeAd
    overhead: int
    guest: int


def answer(*, users: int = health.USERS, validity: int = VALIDITY, now: Optional[float] = None) -> Answer:
    """What this node says. ``users``: see node.health.offline; ``now``: seconds since 1970, None for the clock's. Never
    raises a VmjobError: the node is offline for that reason then."""
    moment = time.time() if now is None else now
    try:
        ad = _ad(moment, users)
    except VmjobError as failure:
        ad = replace(base(), offline=failure.message)
    except OSError as failure:
        ad = replace(base(), offline=f"{failure.filename or 'this node'}: {failure.strerror or failure}")
    return _complete(ad, validity, moment)


def silent(reason: str, validity: int = VALIDITY) -> Answer:
    """The answer of a node that could not find out what to say."""
    return _complete(replace(base(), offline=reason), validity, time.time())


def base() -> NodeAd:
    """What is always known: it takes none, for a reason still to be told."""
    from vmjob.core.version import __version__

    return NodeAd(os.uname().nodename, False, version=__version__, arch=os.uname().machine)


def _complete(ad: NodeAd, validity: int, now: float) -> Answer:
    from vmjob.slot.grant import DEFAULT_MEMORY, needed_memory, overhead_of

    overhead = overhead_of(ad.accel)
    # in steps, so that an answer that says the same is the same, and the startd has nothing to publish
    expires = (int(now) // validity + 2) * validity
    return Answer(replace(ad, expires=expires), overhead, needed_memory(DEFAULT_MEMORY, overhead))


def _ad(now: float, users: int) -> NodeAd:
    """Raises VmjobError, OSError."""
    from vmjob.node import check
    from vmjob.slot.grant import DEFAULT_MEMORY, needed_memory, overhead_of

    known = _load()
    seen = register.survey(register.folder(), now)
    limits = _limits()
    _accounted()
    images, manifests, wrong = _images(known, seen)
    well, qemu = _health(health.from_json(known.get("health")), seen, now)
    _save({"health": health.to_json(well), "manifests": manifests})
    accel = TCG if well.no_kvm else KVM
    overhead, (total, available) = overhead_of(accel), _memory()
    cpus = os.cpu_count() or 1
    fits = max(0, min(cpus - seen.running, available // needed_memory(DEFAULT_MEMORY, overhead)))
    most = (total - overhead) * 256 // 257  # see grant.needed_memory
    why = health.offline(well, now, users)
    networks, refused = _networks(qemu, limits)
    checks = check.standing()
    # it says the same of the folder of runs
    told = any(one.name == "runs" and one.level != "ok" for one in checks)
    return replace(
        base(), has=not why, offline=why, accel=accel, reason=well.no_kvm or f"a test guest ran on {_KVM}",
        images=images, networks=networks, max_memory=_least(limits.memory, most), max_cpus=_least(limits.cpus, cpus),
        free=0 if why else fits, running=seen.running, occupied=min(cpus, seen.running), checked=int(well.tested),
        cpus=cpus, memory=total, failing=health.failing(well, now), problems=tuple(filter(None, (
            "" if told else seen.problem, wrong, refused, *check.problems(checks)))))


def _least(limit: Optional[int], value: int) -> int:
    return max(0, value if limit is None else min(limit, value))


# ---------------------------------------------------------------- does a test guest run?


def _health(before: Health, seen: register.Seen, now: float) -> tuple[Health, Optional[QemuInfo]]:
    from vmjob.vm import probe
    from vmjob.vm.probe_guest import run_test_guest

    try:
        qemu = probe.find_qemu()
    except VmjobError as missing:  # nothing that can run a test guest, and when it is back one must
        why = missing.message
        return health.after_test(before, seen.failed, "", now, no_kvm=why, broken=why), None
    closed = probe.device_problem(_KVM) or ""
    key = f"{config.boot_id()} {probe.key(qemu.path)} {closed}"
    if not health.must_test(before, seen.failed, key, now):
        return before, qemu
    no_kvm = closed or run_test_guest(qemu.path, KVM, _DEADLINE[KVM]) or ""
    # without KVM it must be emulation that runs a guest
    broken = run_test_guest(qemu.path, TCG, _DEADLINE[TCG]) or "" if no_kvm else ""
    if no_kvm and not closed:
        no_kvm = f"{_KVM} opens, but {no_kvm}"
    return health.after_test(before, seen.failed, key, now, no_kvm=no_kvm, broken=broken,
                             doubtful=bool(no_kvm and not closed)), qemu


# ---------------------------------------------------------------- what it has and allows


def _limits() -> Limits:
    """What all policies here allow to somebody. Raises PolicyBroken."""
    from vmjob.policy.file import Limits, load

    return reduce(Limits.also, (allowed(load(path)) for path in config.policy_files()), Limits())


def _accounted() -> None:
    """Raises SiteBroken, RecordSpoolFull where every job would fail, as nothing runs unaccounted."""
    from vmjob.accounting import spool_check
    from vmjob.ads import site_yaml
    from vmjob.core.site_errors import RecordSpoolFull

    path = site_yaml.find()
    site = site_yaml.load(path) if path else None
    for fault in spool_check.faults(site.accounting.spool) if site and site.accounting else ():
        if fault.fatal:
            raise RecordSpoolFull(fault.text, fault.action)


def allowed(policy: Policy) -> Limits:
    """The most that a policy gives to those whom it gives most. Pure."""
    from vmjob.policy.file import Limits

    if policy.rules is None:
        return policy.limits
    return Limits.widest([rule.limits.also(policy.limits) for rule in policy.rules if rule.allow])


def _networks(qemu: Optional[QemuInfo], limits: Limits) -> tuple[tuple[str, ...], str]:
    """What guests really get, and what is wrong: a NAT without a way out is none."""
    from vmjob.vm import net

    if qemu is None:
        return (), ""
    found, wrong = [Network.ISOLATED, Network.NONE], ""
    try:
        link = net.plan(Network.NAT, qemu)
        if link.kind in ("passt", "user"):
            found.insert(0, Network.NAT)
        else:
            wrong = link.description
    except VmjobError as refused:
        wrong = refused.message
    return tuple(one.value for one in found if limits.networks is None or one in limits.networks), wrong


def _images(known: dict[str, Any], seen: register.Seen) -> tuple[tuple[str, ...], dict[str, list[str]], str]:
    """Digests, those in the shared cache first; what to remember; what is wrong."""
    shared = config.shared_cache()
    if shared is None:
        return seen.images, {}, ""
    from vmjob.image.store.shared import whole_images

    before = known.get("manifests")
    images, manifests, wrong = whole_images(shared, before if isinstance(before, dict) else {})
    return tuple(dict.fromkeys([*images, *seen.images])), manifests, wrong


def _memory() -> tuple[int, int]:
    """Bytes of this node, and those that are free now."""
    found = {}
    for line in lines(read(Path("/proc/meminfo"))):
        key, _, rest = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            found[key] = int(rest.split()[0]) * 1024
    return found.get("MemTotal", 0) // MIB * MIB, found.get("MemAvailable", 0)


def named(ad: NodeAd) -> NodeAd:
    """With the node's full name and system, which in a pool the machine ad has already."""
    import socket

    name = ad.machine if "." in ad.machine else socket.getfqdn() or ad.machine
    system = {}
    with suppress(OSError):
        for line in lines(read(Path("/etc/os-release"))):
            key, _, value = line.partition("=")
            system[key] = value.strip("\"'")
    return replace(ad, machine=name, os=system.get("ID", ""), os_version=system.get("VERSION_ID", ""))


# ---------------------------------------------------------------- what is remembered


def _place() -> Path:
    return config.cache_dir() / "node.json"


def _load() -> dict[str, Any]:
    """Nothing where the file is missing, broken or somebody else's."""
    try:
        with _place().open("rb") as stream:
            if os.fstat(stream.fileno()).st_uid != os.getuid():
                return {}
            body = json.loads(stream.read(_MOST))
    except (OSError, ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _save(body: dict[str, Any]) -> None:
    """Raises OSError: a node that forgets its failures would be offline never."""
    path = _place()
    text = json.dumps(body)
    if path.exists() and path.read_text(errors="replace") == text:
        return
    write_whole(path, text)
