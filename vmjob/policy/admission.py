"""May this job run on this node? What its site's policies say, asked before anything is read or booted; the answer is
in the result and in syslog.

Who vouches for what is known of who asks: see policy.identity. Where there is no policy nothing is imported and nothing
asked.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from vmjob.core import config
from vmjob.core.errors import EndorsementRefused, PolicyBroken
from vmjob.core.model import Job, Manifest, Payload, Slot
from vmjob.core.result import Decision
from vmjob.image.trust.subscriptions import own_withdrawal

if TYPE_CHECKING:
    from vmjob.policy.file import Limits, Policy
    from vmjob.policy.verdict import Asked, Fact

log = logging.getLogger("vmjob.run")

DEV_LOG = "/dev/log"
_LOGGED = 300  # characters of one value: a line must fit into a message of 1 KiB


@dataclass(frozen=True)
class Admission:
    """``decision`` None: nobody has a say here. ``slot``: what is left of it within the policies' limits; ``hint``:
    what whoever was refused can do. ``vos``: those that the policies find whoever asks in."""

    decision: Optional[Decision]
    slot: Slot
    hint: str = ""
    vos: tuple[Fact, ...] = ()


def admit(payload: Payload, slot: Slot, *, now: Optional[float] = None) -> Admission:
    """Ask all policies of this node; the first that refuses decides. ``now``: seconds since 1970, None for the clock's.

    Raises PolicyBroken where one cannot be relied on: that is never "no policy"."""
    paths = config.policy_files()
    if not paths:
        gone = own_withdrawal(payload.manifest)
        decision = Decision(False, f"the image {payload.manifest.name} was withdrawn: {gone}") if gone else None
        return Admission(decision, slot, "use the version that the list has now" if gone else "")
    import time

    from vmjob.policy.identity import who

    facts = who(os.environ)
    try:
        admission = _ask(paths, payload, slot, facts, time.time() if now is None else now)
    except PolicyBroken as broken:
        _tell("broken", payload, facts, broken.message)
        raise
    assert admission.decision
    _tell("allowed" if admission.decision.allowed else "refused", payload, facts, admission.decision.reason,
          admission.decision.endorser)
    return admission


def _ask(paths: Sequence[Path], payload: Payload, slot: Slot, facts: tuple[Fact, ...], now: float) -> Admission:
    from vmjob.policy.file import Limits, load
    from vmjob.policy.verdict import decide, vos_of

    verdicts, vos = [], []
    for path in paths:
        policy = load(path)
        vos += vos_of(policy, facts)
        verdicts.append(decide(policy, question(policy, payload.job, payload.manifest, payload.lists, facts, now)))
        if not verdicts[-1].allowed:
            break
    last = verdicts[-1]
    reason = "; ".join(one.reason for one in verdicts) if last.allowed else last.reason
    decision = Decision(last.allowed, reason, next((one.endorser for one in verdicts if one.endorser), ""),
                        tuple(map(str, paths)))
    limits = reduce(Limits.also, (one.limits for one in verdicts))
    return Admission(decision, _narrowed(slot, payload.job, limits) if last.allowed else slot, last.hint, tuple(vos))


def _narrowed(slot: Slot, job: Job, limits: Limits) -> Slot:
    """The slot as the policies leave it to a job that does not say what it wants: such a one takes what it gets."""
    wants = job.resources
    for key, asked, most, has in (("cpus", wants.cpus, limits.cpus, slot.cpus),
                                  ("time_left", wants.walltime, limits.lifetime, slot.time_left)):
        if asked is None and most is not None and (has is None or has > most):
            said = (*(one for one in slot.sources if not one.startswith(f"{key}=")), f"{key}=policy")
            slot = replace(slot, sources=said, **{key: most})  # type: ignore[arg-type]
    if wants.memory is None and limits.memory is not None:
        slot = replace(slot, guest_memory=limits.memory)
    return slot


def question(policy: Policy, job: Job, manifest: Manifest, lists: Sequence[Path], facts: tuple[Fact, ...],
             now: float) -> Asked:
    """What ``policy`` is asked about a job: also which signed lists endorse its image."""
    from vmjob.policy.verdict import Asked

    wants = job.resources
    asked = Asked(manifest.name, manifest.digest, tuple(file.sha256 for file in manifest.files), facts, now,
                  wants.memory, wants.cpus, wants.walltime, manifest.needs_memory, manifest.needs_cpus, job.network)
    asked = replace(asked, withdrawn=own_withdrawal(manifest))
    try:
        return _listed(asked, policy, lists)
    except EndorsementRefused as unreadable:
        raise PolicyBroken(f"{policy.file}: subscriptions: {unreadable}", unreadable.hint) from unreadable


def _listed(asked: Asked, policy: Policy, lists: Sequence[Path]) -> Asked:
    """With what the site's subscribed lists and those that came with the job say of the image."""
    folders = followed(policy)
    if folders:
        from vmjob.image.trust.subscriptions import listed, message_of

        known = [(folder, one) for folder in folders for one in listed(folder)]
        gone = [one.withdrawn[asked.digest] for _, one in known if asked.digest in one.withdrawn]
        asked = replace(asked, withdrawn=gone[0]) if gone else asked
        lists = [*(message_of(folder, one) for folder, one in known if asked.digest in one.images), *lists]
    if not (policy.endorsers and lists):
        return asked
    from vmjob.image.trust.subscriptions import outdated
    from vmjob.image.trust.verify import verify_list, vouched

    found, refused = [], []
    for path in lists:
        try:
            signed = verify_list(path, policy.authorities, asked.now)
            image = vouched(signed, asked.digest, asked.now)
        except EndorsementRefused as wrong:
            refused.append(wrong.message)
            continue
        old = outdated(signed, folders)
        if image and not old:
            found.append(signed.endorsement(image))
        else:
            refused.append(old or f"the list {signed.listing.identifier} (version {signed.listing.version}) does not "
                           "name it")
    return replace(asked, endorsements=tuple(found), uncounted=tuple(refused))


def followed(policy: Policy) -> list[Path]:
    """The folder of the lists that the site is subscribed to, if it is. Raises PolicyBroken where a user could have
    put an older list there, or where it cannot be read: that withdraws nothing."""
    from vmjob.core.safepath import safe
    from vmjob.policy.file import SUBSCRIPTIONS, owners

    folder = policy.subscriptions
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if folder == SUBSCRIPTIONS:
            return []
    except OSError:
        pass
    try:
        next(safe(folder, owners(policy.file)).iterdir(), None)
    except PolicyBroken as broken:
        raise PolicyBroken(f"{policy.file}: subscriptions: {broken}", broken.hint) from broken
    except OSError as unreadable:
        raise PolicyBroken(f"{policy.file}: subscriptions: {folder}: {unreadable.strerror}",
                           "it must be a folder that all may read") from unreadable
    return [folder]


# ---------------------------------------------------------------- syslog


def _tell(word: str, payload: Payload, facts: Iterable[Fact], reason: str, endorser: str = "") -> None:
    """One line into the node's syslog. No job waits for that, or fails for want of it: a datagram that is not taken at
    once is lost (syslog(3) would wait for a daemon that hangs)."""
    import socket
    import time

    user = next((fact.value for fact in facts if fact.kind == "user"), "")
    values = {"job": payload.job.name, "user": user, "uid": str(os.getuid()), "image": payload.manifest.name,
              "digest": payload.manifest.digest, "endorser": endorser, "reason": reason}
    text = " ".join(f"{key}={_quoted(value)}" for key, value in values.items() if value)
    priority = 10 * 8 + (6 if word == "allowed" else 5)  # LOG_AUTHPRIV with LOG_INFO or LOG_NOTICE
    line = f"<{priority}>{time.strftime('%b %e %H:%M:%S')} vmjob[{os.getpid()}]: {word} {text}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.setblocking(False)
            link.connect(DEV_LOG)
            link.send(line.encode())
    except OSError as missing:
        log.info("syslog: %s", missing)


def _quoted(value: str) -> str:
    """In quotes, as ASCII: what users, images and certificates are called can neither end a value nor begin a line."""
    import json

    return json.dumps(value if len(value) <= _LOGGED else value[:_LOGGED - 1] + "…")
