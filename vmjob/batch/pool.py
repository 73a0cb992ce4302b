"""The door to HTCondor: its bindings, and its complaints as named errors."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from vmjob.ads.node_ad import ADVERTISED, PROJECTION, nodes_of
from vmjob.ads.site_ad import IMAGES, NodeAd
from vmjob.batch.description import Request
from vmjob.batch.targets import Place
from vmjob.core.errors import JobError, VmjobError
from vmjob.core.pool_errors import NoSlotFits, PoolError, PoolFull, PoolRefused, PoolUnreachable
from vmjob.core.units import MIB, format_size

Ad = Any  # classad2.ClassAd: a mapping that gives Python values, or classad2.Value for undefined and error

_TOKEN = ("put a token that this site accepts into ~/.condor/tokens.d (mode 0600), or ask the site or your VO for one; "
          "condor_token_list shows what you have")

_GET = (f"install HTCondor 24 or later for {sys.executable}: from its own repository (the package condor, on RHEL "
        "python3-condor), or by pip 'htcondor>=24'; only the submit side needs it")


class Pool:
    """One schedd and the collector it is found through. Nothing is asked before it is needed."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @cached_property
    def collector(self) -> Any:
        return _bindings().Collector(self.place.collector or None)

    @cached_property
    def location(self) -> Ad:
        """The schedd's location ad. Raises PoolUnreachable, PoolError."""
        htcondor = _bindings()
        with translated(self.place):
            if not self.place.collector and not self.place.schedd:
                found = self.collector.locateAll(htcondor.DaemonType.Schedd)
                local = _local_name()
                found = [ad for ad in found if ad.get("Name") == local] or found
            elif self.place.schedd:
                found = [self.collector.locate(htcondor.DaemonType.Schedd, self.place.schedd)]
            else:
                found = list(self.collector.locateAll(htcondor.DaemonType.Schedd))
        found = [ad for ad in found if ad is not None]
        if not found:
            who = f"no schedd '{self.place.schedd}'" if self.place.schedd else "no schedd at all"
            raise PoolUnreachable(f"{self.place}: the collector answers, and knows {who}",
                                  "check the name; a schedd that has just started is known after a few seconds")
        if len(found) > 1:
            names = ", ".join(sorted(str(ad.get("Name")) for ad in found)[:5])
            raise PoolError(f"{self.place}: there are {len(found)} schedds: {names}",
                            f"say which: condor://{self.place.collector or 'COLLECTOR'}/SCHEDD")
        return found[0]

    @cached_property
    def schedd(self) -> Any:
        location = self.location
        with translated(self.place):
            return _bindings().Schedd(location)

    @property
    def name(self) -> str:
        """The schedd's name."""
        return str(self.location.get("Name"))

    @property
    def named(self) -> Place:
        """The place with the schedd's name, as HTCondor's tools want it; itself where it is this machine's own."""
        return replace(self.place, schedd=self.name) if self.place.collector else self.place

    @cached_property
    def user(self) -> str:
        """Who we are to this schedd: an owner. Raises PoolRefused."""
        location = self.location
        with translated(self.place):
            answer = _bindings().ping(location, "WRITE")
        return str(answer.get("MyRemoteUserName", "")).partition("@")[0]

    @property
    def ours(self) -> str:
        """The constraint for our own jobs."""
        return f"(Owner == {quote(self.user)})"

    def query(self, constraint: str, projection: Optional[list[str]] = None, *, clusters: bool = False) -> list[Ad]:
        """Ads of our own jobs that fit ``constraint``; with ``clusters`` the clusters' ads too (ProcId undefined)."""
        htcondor = _bindings()
        ours, schedd = self.ours, self.schedd
        options = htcondor.QueryOpts.IncludeClusterAd if clusters else htcondor.QueryOpts.Default
        with translated(self.place):
            found = schedd.query(f"{ours} && ({constraint})", projection=projection or [],
                                 opts=options)
        return list(found)

    def check_fits(self, request: Request) -> None:
        """Raises NoSlotFits when the collector knows worker nodes, and not one is large enough. Says nothing where it
        knows none: a CE may hide what is behind it."""
        htcondor = _bindings()
        collector = self.collector
        with translated(self.place):
            # a dynamic slot is a part of a partitionable one
            slots = collector.query(htcondor.AdType.Startd, constraint="DynamicSlot =!= true",
                                    projection=["TotalSlotCpus", "TotalSlotMemory", "TotalSlotDisk"])
        sizes = [(number(ad, "TotalSlotCpus"), number(ad, "TotalSlotMemory") * MIB, number(ad, "TotalSlotDisk") * 2**10)
                 for ad in slots]
        if not sizes:
            return
        wants = (request.cpus, request.memory, request.disk)
        if any(all(want <= have for want, have in zip(wants, size)) for size in sizes):
            return
        texts: tuple[Callable[[float], str], ...] = (
            lambda n: f"{n:.0f} CPUs", lambda n: f"{format_size(n)} memory", lambda n: f"{format_size(n)} disk")
        for index, key in enumerate(("cpus", "memory", "disk")):
            most = max(size[index] for size in sizes)
            if wants[index] > most:
                note = " (QEMU's own need included)" if key == "memory" else ""
                raise NoSlotFits(f"the job asks for {texts[index](wants[index])}{note}, the largest of {len(sizes)} "
                                 f"slots at {self.place} has {texts[index](most)}",
                                 f"lower resources.{key} (--{key}), or choose another target: it would wait for ever")
        whole = ", ".join(text(want) for text, want in zip(texts, wants))
        raise NoSlotFits(f"no slot at {self.place} has {whole} together",
                         "lower one of resources.cpus, memory and disk: it would wait for ever")

    def nodes(self) -> tuple[NodeAd, ...]:
        """What the worker nodes say that say what they do with VMs; their images are left out."""
        htcondor = _bindings()
        collector = self.collector
        with translated(self.place):
            ads = collector.query(htcondor.AdType.Startd, constraint=f"{ADVERTISED} && DynamicSlot =!= true",
                                  projection=[name for name in PROJECTION if name != IMAGES])
        return nodes_of(ads)


def _bindings() -> Any:
    """HTCondor's Python bindings. Raises VmjobError where they are not installed, or would end us at once."""
    named = os.environ.get("CONDOR_CONFIG", "ONLY_ENV")
    if named != "ONLY_ENV" and not Path(named).exists():
        raise JobError(f"CONDOR_CONFIG={named}: there is no such file", "fix or unset this variable")
    import warnings

    try:
        with warnings.catch_warnings():  # that there is no configuration of HTCondor's: a target needs none
            warnings.simplefilter("ignore")
            import htcondor2
    except ModuleNotFoundError as missing:
        raise VmjobError(f"HTCondor's Python bindings are not installed for {sys.executable}", _GET) from missing
    except ImportError as broken:
        raise VmjobError(f"HTCondor's Python bindings cannot be loaded: {broken}", _GET) from broken
    if not hasattr(htcondor2, "HTCondorException"):  # Debian 13's 23.9: they were unfinished before 24
        raise VmjobError(f"HTCondor's Python bindings in {Path(htcondor2.__file__).parent} are older than 24", _GET)
    return htcondor2


def _local_name() -> str:
    import socket

    htcondor = _bindings()
    return str(htcondor.param.get("SCHEDD_NAME") or htcondor.param.get("FULL_HOSTNAME") or socket.getfqdn())


def quote(text: str) -> str:
    """``text`` as a ClassAd string."""
    import classad2

    return str(classad2.quote(text))


def number(ad: Ad, key: str) -> float:
    """A number of an ad; 0 where there is none."""
    value = ad.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


@contextmanager
def translated(place: Place) -> Iterator[None]:
    """What the bindings complain about, as an error for people."""
    try:
        yield
    except _bindings().HTCondorException as complaint:
        error = named(str(complaint), place)
        # of a collector they say the same whether nobody is there or we are not let in
        raise (_from_collector(place) if "with collector" in str(complaint) else None) or error from complaint


def _from_collector(place: Place) -> Optional[PoolError]:
    """Why a collector did not answer, where one can find out."""
    import socket

    import classad2

    htcondor = _bindings()
    address = place.collector or str(htcondor.param.get("COLLECTOR_HOST", ""))
    host, _, port = address.rpartition(":") if re.search(r":[0-9]+$", address) else (address, "", "9618")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as made:
            numeric = made.getpeername()[0]
    except OSError as refused:
        reason = "it does not answer" if isinstance(refused, TimeoutError) else refused.strerror or str(refused)
        return PoolUnreachable(f"{address} cannot be reached: {reason}",
                               "check the host's name and port and your network; then try again")
    where = f"<[{numeric}]:{port}>" if ":" in numeric else f"<{numeric}:{port}>"
    ad = {"MyAddress": where, "MyType": "Collector", "Name": host, "CondorVersion": htcondor.version()}
    try:
        htcondor.ping(classad2.ClassAd(ad), "READ")
    except htcondor.HTCondorException:
        return PoolRefused(f"{address} answers, and does not accept who we are", _TOKEN)
    return None


# What a full schedd answers to a new job, and the setting that says so.
_LIMITS = {"-2": "MAX_JOBS_SUBMITTED", "-3": "MAX_JOBS_PER_OWNER", "-4": "MAX_JOBS_PER_SUBMISSION"}


def named(complaint: str, place: Place) -> VmjobError:
    """The error for a complaint of HTCondor's. Pure."""
    text = " ".join(complaint.split())
    if "determine collector" in text:
        return PoolUnreachable("no HTCondor pool is set up on this machine",
                               "name a target: --to condor-ce://HOST, or a default in targets.yaml")
    if "Submit:-1" in text or "Parse error" in text:
        return JobError(f"HTCondor refuses the submit file: {_reason(text)}",
                        "see submit: and templates: of the target in targets.yaml; vmjob plan --to shows the file")
    full = re.search(r"Schedd says (-[234])\b", text)
    if full or re.search(r"MAX_JOBS_", text):
        limit = _LIMITS[full[1]] if full else _reason(text)
        return PoolFull(f"{place} takes no more jobs of yours now ({limit})",
                        "wait until some of yours have ended (vmjob status), submit fewer (-n), or ask the site")
    if "AUTHENTICATE:" in text or "authenticat" in text.lower():
        return PoolRefused(f"{place} does not accept who we are: {_reason(text)}", _TOKEN)
    if re.search(r"permission denied|not authorized|SECMAN:20\d\d|AUTHORIZATION|unauthorized", text, re.I):
        return PoolRefused(f"{place} does not let us do this: {_reason(text)}", "ask the site to allow it for you")
    if re.search(r"communication|connect|CEDAR|SECMAN|timed? ?out|locate", text, re.I) or not text:
        return PoolUnreachable(f"{place} cannot be reached: {_reason(text) or 'no answer'}",
                               "check the host's name and port and your network; then try again")
    return PoolError(f"{place}: {_reason(text)}", "vmjob -vv shows more; condor_q and the schedd's log may too")


def _reason(text: str) -> str:
    """The telling part of a complaint: without the error stack's numbers."""
    text = re.sub(r"^.*?errmsg=", "", text)
    parts = [re.sub(r"^[A-Z_]+:-?\d+:", "", part).strip() for part in text.split("|")]
    return "; ".join(dict.fromkeys(filter(None, parts)))[:300].rstrip(". ")
