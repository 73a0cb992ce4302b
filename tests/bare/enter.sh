#!/bin/sh
# Makes the folder ROOT the root file system and runs a command in it, as process 1's only child. It is started in new
# mount, process, host name and IPC namespaces (tests/bare/root.py). Not with chroot: a process in one may not make user
# namespaces. Not with bubblewrap: it takes the rights of setuid programs away, and newuidmap is one.
#
#   enter.sh ROOT [bind|ro SOURCE PLACE | tmpfs OPTIONS PLACE]... -- COMMAND...
set -eu
mount --bind "$1" "$1" # pivot_root wants a mount point
cd "$1"
shift
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm dev/net
for node in null zero full random urandom tty kvm net/tun; do
	[ -e "/dev/$node" ] || continue
	: >"dev/$node"
	mount --bind "/dev/$node" "dev/$node"
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for number in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${number%:*}" "dev/${number#*:}"; done

while [ "$1" != -- ]; do
	[ -e ".$3" ] || mkdir -p ".$3"
	case $1 in
	bind) mount --bind "$2" ".$3" ;;
	ro) mount --bind "$2" ".$3" && mount -o remount,bind,ro ".$3" ;;
	tmpfs) mount -t tmpfs -o "$2" tmpfs ".$3" ;;
	esac
	shift 3
done
shift

hostname bare
ip link set lo up 2>/dev/null || true # up already, unless the network is one of its own
pivot_root . .
umount -l .
# shellcheck disable=SC2016  # for the inner shell, which collects the orphans
exec chroot . /bin/sh -c '"$@"; exit $?' sh "$@"
