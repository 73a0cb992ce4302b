"""HTCondor's configuration of each host and of the client, and the lines of /etc that name hosts and users."""

from __future__ import annotations

from pathlib import Path

from tests.site.layout import COLLECTORS, GLIDEIN, GLIDEIN_MAY, HOSTS, KVM_USERS, NODE_CACHE, PORTS, USERS, Host

COMMON = """\
NETWORK_HOSTNAME = {host.full_name}
NETWORK_INTERFACE = {host.address}
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
COLLECTOR_HOST = {pool.full_name}:{port}
SHARED_PORT_PORT = {shared_port}
DAEMON_LIST = MASTER, {daemons}
LOCAL_CONFIG_FILE =

UID_DOMAIN = {host.domain}
TRUST_DOMAIN = {host.domain}
TRUST_UID_DOMAIN = True
FILESYSTEM_DOMAIN = {host.full_name}

SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_CLIENT_AUTHENTICATION = REQUIRED
SEC_READ_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = IDTOKENS
SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS
SEC_DEFAULT_ENCRYPTION = REQUIRED
SEC_DEFAULT_INTEGRITY = REQUIRED
ALLOW_READ = *@{host.domain}
ALLOW_WRITE = *@{host.domain}
ALLOW_DAEMON = condor@{host.domain}
ALLOW_NEGOTIATOR = condor@{host.domain}
ALLOW_ADMINISTRATOR = condor@{host.domain}
ALLOW_CONFIG =

# else condor_master changes the kernel settings of the machine
ENABLE_KERNEL_TUNING = False
MASTER_BACKOFF_CONSTANT = 1
MASTER_UPDATE_INTERVAL = 10
UPDATE_INTERVAL = 5
# a host that has vanished is noticed while a test waits for it
ALIVE_INTERVAL = 10
CLASSAD_LIFETIME = 30
# no cgroups: the hosts' /sys is read-only, as on a node that is a container itself
BASE_CGROUP =
"""

MANAGER = """\
NEGOTIATOR_INTERVAL = 5
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_NAME = {host.full_name}
SCHEDD_INTERVAL = 5
SCHEDD_MIN_INTERVAL = 1
# of jobs submitted on this host; others bring theirs along
JOB_DEFAULT_LEASE_DURATION = 120
# a shadow that has lost its starter tries again soon; by default after 8, 16, … 300 seconds
RECONNECT_BACKOFF_CEILING = 3
SHADOW_QUEUE_UPDATE_INTERVAL = 5
GRIDMANAGER_CONTACT_SCHEDD_DELAY = 1
GRIDMANAGER_JOB_PROBE_INTERVAL = 3
# a compute element that is back is noticed; by default after 300 s
GRIDMANAGER_RESOURCE_PROBE_INTERVAL = 5
CONDOR_JOB_POLL_INTERVAL = 3
C_GAHP_CONTACT_SCHEDD_DELAY = 1
"""

# beside its own daemons, worker nodes from elsewhere
OPEN = "ALLOW_{right} = condor@{domain}, {user}@{domain}\n"
# glide-ins tell of themselves once a minute
PATIENT = "CLASSAD_LIFETIME = 180\n"

NODE = """\
RUNBENCHMARKS = False
NUM_CPUS = 4
MEMORY = 4096
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
START = True
MAXJOBRETIREMENTTIME = 0
# a starter without its shadow holds its slot as long as this
MachineMaxVacateTime = 60
STARTER_UPDATE_INTERVAL = 5
STARTER_JOB_ENVIRONMENT = "VMJOB_NODE_CACHE={cache}"
"""

CLIENT = """\
# of build/site/env.sh; the user is whoever's tokens are in the folder
COLLECTOR_HOST = {collector}
SEC_CLIENT_AUTHENTICATION = REQUIRED
SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS
SEC_CLIENT_ENCRYPTION = REQUIRED
SEC_CLIENT_INTEGRITY = REQUIRED
SEC_TOKEN_DIRECTORY = {tokens}
ENABLE_IPV6 = False
LOCAL_CONFIG_FILE =
LOCAL_CONFIG_DIR =
USE_SHARED_PORT = False
# else the tools, run by root, want a user named condor
CONDOR_IDS = 0.0
"""


def of_host(host: Host) -> str:
    port = PORTS[host.pool]
    text = COMMON.format(host=host, pool=HOSTS[host.pool], port=port, daemons=", ".join(host.daemons),
                         shared_port=port if host.holds_key else 9618)
    if host.holds_key:
        text += MANAGER.format(host=host)
    if host.name == "vo":
        text += PATIENT + "".join(OPEN.format(right=right, domain=host.domain, user=GLIDEIN) for right in GLIDEIN_MAY)
    if "STARTD" in host.daemons:
        text += NODE.format(cache=NODE_CACHE)
    return text


def of_client(pool: str, tokens: Path) -> str:
    return CLIENT.format(collector=COLLECTORS[pool], tokens=tokens)


def etc_hosts() -> str:
    lines = ["127.0.0.1 localhost", *(f"{h.address} {h.full_name} {h.name}" for h in HOSTS.values())]
    return "\n".join(lines) + "\n"


def etc_passwd(root: Path, host: Host) -> str:
    lines = [f"{user}:x:{USERS[user]}:{USERS[user]}::/home/{user}:/bin/bash" for user in host.users]
    return (root / "etc/passwd").read_text() + "\n".join(lines) + "\n"


def etc_group(root: Path, host: Host, kvm: int) -> str:
    """``kvm``: number of the group that may open /dev/kvm."""
    there = [line for line in (root / "etc/group").read_text().splitlines() if not line.startswith("kvm:")]
    members = ",".join(user for user in host.users if user in KVM_USERS)
    lines = [*there, *(f"{user}:x:{USERS[user]}:" for user in host.users), f"kvm:x:{kvm}:{members}"]
    return "\n".join(lines) + "\n"
