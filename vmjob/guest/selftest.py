"""What guest/selftest.sh told of a guest, judged: the checks of ``vmjob image test``. Pure but for reading outputs.

Two runs are judged for each boot method: ``full``, as the image's user, with inputs, outputs and NAT, in just what the
image says it needs; and ``bare``, as root, with no network card.
"""

from __future__ import annotations

import os
import pkgutil
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from vmjob.guest.channel import clean
from vmjob.machinetext import is_number
from vmjob.result import Failure, Result
from vmjob.units import MIB, format_size

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
STATUS = 42
STDERR = b"vmjob\0\xffstderr\n"
OUTPUTS = "out put"
TEXT, UPPER = "text with é\n", "TEXT WITH é\n"
UNFINISHED = "the self-test did not come to its end"
STDOUT_LIMIT = 64 * 1024
_CLOCK = 5  # seconds beside the time of the run
# what a kernel takes of the memory before it counts: its own image, page tables, the initramfs
_KERNEL, _SHARE = 96 * MIB, 0.85


@dataclass(frozen=True)
class Check:
    """``outcome`` is PASSED, FAILED or SKIPPED; ``text`` says what was seen, or why it was skipped."""

    name: str
    outcome: str
    text: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Tried:
    """One run of the self-test: what became of it, what it printed, and the folder of its outputs."""

    result: Result
    stdout: bytes
    stderr: bytes
    outputs: Path
    facts: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


def script() -> str:
    """The program that looks around in the guest."""
    return (pkgutil.get_data("vmjob", "guest/selftest.sh") or b"").decode()


def read_facts(stdout: bytes) -> tuple[dict[str, str], dict[str, float]]:
    """Facts by name, and seconds that each group (the name's first part) took. Anything else on stdout is no fact."""
    facts, spent, last = dict[str, str](), dict[str, float](), 0.0
    for line in stdout.split(b"\n"):
        up, _, rest = "\t".join(map(clean, line.split(b"\t"))).partition("\t")
        name, tab, value = rest.partition("\t")
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", up, re.ASCII):
            continue
        now = float(up)
        if tab and "\t" not in value and name not in facts and len(facts) < 100:
            facts[name] = value[:500]
            group = name.partition(".")[0]
            spent[group] = round(spent.get(group, 0.0) + max(0.0, now - (last or now)), 2)
            last = now
    return facts, spent


def check(full: Tried, bare: Optional[Tried], user: str, data: bytes) -> tuple[Check, ...]:
    """All checks of one boot method. ``user``: of the image; ``data``: bytes of the input file; ``bare`` None: that run
    was not made, as the guest does not boot."""
    checks, f = [_boot(full)], full.facts
    booted = checks[0].outcome == PASSED
    for name, judge in (("agent", _agent), ("streams", _streams), ("inputs", lambda t: _inputs(t, data)),
                        ("outputs", lambda t: _outputs(t, data)), ("user", lambda t: _user(t, bare, user)),
                        ("work", _work), ("tools", _tools), ("features", _features), ("cpus", _cpus),
                        ("memory", _memory), ("time", _time), ("entropy", lambda t: _entropy(t, bare)),
                        ("network", _network), ("isolation", lambda _: _isolation(bare)), ("shutdown", _shutdown)):
        if not booted:
            checks.append(Check(name, SKIPPED, "it does not boot"))
        elif "test.end" not in f and name not in ("agent", "inputs", "isolation"):
            checks.append(Check(name, SKIPPED, UNFINISHED))
        else:
            outcome, text = judge(full)
            spent = full.seconds.get(name, 0.0)
            if name == "isolation" and bare:
                spent = bare.seconds.get("network", 0.0)
            checks.append(Check(name, outcome, text, spent))
    return tuple(checks)


Verdict = tuple[str, str]


def _verdict(good: str, *wrong: tuple[bool, str]) -> Verdict:
    """Passed, saying what is ``good``, unless something is wrong; each pair: is it so, and what to say then."""
    found = "; ".join(text for so, text in wrong if so)
    return (FAILED, found) if found else (PASSED, good)


def _boot(tried: Tried) -> Check:
    result, failure = tried.result, tried.result.failure
    spent = next((stage.seconds for stage in result.stages if stage.name == "boot"), 0.0)
    if failure and never_booted(result):
        return Check("boot", FAILED, f"{failure.kind}: {failure.message}", round(spent, 2))
    again = f" in boot {result.boot_attempts}" if result.boot_attempts > 1 else ""
    return Check("boot", PASSED, f"says hello{again}", round(spent, 2))


def never_booted(result: Result) -> bool:
    return bool(result.failure and result.failure.stage in ("stage", "verify", "probe", "boot"))


def _agent(tried: Tried) -> Verdict:
    failure = tried.result.failure
    if failure and failure.stage == "payload" and not _of_inputs(failure):
        return FAILED, f"{failure.kind}: {failure.message}"
    if _of_inputs(failure):
        return PASSED, "speaks as it should"
    if tried.result.exit_status != STATUS:
        return FAILED, f"exit status {STATUS} came back as {tried.result.exit_status}"
    return PASSED, f"exit status {STATUS} came back"


def _of_inputs(failure: Optional[Failure]) -> bool:
    return bool(failure and failure.kind == "AgentFailed" and "gave up (inputs)" in failure.message)


def _streams(tried: Tried) -> Verdict:
    strange = any(len(line.split(b"\t")) != 3 for line in tried.stdout.split(b"\n")[:-1])
    return _verdict("stdout and stderr apart and exact",
                    (tried.stderr != STDERR, f"stderr came as {tried.stderr[:40]!r}, not as {STDERR!r}"),
                    (strange, "stdout has more in it than the program wrote"))


def _inputs(tried: Tried, data: bytes) -> Verdict:
    failure, f = tried.result.failure, tried.facts
    if failure and _of_inputs(failure):
        return FAILED, failure.message
    if "test.end" not in f:
        return SKIPPED, UNFINISHED
    return _verdict("files, names and modes as they were sent",
                    (f.get("inputs.size") != str(len(data)), f"the file of {len(data)} bytes is not there whole"),
                    (f.get("inputs.text") != TEXT.strip(), "the file with é and a space in its name is not as it was"),
                    (f.get("inputs.empty") != "yes", "the empty folder is not there"),
                    (f.get("inputs.program") != "runs", "the executable file cannot be run"),
                    (f.get("inputs.owner") != "yes", "the files are not the user's to write"))


def _outputs(tried: Tried, data: bytes) -> Verdict:
    failure, top = tried.result.failure, tried.outputs / OUTPUTS
    if failure:
        return FAILED, f"{failure.kind}: {failure.message}"
    return _verdict(f"{format_size(len(data))} came back as made, odd names too",
                    (read_plain(top / "data copy") != data + b"end\n", "the copy of the input is not as it was made"),
                    (read_plain(top / "É Ü.txt") != UPPER.encode(), "the file É Ü.txt is not as it was made"),
                    (read_plain(top / "nothing") != b"", "the empty file is not there"),
                    (not (top / "empty").is_dir(), "the empty folder is not there"),
                    (not (top / "link").is_symlink(), "the symbolic link is not there"))


def _user(tried: Tried, bare: Optional[Tried], user: str) -> Verdict:
    f = tried.facts
    known = bare.facts.get("user.known") if bare else ""  # in the full run the agent has made one that was missing
    return _verdict(f"{user}, {f.get('user.id')}",
                    (known == "no", f"the image has no user {user}: its manifest names another than is in it"),
                    (f.get("user.name") != user, f"the program ran as {f.get('user.name')!r}, not as {user!r}"),
                    ((f.get("user.id") == "0") != (user == "root"), f"{user} has the number {f.get('user.id')!r}"),
                    (not f.get("user.home"), f"{user} has no home folder"))


def _work(tried: Tried) -> Verdict:
    f, here = tried.facts, tried.facts.get("work.here")
    return _verdict("writable, and /tmp", (not here or here != f.get("work.wanted"), f"the program ran in {here!r}"),
                    (f.get("work.writable") != "yes", "the work folder cannot be written"),
                    (f.get("work.temporary") != "yes", "/tmp cannot be written"))


def _tools(tried: Tried) -> Verdict:
    missing = tried.facts.get("tools.missing", "?")
    return _verdict("what the agent needs", (bool(missing), f"the image lacks {missing}"))


def _features(tried: Tried) -> Verdict:
    result = tried.result
    want = {"total_cpu": str(result.cpus), "allocated_cpu": str(result.cpus), "max_rss_bytes": str(result.memory)}
    have = {name: tried.facts.get(f"features.{name}", "") for name in (*want, "jobstart_secs", "job_id")}
    return _verdict("Machine/Job Features", *((not value or value != want.get(name, value), f"{name} is {value!r}")
                                              for name, value in have.items()))


def _cpus(tried: Tried) -> Verdict:
    seen, given = tried.facts.get("cpus.count", ""), tried.result.cpus
    return _verdict(f"{given} as given", (seen != str(given), f"{seen} CPUs in the guest, {given} given"))


def _memory(tried: Tried) -> Verdict:
    words, given = tried.facts.get("memory.total", "").split(), tried.result.memory
    seen = int(words[0]) * 1024 if words and is_number(words[0]) else 0
    right = given * _SHARE - _KERNEL <= seen <= given and seen > 0
    return (PASSED if right else FAILED), f"{format_size(seen)} of {format_size(given)}"


def _time(tried: Tried) -> Verdict:
    """The guest's clock must say a time within the run, however long that took: so slow emulation fails nothing."""
    now, told = _int(tried, "time.now"), _int(tried, "features.jobstart_secs") or int(tried.result.started)
    return _verdict("as the host's", (not told - _CLOCK <= now <= tried.result.ended + _CLOCK,
                                      f"the clock is {now - told:+d} s from the host's"),
                    (_int(tried, "time.ran") < 1, "the clock stands still"))


def _int(tried: Tried, name: str) -> int:
    value = tried.facts.get(name, "")
    return int(value) if is_number(value) else 0


def _entropy(tried: Tried, bare: Optional[Tried]) -> Verdict:
    names = ("entropy.urandom", "entropy.kernel")
    here, there = [tried.facts.get(n) for n in names], [bare.facts.get(n) if bare else None for n in names]
    same = any(a == b for a, b in zip(here, there) if b)
    return _verdict("there at once" + (", others in each boot" if all(there) else ""),
                    (not all(here), "no random bytes from the kernel"), (same, "two boots gave the same random bytes"),
                    (tried.facts.get("entropy.ready") != "yes", "/dev/random gave nothing for 10 s"))


def _network(tried: Tried) -> Verdict:
    if not tried.result.network.startswith("NAT"):
        return SKIPPED, tried.result.network
    f = {name: tried.facts.get(f"network.{name}", "") for name in ("cards", "addresses", "gateway", "dns", "answer")}
    asked = "" if f["answer"] == "yes" else "; nothing in the image to ask the gateway with"
    addresses = " ".join(dict.fromkeys(f["addresses"].split()))  # the kernel's tables have each more than once
    return _verdict(f"{addresses}, name server {f['dns']}{asked}",
                    (not f["cards"], "no network card"), (not f["addresses"], "no address"),
                    (not f["gateway"], "no route out"), (not f["dns"], "no name server"),
                    (f["answer"] == "no", "the gateway does not answer"))


def _isolation(bare: Optional[Tried]) -> Verdict:
    failure = bare.result.failure if bare else None
    if bare is None or "test.end" not in bare.facts:
        return FAILED, f"{failure.kind}: {failure.message}" if failure else UNFINISHED
    out = bare.facts.get("network.cards") or bare.facts.get("network.gateway")
    return _verdict("boots without a network card", (bool(out), f"there is a way out by {out}"))


def _shutdown(tried: Tried) -> Verdict:
    stop = tried.result.stop
    # one that is slow to be asked may have powered off by itself, which is as well
    return _verdict("in order", (stop not in ("quit", "itself"), f"the guest had to be ended by {stop or 'force'}"))


def read_plain(path: Path) -> Optional[bytes]:
    """The first 32 MiB of a file that a guest returned, which may be a link or worse; None: it is no plain file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(32 * MIB) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
