#!/bin/sh
# First program of boot method "job", as process 1: shows the kernel's file systems, brings up the network that
# the host chose, and becomes the agent. The same file serves the micro image and every built one:
#   . init      from our initramfs. With $top, the root it mounted, it returns when that is ready: made so by
#               busybox, whose start costs a fifth of a dynamic program's
#   init        all of that, as the init of a root that something else mounted
#   init net    only the network (vmjob-net.service, boot method "system")
# vmjob.net=ADDRESS/PREFIX,GATEWAY,DNS on the kernel's command line sets the first network card; without a value it
# leads nowhere. Not there at all: no network in a job, DHCP in a system. POSIX sh for busybox and dash; few forks,
# each costs milliseconds at start.
: "${top=}"
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root
export PATH HOME
umask 022

filesystems() {
    [ -e /proc/self ] || mount -t proc -o nosuid,nodev,noexec proc /proc
    [ -e /sys/kernel ] || mount -t sysfs -o nosuid,nodev,noexec sys /sys
    [ -c /dev/null ] || mount -t devtmpfs -o nosuid dev /dev
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o nosuid,nodev shm /dev/shm
    [ -L /dev/fd ] || cp -a /usr/lib/vmjob/dev/. /dev/
    # in the micro image all is memory already
    [ -e /lib/vmjob/micro ] || mount -t tmpfs -o nosuid,nodev,mode=755 run "$top/run"
    if [ -r "$top/etc/hostname" ] && read -r name <"$top/etc/hostname"; then
        echo "$name" >/proc/sys/kernel/hostname
    fi
}

# the value of vmjob.net, or nothing
net_wanted() {
    read -r words </proc/cmdline
    for word in $words; do
        case $word in vmjob.net=*) printf '%s' "${word#vmjob.net=}" ;; esac
    done
}

# net_card TRIES: the first network card; it may still be on its way
net_card() {
    tries=0
    while [ $tries -lt "$1" ]; do
        for card in /sys/class/net/*; do
            card=${card##*/}
            case $card in lo | '*' | sit* | tunl*) ;; *) printf '%s' "$card"; return 0 ;; esac
        done
        tries=$((tries + 1))
        sleep 0.05
    done
    return 1
}

# "24" -> "255.255.255.0", for ifconfig
netmask() {
    bits=$1 mask=
    for _ in 1 2 3 4; do
        part=$((bits >= 8 ? 255 : bits > 0 ? 256 - (1 << (8 - bits)) : 0))
        bits=$((bits > 8 ? bits - 8 : 0))
        mask=$mask${mask:+.}$part
    done
    printf '%s' "$mask"
}

net_static() {
    address=${1%%,*} rest=${1#*,}
    gateway=${rest%%,*} dns=${rest#*,}
    card=$(net_card 100) || { echo "vmjob: no network card for vmjob.net" >&2; return 1; }
    if command -v ip >/dev/null; then
        ip link set "$card" up && ip address add "$address" dev "$card" && ip route add default via "$gateway"
    elif command -v ifconfig >/dev/null && command -v route >/dev/null; then
        ifconfig "$card" "${address%/*}" netmask "$(netmask "${address#*/}")" up && route add default gw "$gateway"
    elif command -v busybox >/dev/null; then
        busybox ip link set "$card" up && busybox ip address add "$address" dev "$card" &&
            busybox ip route add default via "$gateway"
    else
        echo "vmjob: no ip, ifconfig or busybox in this image: no network" >&2
    fi
    # a link into a resolver daemon that does not run here would lead nowhere
    [ ! -L "$top/etc/resolv.conf" ] || rm -f "$top/etc/resolv.conf"
    echo "nameserver $dns" >"$top/etc/resolv.conf"
}

loopback() {
    if command -v ip >/dev/null; then ip link set lo up
    elif command -v ifconfig >/dev/null; then ifconfig lo 127.0.0.1 up
    elif command -v busybox >/dev/null; then busybox ip link set lo up
    fi
}

if [ "${1-}" = net ]; then
    wanted=$(net_wanted)
    read -r words </proc/cmdline
    if [ -n "$wanted" ]; then
        net_static "$wanted"
    elif [ "${words%vmjob.net=*}" = "$words" ] && card=$(net_card 1) && command -v udhcpc >/dev/null; then
        udhcpc -i "$card" -q -n -t 5 -T 2
    fi
    exit 0
fi

filesystems
loopback
wanted=$(net_wanted)
[ -z "$wanted" ] || net_static "$wanted"
[ -n "$top" ] || exec /usr/lib/vmjob/agent job
