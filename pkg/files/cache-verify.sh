#!/bin/sh
# vmjob-cache-verify.service: hash again what the node keeps of images. Each user's cache is looked at as that user, so
# that what lies in it leads nobody to another's files; the cache that all users read is root's.
set -u

node=${VMJOB_NODE_CACHE:-/var/lib/vmjob/cache}
vmjob=${VMJOB_COMMAND:-/usr/bin/vmjob}
worst=0

# $1: what was looked at; $2: the exit status of that
heed() {
    [ "$2" -eq 0 ] && return
    echo "vmjob-cache-verify: $1: exit status $2" >&2
    worst=$2
}

for cache in "$node"/uid-*; do
    # no link, and the owner's own by its name, or it is somebody else's trap
    if [ -L "$cache" ] || ! [ -d "$cache" ]; then continue; fi
    owner=$(stat -c %u -- "$cache") || continue
    group=$(stat -c %g -- "$cache") || continue
    [ "$cache" = "$node/uid-$owner" ] || continue
    set -- setpriv "--reuid=$owner" "--regid=$group" --clear-groups --no-new-privs
    if [ "$owner" = "$(id -u)" ]; then set --; fi
    status=0
    "$@" env "VMJOB_CACHE=$cache" "$vmjob" image cache verify || status=$?
    heed "$cache" "$status"
done
if [ -n "${VMJOB_SHARED_CACHE:-}" ] && [ -d "$VMJOB_SHARED_CACHE" ]; then
    status=0
    "$vmjob" image cache verify --in "$VMJOB_SHARED_CACHE" || status=$?
    heed "$VMJOB_SHARED_CACHE" "$status"
fi
exit "$worst"
