"""What an admin wants to know of a node: all that vmjob doctor asks, and what is hers to set up. Only data; nothing is
changed, and no check stops another."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Optional

from vmjob import config, ownway, process
from vmjob.errors import VmjobError
from vmjob.machinetext import is_number
from vmjob.node import snippets, spools, udev
from vmjob.units import format_size
from vmjob.vm import doctor, faults
from vmjob.vm.doctor import FAILURE, OK, WARNING, Check

NODE_CACHE = Path("/var/lib/vmjob/cache")  # as docs/site-admin.md has it
_ENABLE = "vmjob site enable-kvm --users …"
_SOON = 7 * 86400  # seconds before its end that an authority's certificate is told of
_LARGEST = 32 * 2**20


def examine(scratch: Optional[Path] = None) -> list[Check]:
    """All checks. May start QEMU for the KVM test, unless the answer is known since the node booted."""
    checks = [*doctor.examine(scratch, others=True), *standing()]
    return sorted(checks, key=lambda one: _ORDER.index(one.name) if one.name in _ORDER else len(_ORDER))


def standing() -> list[Check]:
    """How the node was set up, whatever runs there now: all that vmjob doctor does not ask. No guest is started, and
    it takes some hundredths of a second, so that the startd's hook can ask each minute."""
    checks: list[Check] = []
    steps: list[Callable[[], Iterator[Check]]] = [
        _qemu_faults, _members, _rule, _passt, _node_cache, _runs, _hook, _authorities, _site, _clock]
    for step in steps:
        try:
            checks += step()
        except OSError as error:
            checks.append(Check(step.__name__.strip("_"), WARNING, f"it cannot be looked at: {error}", "ask as root"))
    return checks


_ORDER = ("python", "qemu", "kvm", "kvm device", "kvm group", "udev rule", "network", "passt", "namespaces", "fence",
          "qemu-img", "uefi", "scratch", "memory", "cgroup", "cache", "node cache", "shared cache", "runs",
          "startd hook", "policy", "authorities", "site", "accounting", "clock")


def problems(checks: Sequence[Check]) -> tuple[str, ...]:
    """What is not well, as a node's ad tells it (NodeAd.problems): one short line each, failures first."""
    bad = sorted((one for one in checks if one.level != OK), key=lambda one: one.level != FAILURE)
    return tuple(f"{one.name}: {one.text}"[:200].replace(";", ",") for one in bad)


# ---------------------------------------------------------------- KVM


def _qemu_faults() -> Iterator[Check]:
    from vmjob.vm import probe

    try:
        version = probe.find_qemu().version
    except VmjobError:
        return  # doctor has said so
    for fault in faults.known("qemu", version):
        if fault not in (faults.CMPXCHG16B, faults.NEW_KERNELS):  # doctor has these in its line
            yield Check("qemu", fault.level, fault.text, fault.action)


def _members() -> Iterator[Check]:
    """Who may open /dev/kvm: it should be some, by a group, and not all."""
    import grp

    try:
        group, mode = udev.owner()
        members = grp.getgrnam(group).gr_mem
    except (OSError, KeyError):
        return
    if mode & 0o006 == 0o006:
        yield Check("kvm group", WARNING, f"everybody may open {udev.KVM} (mode {mode:04o})",
                    f"to choose who may: {_ENABLE}")
    elif group == "root":
        return  # doctor has said that nobody can be let in
    elif members:
        shown = ", ".join(members[:8]) + (f" and {len(members) - 8} more" if len(members) > 8 else "")
        yield Check("kvm group", OK, f"{group}: {shown}")
    else:
        yield Check("kvm group", WARNING, f"nobody is in the group {group}: no job can use KVM", _ENABLE)


def _rule() -> Iterator[Check]:
    rule = udev.for_kvm(udev.files())
    if rule is None:
        if udev.KVM.exists():
            yield Check("udev rule", WARNING, f"no rule of udev sets {udev.KVM}: who may open it is forgotten at a "
                        "boot", _ENABLE)
        return
    differs = udev.differs(rule)
    if differs:
        yield Check("udev rule", WARNING, differs, "udevadm control --reload && udevadm trigger --sysname-match=kvm; "
                    f"where no udev runs: chgrp {rule.group} {udev.KVM} && chmod {rule.mode:04o} {udev.KVM}")
    else:
        yield Check("udev rule", OK, f"{rule.file}: group {rule.group}, mode {rule.mode:04o}")


# ---------------------------------------------------------------- what guests are run with


def _passt() -> Iterator[Check]:
    path = process.which("passt")
    if not path:
        yield Check("passt", WARNING, "passt is not there: guests use QEMU's own NAT, which is slower",
                    "install it: apt-get install passt (RHEL: passt)")
        return
    said = _first_line([path, "--version"])
    version = faults.passt_version(said)
    for ask in (["dpkg-query", "-W", "-f=${Version}", "passt"], ["rpm", "-q", "--qf", "%{VERSION}", "passt"]):
        if not version and process.which(ask[0]):  # Debian's own does not know its version
            said = f"passt {_first_line(ask)}"
            version = faults.passt_version(said)
    found = faults.known("passt", version)
    said = said if version else "passt of an unknown version"
    yield Check("passt", doctor.worst([Check("", one.level, "") for one in found]),
                "; ".join([f"{said} ({path})", *(one.text for one in found)]),
                "; ".join(filter(None, (one.action for one in found))))


def _first_line(argv: list[str]) -> str:
    try:
        lines = process.run(argv, check=False, timeout=10).stdout.decode(errors="replace").split("\n")
    except VmjobError:
        lines = []
    return lines[0].strip() if lines else ""


def _node_cache() -> Iterator[Check]:
    named = os.environ.get("VMJOB_NODE_CACHE", "")
    place = Path(named) if named.startswith("/") else NODE_CACHE
    if not place.is_dir():
        yield Check("node cache", WARNING, f"there is no {place}: jobs with a /var/tmp of their own bring the image "
                    "anew each time", f"install -d -m 1777 {place}; jobs need VMJOB_NODE_CACHE={place}")
        return
    yield _open_folder("node cache", place, f"{place}, {format_size(shutil.disk_usage(place).free)} free")


def _open_folder(name: str, place: Path, text: str) -> Check:
    """A folder that all write to, and nobody in another's files."""
    wrong, action = ownway.shared_flaw(place, closed=name == "node cache")
    return Check(name, WARNING if wrong else OK, f"{place} {wrong}" if wrong else text, action)


def _runs() -> Iterator[Check]:
    place = Path(os.environ.get("VMJOB_RUNS") or snippets.RUNS)
    if not place.is_dir():
        yield Check("runs", WARNING, f"there is no {place}: guests are not counted, and a node where they fail is "
                    "not taken offline", f"{_ENABLE} makes it, or: install -d -m 1777 {place}")
        return
    yield _open_folder("runs", place, str(place))


def _hook() -> Iterator[Check]:
    """Only where there is an HTCondor."""
    folder = Path(snippets.CONDOR)
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_file() and (script := snippets.hook_in(path.read_text(errors="replace"))):
            yield _hook_files(path, Path(script))
            return
    yield Check("startd hook", WARNING, f"no file in {folder} names {snippets.HOOK}: the pool does not learn what this "
                "node can do", f"{_ENABLE} writes one")


def _hook_files(named: Path, script: Path) -> Check:
    """What wrappers/vmjob-startd.sh runs stands beside it, where a package has it, or in /etc/vmjob."""
    missing = [] if "$" in str(script) or os.access(script, os.X_OK) else [str(script)]
    places = (script.parent, snippets.PACKAGED, snippets.ETC)
    missing += [str(snippets.ETC / name) for name in snippets.BESIDE
                if not any(Path(place, name).is_file() for place in places)]
    if missing:
        return Check("startd hook", WARNING, f"{named}: {', '.join(missing)}: no such file: the pool does not learn "
                     "what this node can do", f"vmjob site hook {snippets.ETC}")
    return Check("startd hook", OK, str(named))


# ---------------------------------------------------------------- trust, and the clock


def _authorities() -> Iterator[Check]:
    """The certificates against which image lists are checked; needed where a policy asks for endorsements."""
    from vmjob.errors import PolicyBroken
    from vmjob.policy import AUTHORITIES, load

    places = {AUTHORITIES: False} if AUTHORITIES.is_dir() else {}
    for path in config.policy_files():
        try:
            policy = load(path)
        except PolicyBroken:
            continue  # doctor has said so
        if policy.endorsers:
            places[policy.authorities] = True
    for place, needed in places.items():
        yield from _certificates(place, needed)


def _certificates(place: Path, needed: bool) -> Iterator[Check]:
    from vmjob.image import x509

    now = time.time()
    ends: dict[str, float] = {}
    lists: dict[str, float] = {}
    broken: list[str] = []
    for path in sorted(place.glob("*")) if place.is_dir() else ():
        kind = path.suffix[1:2]
        try:
            if path.suffix == ".pem" or is_number(kind):
                for der in x509.certificates_of_pem(_bytes(path)):
                    one = x509.certificate(der)
                    ends[one.subject] = max(one.expires, ends.get(one.subject, 0.0))
            elif kind == "r" and is_number(path.suffix[2:]):
                lists[path.name] = x509.crl_expires(_bytes(path))
        except (ValueError, OSError):
            broken.append(path.name)
    if not ends:
        yield Check("authorities", FAILURE if needed else WARNING, f"{place}: no certificate of an authority is there"
                    + (", and the policy asks for endorsed images" if needed else ""),
                    "install them: the packages of EUGridPMA or OSG (ca-policy-egi-core, osg-ca-certs)")
        return
    gone = [name for name, end in ends.items() if end < now]
    soon = [name for name, end in ends.items() if now <= end < now + _SOON]
    old = [name for name, end in lists.items() if end < now]
    for names, text, action in (
            (gone, "expired", "update the package of authorities: what these certified is refused"),
            (soon, "expire within a week", "update the package of authorities"),
            (old, "revocation lists that are out of date: all of these authorities' lists are refused", "fetch-crl"),
            (broken, "files that cannot be read", "update the package of authorities, then fetch-crl")):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            yield Check("authorities", WARNING, f"{place}: {shown}: {text}", action)
    if not (gone or soon or old or broken):
        yield Check("authorities", OK, f"{place}: {len(ends)} authorities, {len(lists)} revocation lists, all in time")


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)


def _site() -> Iterator[Check]:
    from vmjob import siteconfig
    from vmjob.site_errors import SiteBroken

    path = siteconfig.find()
    if path:
        try:
            site = siteconfig.load(path)
        except SiteBroken as broken:
            yield Check("site", FAILURE, broken.message, broken.hint)
            return
        yield Check("site", OK, f"{path}: {site.name}")
        if not path.stat().st_mode & 0o004:
            yield Check("site", WARNING, f"{path} has mode {stat.S_IMODE(path.stat().st_mode):04o}: jobs of users who "
                        "cannot read it fail", f"chmod 0644 {path}")
        if site.accounting:
            yield from _spool(site.accounting.spool)


def _spool(place: Path) -> Iterator[Check]:
    found = list(spools.faults(place))
    for one in found:
        yield Check("accounting", FAILURE if one.fatal else WARNING, one.text, one.action)
    if not found:
        yield Check("accounting", OK, f"{place}, {format_size(shutil.disk_usage(place).free)} free")


def _clock() -> Iterator[Check]:
    """Certificates, tokens, lists and usage records go by it."""
    from vmjob.node.clock import kernel_clock

    synchronised, most = kernel_clock()
    if synchronised:
        yield Check("clock", OK, f"synchronised, at most {most * 1e3:.0f} ms off")
        return
    # chrony keeps the time without telling the kernel, unless it is set to (rtcsync)
    chrony = process.which("chronyc")
    if chrony:
        said = process.run([chrony, "-n", "tracking"], check=False, timeout=10).stdout.decode(errors="replace")
        if "Leap status     : Normal" in said:
            yield Check("clock", OK, "synchronised by chrony")
            return
    yield Check("clock", WARNING, "the kernel does not know its clock to be synchronised: certificates, tokens and "
                "records go by it", "install chrony (or switch systemd-timesyncd on), and look: chronyc tracking; in a "
                "container or guest, at its host")
