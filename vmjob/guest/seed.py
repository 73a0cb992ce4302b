"""The cloud-init NoCloud seed: how our agent gets into a cloud image that knows nothing of us.

An ISO 9660 image with the volume label ``cidata`` and the files ``meta-data`` and ``user-data``
(cloud-init documentation, datasource NoCloud).
"""

from __future__ import annotations

import io
import json
from pathlib import Path

_UNIT = """[Unit]
Description=vmjob agent
After=network-online.target nss-lookup.target
[Service]
ExecStart=/bin/sh /run/vmjob-agent disk
StandardOutput=journal+console
KillMode=none
"""

# A boothook is the earliest that cloud-init runs, and takes no key of a configuration that the image has itself.
_HOOK = """#cloud-boothook
#!/bin/sh
umask 022
cat >/run/vmjob-agent <<'VMJOB-END'
{agent}VMJOB-END
if [ ! -d /run/systemd/system ]; then
	setsid sh /run/vmjob-agent disk >/dev/console 2>&1 </dev/null &
	exit
fi
cat >/run/systemd/system/vmjob-agent.service <<'VMJOB-END'
{unit}VMJOB-END
systemctl start --no-block vmjob-agent.service ||
	{{ systemctl daemon-reload && systemctl start --no-block vmjob-agent.service; }}
"""


def agent_text() -> str:
    """The agent's source as shipped."""
    import pkgutil

    return (pkgutil.get_data("vmjob", "guest/agent.sh") or b"").decode()


def user_data(agent: str) -> str:
    """A script that starts the agent beside cloud-init, not inside it: a program that runs for hours must not
    keep the boot waiting."""
    return _HOOK.format(agent=agent, unit=_UNIT)


def vendor_data() -> str:
    """Saves what only people who log in need: keys and languages that take seconds to make."""
    return "#cloud-config\n" + json.dumps({"ssh_genkeytypes": ["ed25519"], "locale": False}) + "\n"


def meta_data(instance: str) -> str:
    """``instance`` differs from run to run, or cloud-init takes the guest for one it has set up already."""
    return json.dumps({"instance-id": instance, "local-hostname": "vmjob"}) + "\n"


def write_seed(target: Path, instance: str) -> None:
    """Write the seed image to ``target``."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    try:
        for name, text in (("user-data", user_data(agent_text())), ("meta-data", meta_data(instance)),
                           ("vendor-data", vendor_data())):
            data = text.encode()
            iso.add_fp(io.BytesIO(data), len(data), f"/{name.replace('-', '').upper()};1", rr_name=name,
                       joliet_path=f"/{name}")
        iso.write(str(target))
    finally:
        iso.close()
