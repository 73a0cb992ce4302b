"""What lets a person or a test on the machine use the site: configuration, env.sh, and the tools of the root."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

from tests.site import config, tokens
from tests.site.layout import BRIDGE, COLLECTORS, HOSTS, SITE

CLIENT, BIN, ENV = tokens.CLIENT, SITE / "bin", SITE / "env.sh"
# HTCondor's tools are Debian 13's, whatever the machine is: its own files with the root's programs below them.
TOOL = """\
#!/bin/sh
# made by tests/site: a tool of the site's root, run on this machine as whoever calls it
exec bwrap --bind / / --dev-bind /dev /dev --ro-bind {usr} /usr --ro-bind {etc} /etc \\
	--ro-bind /etc/passwd /etc/passwd --ro-bind /etc/group /etc/group --ro-bind {hosts} /etc/hosts \\
	--die-with-parent --setenv PATH /usr/sbin:/usr/bin "$(basename "$0")" "$@"
"""


def environment(user: str = "alice") -> dict[str, str]:
    """Variables of a client that is ``user`` (alice or bob) at the compute element and ada at the VO."""
    addresses = {f"VMJOB_SITE_{name.upper()}": address for name, address in COLLECTORS.items()}
    return {"CONDOR_CONFIG": str(config_of(user)), "VMJOB_SITE_USER": user, **addresses}


def config_of(user: str) -> Path:
    return CLIENT / f"{user}.config"


def write(root: Path) -> None:
    """Everything below build/site/client and build/site/bin, and env.sh; the tokens are there."""
    for folder in (CLIENT, BIN):
        folder.mkdir(parents=True, exist_ok=True)
    for user in ("alice", "bob"):
        config_of(user).write_text(config.of_client("vo", tokens.tokens_of(user)))
    hosts_file = CLIENT / "hosts"
    hosts_file.write_text(f"{config.etc_hosts()}127.0.1.1 {socket.gethostname()}\n")
    tool = BIN / ".tool"
    tool.write_text(TOOL.format(usr=shlex.quote(str(root / "usr")), etc=shlex.quote(str(root / "etc")),
                                hosts=shlex.quote(str(hosts_file))))
    tool.chmod(0o755)
    for program in (root / "usr/bin").glob("condor_*"):
        link = BIN / program.name
        link.unlink(missing_ok=True)
        link.symlink_to(tool.name)
    lines = ["# source this in a shell to use the test site; VMJOB_SITE_USER=bob before it makes you bob",
             f"[ -e /proc/sys/net/ipv4/conf/{BRIDGE} ] ||",
             "\techo 'the test site is not in reach of this shell: make site-shell gives one' >&2",
             'VMJOB_SITE_USER=${VMJOB_SITE_USER:-alice}',
             f'CONDOR_CONFIG={shlex.quote(str(CLIENT))}/$VMJOB_SITE_USER.config',
             *(f"VMJOB_SITE_{name.upper()}={address}" for name, address in COLLECTORS.items()),
             f"case :$PATH: in *:{BIN}:*) ;; *) PATH={shlex.quote(str(BIN))}:$PATH ;; esac",
             "export VMJOB_SITE_USER CONDOR_CONFIG PATH " + " ".join(f"VMJOB_SITE_{n.upper()}" for n in COLLECTORS),
             *(f"# {h.full_name} is {h.address}" for h in HOSTS.values())]
    ENV.write_text("\n".join(lines) + "\n")
