#!/bin/sh
# The glide-in: makes this guest a worker node of a VO's own HTCondor pool, until there is no more work or no more time.
#
# Run by root in the guest as the job's program. Beside it lie condor_config, written for this job, and token.
# Variables, all VMJOB_GLIDEIN_…:
#   NAME     the guest's full name in the pool
#   POOL     the collector, HOST:PORT
#   EXPIRES  epoch; from then on the token is worth nothing; empty: always good
#   JOBS     jobs of one CPU at once
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
expires=${VMJOB_GLIDEIN_EXPIRES:-99999999999}
oldest=9.0  # tokens, AES and what else the configuration takes for granted
skew=300    # seconds that our clock may differ from the pool's
crashes=3   # of the startd, without a job's end in between: then it is of no use to go on
master='' ending='' answer='' died=0 refused=0 owner=''

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
	[ ! -e "$run/joined" ] || follow
	rm -rf "$run/private" "$job/token" "$state/ballast"
	[ ! -e "$run/joined" ] || echo "$(cat "$run/joined") $(date +%s)" >"$out/times"
	cp "$run"/log/* "$out/" 2>/dev/null
	exit "$status"
}

prepare() {
	mkdir -p "$out" "$run/log" "$run/lock" "$run/spool" $state/execute
	chmod 700 "$run" "$out" "$job" "$work" # the daemons' own, and nothing for jobs to read
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

# What is not for jobs is out of their reach: one that writes fast is found late, and the host ends a guest that takes
# more than its slot has. Blocks that are promised to a file, and never written, take nothing of the host's disk.
limit_disk() {
	case $(df -Pk $state | tail -n 1) in /dev/*) ;; *) return ;; esac
	spare=$(spare_disk)
	[ "$spare" = 0 ] || fallocate -l "${spare}M" $state/ballast 2>/dev/null || rm -f $state/ballast
}

# A user for each slot: jobs can neither read the daemons' files nor signal the daemons or each other.
configure() {
	limit_disk
	{
		cat "$job/condor_config"
		printf '%s\n' "RELEASE_DIR = $release" "BIN = $release/bin" "SBIN = $release/sbin" "LIBEXEC = $libexec" \
			"LOCAL_CONFIG_FILE =" "LOCAL_CONFIG_DIR =" "STARTD_HISTORY = $out/startd_history" \
			"RESERVED_DISK = $(spare_disk)" "COLLECTOR_HOST = $address" \
			"SINGULARITY = $(command -v apptainer || command -v singularity)"
		number=0
		while [ $number -lt $((2 * ${VMJOB_GLIDEIN_JOBS:-32})) ]; do
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
	for log in "$run/log/StartLog" "$run/log/MasterLog" "$out/startd_history"; do : >>"$log"; done
	exec 4<"$run/log/StartLog" 5<"$run/log/MasterLog" 6<"$out/startd_history"
	echo -900 >/proc/self/oom_score_adj 2>/dev/null
	condor_master -f 4<&- 5<&- 6<&- &
	master=$!
}

# shellcheck disable=SC2317 # called by the trap
# First with time for the jobs to end, then at once: each job is back in the VO's queue.
stop_daemons() {
	kill -TERM "$master" 2>/dev/null
	left=-10 # where no pool was joined there are no jobs
	[ ! -e "$run/joined" ] || left=$((grace * 5))
	while kill -0 "$master" 2>/dev/null; do
		[ "$left" -gt 0 ] || kill -QUIT "$master"
		[ "$left" -gt -20 ] || kill -KILL "$master"
		left=$((left - 1))
		sleep 0.2
	done
}

# quietly COMMAND...: $answer is what it printed; a signal is heard at once
quietly() {
	"$@" >"$run/answer" 2>&1 &
	wait $!
	asked=$?
	answer=$(cat "$run/answer")
	return $asked
}

# nap SECONDS: as sleep, but a signal is heard at once
nap() {
	sleep "$1" &
	wait $!
}

# again STATUS TEXT: before one more try; no more time gives up with them
again() {
	[ -z "$ending" ] || exit 0
	[ "$(date +%s)" -lt "$deadline" ] || give_up "$1" "$2"
	nap 2
	[ -z "$ending" ] || exit 0
}

# shellcheck disable=SC2317 # called by quietly
# address_of HOST. HTCondor asks no name server itself, or a dead one would delay it at each step.
address_of() {
	case $1 in
	*[!0-9.]*) getent ahostsv4 "$1" || nslookup "$1" | sed -n '/^Name/,$s/^Address[^:]*: *//p' ;;
	*) echo "$1" ;;
	esac 2>/dev/null | sed -n 's/^\([0-9.]*\).*/\1/p' | head -n 1
}

find_pool() {
	deadline=$(($(date +%s) + reach))
	while quietly address_of "${pool%:*}" && [ -z "$answer" ]; do
		again 14 "the guest finds no address of ${pool%:*}: the name is wrong, or the node's name server does not answer"
	done
	address=$answer:${pool##*:}
}

# Whether the pool takes us as a worker node. The daemons themselves would not say why not.
ask_pool() {
	# where packets vanish it would wait for minutes
	quietly timeout $((reach < 20 ? reach : 20)) env _CONDOR_TOOL_DEBUG=D_SECURITY condor_ping -debug -address "<$address>" -type collector -verbose \
		ADVERTISE_STARTD
}

join_pool() {
	until ask_pool; do
		[ -z "$ending" ] || exit 0
		printf '%s\n' "$answer" >"$out/refused"
		case $answer in
		*"server trust domain is "*) give_up 15 "the token is of another pool: $(said 'trust domain' | sed 's/.*from //; s/\.$//')" ;;
		*"decode JWT"* | *"No token found"*) give_up 15 "the token file holds no token" ;;
		*"Hash supplied by server"*) give_up 15 "the pool did not sign this token: it is forged, or of a key that it has no more" ;;
		*"Authentication was a Success"*) give_up 15 "the token does not allow ADVERTISE_STARTD, or the pool does not allow it to its identity" ;;
		*"IDTOKENS) failed"*)
			[ "$(date +%s)" -lt "$expires" ] || give_up 15 "the token has expired"
			refused=$((refused + 1)) # a pool in the middle of a restart may say so too
			set -- 15 "the pool refuses the token: it was revoked, or by the pool's clock it has expired"
			[ $refused -lt 3 ] || give_up "$@"
			again "$@"
			continue
			;;
		esac
		cause=$(said ERROR | sed 's/^.*ERROR: //')
		again 14 "the pool $pool was not reached within $reach s: ${cause:-no answer}"
	done
	check_pools_clock
	rm -f "$out/refused"
	date +%s >"$run/joined"
	say "joined the pool $pool as $name"
}

said() { printf '%s\n' "$answer" | grep "$1" | tail -n 1; }

# By the times in our ad the pool chooses jobs for us. What it calls a session holds the time that it has.
check_pools_clock() {
	theirs=$(said '^Session ID:' | sed -n 's/.*:\([0-9]\{10\}\):[0-9]*$/\1/p')
	[ "$theirs" ] || return 0
	now=$(date +%s)
	if [ $((now - theirs)) -gt $skew ]; then give_up 13 "the node's clock is $((now - theirs)) s ahead of the pool's"; fi
	if [ $((theirs - now)) -gt $skew ]; then give_up 13 "the node's clock is $((theirs - now)) s behind the pool's"; fi
}

# Whether a job of the VO runs here.
busy() {
	for comm in /proc/[0-9]*/comm; do
		read -r word 2>/dev/null <"$comm" || continue
		[ "$word" != condor_starter ] || return 0
	done
	return 1
}

# Tells of jobs as they come and go, and counts deaths of the startd. The logs are read as they grow: nothing is started
# for what is looked at every second.
follow() {
	while IFS= read -r line <&4; do
		case $line in
		*": Remote owner is "*) owner=${line##* } ;;
		*": Remote job ID is "*) say "job ${line##* } of $owner begins" ;;
		esac
	done
	# shellcheck disable=SC3013 # dash, busybox and bash know it
	[ "$run/log/StartLog" -ef /proc/self/fd/4 ] || exec 4<"$run/log/StartLog" # a new one was begun
	while IFS= read -r line <&5; do
		case $line in *restarting*condor_startd*) died=$((died + 1)) ;; esac
	done
	while IFS= read -r line <&6; do
		value=${line#* = }
		case $line in
		"ClusterId = "*) number=$value code='' cut='' took=0 ;;
		"ExitCode = "*) code=$value ;;
		"ExitSignal = "*) code="signal $value" ;;
		"JobDuration = "*) took=${value%%.*} ;;
		"ProcId = "*) number=$number.$value ;;
		"STARTER_DISCONNECTED_FROM_SUBMIT_NODE = true") cut=1 ;;
		"ToE = "*"HowCode = 0;"*) cut=${cut:-0} ;;
		"***"*)
			[ "${cut:-1}" = 0 ] && how="ended ($code)" || how="was stopped"
			say "job $number $how after $took s"
			died=0
			;;
		esac
	done
}

serve() {
	until [ "$ending" ] || ! kill -0 "$master" 2>/dev/null; do
		now=$(date +%s) # of no use where a signal ended it too
		[ "$retire" = 0 ] || [ "${now:-0}" -lt "$retire" ] || busy || { ending="time to retire, and no job runs"; break; }
		nap 1
		follow
		[ $died -lt $crashes ] || give_up 16 "condor_startd ends again and again: $(grep ERROR "$run/log/StartLog" | tail -n 1 | sed 's/^.*ERROR //')"
	done
	[ "$ending" ] || {
		wait "$master"
		status=$?
		master=
		cat "$run"/log/StartLog* 2>/dev/null | grep -q 'have been claimed for' ||
			give_up 16 "condor_master ended with status $status: $(tail -n 1 "$run/log/MasterLog")"
		ending="no more work"
	}
	follow
	say "leaves the pool: $ending"
}

trap finish EXIT
prepare
check_clock
find_condor
trap 'ending="told to end"' TERM INT
find_pool
configure
set_up_cgroups
start_daemons
join_pool
serve
exit 0
