"""When a node takes no virtual machines, and when it does again: pure, state in, decision out.

A failure of a run is its user's word, and a reason to test: what counts is whether a test guest runs *now*. One that
does not takes the node offline, and one that does brings it back, and old failures are forgotten. VMs that fail
although the test guest runs keep only those away whose VMs failed, so that nobody takes a node away from others; where
they are of several users it is the node, for a while that doubles each time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vmjob.core.errors import BootFailed, KvmUnavailable
from vmjob.slot.register import HOUR, Failed

RETEST = 3600.0  # seconds after which a test guest runs again though all is well
DOUBT = 600.0  # the same, where KVM opens and the test guest failed on it: the node may have been busy
FIRST, LONGEST = 600.0, 6 * 3600.0  # seconds: the first time away, and the longest
FORGOTTEN = 12 * 3600.0  # seconds without more after which the next time is the first again
TWICE = 2  # failures of a user's VMs within the hour that are no accident
USERS = 2  # users, as many as that, whose VMs fail: then it is the node
_MOST = 200  # users that are remembered


@dataclass(frozen=True)
class Away:
    """A user's VMs, or all, stay away ``until`` then, the ``times``-th time, because of ``reason``."""

    until: float
    times: int
    reason: str


@dataclass(frozen=True)
class Health:
    """What the hook remembers. ``tested``: when a test guest last ran, on what (``key``: boot, QEMU and device).
    ``no_kvm``: why KVM is not used, ``doubtful``: though its device opens; ``broken``: why no guest runs at all.
    ``heard``: failures until then are answered by that test, and ``forgiven``: those until then are forgotten."""

    key: str = ""
    tested: float = 0.0
    no_kvm: str = ""
    doubtful: bool = False
    broken: str = ""
    heard: float = 0.0
    forgiven: float = 0.0
    away: Mapping[str, Away] = field(default_factory=dict)


def must_test(health: Health, failed: Sequence[Failed], key: str, now: float) -> bool:
    """Shall a test guest run now?"""
    age = now - health.tested
    return (key != health.key or bool(health.broken) or not 0 <= age < RETEST or (health.doubtful and age >= DOUBT)
            or any(one.ended > health.heard for one in failed))


def after_test(health: Health, failed: Sequence[Failed], key: str, now: float, *, no_kvm: str, broken: str,
               doubtful: bool = False) -> Health:
    """What is known after a test guest ran: ``no_kvm`` and ``broken`` as in Health."""
    fixed = bool(health.broken) and not broken
    # what lies further ahead than we ever say is of a clock that was set back
    away = {user: one for user, one in health.away.items() if -FORGOTTEN < one.until - now <= LONGEST}
    after = Health(key, now, no_kvm, doubtful, broken, heard=now, forgiven=now if fixed else min(health.forgiven, now),
                   away={} if fixed else away)
    return after if broken else replace(after, away=_blamed(after, failed, now))


def _blamed(health: Health, failed: Sequence[Failed], now: float) -> dict[str, Away]:
    """The test guest ran: whose VMs failed all the same?"""
    away = dict(health.away)
    for user in sorted({one.user for one in failed}):
        before = away.get(user, Away(0.0, 0, ""))
        since = max(health.forgiven, before.until, now - HOUR)
        found = _telling([one for one in failed if one.user == user and one.ended > since])
        if len(found) >= TWICE and now >= before.until and len(away) < _MOST:
            last = found[-1]
            until = now + min(LONGEST, FIRST * 2.0**before.times)
            away[user] = Away(until, before.times + 1, f"{last.kind}: {last.message}")
    return away


def _telling(failed: Sequence[Failed]) -> list[Failed]:
    """Those that speak against a node on which a test guest runs. That its KVM does not let this user in is no fault
    of others; an image that does not boot may be just that, unless several do not."""
    images = {one.image for one in failed if one.kind == BootFailed.__name__}
    return [one for one in failed if one.kind != KvmUnavailable.__name__
            and (one.kind != BootFailed.__name__ or len(images) > 1)]


def failing(health: Health, now: float) -> tuple[str, ...]:
    """Users whose VMs stay away now."""
    return tuple(sorted(user for user, one in health.away.items() if now < one.until))


def offline(health: Health, now: float, users: int = USERS) -> str:
    """Why the node takes no VMs, empty where it does. ``users``: VMs of so many must fail where a test guest runs."""
    if health.broken:
        return f"a test guest does not run: {health.broken}"
    names = failing(health, now)
    if len(names) < users:
        return ""
    latest = max((health.away[name] for name in names), key=lambda one: one.until)
    # as many must come back for it to be fewer
    until = sorted((health.away[name].until for name in names), reverse=True)[users - 1]
    when = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(until))
    return (f"virtual machines of {len(names)} user{'s' * (len(names) > 1)} ({', '.join(names[:5])}) failed though a "
            f"test guest runs, {latest.reason}; tried again after {when}")


# ---------------------------------------------------------------- kept from one time to the next


def to_json(health: Health) -> dict[str, Any]:
    return asdict(health)


def from_json(body: Any) -> Health:
    """Nothing is known where that is nonsense."""
    try:
        away = {str(user): Away(float(one["until"]), min(99, int(one["times"])), str(one["reason"]))
                for user, one in body["away"].items()}
        return Health(str(body["key"]), float(body["tested"]), str(body["no_kvm"]), body["doubtful"] is True,
                      str(body["broken"]), float(body["heard"]), float(body["forgiven"]), away)
    except (KeyError, TypeError, ValueError, AttributeError):
        return Health()
