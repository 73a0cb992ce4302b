#!/bin/sh
# A job of the VO, in the guest of a glide-in: says where it is, and does as the PYTHIA example does.
set -eu
echo "guest $(hostname), virtualisation $(systemd-detect-virt)"
# the image's list of fonts, where matplotlib may write
cp -R /var/lib/matplotlib matplotlib
MPLCONFIGDIR=$PWD/matplotlib
export MPLCONFIGDIR
exec python3 generate.py
