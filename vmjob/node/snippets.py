"""What is written into a node's configuration, and what is only shown to its admin. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

HOOK = "vmjob-startd.sh"
ETC = PurePosixPath("/etc/vmjob")  # where the hook's files are, as 99-vmjob-node.conf has it
PACKAGED = PurePosixPath("/usr/share/vmjob")  # where the packages vmjob and vmjob-site have the same files
BESIDE = ("vmjob.pyz", "vmjob-wrapper.sh")  # what the hook runs
# after those of systemd (50), QEMU's packages (60, 80) and uaccess (70): the last rule decides
RULE_FILE = PurePosixPath("/etc/udev/rules.d/90-vmjob-kvm.rules")
CONDOR = PurePosixPath("/etc/condor/config.d")
CONDOR_FILE = CONDOR / "99-vmjob-node.conf"  # as job.pyz.SNIPPET
SLURM = PurePosixPath("/etc/slurm")
STATE = PurePosixPath("/var/lib/vmjob")
RUNS, CACHE = STATE / "runs", STATE / "cache"


def udev_rule(group: str) -> str:
    """For /dev/kvm, also the one that is there before the module is loaded (static_node)."""
    return ("# Written by vmjob site enable-kvm: /dev/kvm is for the members of one group. vmjob site disable removes "
            "this.\n"
            f'KERNEL=="kvm", SUBSYSTEM=="misc", GROUP="{group}", MODE="0660", OPTIONS+="static_node=kvm"\n')


def hook_in(configuration: str) -> str:
    """The script that a file of HTCondor's configuration has the startd run; empty: none of ours."""
    found = re.search(rf"^\s*STARTD_CRON_\w+_EXECUTABLE\s*=\s*(\S*{re.escape(HOOK)})\s*$", configuration, re.M | re.I)
    return found[1] if found else ""


def slurm(host: str) -> str:
    """Lines for an admin who keeps one slurm.conf for all nodes: nothing that can be written on one of them."""
    return f"""\
slurm.conf: jobs ask for a node with KVM by --constraint=kvm
  NodeName={host} … Features=vmjob,kvm
cgroup.conf: with ConstrainDevices=yes jobs keep /dev/kvm unless gres.conf names it: leave it out there
slurm.conf: a node without what it needs is drained
  HealthCheckProgram=/usr/local/sbin/vmjob-health
  with in it: vmjob site check --quiet || scontrol update NodeName=$(hostname -s) State=DRAIN Reason="vmjob site check"
"""
