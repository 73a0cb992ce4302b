"""What vmjob lays into the tree of a built image: agent, init, units, and a system that starts without detours."""

from __future__ import annotations

from pathlib import Path

from vmjob.image.build.micro import DEVICE_LINKS, package_file
from vmjob.image.build.recipe import Recipe

_AGENT_UNIT = """\
[Unit]
Description=vmjob agent: runs the job this machine was started for
After=vmjob-net.service
# the driver is in the initramfs; without the port nobody waits for us
ConditionPathExistsGlob=/sys/class/virtio-ports/*

[Service]
ExecStart=/usr/lib/vmjob/agent system
StandardOutput=journal
StandardError=journal

[Install]
WantedBy=multi-user.target
"""

_NET_UNIT = """\
[Unit]
Description=Network as the host chose it, or DHCP
Wants=network.target
Before=network.target network-online.target
After=systemd-udevd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/vmjob/init net

[Install]
WantedBy=multi-user.target
"""

# Nobody logs in, and a machine that lives for one job keeps nothing in order.
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
           "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "getty-static.service",
           "serial-getty@ttyS0.service", "serial-getty@hvc0.service", "systemd-pstore.service",
           "systemd-networkd-wait-online.service", "man-db.timer", "logrotate.timer",
           "motd-news.timer", "systemd-firstboot.service", "systemd-tmpfiles-clean.timer")


def write(plan: Recipe, overlay: Path) -> None:
    """Write all files below ``overlay``, a tree that root will own."""
    def put(path: str, data: bytes, mode: int = 0o644) -> None:
        target = overlay / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(mode)

    def link(path: str, target: str) -> None:
        place = overlay / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    put("usr/lib/vmjob/agent", package_file("guest/agent.sh"), 0o755)
    put("usr/lib/vmjob/init", package_file("image/build/init.sh"), 0o755)
    for name, target in DEVICE_LINKS.items():
        link(f"usr/lib/vmjob/dev/{name}", target)
    for name, text in (("vmjob-agent.service", _AGENT_UNIT), ("vmjob-net.service", _NET_UNIT)):
        put(f"usr/lib/systemd/system/{name}", text.encode())
        link(f"etc/systemd/system/multi-user.target.wants/{name}", f"/usr/lib/systemd/system/{name}")
    for name in _MASKED:
        link(f"etc/systemd/system/{name}", "/dev/null")
    link("etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target")
    put("etc/fstab", b"# the initramfs mounts the root; a throw-away overlay needs no check\n")
    put("etc/hostname", f"{plan.hostname}\n".encode())
    put("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {plan.hostname}\n::1 localhost\n".encode())
    for file in plan.files:
        put(file.path, file.data, file.mode)
