"""``python -m tests.site up|down|status|exec HOST USER COMMAND…``"""

from __future__ import annotations

import sys
import time

from tests.site import client, hosts, network, site
from tests.site.layout import HOSTS


def main(words: list[str]) -> int:
    started = time.monotonic()
    if words == ["up"]:
        site.up()
        site.MARK.unlink(missing_ok=True)  # a person's now, who takes it down
        print(f"the test site is up ({time.monotonic() - started:.1f} s); now: . {client.ENV}")
    elif words == ["down"]:
        site.down()
        print("the test site is down")
    elif words == ["status"]:
        for host in HOSTS.values():
            print(host.name, host.address, *sorted(p.program for p in hosts.processes(host)) or ["down"])
        print(*network.there() or ["nothing is left on the machine"], sep="\n")
    elif len(words) > 3 and words[0] == "exec" and words[1] in HOSTS:
        done = hosts.execute(HOSTS[words[1]], words[2], words[3:])
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
