#!/bin/sh
# A-REX sources this on the front end (stage 0, with bash, $0 being its own), and has it as a function in the job's
# script on the worker node (1 before the job, 2 after it, with sh): so nothing exits here, and all names are vmjob_…
# What stands above is of the image; joboption_…, control_path and ACCOUNTING_… are A-REX's.
# shellcheck disable=SC2154

vmjob_say() {
  echo "vmjob: $*" >&2
}

# one word of a shell
vmjob_quote() {
  vmjob_quoted=$(printf '%s.' "$1" | sed "s/'/'\\\\''/g")
  printf "'%s'" "${vmjob_quoted%.}"
}

# a name for options of vmjob that take patterns
vmjob_literally() {
  printf '%s' "$1" | sed 's/[[*?]/[&]/g'
}

vmjob_add() {
  vmjob_options="$vmjob_options $1$(vmjob_quote "$2")"
}

# where A-REX keeps what it knows of the job
vmjob_control() {
  if command -v control_path >/dev/null; then
    control_path "$joboption_controldir" "$joboption_gridid" "$1"
  else
    echo "$joboption_controldir/job.$joboption_gridid.$1"
  fi
}

# below the session directory
vmjob_relative() {
  echo "${1#"$joboption_directory"/}"
}

vmjob_may() {
  if [ "$vmjob_expires" -gt 0 ] && [ "$(date +%s)" -ge "$vmjob_expires" ]; then
    vmjob_say "the endorsement of $vmjob_name ($vmjob_digest) has expired: ask for its next version"
    return 1
  fi
  case $joboption_args in
    *" run --image "*) vmjob_say "the job asks for two images: one runs it"; return 1 ;;
  esac
  if [ "${joboption_numnodes:-1}" -gt 1 ]; then
    vmjob_say "the job asks for $joboption_numnodes nodes: a virtual machine has one"
    return 1
  fi
  # vmjob asks the site's policy again, on the node
  vmjob_job_vos=$(sed -n 's|^voms=/*\([^/]*\).*|\1|p' "$(vmjob_control local)" 2>/dev/null)
  [ -z "$vmjob_vos" ] || [ -z "$vmjob_job_vos" ] && return 0
  printf '%s\n' "$vmjob_job_vos" | grep -qFx -e "$vmjob_vos" && return 0
  vmjob_say "$vmjob_name is for jobs of" "$vmjob_vos"
  return 1
}

vmjob_limits() {
  vmjob_count=${joboption_count:-1}
  [ "$vmjob_count" -ge 1 ] || vmjob_count=1
  vmjob_add --cpus= "$vmjob_count"
  if [ -n "${joboption_memory:-}" ]; then
    # of the slot's, MB for each CPU, QEMU takes a part
    vmjob_most=$((joboption_memory * vmjob_count))
    vmjob_guest=$(((vmjob_most - 416) * 256 / 257))
    if [ "$vmjob_guest" -lt "$vmjob_needs" ]; then
      vmjob_say "$vmjob_name needs $vmjob_needs MiB and QEMU 416 MiB and 1/256; the job has $vmjob_most: ask for memory"
      return 1
    fi
    vmjob_add --memory= "${vmjob_guest}MiB"
  fi
  [ -z "${joboption_disk:-}" ] || vmjob_add --disk= "${joboption_disk}MiB"
  [ -z "${joboption_walltime:-}" ] || vmjob_add --walltime= "${joboption_walltime}s"
}

# all that was brought into the session directory, but for what the job's own streams go into
vmjob_inputs() {
  for vmjob_path in "$joboption_directory"/* "$joboption_directory"/.[!.]*; do
    vmjob_one=$(vmjob_relative "$vmjob_path")
    [ -e "$vmjob_path" ] || continue
    case $vmjob_one in
      "$vmjob_stdout" | "$vmjob_stderr" | "$vmjob_log" | .diag | .comment) continue ;;
      *:*) vmjob_say "the name of the input $vmjob_one has a colon, which vmjob does not take"; return 1 ;;
    esac
    vmjob_add --input= "$(vmjob_literally "$vmjob_one")"
  done
}

# what A-REX will take away
vmjob_outputs() {
  vmjob_i=0
  while eval "[ -n \"\${joboption_outputfile_$vmjob_i+set}\" ]"; do
    eval "vmjob_one=\$joboption_outputfile_$vmjob_i"
    while [ "${vmjob_one#/}" != "$vmjob_one" ]; do vmjob_one=${vmjob_one#/}; done
    vmjob_one=${vmjob_one%/}
    case $vmjob_one in
      '' | @*) vmjob_add --output= . ;; # all, or a list that the job will write
      "$vmjob_stdout" | "$vmjob_stderr" | "$vmjob_log" | result.json | console.log) ;;
      *) vmjob_add --output= "$(vmjob_literally "$vmjob_one")" ;;
    esac
    vmjob_i=$((vmjob_i + 1))
  done
}

vmjob_environment() {
  vmjob_i=0
  while eval "[ -n \"\${joboption_env_$vmjob_i+set}\" ]"; do
    eval "vmjob_one=\$joboption_env_$vmjob_i"
    case ${vmjob_one%%=*} in
      '' | [0-9]* | *[!A-Za-z0-9_]*) ;;
      *) vmjob_add --env= "$vmjob_one" ;;
    esac
    vmjob_i=$((vmjob_i + 1))
  done
}

# the job's command becomes vmjob with the job's command
vmjob_rewrite() {
  vmjob_may || return 1
  vmjob_stdout=$(vmjob_relative "${joboption_stdout:-}")
  vmjob_stderr=$(vmjob_relative "${joboption_stderr:-}")
  vmjob_log=$(sed -n 's/^stdlog=//p' "$(vmjob_control local)" 2>/dev/null)
  vmjob_options=
  vmjob_limits && vmjob_inputs && vmjob_outputs && vmjob_environment || return 1
  vmjob_stdin=$(vmjob_relative "${joboption_stdin:-/dev/null}")
  case $vmjob_stdin in
    /dev/null) vmjob_stdin= ;;
    /*) vmjob_say "stdin is $vmjob_stdin, which is no input of the job"; return 1 ;;
    *) vmjob_stdin="/bin/sh -c 'exec \"\$@\" <\"\$0\"' $(vmjob_quote "$vmjob_stdin")" ;;
  esac
  # A-REX looks whether this file is on the node
  joboption_arg_0=${VMJOB_COMMAND:-/usr/bin/vmjob}
  joboption_args="$(vmjob_quote "$joboption_arg_0") run --image $vmjob_digest --results .$vmjob_options -- $vmjob_stdin $joboption_args"
  export ACCOUNTING_WN_INSTANCE="$vmjob_digest"
  vmjob_say "the job runs in $vmjob_name ($vmjob_digest)"
}

vmjob_node() {
  if [ ! -x "${VMJOB_COMMAND:-/usr/bin/vmjob}" ]; then
    vmjob_say "${VMJOB_COMMAND:-/usr/bin/vmjob} is not on this node: install it, or arcctl rte params-set … VMJOB_COMMAND"
    return 1
  fi
  export VMJOB_HOME="${VMJOB_HOME:-/var/lib/vmjob/store}" VMJOB_NODE_CACHE="${VMJOB_NODE_CACHE:-/var/lib/vmjob/cache}"
  # HOME is the session directory, which goes with the job: a cache there would be of no use to the next
  export XDG_CACHE_HOME=/dev/null
}

case $1 in
  0) vmjob_rewrite ;;
  1) vmjob_node ;;
esac
