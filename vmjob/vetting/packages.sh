#!/bin/sh
# Tells what packages this guest has: the job of vmjob image scan. Into packages.tsv go lines of words with tabs:
#   os ID VERSION                          from os-release
#   manager NAME                           a package system that has packages here: dpkg, rpm, apk
#   dpkg|rpm|apk NAME VERSION ARCH SOURCE SOURCEVERSION
#   python PATH                            a Python package's folder or file
#   installer NAME PATH                    who put one of those there
#   end                                    so it is whole
# POSIX sh, no network, no root.
set -u
LC_ALL=C
export LC_ALL
tab=$(printf '\t')

fail() {
	echo "packages: $*" >&2
	exit 1
}

# manager NAME FILE: its packages, if there are any
manager() {
	[ -s "$2" ] || return 0
	printf 'manager\t%s\n' "$1"
	cat "$2"
}

apk_list() {
	name='' version='' arch='' source=''
	while IFS= read -r line || [ -n "$name" ]; do
		case $line in
		P:*) name=${line#P:} ;;
		V:*) version=${line#V:} ;;
		A:*) arch=${line#A:} ;;
		o:*) source=${line#o:} ;;
		'')
			[ -z "$name" ] || printf 'apk\t%s\t%s\t%s\t%s\t%s\n' "$name" "$version" "$arch" "$source" "$version"
			name='' source=''
			;;
		esac
	done
}

find_python() {
	find / \( -path /proc -o -path /sys -o -path /dev -o -path /run \) -prune -o \( -path '*.dist-info/METADATA' -o \
		-path '*.egg-info/PKG-INFO' -o -name '*.egg-info' -type f -o -path '*.dist-info/INSTALLER' \) -print 2>/dev/null
}

ID='' VERSION_ID=''
for file in /etc/os-release /usr/lib/os-release; do
	[ -r "$file" ] || continue
	# read, not run: it is data
	while IFS='=' read -r key value; do
		value=${value#[\"\']}
		case $key in ID) ID=${value%[\"\']} ;; VERSION_ID) VERSION_ID=${value%[\"\']} ;; esac
	done <"$file"
	break
done

list=$(mktemp "${TMPDIR:-/tmp}/packages.XXXXXX" 2>/dev/null) || list=./packages.list
{
	printf 'os\t%s\t%s\n' "$ID" "$VERSION_ID"
	: >"$list"
	if command -v dpkg-query >/dev/null && [ -s /var/lib/dpkg/status ]; then
		# the second letter of its state: n, not installed; c, only its configuration is left
		dpkg-query -W -f "\${db:Status-Abbrev}${tab}dpkg${tab}\${Package}${tab}\${Version}${tab}\${Architecture}${tab}\${source:Package}${tab}\${source:Version}\n" >"$list" ||
			fail "dpkg-query failed"
		while IFS= read -r line; do
			case $line in ?[nc]*) ;; *) printf '%s\n' "${line#*"$tab"}" ;; esac
		done <"$list" >"$list.2"
		mv "$list.2" "$list"
	fi
	manager dpkg "$list"
	: >"$list"
	# busybox has a program called rpm, too
	if command -v rpm >/dev/null && { [ -d /var/lib/rpm ] || [ -d /usr/lib/sysimage/rpm ]; }; then
		rpm -qa --qf "rpm${tab}%{NAME}${tab}%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}${tab}%{ARCH}${tab}%{SOURCERPM}${tab}\n" >"$list" || fail "rpm failed"
	fi
	manager rpm "$list"
	: >"$list"
	for file in /lib/apk/db/installed /usr/lib/apk/db/installed; do
		if [ -s "$file" ]; then
			apk_list <"$file" >"$list"
			break
		fi
	done
	manager apk "$list"
	find_python >"$list"
	while IFS= read -r path; do
		case $path in
		*/INSTALLER)
			who=''
			[ ! -r "$path" ] || read -r who <"$path" || :
			printf 'installer\t%s\t%s\n' "$who" "${path%/*}"
			;;
		*/METADATA | */PKG-INFO) printf 'python\t%s\n' "${path%/*}" ;;
		*) printf 'python\t%s\n' "$path" ;;
		esac
	done <"$list"
	echo end
} >packages.tsv
rm -f "$list"
