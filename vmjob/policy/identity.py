"""Who asks to run a job on this node: what is known of her, and who says so."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vmjob.core.accounts import group_name, user_name
from vmjob.core.errors import PolicyRefused

if TYPE_CHECKING:
    from vmjob.policy.verdict import Fact

log = logging.getLogger("vmjob.run")


def who(environ: Mapping[str, str]) -> tuple[Fact, ...]:
    """What is known of who runs this, and by whom.

    Vouched for: user and groups, by the kernel; issuer and groups of the token that a job was submitted with, by
    HTCondor: the schedd sets them when it has checked the token, a user's own setting of them is ignored, and the job's
    ad was written by the starter, as the file's owner tells. Not vouched for: VO and FQAN of an X.509 proxy in that ad,
    because HTCondor reads them from the proxy without checking the signature of the VO. Raises PolicyRefused
    where the ad could hold words of the user's in the place of HTCondor's."""
    from vmjob.policy.verdict import Fact

    found = [Fact("user", user_name(os.getuid()), "the kernel", True)]
    found += [Fact("group", group_name(gid), "the kernel", True) for gid in sorted({os.getgid(), *os.getgroups()})]
    return (*found, *_of_ad(environ.get("_CONDOR_JOB_AD", "")))


def known_user(name: str, even_unknown: bool = False) -> tuple[Fact, ...]:
    """What the kernel would say of a user's processes. Raises JobError where this machine does not know her."""
    import pwd

    from vmjob.core.errors import JobError
    from vmjob.policy.verdict import Fact

    user = Fact("user", name, "the kernel", True)
    try:
        gids = os.getgrouplist(name, pwd.getpwnam(name).pw_gid)
    except KeyError as unknown:
        if even_unknown:
            return (user,)
        raise JobError(f"--as {name}: this machine has no such user",
                       "say her groups too (--group), and she need not exist") from unknown
    return (user, *(Fact("group", group_name(gid), "the kernel", True) for gid in sorted(set(gids))))


def _of_ad(path: str) -> list[Fact]:
    from vmjob.policy.verdict import Fact

    try:
        ad, ours = job_ad(path)
    except ValueError as broken:  # taken for empty, it would escape the rules that refuse
        raise PolicyRefused(f"{path}: this job's ad is refused: {broken}",
                            "no attribute of a submit file may have a line break, or a name that stands there already"
                            ) from broken
    found = []
    for key, kind, proved in (("authtokenissuer", "issuer", True), ("authtokengroups", "fqan", True),
                              ("x509userproxyvoname", "vo", False), ("x509userproxyfirstfqan", "fqan", False)):
        by = "HTCondor's token" if proved else "the job's X.509 proxy"
        for value in ad.get(key, "").split(",") if proved and kind == "fqan" else [ad.get(key, "")]:
            if value:
                found.append(Fact(kind, value, by if ours else f"the file {path}", proved and ours))
    return found


def job_ad(path: str) -> tuple[dict[str, str], bool]:
    """The job's ad, names in lower case, and whether HTCondor wrote it. Raises ValueError where it is there, and its
    lines cannot be relied on."""
    if not path:
        return {}, False
    from vmjob.core.classads import LARGEST, read
    try:
        # the owner of what is read, not of what lay there a moment before
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            ours = _by_htcondor(os.fstat(file.fileno())) and Path(path).name == ".job.ad"
            return read(file.read(LARGEST + 1).decode(errors="replace")), ours
    except OSError as unreadable:
        log.warning("_CONDOR_JOB_AD names %s, which cannot be read: %s", path, unreadable.strerror)
        return {}, False


def _by_htcondor(found: os.stat_result) -> bool:
    """Did HTCondor's starter write this file, and could nobody who is not HTCondor or root change it since? Where
    HTCondor runs as the user herself, it proves nothing."""
    import pwd

    try:
        condor = pwd.getpwnam("condor").pw_uid
    except KeyError:
        condor = 0
    return stat.S_ISREG(found.st_mode) and found.st_uid in {0, condor} - ({os.getuid()} - {0}) \
        and not found.st_mode & 0o022
