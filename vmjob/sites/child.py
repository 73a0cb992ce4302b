"""One source asked, in a process of its own: HTCondor's bindings hold up all threads while a collector keeps them
waiting, and a BDII that lies can want any amount of memory. The parent (reading) ends this one at its deadline."""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from vmjob.core.errors import VmjobError
from vmjob.core.site_errors import SitesRefused
from vmjob.sites.answer import ANSWER, Answer, document, few
from vmjob.sites.sources import Source

MEMORY = 2 * 2**30  # bytes of address space, of which the libraries take most
SITES = 10000


def ask(source: Source) -> Answer:
    """Raises SitesUnreachable, SitesRefused, and JobError where this machine's settings are wrong."""
    if source.kind == "ldap":
        from vmjob.sites import ldap

        answer = ldap.ask(source)
    elif source.kind in ("condor", "condor-ce"):
        from vmjob.sites import collector

        answer = collector.ask(source)
    else:
        from vmjob.sites import documents

        answer = documents.ask(source)
    if len(answer.ads) > SITES:
        raise SitesRefused(f"{source}: it tells of {len(answer.ads)} sites; more than {SITES} are not believed",
                           "ask a BDII of your own region or VO")
    return Answer(answer.ads, few(answer.notes))


def main(inward: int) -> None:
    """The child: the source comes through the descriptor ``inward``, what it tells goes to stdout, as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (ANSWER, ANSWER))
    with os.fdopen(inward) as file:
        source = Source(**json.load(file))
    try:
        body = document(ask(source))
    except VmjobError as error:
        body = {"failure": {"kind": error.kind, "message": error.message, "hint": error.hint}}
    except MemoryError:
        body = _failure(f"{source}: its answer does not fit into memory")
    except Exception as odd:  # what a stranger sends must not look like a fault of the user's
        body = _failure(f"{source}: its answer cannot be understood ({type(odd).__name__}: {str(odd)[:200]})")
    with os.fdopen(1, "wb", closefd=False) as out:
        out.write(json.dumps(body).encode())


def _failure(message: str) -> dict[str, Any]:
    return {"failure": {"kind": SitesRefused.__name__, "message": message, "hint": "tell those who run it"}}


if __name__ == "__main__":
    main(int(sys.argv[1]))
