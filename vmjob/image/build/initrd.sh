#!/bin/sh
# /init of every initramfs made here: loads what the virtio devices need, then starts the job: in the micro image
# right here, in a built image on its disk, which has the serial vmjob-root.
# shellcheck disable=SC1091,SC2034 # init.sh is read at run time and uses what is set here
export PATH=/bin
mount -t devtmpfs -o nosuid dev /dev
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sys /sys
read -r words </proc/cmdline
cd /lib/vmjob || exit

# present ID: is there a virtio device of that kind?
present() {
    for entry in /sys/bus/virtio/devices/*/device; do
        [ -r "$entry" ] && read -r id <"$entry" && [ "$id" = "$1" ] && return
    done
    return 1
}

# A module costs 10 ms of an emulated boot, so those of the other way to reach devices stay out.
other='*_pci*'
for entry in /sys/bus/pci/devices/*; do [ ! -e "$entry" ] || other='virtio_mmio*'; done

load() {
    while read -r module; do
        # shellcheck disable=SC2254 # a pattern
        case $module in
        $other) continue ;;
        virtio_blk.ko) present 0x0002 || continue ;;
        esac
        insmod "$module" || echo "vmjob: cannot load $module" >/dev/kmsg
    done <"$1"
}

load order
case $words in *vmjob.net=* | *vmjob.boot=system*) load order.net ;; esac
[ ! -e micro ] || . /usr/lib/vmjob/init # and does not return

tries=0
while :; do
    for disk in /sys/block/vd*; do
        serial=
        [ -r "$disk/serial" ] && read -r serial <"$disk/serial"
        [ "$serial" = vmjob-root ] && break 2
    done
    tries=$((tries + 1))
    [ $tries -lt 500 ] || { echo "vmjob: no disk with the serial vmjob-root" >/dev/kmsg; exit 1; }
    usleep 20000
done
mount -t ext4 -o rw,noatime "/dev/${disk##*/}" /root || { echo "vmjob: the root disk does not mount" >/dev/kmsg; exit 1; }
next=/sbin/init
case $words in *vmjob.boot=job*)
    top=/root next="/usr/lib/vmjob/agent job"
    . /usr/lib/vmjob/init
    ;;
esac
for place in dev proc sys; do mount -o move "/$place" "/root/$place"; done
# shellcheck disable=SC2086 # two words
exec switch_root /root $next
