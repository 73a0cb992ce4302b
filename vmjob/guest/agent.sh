#!/bin/sh
# The vmjob agent: runs one job in this guest and tells the host how it went.
#
#   agent job|system|disk       how this guest was booted (job: we are init's whole work)
#
# Needs a POSIX shell, tar and the usual small tools (dash + coreutils, or busybox); no network.
# To the host it speaks lines on the virtio-serial port org.vmjob.0 (see docs/developer.md), and the
# program's stdout and stderr go as raw bytes to org.vmjob.1 and org.vmjob.2. Until the host says
# "go" nothing here belongs to any job, so a guest saved at "ready" can serve any job of the image.
set -u
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
umask 022

version=1
boot=${1:-system}
run=/run/vmjob
job=$run/job
work=/var/lib/vmjob/work
beat=2
newline='
'

say() { printf '%s\n' "$*" >&3; }

power_off() {
	# The host ends the machine when it has read "bye"; this is for the case that it does not.
	if [ "$boot" = job ]; then
		sync
		echo o >/proc/sysrq-trigger
		sleep 5
		exec poweroff -f
	fi
	systemctl --no-block poweroff 2>/dev/null || poweroff
	exit 0
}

# give_up KIND TEXT...: the job cannot be done in this guest
give_up() {
	say "error $*"
	power_off
}

# find_device NAME FILE...: sets $found to the device whose file in sysfs says NAME; udev may not be there
find_device() {
	found='' wanted=$1
	shift
	for entry; do
		[ -e "$entry" ] || continue
		name=
		read -r name <"$entry" || :
		[ "$name" = "$wanted" ] || continue
		entry=${entry%/*}
		found=/dev/${entry##*/}
		return 0
	done
	return 1
}

find_port() { find_device "$1" /sys/class/virtio-ports/*/name; }
find_disk() { find_device "$1" /sys/block/*/serial; }

open_channel() {
	tries=0
	until find_port org.vmjob.0 && [ -c "$found" ]; do
		tries=$((tries + 1))
		if [ $tries -gt 100 ]; then
			echo "vmjob agent: no virtio-serial port org.vmjob.0: this guest was not started by vmjob" >&2
			exit 1
		fi
		sleep 0.1 2>/dev/null || sleep 1
	done
	exec 3<>"$found"
}

# Everything about the job comes as lines: "file NAME" and then its lines, each behind "|"; "go" ends it.
receive_job() {
	[ ! -e "$run" ] || rm -rf "$run"
	mkdir -p "$job/machinefeatures" "$job/jobfeatures"
	epoch='' seed='' target=/dev/null
	while :; do
		# reading fails while nobody holds the host's end
		IFS= read -r line <&3 || { sleep 1; continue; }
		case $line in
		"|"*) printf '%s\n' "${line#?}" >>"$target" ;;
		"file "*)
			target=$job/${line#file }
			[ "$target" != "$job/token" ] || umask 077 # a glide-in's: for root alone
			: >"$target"
			umask 022
			;;
		"start "*) line=${line#start }; epoch=${line% *} seed=${line#* } ;;
		go) return 0 ;;
		esac
	done
}

# The guest may have been restored from a file: its clock is old and its random pool is known.
become_fresh() {
	date -u -s "@$epoch" >/dev/null 2>&1 || :
	printf '%s' "$seed" >/dev/urandom || :
}

make_user() {
	read -r user <"$job/user"
	group=
	while IFS=: read -r name _ uid gid _ home login; do
		[ "$name" = "$user" ] && group=$gid && break
	done </etc/passwd
	if [ -z "$group" ]; then
		useradd -m "$user" 2>/dev/null ||
			echo "$user:x:60000:60000:vmjob:/home/$user:/bin/sh" >>/etc/passwd ||
			give_up user "there is no user $user in the image, and none can be made"
		make_user
		return
	fi
	[ -d "$home" ] || home=$work
	[ ! -e "$work" ] || rm -rf "${work:?}"
	mkdir -p "$work"
	chown "$uid:$group" "$work"
	# setpriv (util-linux) changes the user without a process in between; busybox's cannot, its su does
	if [ "$uid" = 0 ]; then as_user=''
	elif setpriv --reuid="$uid" --regid="$group" --init-groups true 2>/dev/null; then
		as_user="setpriv --reuid=$uid --regid=$group --init-groups"
	else
		as_user=su
	fi
}

# user_sh SCRIPT [env]: run a shell script file as the job's user, with no process of ours between; env: in our session
# shellcheck disable=SC2086  # $as_user is several words
user_sh() {
	case $as_user in
	'') exec "${2:-$session}" /bin/sh "$1" ;;
	su) exec "${2:-$session}" su -s /bin/sh "$user" -c ". $1" ;;
	*) exec "${2:-$session}" $as_user /bin/sh "$1" ;;
	esac
}

unpack_inputs() {
	find_disk vmjob-in || return 0
	# tar runs as the user, so that the files are the user's; O_DIRECT is 10 times as fast as through the page cache
	printf 'umask 022; exec tar -xf - -C %s\n' "$work" >"$run/unpack.sh"
	{ dd if="$found" bs=1M iflag=direct 2>"$run/dd.log" || cat "$found"; } |
		( user_sh "$run/unpack.sh" env ) 2>"$run/unpack.log" ||
		give_up inputs "tar cannot unpack the inputs in the guest: $(tail -n 1 "$run/unpack.log")"
}

# The program's stdout and stderr are named pipes that the user owns: "> /dev/stderr" works in it.
run_program() {
	find_port org.vmjob.1 && out_port=$found
	find_port org.vmjob.2 && err_port=$found
	mkfifo -m 600 "$run/out" "$run/err"
	chown "$uid:$group" "$run/out" "$run/err" "$run/pid" "$run/progress" "$run/shell"
	cat "$run/out" >"$out_port" & out_cat=$!
	cat "$run/err" >"$err_port" & err_cat=$!
	{
		echo "HOME='$home' USER='$user' LOGNAME='$user' SHELL=/bin/sh TMPDIR=/tmp"
		echo "MACHINEFEATURES=$job/machinefeatures JOBFEATURES=$job/jobfeatures VMJOB_WORK=$work VMJOB_BOOT=$boot VMJOB_PROGRESS=$run/progress"
		echo 'export HOME USER LOGNAME SHELL TMPDIR MACHINEFEATURES JOBFEATURES VMJOB_WORK VMJOB_BOOT VMJOB_PROGRESS'
		echo 'unset NOTIFY_SOCKET INVOCATION_ID JOURNAL_STREAM'
		echo "cd $work || exit 126"
	} >"$run/setup.sh"
	printf '%s\n' "user='$user' uid=$uid as_user='$as_user' session=$session login='$login'" >"$run/who"
	printf '%s\n' "echo \$\$ >$run/pid" ". $run/setup.sh" ". $job/job.sh" >"$run/program.sh"
	[ ! -e "$job/script" ] || chmod 755 "$job/script"
	say started
	# In the foreground: a shell starts background commands with SIGINT ignored.
	( user_sh "$run/program.sh" ) </dev/null >"$run/out" 2>"$run/err" 3>&-
	status=$?
	close_shell
	# What the program left running would keep the pipes open for ever.
	read -r pid <"$run/pid" || pid=
	case $pid in *[!0-9]* | '' | 0 | 1) ;; *) kill -KILL "-$pid" 2>/dev/null ;; esac
	( sleep 3; end_user ) & guard=$!
	wait "$out_cat" "$err_cat"
	kill "$guard" 2>/dev/null
	say "exit $status"
}

# end_user: kill every process of the job's user
end_user() {
	[ "$uid" = 0 ] && { kill "$out_cat" "$err_cat"; return; }
	echo 'kill -KILL -1' >"$run/end.sh"
	( user_sh "$run/end.sh" env ) >/dev/null 2>&1
	sleep 1
	kill "$out_cat" "$err_cat" 2>/dev/null
}

# make_shell ROWS COLUMNS TERM: writes $run/shell.sh, a shell for who looks in from the host, as the job's user, in the
# work folder, with the job's environment. It has the console hvc0, which is a true terminal: as the first of its
# session it makes that its own by opening it, so Ctrl-C and job control work. 0 rows: what is typed comes from a pipe,
# so no prompt and no echo. The marks tell the host where the shell's own output begins and ends.
# shellcheck disable=SC2016 # expanded where it is run
make_shell() {
	[ "$boot" != disk ] || systemctl stop serial-getty@hvc0.service 2>/dev/null
	chown "$uid" /dev/hvc0
	case $login in */nologin | */false) login= ;; esac
	[ -x "$login" ] || login=/bin/sh
	{
		printf '%s\n' 'exec <>/dev/hvc0 >&0 2>&0' "echo \$\$ >$run/shell" ". $run/setup.sh"
		[ ! -e "$job/environment" ] || echo ". $job/environment"
		printf '%s\n' "SHELL=$login TERM=$3; export TERM" 'mark() { printf "\033]7777;%s\007" "$1"; }'
		if [ "$1" = 0 ]; then
			# with a pipe for its errors, a shell is not interactive
			printf '%s\n' 'stty -echo -isig -ixon -icrnl -opost 2>/dev/null' \
				'mark ready'
			# ends of input for the one before may still come: what is for this one begins with a line that says so
			[ "$2" = 0 ] || printf '%s\n' 'odd=0; until { IFS= read -r begin && [ "$begin" = ": vmjob begins" ]; } ||' \
				'	[ $odd = 100 ]; do odd=$((odd + 1)); done'
			printf '%s\n' '{ $SHELL; mark "exit $?"; } 2>&1 | cat'
		else
			printf '%s\n' "stty rows $1 cols $2 2>/dev/null" 'mark ready; $SHELL -i; mark "exit $?"'
		fi
		echo ": >$run/shell"
	} >"$run/shell.sh"
}

# With the first of a session goes its terminal, and the kernel hangs up on all others.
close_shell() {
	shell=
	[ -s "$run/shell" ] && read -r shell <"$run/shell"
	: >"$run/shell"
	case $shell in *[!0-9]* | '' | 0 | 1) ;; *) kill -KILL "$shell" 2>/dev/null ;; esac
}

heartbeat() {
	count=0
	while sleep $beat; do
		count=$((count + 1))
		percent=
		# the program may write how far it is, in percent, into $VMJOB_PROGRESS
		read -r percent <"$run/progress" || :
		case $percent in *[!0-9]*) percent= ;; esac
		say "heartbeat $count${percent:+ $percent}"
	done
}

# "shutdown SECONDS": the program is told with SIGTERM, and killed when the seconds are over.
# "shell …", "shell", "size …": somebody comes, leaves, or has changed the size of the window.
listen() {
	while :; do
		IFS= read -r line <&3 || { sleep 1; continue; }
		case $line in
		"shutdown "*)
			until [ -s "$run/pid" ]; do sleep 1; done # the inputs are still being unpacked
			read -r pid <"$run/pid"
			case $pid in *[!0-9]* | '' | 0 | 1) continue ;; esac
			kill -TERM "-$pid" 2>/dev/null || kill -TERM "$pid" 2>/dev/null
			( sleep "${line#shutdown }"; kill -KILL "-$pid" || kill -KILL "$pid" ) 2>/dev/null &
			;;
		"shell "*)
			close_shell
			# shellcheck source=/dev/null
			. "$run/who"
			# shellcheck disable=SC2086 # three words
			make_shell ${line#shell }
			# not in the background, where Ctrl-C would be ignored: who listens on is another
			user_sh "$run/shell.sh" </dev/null >/dev/null 2>&1 3>&- | listen
			;;
		shell) close_shell ;;
		"size "*) # ROWS COLUMNS
			size=${line#size }
			stty -F /dev/hvc0 rows "${size% *}" cols "${size#* }" 2>/dev/null
			;;
		esac
	done
}

# Names the files to return in $run/list, each once; tells which globs match nothing.
find_outputs() {
	saved=$IFS
	while IFS= read -r glob; do
		IFS='' matched=''
		for one in $glob; do
			[ -e "$one" ] || [ -L "$one" ] || continue
			case $one in
			*"$newline"*) say "missing $glob (a name with a line break)"; matched=1; continue ;;
			-*) one=./$one ;;
			esac
			matched=1
			printf '%s\n' "$one"
		done
		IFS=$saved
		[ "$matched" ] || say "missing $glob"
	done <"$job/outputs" >"$run/found"
	LC_ALL=C sort -u "$run/found" >"$run/list"
	# one process looks at all, for there may be thousands; 64 MiB in blocks of 512
	big=$newline$(tr '\n' '\0' <"$run/list" |
		xargs -0 sh -c 'exec find "$@" -maxdepth 0 -type f -size +131071' find 2>/dev/null)$newline
}

# big_file NAME: is it one that is better written by dd alone? (plain, not sparse, one tar header block)
big_file() {
	case $big in *"$newline$1$newline"*) ;; *) return 1 ;; esac
	[ ${#1} -le 99 ] || return 1
	IFS=' ' read -r size blocks links <<-END
		$(stat -c '%s %b %h' "$1" 2>/dev/null)
	END
	[ "${size:-0}" -gt 0 ] && [ "$size" -lt 8589934592 ] && [ $((blocks * 512)) -ge "$size" ] && [ "$links" = 1 ]
}

# to_disk OFFSET: stdin onto the output disk; O_DIRECT, so what is written is in the host's file
to_disk() {
	dd of="$disk" bs=1M seek="$1" iflag=fullblock oflag=direct,seek_bytes conv=sync,notrunc 2>>"$run/dd.log"
}

# A tar archive straight onto the output disk. Between tar and dd a pipe costs a third of the speed, so a
# big file is written as tar would, its header by tar and its bytes by dd; the rest follows in one piece.
write_outputs() {
	[ -s "$job/outputs" ] || { say "outputs none"; return; } # looking for none costs 15 ms of a short job
	cd "$work" || return
	find_outputs
	[ -s "$run/list" ] || { say "outputs none"; return; }
	find_disk vmjob-out || { say "outputs failed there is no output disk"; return; }
	disk=$found offset=0
	: >"$run/rest"
	: >"$run/dd.log"
	while IFS= read -r one; do
		big_file "$one" || { printf '%s\n' "$one" >>"$run/rest"; continue; }
		if ! tar -cf - "$one" 2>/dev/null | dd bs=512 count=1 iflag=fullblock 2>/dev/null | to_disk $offset ||
			! to_disk $((offset + 512)) <"$one"; then
			not_written
			return
		fi
		offset=$((offset + 512 + (size + 511) / 512 * 512))
	done <"$run/list"
	if [ -s "$run/rest" ]; then
		case $(tar --version 2>/dev/null) in
		*GNU*) set -- -S --no-unquote -T "$run/rest" ;;
		*) # busybox reads no list
			saved=$IFS IFS=$newline
			set -f
			# shellcheck disable=SC2046  # a word for each line
			set -- $(cat "$run/rest")
			set +f
			IFS=$saved
			;;
		esac
		{
			tar -cf - "$@" 2>"$run/tar.log"
			echo $? >"$run/tar.status"
		} | to_disk $offset || { not_written; return; }
		read -r packed <"$run/tar.status" || packed=1
		[ "$packed" = 0 ] || { say "outputs failed $(tail -n 1 "$run/tar.log")"; return; }
	fi
	say "outputs ok"
}

not_written() {
	case $(cat "$run/dd.log") in
	*[Nn]"o space"*) say "outputs toolarge" ;;
	*) say "outputs failed $(grep -v records "$run/dd.log" | head -n 1)" ;;
	esac
}

work() {
	heartbeat & heart=$!
	become_fresh
	session="setsid"
	command -v setsid >/dev/null || session="env"
	make_user
	unpack_inputs
	run_program
	write_outputs
	kill "$heart" 2>/dev/null
	say bye
	power_off
}

open_channel
read -r kernel </proc/sys/kernel/osrelease
say "hello $version $boot $kernel"
say ready
receive_job
: >"$run/pid"
: >"$run/progress"
: >"$run/shell"
listen | work
