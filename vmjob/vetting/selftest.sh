#!/bin/sh
# Looks around in a guest for vmjob image test, as the job's program. Each fact is a line on stdout: seconds since boot,
# name, value, with tabs between; selftest.py judges them. VMJOB_TEST: "full", as the image's own user with
# inputs, outputs and a network; "bare", as root with none of them. VMJOB_TEST_USER: the user of the image.
# POSIX sh; what the image lacks is a fact too, so nothing here but the shell itself is taken for granted.
set -u
LC_ALL=C
export LC_ALL

say() {
	up=0
	read -r up _ </proc/uptime
	printf '%s\t%s\t%s\n' "$up" "$1" "$2"
}

# first WORD FILE: what follows WORD at the beginning of a line of FILE
first() {
	while read -r key value; do
		[ "$key" = "$1" ] || continue
		printf '%s' "$value"
		return
	done <"$2"
}

user() {
	say user.name "$(id -un 2>/dev/null)"
	say user.id "$(id -u 2>/dev/null)"
	say user.home "$([ -d "$HOME" ] && echo "$HOME")"
	known=no
	while IFS=: read -r name _; do
		[ "$name" != "$VMJOB_TEST_USER" ] || known=yes
	done </etc/passwd
	say user.known $known
}

work() {
	say work.here "$(pwd)"
	say work.wanted "$VMJOB_WORK"
	written=no
	(echo text >.vmjob-probe) 2>/dev/null && read -r text <.vmjob-probe && [ "$text" = text ] && rm .vmjob-probe && written=yes
	say work.writable $written
	temporary=no
	(: >"$TMPDIR/.vmjob-probe") 2>/dev/null && rm "$TMPDIR/.vmjob-probe" && temporary=yes
	say work.temporary $temporary
}

tools() {
	missing=
	for tool in cat chmod chown cp date dd find kill mkdir mkfifo rm sleep sort stat tail tar tr xargs; do
		command -v $tool >/dev/null || missing="$missing $tool"
	done
	say tools.missing "${missing# }"
}

features() {
	for file in "$MACHINEFEATURES/total_cpu" "$JOBFEATURES/allocated_cpu" "$JOBFEATURES/jobstart_secs" \
		"$JOBFEATURES/max_rss_bytes" "$JOBFEATURES/job_id"; do
		value=
		[ ! -r "$file" ] || read -r value <"$file"
		say "features.${file##*/}" "$value"
	done
}

machine() {
	count=0
	while read -r key _; do
		[ "$key" != processor ] || count=$((count + 1))
	done </proc/cpuinfo
	say cpus.count $count
	say memory.total "$(first MemTotal: /proc/meminfo)"
}

clock() {
	before=$(date -u +%s)
	say time.now "$before"
	sleep 1
	now=$(date -u +%s)
	say time.ran $((now - before))
}

entropy() {
	say entropy.urandom "$(dd if=/dev/urandom bs=512 count=1 2>/dev/null | tr -dc 'a-zA-Z0-9')"
	value=
	[ ! -r /proc/sys/kernel/random/uuid ] || read -r value </proc/sys/kernel/random/uuid
	say entropy.kernel "$value"
	# reading it waits until the kernel's pool is filled
	(dd if=/dev/random bs=1 count=1 >/dev/null 2>&1 && echo yes >.vmjob-random) 2>/dev/null &
	tries=0 ready=no
	while [ $tries -lt 100 ]; do
		[ ! -s .vmjob-random ] || { ready=yes; break; }
		tries=$((tries + 1))
		sleep 0.1 2>/dev/null || sleep 1
	done
	rm -f .vmjob-random
	say entropy.ready $ready
}

# answered ADDRESS: is it in the kernel's table of neighbours?
answered() {
	while read -r neighbour _ flags mac _; do
		[ "$neighbour" != "$1" ] || [ "$flags" = 0x0 ] || [ "$mac" = 00:00:00:00:00:00 ] || return 0
	done </proc/net/arp
	return 1
}

# ask ADDRESS: has the kernel look for it, by whatever the image has that sends something there. Says "yes", "no", or
# "unasked" where nothing does.
ask() {
	answer=unasked
	for tool in bash nc ping wget curl busybox; do
		command -v $tool >/dev/null || continue
		answer=no
		(
			case $tool in
			bash) bash -c "echo >/dev/udp/$1/9" ;;
			nc) nc -w 2 "$1" 9 ;;
			busybox) busybox nc -w 2 "$1" 9 ;;
			ping) ping -c 1 -W 2 "$1" ;;
			wget) wget -q -T 2 -O - "http://$1:9/" ;;
			curl) curl -s -m 2 "http://$1:9/" ;;
			esac &
		) >/dev/null 2>&1 </dev/null
		for _ in 1 2 3 4 5 6 7 8 9 10; do
			answered "$1" && { echo yes; return; }
			sleep 0.1 2>/dev/null || sleep 1
		done
	done
	echo $answer
}

network() {
	cards='' addresses='' routed='' last=''
	for card in /sys/class/net/*; do
		case ${card##*/} in lo | '*' | sit* | tunl* | docker* | dummy*) ;; *) cards="$cards ${card##*/}" ;; esac
	done
	say network.cards "${cards# }"
	[ ! -r /proc/net/fib_trie ] || while read -r one two three _; do
		case $one in
		"|--") last=$two ;;
		/32) [ "$two $three ${last%%.*}" = "host LOCAL 127" ] || [ "$two $three" != "host LOCAL" ] ||
			addresses="$addresses $last" ;;
		esac
	done </proc/net/fib_trie
	say network.addresses "${addresses# }"
	while read -r _ destination gateway _ _ _ _ mask _; do
		[ "$destination $mask" != "00000000 00000000" ] || routed=$gateway
	done </proc/net/route
	say network.gateway "$routed"
	say network.dns "$(first nameserver /etc/resolv.conf 2>/dev/null)"
	[ -n "$routed" ] || return 0
	# 0202000A is 10.0.2.2
	hex=$routed address=
	while [ -n "$hex" ]; do
		byte=${hex#"${hex%??}"} hex=${hex%??}
		address=$address${address:+.}$((0x$byte))
	done
	say network.answer "$(ask "$address")"
}

inputs() {
	folder='in put'
	say inputs.text "$(cat "$folder/é ü.txt" 2>/dev/null)"
	say inputs.size "$(stat -c %s data 2>/dev/null)"
	say inputs.empty "$([ -d "$folder/empty" ] && echo yes)"
	say inputs.program "$("$folder/tool" 2>/dev/null)"
	say inputs.owner "$([ -w data ] && echo yes)"
}

outputs() {
	mkdir 'out put' 'out put/empty'
	tr '[:lower:]' '[:upper:]' <'in put/é ü.txt' >'out put/É Ü.txt'
	{ cat data; printf 'end\n'; } >'out put/data copy'
	ln -s 'data copy' 'out put/link'
	: >'out put/nothing'
}

say test.begin "$VMJOB_TEST"
user
entropy
network
if [ "$VMJOB_TEST" = full ]; then
	work
	tools
	features
	machine
	clock
	inputs
	outputs 2>/dev/null
fi
printf 'vmjob\000\377stderr\n' >&2
say test.end 42
exit 42
