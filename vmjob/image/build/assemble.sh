#!/bin/sh
# Runs as root of a namespace of its own (or as root): turns the unpacked tree $ROOT into what goes on the disk.
# $OVERLAY: files to lay over it. $USERS: names. $COMMANDS: a file of shell commands, may be empty. $STAMP: a file
# made when the build began: what is newer was made by it and gets a time that every build agrees on.
set -eu
umask 022
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONHASHSEED=0 DEBIAN_FRONTEND=noninteractive HOME=/root

# what is above is about this machine, and no name of a folder that is another in the next build
inside() { env -u ROOT -u OVERLAY -u USERS -u COMMANDS -u STAMP -u RESULT -u TMPDIR chroot "$ROOT" "$@"; }

tar -C "$OVERLAY" --owner=0 --group=0 -cf - . | tar -C "$ROOT" --keep-directory-symlink --no-overwrite-dir -xpf -

# plain lines: useradd would write the day and the hour
number=1000
for user in $USERS; do
    if ! grep -q "^$user:" "$ROOT/etc/passwd"; then
        echo "$user:x:$number:$number::/home/$user:/bin/sh" >>"$ROOT/etc/passwd"
        echo "$user:x:$number:" >>"$ROOT/etc/group"
        echo "$user:*:19000:0:99999:7:::" >>"$ROOT/etc/shadow"
        [ ! -e "$ROOT/etc/gshadow" ] || echo "$user:!::" >>"$ROOT/etc/gshadow"
    fi
    mkdir -p "$ROOT/home/$user"
    [ ! -x "$ROOT/bin/bash" ] || sed -i "s|^\($user:.*\):/bin/sh\$|\1:/bin/bash|" "$ROOT/etc/passwd"
    cp -rn "$ROOT/etc/skel/." "$ROOT/home/$user/" 2>/dev/null || :
    number=$((number + 1))
done

mount --rbind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc" 2>/dev/null || mount --rbind /proc "$ROOT/proc"
rm -f "$ROOT/etc/resolv.conf"
if [ -s "$COMMANDS" ]; then
    cat /etc/resolv.conf >"$ROOT/etc/resolv.conf" 2>/dev/null || :
    inside /bin/sh -euc "$(cat "$COMMANDS")" </dev/null
fi
for user in $USERS; do inside chown -R "$user:" "/home/$user"; done
# the guest's user cannot write there: without this, each job would compile anew what it imports
for folder in "$ROOT"/usr/local/lib/python3*/dist-packages; do
    [ -d "$folder" ] || continue
    inside /usr/bin/python3 -m compileall -q -f --invalidation-mode unchecked-hash "${folder#"$ROOT"}" || :
done
inside /sbin/ldconfig 2>/dev/null || :
for kernel in "$ROOT"/lib/modules/*; do inside /sbin/depmod "${kernel##*/}"; done
umount -l "$ROOT/dev" "$ROOT/proc"

# What differs from build to build, and what must not be the same in two guests.
cd "$ROOT"
rm -rf tmp/* tmp/.[!.]* var/tmp/* run/* root/.cache root/.bash_history etc/.pwd.lock etc/ssh/ssh_host_*_key* \
    var/cache/ldconfig/* var/cache/apt/* var/lib/apt/lists/* var/cache/debconf/*-old var/lib/dpkg/*-old \
    var/lib/systemd/random-seed var/lib/dbus/machine-id etc/passwd- etc/group- etc/shadow- etc/gshadow- \
    etc/subuid- etc/subgid- var/cache/man/* var/lib/systemd/catalog/database
find var/log -type f -delete
: >etc/machine-id
: >etc/resolv.conf
: >etc/.updated
: >var/.updated
sed -i -E 's/^([^:]*:[^:]*):[0-9]+:/\1:19000:/' etc/shadow
chmod 1777 tmp var/tmp
mkdir -p usr/lib/vmjob var/lib/vmjob

# The newest file that came in a package gives the time of all that was made here.
epoch=$(find . -xdev -type f ! -newer "$STAMP" -printf '%T@\n' | sort -n | tail -n 1 | cut -d. -f1)
find . -xdev -newermt "@$epoch" -exec touch -h -d "@$epoch" {} +
echo "$epoch" >"$RESULT"
