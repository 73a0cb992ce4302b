"""Scripts for root in a guest of the micro image (busybox), and a program that reads what QEMU tells a machine."""

from __future__ import annotations

import struct

# Everything that root finds, on stdout: what the machine was told, each disk, each file that the agent was sent.
LOOK = """
exec 2>&1
cat /proc/cmdline /proc/*/cmdline /proc/*/environ | tr '\\0' '\\n'
env
for disk in /dev/vd? /dev/sd? /dev/sr?; do [ ! -b $disk ] || { echo "disk $disk"; strings -n 4 $disk; }; done
find /run /tmp /var /etc /home /root /usr/lib/vmjob -type f | while read -r file; do echo "== $file"; cat "$file"; done
find /sys/firmware /sys/class/dmi -type f | while read -r file; do strings -n 4 "$file"; done
dmesg
chmod 755 fwcfg && ./fwcfg | strings -n 4
strings -n 4 /dev/mem | head -n 2000
echo looked
"""

# NAT: every address of the node that root can think of, by TCP and UDP, with routes of its own. What answers is said.
REACH = """
card=$(ls /sys/class/net | grep -v lo | head -n 1)
tcp() { echo x | nc -w 3 "$1" 80 >/dev/null 2>&1 && echo "reached $1"; }
udp() { timeout 3 tftp -g -r x "$1" 69 >/dev/null 2>&1; }
tcp 203.0.113.5
for n in 1 2 3; do nslookup -type=a rebind.test 10.0.2.3 2>&1 | grep -A1 rebind.test | tail -n 1; done
mac=$(ip neigh show dev $card | sed -n 's/^10.0.2.2 lladdr \\([^ ]*\\).*/\\1/p')
ip addr flush dev lo
ip link set lo down
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
ip addr add 169.254.7.7/16 dev $card
for address in 127.0.0.1 127.0.0.53 169.254.169.254 0.0.0.0; do ip route add $address via 10.0.2.2; done
for address in 127.0.0.1 127.0.0.53 169.254.169.254 0.0.0.0 10.0.2.2 10.0.2.3 rebind.test ::ffff:127.0.0.1 127.1 \\
        0177.0.0.1; do
    tcp $address &
    udp $address &
done
wait
ip route del 169.254.169.254
ip route add 169.254.169.254 dev $card
arp -i $card -s 169.254.169.254 "$mac"
for address in 169.254.169.254 224.0.0.251 255.255.255.255; do
    tcp $address &
    udp $address &
done
wait
tcp 203.0.113.5
ip -6 addr add fd00::15/64 dev $card
ip link set $card arp off
for address in ::1 2001:db8::5 64:ff9b::7f00:1 2002:7f00:1:: ::ffff:0:127.0.0.1; do
    ip -6 route add $address dev $card
    tcp $address &
    udp $address &
done
wait
echo tried
"""

# Each disk overwritten, the read-only ones too, and the output disk past its end.
WRITE = """
exec 2>&1
for entry in /sys/block/vd*/serial; do
    name=${entry#/sys/block/} name=${name%/serial} serial=$(cat $entry)
    blockdev --setrw /dev/$name
    end=$(blockdev --getsz /dev/$name)
    for at in 0 $((end - 1)) $end $((end + 1000000)); do
        yes EVIL | dd of=/dev/$name bs=512 count=1 seek=$at conv=notrunc,fsync 2>/dev/null &&
            echo "wrote $serial $([ $at -lt $end ] && echo inside || echo behind)"
    done
done
exit 0
"""

# The agent's ports are open already; root takes the device away from the driver and gives it back, and has them all.
PORTS = """
for port in /dev/vport*p[123]; do
    mknod /tmp/port c $(tr : ' ' </sys/class/virtio-ports/${port#/dev/}/dev)
    for name in $port /tmp/port; do
        if (: >$name); then echo opened >>x; else echo busy >>x; fi 2>/dev/null
    done
    rm /tmp/port
done
device=$(ls /sys/bus/virtio/drivers/virtio_console | grep virtio)
echo $device >/sys/bus/virtio/drivers/virtio_console/unbind
echo $device >/sys/bus/virtio/drivers/virtio_console/bind
until control=$(grep -lx org.vmjob.0 /sys/class/virtio-ports/*/name); do sleep 0.1; done
control=${control%/name} control=/dev/${control##*/}
"""
FORGE = PORTS + """
for entry in /sys/block/*/serial; do
    [ "$(cat $entry)" != vmjob-out ] || { disk=${entry#/sys/block/} disk=${disk%/serial}; }
done
echo made up >>x
tar -cf - x | dd of=/dev/$disk conv=fsync 2>/dev/null
printf 'exit 0\\noutputs ok\\nbye\\n' >$control
exec sleep 1000
"""
BABBLE = PORTS + """
dd if=/dev/urandom of=$control bs=64k count=20 2>/dev/null
exec sleep 1000
"""

FLOOD = """
dd if=/dev/zero bs=1M count=200 2>/dev/null
echo flooded
exec sleep 1000
"""

# A program of root's that forks for ever, and one that fills all memory.
BOMB = """
echo -1000 >/proc/self/oom_score_adj
echo bomb
(dd if=/dev/zero of=/dev/shm/full bs=1M &) 2>/dev/null
bomb() { bomb | bomb & }
while :; do bomb; done
"""

# In a session of its own, so that the agent does not end it with the program; it waits until the outputs are written.
_LATER = """
dd if=/dev/urandom of=x bs=1M count=16 2>/dev/null
setsid sh -c 'touch /tmp/apart; until [ -e /run/vmjob/list ]; do :; done; {}' </dev/null >/dev/null 2>&1 &
until [ -e /tmp/apart ]; do sleep 0.1; done
"""
POWER = {
    "reset": "echo b >/proc/sysrq-trigger; exec sleep 1000",
    "power-off-while-outputs-are-written": _LATER.format("poweroff -f"),
    "crash-while-outputs-are-written": _LATER.format("echo c >/proc/sysrq-trigger"),
}

CLOCK = """
date -u -s '2098-01-01 00:00:00' >/dev/null
touch future
sleep 3
date -u -s '1970-01-02 00:00:00' >/dev/null
touch past
sleep 3
exit 7
"""


def fwcfg(keys: int = 0x60, each: int = 4096) -> bytes:
    """A static program for x86-64 that writes the first bytes of all that QEMU's fw_cfg device has, key by key (QEMU's
    docs/specs/fw_cfg: the key to port 0x510 as 16 bits, bytes from port 0x511), to stdout."""
    base, buffer = 0x400000, 0x401000
    code = b"".join((
        b"\xbf\x03\0\0\0\xb8\xac\0\0\0\x0f\x05",  # iopl(3)
        b"\x31\xdb",  # the key, in ebx
        b"\xba\x10\x05\0\0\x89\xd8\x66\xef",  # again: out 0x510, bx
        b"\xba\x11\x05\0\0\xbf", struct.pack("<I", buffer), b"\xb9", struct.pack("<I", each), b"\xfc\xf3\x6c",  # ins
        b"\xbf\x01\0\0\0\xbe", struct.pack("<I", buffer), b"\xba", struct.pack("<I", each),
        b"\xb8\x01\0\0\0\x0f\x05",  # write(1, buffer, each)
        b"\xff\xc3\x83\xfb", bytes([keys]), b"\x72"))
    code += struct.pack("b", 14 - len(code) - 1) + b"\x31\xff\xb8\x3c\0\0\0\x0f\x05"  # jump to again; exit(0)
    head = struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, 120 + len(code), buffer - base + each, 4096)
    return head + segment + code
