"""``python -m tests.site up|down|clean|status|shell|exec HOST USER COMMAND…|inside COMMAND…``: the last runs a command
where the site can be reached."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.site import client, hosts, inside, network, root, site
from tests.site.layout import HOSTS, SITE


def up() -> int:
    started = time.monotonic()
    site.up()
    site.MARK.unlink(missing_ok=True)  # a person's now, who takes it down
    yours = "" if root.namespaced() else f", . {client.ENV} makes yours one"
    print(f"the test site is up ({time.monotonic() - started:.1f} s); make site-shell gives a shell to use it{yours}")
    return 0


def down() -> int:
    site.down()
    print("the test site is down")
    return 0


def status() -> int:
    for host in HOSTS.values():
        print(host.name, host.address, *sorted(p.program for p in hosts.processes(host)) or ["down"])
    print(*network.there() or ["nothing is left on the machine"], sep="\n")
    return 0


def shell() -> int:
    if client.ENV.exists():
        os.environ["BASH_ENV"] = str(client.ENV)  # where bash reads its commands from a pipe
        print("condor_q, condor_status and vmjob reach the site from here; its compute element is "
              "condor-ce://$VMJOB_SITE_CE", file=sys.stderr)
        os.execvp("bash", ["bash", "--rcfile", str(client.ENV)])
    print("the test site is down: make site-up starts it", file=sys.stderr)
    return 1


def run(host: str, user: str, *command: str) -> int:
    done = hosts.execute(HOSTS[host], user, list(command))
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


COMMANDS = {"up": up, "down": down, "clean": down, "status": status, "shell": shell}


def prepare() -> None:
    if not root.path().is_dir():
        print("making the site's Debian 13 root file system, once: a minute or two", flush=True)
        root.ensure()


def main(words: list[str]) -> int:
    verb = words[0] if words else ""
    if verb == "inside" and words[1:]:
        return inside.run(*words[1:]) if inside.needed() else subprocess.run(words[1:]).returncode
    if not (words[1:2] and words[1] in HOSTS and words[3:] if verb == "exec" else verb in COMMANDS and not words[1:]):
        print(__doc__, file=sys.stderr)
        return 2
    if verb == "up" and site.why_not() is None:
        prepare()  # out here, as an ordinary user's namespaces have no network
    if not inside.needed():
        result = run(*words[1:]) if verb == "exec" else COMMANDS[verb]()
    elif reason := site.why_not():
        print(f"no test site here: {reason}", file=sys.stderr)
        return 1
    else:
        result = inside.run(*inside.module("down" if verb == "clean" else verb, *words[1:]))
    if verb == "clean" and not result:
        root.remove(SITE)  # whole; an ordinary user cannot, as not all of it is hers
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
