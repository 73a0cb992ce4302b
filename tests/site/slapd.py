"""A slapd on a host of the test site with whatever a test wants it to say; run by an ordinary user. A whole BDII, with
what fills it, is in tests/site/bdii.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from tests.site import hosts
from tests.site.layout import HOSTS, USERS

USER = "ada"
PORT = 2171  # beside a BDII
TOPS = {"o=grid": "dn: o=grid\nobjectClass: organization\no: grid\n\n"
                  "dn: mds-vo-name=resource,o=grid\nobjectClass: MDS\nMds-Vo-name: resource\n\n",
        "o=glue": "dn: o=glue\nobjectClass: organization\no: glue\n\n"
                  "dn: GLUE2GroupID=resource,o=glue\nobjectClass: GLUE2Group\nGLUE2GroupID: resource\n\n"}


@contextmanager
def running(more: str = "", **ldif: str) -> Iterator[str]:
    """Yields its address, HOST:PORT. ``glue`` and ``grid``: entries below a BDII's tops. ``more``: configuration before
    the package's own databases."""
    host = HOSTS["vo"]
    folder, inside = host.folder / "home" / USER / "slapd", f"/home/{USER}/slapd"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("run/db", "db/grid", "db/glue", "db/stats"):
        (folder / name).mkdir(parents=True)
    (folder / "more.conf").write_text(f"{more}\n")
    for base, top in TOPS.items():
        (folder / f"{base[2:]}.ldif").write_text(top + ldif.get(base[2:], ""))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USERS[USER], USERS[USER])
    stop = f"[ ! -s {inside}/run/db/slapd.pid ] || kill -9 $(cat {inside}/run/db/slapd.pid)"
    try:
        done = hosts.execute(host, USER, ["sh", "-c", f"""set -e
            sed -e 's,/run/bdii,{inside}/run,; s,/var/lib/bdii/db,{inside}/db,' \\
                -e '/^sizelimit/r {inside}/more.conf' -e 's/^dbnosync/maxsize 1073741824\\n&/' \\
                /usr/share/bdii/bdii-slapd.conf >{inside}/slapd.conf
            for top in grid glue; do
                slapadd -q -f {inside}/slapd.conf -b o=$top -l {inside}/$top.ldif
            done
            slapd -f {inside}/slapd.conf -h ldap://0.0.0.0:{PORT}"""])
        assert done.returncode == 0, done.stderr
        yield f"{host.address}:{PORT}"
    finally:
        hosts.execute(host, USER, ["sh", "-c", stop])
        shutil.rmtree(folder, ignore_errors=True)
