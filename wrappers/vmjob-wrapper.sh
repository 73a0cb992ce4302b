#!/bin/sh
# What a compute element starts on a bare node: finds a Python and becomes vmjob.
# Needs nothing but POSIX sh; the payload folder may be read-only.
set -eu
umask "$(printf '%o' $((0$(umask) | 2)))" # a result is never writable by all

case $0 in
    */*) here=$(CDPATH='' cd -- "${0%/*}" && pwd) ;;
    *) here=$(pwd) ;;
esac

# 0: this Python will do; 3: it would, but vmjob.pyz has lost its end
usable() {
    command -v "$1" >/dev/null 2>&1 || return 1
    "$1" -E -s -c 'import sys, zipimport
if sys.version_info < (3, 9): sys.exit(1)
try: zipimport.zipimporter(sys.argv[1])
except ImportError: sys.exit(3)' "$here/vmjob.pyz" >/dev/null 2>&1
}

# where the results are asked for as one file, that file is what the batch system waits for
pack='' results=. before=''
for word in "$@"; do
    case $before in
        --pack) pack=$word ;;
        --results) results=$word ;;
    esac
    case $word in
        --pack=*) pack=${word#--pack=} ;;
        --results=*) results=${word#--results=} ;;
    esac
    before=$word
done
[ -z "$pack" ] || results=.

# "attach console|shell": started beside a running job, to look into its guest; "site …": for the node, and no job
look=''
case ${1-} in attach | site) look=1 ;; esac

# The submit side reads result.json; $1 is the outcome, $2 the reason, $3 the next action, $4 exit status, $5 its name,
# $6 transient. No word of them comes from outside, so they need no quoting for JSON.
tell() {
    for folder in "$results" "${_CONDOR_SCRATCH_DIR:-.}"; do
        if [ -w "$folder" ]; then
            # vmjob looks there for what it has to take away of an earlier run
            [ -h "$folder/result.json" ] || ! [ -f "$folder/result.json" ] || [ "$1" = failed ] ||
                mv -f "$folder/result.json" "$folder/.vmjob-earlier.json" 2>/dev/null || :
            cat >"$folder/result.json" <<EOF || return 0
{"vmjob": "", "schema": 1, "job": "", "outcome": "$1", "status": $4, "exit_status": null, "signal": null,
 "failure": {"stage": "start", "kind": "$5", "status": $4, "message": "$2", "hint": "$3", "transient": $6},
 "stages": [], "accelerator": null, "qemu_version": "", "image": "", "image_digest": "", "boot": "",
 "boot_attempts": 0, "network": "", "cpus": 0, "memory": 0, "slot": "", "bytes_in": 0, "bytes_image": 0, "bytes_out": 0,
 "cpu_seconds": 0.0, "peak_memory": 0, "outputs": [], "console_tail": [], "stop": "", "started": 0.0, "ended": 0.0,
 "host": "", "staged": []}
EOF
            if [ -n "$pack" ] && command -v tar >/dev/null 2>&1; then
                { tar -cf "$pack.part" -C "$folder" result.json && mv "$pack.part" "$pack"; } || :
            fi
            return 0
        fi
    done
}

give_up() {
    echo "vmjob-wrapper: $1; $2" >&2 || :
    [ -z "$look" ] || exit "$3" # a result would be the job's, who runs beside
    rm -f "$here/token" "$here"/token-* || : # a secret is not left lying about
    tell failed "$@"
    exit "$3"
}

# Until vmjob itself hears signals: what came then has a result too, and a kill -9 leaves one that says so.
# shellcheck disable=SC2317  # by a trap
stopped() {
    trap '' TERM INT HUP
    give_up "stopped by SIG$1" "the slot was taken away or somebody interrupted the job: submit it again" \
        225 Interrupted true
}
begin() {
    trap '' USR1 USR2
    trap 'stopped TERM' TERM
    trap 'stopped INT' INT
    trap 'stopped HUP' HUP
    tell begun "the run was killed, or its node went down, before it could say how it ended" \
        "see the batch system's log, and the node's for its memory: another try may do" 225 Killed true
    [ -z "$pack" ] || rm -f result.json 2>/dev/null || : # it is in there
}
[ -n "$look" ] || begin

[ -r "$here/vmjob.pyz" ] || give_up "vmjob.pyz is not beside vmjob-wrapper.sh" \
    "send the whole payload folder as vmjob pack made it" 200 JobError false

case ${1-} in
    attach)
        shift
        set -- slot-attach "$@"
        ;;
    site) ;;
    *) set -- slot-run --payload "$here" "$@" ;;
esac

# While Python starts, signals wait, where this node's env can have them wait.
become() {
    if [ -z "$look" ] && env --block-signal=TERM true 2>/dev/null; then
        exec env --block-signal=TERM,INT,HUP,USR1,USR2,TSTP "$@"
    fi
    exec "$@"
}

# also those that are younger than this script; the newest first
versions() {
    minor=40
    while [ "$minor" -ge 9 ]; do
        echo "python3.$minor"
        minor=$((minor - 1))
    done
}

for python in ${VMJOB_PYTHON:+"$VMJOB_PYTHON"} python3 $(versions) \
    platform-python /usr/libexec/platform-python /usr/bin/python3; do
    status=0
    usable "$python" || status=$?
    case $status in
        # exec: the batch system's signals reach vmjob itself, and nothing waits in between
        0) become "$python" -E -s "$here/vmjob.pyz" "$@" ;;
        3) give_up "vmjob.pyz is cut short" "the payload was damaged on its way: pack it again, or send it again" \
            200 JobError false ;;
    esac
done

give_up "no Python 3.9 or newer was found on this node" \
    "set VMJOB_PYTHON to one, or ask the site for the package python3" 236 CommandMissing true
