#!/bin/sh
# The glide-in: makes this guest a worker node of a VO's own HTCondor pool, until there is no more work or no more time.
#
# Run by root in the guest as the job's program. Beside it lie condor_config, written for this job, and token.
# Variables, all VMJOB_GLIDEIN_…:
#   NAME     the guest's full name in the pool
#   POOL     address of the collector, HOST:PORT
#   DISK     MiB of disk for all jobs together
#   CONDOR   HTCondor as a tarball, its name in the work folder; empty: the image's own
#   RETIRE   epoch; after it no job begins, and the guest leaves when none runs
#   REACH    seconds to try to reach the pool, 60
#   GRACE    seconds that jobs have after SIGTERM, before they are killed, 3
# Daemons, logs and token live in memory, in $run. What is for people is left in glidein/ in the work folder.
# Exit status: 0 it served, or there was no work; else it could not, and glidein/why has a line for people:
#   11 no HTCondor  12 HTCondor too old  13 wrong clock  14 pool out of reach  15 token refused  16 daemons failed
set -u
umask 022
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

job=/run/vmjob/job
run=/run/vmjob/glidein
state=/var/lib/vmjob
work=${VMJOB_WORK:-$state/work}
out=$work/glidein
pool=${VMJOB_GLIDEIN_POOL:?}
name=${VMJOB_GLIDEIN_NAME:-vmjob}
tarball=${VMJOB_GLIDEIN_CONDOR:-}
retire=${VMJOB_GLIDEIN_RETIRE:-0}
reach=${VMJOB_GLIDEIN_REACH:-60}
grace=${VMJOB_GLIDEIN_GRACE:-3}
oldest=9.0  # tokens, AES and what else the configuration takes for granted
master='' ending=''

say() { printf 'glidein: %s\n' "$*"; }

# give_up STATUS TEXT...
give_up() {
	status=$1
	shift
	say "$*"
	printf '%s\n' "$*" >"$out/why"
	exit "$status"
}

# shellcheck disable=SC2317 # called by the trap
# On every way out: no daemon, no token, and the logs where they are brought home from.
finish() {
	status=$?
	trap '' TERM INT HUP
	[ -z "$master" ] || stop_daemons
	rm -rf "$run/private" "$job/token"
	[ ! -e "$run/joined" ] || echo "$(cat "$run/joined") $(date +%s)" >"$out/times"
	cp "$run"/log/* "$out/" 2>/dev/null
	exit "$status"
}

prepare() {
	mkdir -p "$out" "$run/log" "$run/lock" "$run/spool" $state/execute
	chmod 700 "$run" "$out" # the daemons' own, and nothing for jobs to read
	(umask 077 && mkdir -p "$run/private" && cat "$job/token" >"$run/private/token")
	rm -f "$job/token"
	# the VO's jobs tell their users by it where they ran
	hostname "${name%%.*}"
	echo "127.0.1.1 $name ${name%%.*}" >>/etc/hosts
}

check_clock() {
	read -r began <"$job/jobfeatures/jobstart_secs" || return 0
	behind=$((began - $(date +%s)))
	if [ $behind -gt 60 ] || [ $behind -lt -900 ]; then
		give_up 13 "the guest's clock is wrong: it says $(date -u +%FT%TZ), $behind s behind the host's"
	fi
}

find_condor() {
	release=
	if [ "$tarball" ]; then
		mkdir -p $state/condor
		tar -xf "$work/$tarball" -C $state/condor || give_up 11 "$tarball: tar cannot unpack it in the guest"
		for folder in "$state/condor" "$state"/condor/*; do
			[ ! -x "$folder/sbin/condor_master" ] || release=$folder
		done
		[ "$release" ] || give_up 11 "$tarball has no sbin/condor_master: it is not HTCondor's tarball"
		rm -f "$work/$tarball"
	elif found=$(command -v condor_master); then
		release=${found%/sbin/*}
	else
		give_up 11 "there is no HTCondor in this image"
	fi
	for libexec in "$release/libexec/condor" "$release/lib/condor/libexec" "$release/libexec"; do
		[ ! -d "$libexec" ] || break
	done
	PATH=$release/bin:$release/sbin:$PATH
	version=$(CONDOR_CONFIG=/dev/null condor_version | sed -n 's/^.CondorVersion: \([0-9.]*\).*/\1/p')
	[ "$version" ] || give_up 16 "HTCondor does not run in this guest: $(condor_version 2>&1 | tail -n 1)"
	major=${version%%.*} minor=${version#*.}
	[ "$major" -gt ${oldest%.*} ] || { [ "$major" = ${oldest%.*} ] && [ "${minor%%.*}" -ge ${oldest#*.} ]; } ||
		give_up 12 "HTCondor $version is too old: tokens need $oldest or later"
}

# spare_disk: MiB of the disk's free space that are not for jobs
spare_disk() {
	df -Pk $state | tail -n 1 | {
		read -r _ _ _ free _
		spare=$((free / 1024 - ${VMJOB_GLIDEIN_DISK:-$((free / 1024))}))
		[ $spare -gt 0 ] || spare=0
		echo $spare
	}
}

# A user for each slot: jobs can neither read the daemons' files nor signal the daemons or each other.
configure() {
	cpus=$(getconf _NPROCESSORS_ONLN 2>/dev/null || grep -c ^processor /proc/cpuinfo)
	{
		cat "$job/condor_config"
		printf '%s\n' "RELEASE_DIR = $release" "BIN = $release/bin" "SBIN = $release/sbin" "LIBEXEC = $libexec" \
			"LOCAL_CONFIG_FILE =" "LOCAL_CONFIG_DIR =" "STARTD_HISTORY = $out/startd_history" \
			"RESERVED_DISK = $(spare_disk)"
		number=0
		while [ $number -lt $((2 * cpus)) ]; do
			number=$((number + 1))
			user=vmjob-slot$number id=$((61000 + number))
			grep -q "^$user:" /etc/passwd || echo "$user:x:$id:$id::/nonexistent:/bin/sh" >>/etc/passwd
			grep -q "^$user:" /etc/group || echo "$user:x:$id:" >>/etc/group
			echo "SLOT1_${number}_USER = $user"
		done
	} >"$run/condor_config"
	CONDOR_CONFIG=$run/condor_config
	export CONDOR_CONFIG
}

# Each job in a cgroup of its own, so that its memory is bounded and it ends whole.
set_up_cgroups() {
	[ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null || return 0
	for controller in cpu io memory pids; do # as HTCondor will ask for
		echo +$controller >/sys/fs/cgroup/cgroup.subtree_control
	done 2>/dev/null
}

start_daemons() {
	echo -900 >/proc/self/oom_score_adj 2>/dev/null
	condor_master -f &
	master=$!
}

# shellcheck disable=SC2317 # called by the trap
# First with time for the jobs to end, then at once: each job is back in the VO's queue.
stop_daemons() {
	kill -TERM "$master" 2>/dev/null
	left=$((grace * 5))
	while kill -0 "$master" 2>/dev/null; do
		[ "$left" -gt 0 ] || kill -QUIT "$master"
		[ "$left" -gt -20 ] || kill -KILL "$master"
		left=$((left - 1))
		sleep 0.2
	done
}

# nap SECONDS: as sleep, but a signal is heard at once
nap() {
	sleep "$1" &
	wait $!
}

# ask_pool: whether the pool takes us as a worker node; $answer is what condor_ping said
ask_pool() {
	answer=$(_CONDOR_TOOL_DEBUG=D_SECURITY condor_ping -debug -address "<$pool>" -type collector \
		-verbose ADVERTISE_STARTD 2>&1)
}

join_pool() {
	deadline=$(($(date +%s) + reach))
	until ask_pool; do
		printf '%s\n' "$answer" >"$out/refused"
		case $answer in
		*"server trust domain is "*) give_up 15 "the token is of another pool: $(said 'trust domain' | sed 's/.*from //')" ;;
		*"decode JWT"* | *"No token found"*) give_up 15 "the token file holds no token" ;;
		*"Hash supplied by server"*) give_up 15 "the pool did not sign this token: it is forged, or of a key that it has no more" ;;
		*"Authentication was a Success"*) give_up 15 "the token does not allow ADVERTISE_STARTD, or the pool does not allow it to its identity" ;;
		*"IDTOKENS) failed"*) give_up 15 "the pool refuses the token: it may have expired or been revoked" ;;
		esac
		[ "$(date +%s)" -lt "$deadline" ] || give_up 14 "the pool $pool was not reached within $reach s: $(said ERROR)"
		nap 2
		[ -z "$ending" ] || return
	done
	date +%s >"$run/joined"
	say "joined $pool as $name"
}

said() { printf '%s\n' "$answer" | grep "$1" | tail -n 1; }

# Whether a job of the VO runs here.
busy() {
	for comm in /proc/[0-9]*/comm; do
		read -r word 2>/dev/null <"$comm" || continue
		[ "$word" != condor_starter ] || return 0
	done
	return 1
}

serve() {
	until [ "$ending" ] || ! kill -0 "$master" 2>/dev/null; do
		[ "$retire" = 0 ] || [ "$(date +%s)" -lt "$retire" ] || busy || { ending="no job ran when it was time to retire"; break; }
		nap 1
	done
	[ "$ending" ] || {
		wait "$master"
		status=$?
		master=
		grep -q 'have been claimed for' "$run/log/StartLog" 2>/dev/null ||
			give_up 16 "condor_master ended with status $status: $(tail -n 1 "$run/log/MasterLog")"
		ending="there was no work"
	}
	say "$ending"
}

trap finish EXIT
prepare
check_clock
find_condor
configure
set_up_cgroups
trap 'ending="told to end"' TERM INT
start_daemons
join_pool
serve
exit 0
