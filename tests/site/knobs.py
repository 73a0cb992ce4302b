"""What a test makes wrong with one host while it runs, and the bytes that it has moved."""

from __future__ import annotations

import itertools
import json
from pathlib import PurePosixPath

from tests.site import hosts, network
from tests.site.layout import EXECUTE, Host

_SOURCE = "vmjob-test"  # device name of the mounts made here, to find them again


def hide(host: Host, *paths: str) -> None:
    """For jobs that start from now on the files do not exist. Until :func:`undo` or the host's end."""
    for folder, files in itertools.groupby(sorted(map(PurePosixPath, paths)), lambda path: path.parent):
        # a layer on top of the folder with nothing in it but the white-outs
        _root(host, f"""
            set -e
            layer=$(mktemp -d /run/hidden.XXXXXX)
            chmod --reference={folder} "$layer"
            for name; do mknod "$layer/$name" c 0 0; done
            mount -t overlay -o "lowerdir=$layer:{folder}" {_SOURCE} {folder}
            """, *(file.name for file in files))


def small_scratch(host: Host, mebibytes: int, folder: str = EXECUTE) -> None:
    """Jobs that start from now on share a disk of this size for their folders (or find it at ``folder``). Until as
    above."""
    _root(host, 'mount -t tmpfs -o "size=$2m,$(stat -c mode=%a,uid=%u,gid=%g "$1")" ' f'{_SOURCE} "$1"', folder,
          str(mebibytes))


def undo(host: Host) -> None:
    """Hidden files are back, scratch is large; a host that is down has lost both anyway."""
    if hosts.init(host) is not None:
        # those of jobs in progress stay until their end
        _root(host, f"awk '/ - [a-z]+ {_SOURCE} / {{ print $5 }}' /proc/self/mountinfo "
                    "| xargs --no-run-if-empty umount --lazy")


def traffic(host: Host) -> tuple[int, int]:
    """Bytes that the host has received and sent since it was made, all protocols, link headers included."""
    [link] = json.loads(network.ip("-json", "-statistics", "link", "show", "dev", host.namespace))
    return link["stats64"]["tx"]["bytes"], link["stats64"]["rx"]["bytes"]  # it counts on the machine's end


def _root(host: Host, script: str, *words: str) -> str:
    done = hosts.execute(host, "root", ["sh", "-c", script, "sh", *words])
    if done.returncode or done.stderr:
        raise RuntimeError(f"{host.name}: {done.stderr.strip()}")
    return done.stdout
