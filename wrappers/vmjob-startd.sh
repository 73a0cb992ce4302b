#!/bin/sh
# HTCondor's startd runs this now and then (99-vmjob-node.conf): what this node does with virtual machines, as attributes
# of its machine ad. All or nothing: what does not come whole and in time is HasVmjob = false, with the reason.
set -u

case $0 in
    */*) here=$(CDPATH='' cd -- "${0%/*}" && pwd) ;;
    *) here=$(pwd) ;;
esac

# $1: the reason, no word of which comes from outside
offline() {
    printf 'HasVmjob = false\nVmjobOfflineReason = "%s"\n-\n' "$1"
    exit 0
}

# vmjob.pyz and vmjob-wrapper.sh, which finds a Python for it, stand beside this script, where a package has them, or in
# /etc/vmjob. What is there is a copy, perhaps of an old release: the packaged one goes before it.
find_vmjob() {
    case $here in
        /etc/vmjob) set -- /usr/share/vmjob /etc/vmjob ;;
        *) set -- "$here" /usr/share/vmjob /etc/vmjob ;;
    esac
    for place in "$@"; do
        if [ -r "$place/vmjob.pyz" ] && [ -r "$place/vmjob-wrapper.sh" ]; then
            wrapper=$place/vmjob-wrapper.sh
            return
        fi
    done
    wrapper=''
    command -v vmjob >/dev/null 2>&1 || offline "no vmjob on this node: install the package vmjob-site, or see vmjob site hook --help"
}

# in good time before the next one; vmjob itself gives up after a minute
in_time() {
    if command -v timeout >/dev/null 2>&1; then
        timeout -k 5 90 "$@"
    else
        "$@"
    fi
}

find_vmjob
status=0
if [ "$wrapper" ]; then
    said=$(in_time sh "$wrapper" site advertise "$@" </dev/null) || status=$?
else
    said=$(in_time vmjob site advertise "$@" </dev/null) || status=$?
fi
case $status:$said in
    '0:HasVmjob = '*'
-') printf '%s\n' "$said" ;;
    *) offline "vmjob site advertise ended with status $status: its complaint is in the startd's log" ;;
esac
