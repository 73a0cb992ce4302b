"""Where in the whole site a secret is: in files, in ads, in what processes show of themselves."""

from __future__ import annotations

import base64
import io
import json
import mmap
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.site import hosts
from tests.site.layout import COLLECTORS, HOSTS, VO
from tests.site.site import Site

_ADS = {"queue": "condor_q -allusers -long", "clusters": "condor_q -allusers -factory -long",
        "history": "condor_history -long"}
_TELLING = 40  # characters: the end of a token, its signature, without which the rest is worth nothing


def beside_a_job(folder: Path, condor: dict[str, str]) -> str:
    """An invented token as the file ``secret``, and ``condor.tar``, in which shell scripts stand for HTCondor's
    programs; the token."""
    token, secret = invented(), folder / "secret"
    secret.write_text(token + "\n")
    secret.chmod(0o600)
    with tarfile.open(folder / "condor.tar", "w") as archive:
        for name, text in condor.items():
            member = tarfile.TarInfo(f"condor/{name}")
            data = f"#!/bin/sh\n{text}\n".encode()
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    return token


def invented() -> str:
    """An IDTOKEN by its looks, that no pool has signed and no other test has."""
    now = int(time.time())
    words: list[dict[str, Any]] = [{"alg": "HS256", "kid": "POOL"},
                                   {"iss": VO, "sub": f"glidein@{VO}", "iat": now, "exp": now + 7200}]
    parts = [json.dumps(one).encode() for one in words] + [os.urandom(32)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def places(site: Site, token: str, *more: Path) -> set[str]:
    """Where the token's bytes are: ``HOST:PATH`` of files (of all disks of the hosts, their /tmp too), ``POOL:queue``,
    ``POOL:clusters`` and ``POOL:history`` for ads, ``HOST:argv`` and ``HOST:environment`` of processes; and files below
    ``more`` by their paths."""
    telling = token.strip()[-_TELLING:].encode()
    assert len(telling) == _TELLING, "no token"
    found = {str(path) for folder in more for path in _files(folder) if _has(path, telling)}
    for host in HOSTS.values():
        init = hosts.init(host)
        memory = [Path(f"/proc/{init}/root") / "tmp"] if init is not None else []
        for folder in (host.folder, *memory):
            found |= {f"{host.name}:/{path.relative_to(folder)}" for path in _files(folder) if _has(path, telling)}
        for process in site.processes(host.name):
            for name, what in (("cmdline", "argv"), ("environ", "environment")):
                if _has(Path(f"/proc/{process.pid}/{name}"), telling):
                    found.add(f"{host.name}:{what}")
    for pool in COLLECTORS:
        for what, words in _ADS.items():
            done = site.exec(pool, "root", words.split())
            assert done.returncode == 0, done.stderr
            if telling in done.stdout.encode():
                found.add(f"{pool}:{what}")
    return found


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path
            except OSError:
                continue


def _has(path: Path, telling: bytes) -> bool:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 2**16:  # those of /proc have none
                return telling in file.read()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return data.find(telling) >= 0
    except (OSError, ValueError):
        return False


def modes(site: Site, host: str, path: str) -> tuple[str, str, str]:
    """Owner and mode of a file, and the mode of its folder, as ``stat`` on the host tells them."""
    done = site.exec(host, "root", ["stat", "--format=%U %a", path, path.rpartition("/")[0]])
    assert done.returncode == 0, done.stderr
    (owner, mode), (_, folder) = (line.split() for line in done.stdout.splitlines())
    return owner, mode, folder


def refused(site: Site, host: str, user: str, path: str) -> bool:
    """Whether the user of that host cannot read the file."""
    done: subprocess.CompletedProcess[str] = site.exec(host, user, ["cat", path])
    return done.returncode != 0 and "Permission denied" in done.stderr
