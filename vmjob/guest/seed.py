"""The cloud-init NoCloud seed: how our agent gets into a cloud image that knows nothing of us.

An ISO 9660 image with the volume label ``cidata`` and the files ``meta-data`` and ``user-data``
(cloud-init documentation, datasource NoCloud), with ``vendor-data`` and ``network-config``.
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


def network_config(mac: str, address: str = "", gateway: str = "", dns: str = "") -> str:
    """The first network card gets ``address`` (with its prefix: 10.0.2.15/24) at once, without asking; without one
    it is there, and the boot does not wait two minutes for an answer that nobody gives. No IPv6: the host has none
    for it, and looking for its router costs 13 s of a boot. Version 1, which every cloud-init reads."""
    subnet: dict[str, object] = {"type": "manual"}
    if address:
        subnet = {"type": "static", "address": address, "gateway": gateway, "dns_nameservers": [dns]}
    card = {"type": "physical", "name": "eth0", "mac_address": mac, "accept-ra": False, "subnets": [subnet]}
    return json.dumps({"version": 1, "config": [card]}) + "\n"


def write_seed(target: Path, instance: str, network: str = "") -> None:
    """Write the seed image to ``target``; ``network`` is a ``network_config``, or nothing for no network card."""
    from pycdlib.pycdlib import PyCdlib

    files = {"user-data": user_data(agent_text()), "meta-data": meta_data(instance), "vendor-data": vendor_data()}
    if network:
        files["network-config"] = network
    iso = PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    try:
        for name, text in files.items():
            data = text.encode()
            iso.add_fp(io.BytesIO(data), len(data), f"/{name.replace('-', '').upper()};1", rr_name=name,
                       joliet_path=f"/{name}")
        iso.write(str(target))
    finally:
        iso.close()
