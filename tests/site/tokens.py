"""Signing keys and IDTOKENS: who may say that he is whom."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from pathlib import Path

from tests.site import hosts
from tests.site.layout import C2, GLIDEIN, GLIDEIN_MAY, HOSTS, IDENTITIES, SITE, USERS, VO, Host

CLIENT = SITE / "client"
GLIDEIN_TOKEN = CLIENT / "glidein.token"  # with which worker nodes come to the VO's pool
# with a key that is not the pool's
FORGE = """umask 077; head -c 32 /dev/urandom >/tmp/key
export _CONDOR_SEC_TOKEN_POOL_SIGNING_KEY_FILE=/tmp/key; exec "$@"
"""


def make(root: Path) -> None:
    """New keys, and every token of the site; the hosts' folders must be prepared, their daemons not run yet."""
    for host in HOSTS.values():
        if host.holds_key:
            _write(host.folder / "passwords.d/POOL", secrets.token_hex(32), 0)
    pairs = {identity: _create(HOSTS[pool], root, identity) for pool, identity in (
        *((name, f"condor@{host.domain}") for name, host in HOSTS.items() if host.holds_key),
        *((IDENTITIES[user].split(".")[0], of(user)) for user in USERS))}
    for host in HOSTS.values():
        _write(host.folder / "tokens.d/daemons", pairs[f"condor@{host.domain}"], 0)
        for user in host.users if host.homes else ():
            _personal(host, user, pairs[of(user)])
    # ada's grid jobs are bob's at the compute element
    _personal(HOSTS["vo"], "ada", pairs[of("bob")], "bob-at-ce")
    person = int(os.environ.get("SUDO_UID", os.getuid()))
    for user in ("alice", "bob"):  # one identity for each issuer in a folder, or HTCondor takes any
        folder = tokens_of(user)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        os.chown(folder, person, -1)
        for name in (user, "ada"):
            _write(folder / name, pairs[of(name)], person)
        if "c2" in HOSTS:
            _write(folder / f"{user}-at-c2", _create(HOSTS["c2"], root, f"{user}@{C2}"), person)
    _write(GLIDEIN_TOKEN, glidein(root), person)


def glidein(root: Path, pool: str = "vo", may: tuple[str, ...] = GLIDEIN_MAY) -> str:
    """A token for glide-ins; ``pool``: vo, or ce, which is another pool than theirs."""
    host = HOSTS[pool]
    return _create(host, root, f"{GLIDEIN}@{host.domain}", *(word for right in may for word in ("-authz", right)))


def expired(root: Path) -> str:
    """The token of glide-ins, of before."""
    token = _create(HOSTS["vo"], root, f"{GLIDEIN}@{VO}", "-lifetime", "0")
    time.sleep(2)  # good to the end of its second
    return token


def forged(root: Path) -> str:
    """The token of glide-ins, signed by somebody who has not the pool's key."""
    return _create(HOSTS["vo"], root, f"{GLIDEIN}@{VO}", around=("sh", "-c", FORGE, "sh"))


def of(user: str) -> str:
    return f"{user}@{IDENTITIES[user]}"


def tokens_of(user: str) -> Path:
    """Token folder of the client that is ``user`` at the compute element, and ada at the VO."""
    return CLIENT / f"tokens-{user}"


def _personal(host: Host, user: str, token: str, name: str = "own") -> None:
    folder = host.folder / "home" / user / ".condor/tokens.d"
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder.parent, folder):
        place.chmod(0o700)
        os.chown(place, USERS[user], USERS[user])
    _write(folder / name, token, USERS[user])


def _create(host: Host, root: Path, identity: str, *options: str, around: tuple[str, ...] = ()) -> str:
    command = hosts.bubblewrap(host, root, *around, "condor_token_create", "-identity", identity, *options)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"condor_token_create -identity {identity} on {host.name}: {done.stderr}")
    return done.stdout


def _write(path: Path, text: str, owner: int) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        os.fchown(file.fileno(), owner, -1)
        file.write(text)
