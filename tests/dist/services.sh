#!/bin/sh
# Runs in the guest of test_services.py, as root under systemd: installs the packages beside it, starts each service
# without configuration and then with it, and prints what became of that. One boot for all, as the guest is emulated.
#
#   services.sh ENDORSER CA     who signed the two versions of a list that lie beside it
set -u
export DEBIAN_FRONTEND=noninteractive
dpkg -i ./*.deb >installed 2>&1 || { cat installed; exit 1; }
units=$(dpkg -L vmjob-site | sed -n 's|.*/\(vmjob-.*\.service\)$|\1|p' | sort)
timers=$(dpkg -L vmjob-site | sed -n 's|.*/\(vmjob-.*\.timer\)$|\1|p')

# how each ended
start_all() {
	for unit in $units; do
		status=0
		systemctl start "$unit" 2>/dev/null || status=$?
		echo "$unit: $status $(systemctl show -P ExecMainStatus "$unit")"
	done
}

echo "== without configuration"
start_all
for timer in $timers; do systemctl is-enabled "$timer"; done | sort -u

echo "== with it"
cat >/etc/vmjob/site.yaml <<EOF
name: EXAMPLE-T2
elements: [{host: ce.example.org}]
nodes: {files: /srv/nodes/*.json}
accounting: {format: json, spool: /var/spool/vmjob}
EOF
cat >/etc/vmjob/services.conf <<EOF
VMJOB_LEDGER_DAYS=1
VMJOB_SITE_CHECK_OPTIONS=--no-pool
VMJOB_SHARED_CACHE=/srv/vmjob-images
EOF
groupadd --system vmjob-acct
install -d -m 0755 /var/spool/vmjob /srv/nodes /srv/vmjob-images
install -d -m 3777 -g vmjob-acct /var/spool/vmjob/open
install -d -m 3733 -g vmjob-acct /var/spool/vmjob/outgoing /var/spool/vmjob/ledger
install -d -m 1777 /var/lib/vmjob/cache
vmjob site advertise --json >/srv/nodes/here.json
# of alice: the record of a run that was killed long ago, and an image's file that is not what its name says
useradd --create-home alice
su alice -s /bin/sh -c "VMJOB_NODE_CACHE=/var/lib/vmjob/cache python3 $PWD/remains.py"
touch -d '3 days ago' /var/spool/vmjob/ledger/old.json
touch /var/spool/vmjob/ledger/new.json
# an endorser's list that is followed, and has a new version since
mkdir -p /etc/grid-security www
tar -xf certificates.tar -C /etc/grid-security
python3 -m http.server --directory www --bind 127.0.0.1 8000 >/dev/null 2>&1 &
until python3 -c 'import socket; socket.create_connection(("127.0.0.1", 8000))' 2>/dev/null; do sleep 1; done
cp list-1 www/images.list
vmjob image subscribe http://127.0.0.1:8000/images.list --at /var/lib/vmjob/lists --endorser "$1" --ca "$2"
cp list-2 www/images.list
start_all

echo "== what they did"
stat -c '%n %U %a' /var/lib/vmjob-publish/*
grep -q '"EXAMPLE-T2"' /var/lib/vmjob-publish/site.json && echo "site.json is the site's"
for place in ledger outgoing; do ls /var/spool/vmjob/$place; done
ls /var/lib/vmjob/cache/uid-*/blobs/sha256
vmjob image subscribe --at /var/lib/vmjob/lists --list
echo "== journal"
journalctl --no-pager -o cat -u 'vmjob-*'

echo "== enabled, then purged"
systemctl enable --now vmjob-publish-json.timer vmjob-ledger-clean.timer 2>/dev/null
systemctl list-timers --no-pager 'vmjob-*' | grep -c service
dpkg --purge vmjob-site vmjob >/dev/null 2>&1
systemctl list-timers --all --no-pager 'vmjob-*' | grep -c service
find / -xdev -name '*vmjob*' -not -path '/proc/*' -not -path '/run/*' -not -path "$PWD/*" 2>/dev/null
