#!/bin/sh
# mmdebstrap's customize hook: the kernel's files come in without its package, whose scripts would make an initramfs
# of Debian's kind and want a boot loader. $1: the tree; VMJOB_KERNEL: the package asked for.
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" LC_ALL=C
real=$(apt-cache depends --important "$VMJOB_KERNEL" | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
mkdir "$1/vmjob-kernel"
cd "$1/vmjob-kernel"
apt-get -q download "${real:-$VMJOB_KERNEL}"
for deb in *.deb; do
    # /lib may be a link to usr/lib, and must stay one
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --no-overwrite-dir -C "$1" -f -
    mkdir -p "$1/usr/lib/vmjob"
    dpkg-deb -W "$deb" | tr '\t' = >"$1/usr/lib/vmjob/kernel"
done
cd /
rm -rf "$1/vmjob-kernel"
