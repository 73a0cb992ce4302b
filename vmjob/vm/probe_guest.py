"""The tiny 64-bit guest that proves an accelerator; its source is probe_guest.S beside this file.

It tells the serial port one letter for each thing that worked (see STAGES), then DONE. KVM modules
that only pretend (nested on a paravirtual host, where instructions are interpreted) run the first
stages and hang or stop in a later one, so what counts is the whole of it in bounded time.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import Optional

from vmjob.core import process
from vmjob.core.machinetext import last_line

log = logging.getLogger("vmjob.probe")

DEADLINE = 2.0  # seconds for the test guest; a sound KVM needs a tenth of it

DONE = b"VMJOB-PROBE-OK"
STAGES = {
    "A": "32-bit entry", "B": "long mode and paging", "C": "a trap", "D": "an invalid instruction", "E": "page faults",
    "F": "SSE and model-specific registers", "G": "user mode and system call", "H": "timer interrupts",
    "I": "40 million turns at the processor's speed",
}

# 1339 bytes: gcc -E -x assembler-with-cpp -P probe_guest.S | as --64 -o p.o - && objcopy -O binary -j .text p.o
GUEST = base64.b64decode("""
f0VMRgIBAQAAAAAAAAAAAAIAPgABAAAAxAAQAAAAAABAAAAAAAAAAAAAAAAAAAAAAAAAAEAAOAACAEAAAAAAAAEAAAAHAAAAAAAAAAAAAAAAABAA
AAAAAAAAEAAAAAAAOwUAAAAAAAA7BQAAAAAAAAAQAAAAAAAABAAAAAQAAACwAAAAAAAAALAAEAAAAAAAsAAQAAAAAAAUAAAAAAAAABQAAAAAAAAA
BAAAAAAAAAAEAAAABAAAABIAAABYZW4AxAAQAPr8vACAIAAx7bD/5iHmoWa6+AOwQe5FvwAAIAC5ACAAADHA86vHBQAAIAAHECAAxwUAECAAByAg
AMcFCBAgAAcwIADHBRgQIAAHQCAAxwUAMCAAB1AgALiHAAAAMcmJBM0AICAABQAAIABBgfkAAgAAcuvHBbhPIACbAOD+DyDgDSAGAAAPIuC4AAAg
AA8i2LmAAADADzINAQEAAA8wDwEVGAUQAA8gwIPg+w0DAAGADyLA6n4BEAAIALgQAAAAjtiOwI7QZrr4A7BC7v/FuAoEEAC/AGAgALkgAAAA6EkC
AACDxxCDwATi87iSBBAAvzBgIADoMgIAALiWBBAAv2BgIADoIwIAALifBBAAv+BgIADoFAIAALjYBBAAvwBkIADoBQIAAA8BHTEDAAAx28yD+wEP
heQBAABmuvgDsEPu/8UPC4P7Ag+F0AEAAGa6+AOwRO7/xb8AAABAuUAAAACJP4HHABAAAOL2g/tCD4WqAQAAgTwlAPBDAADwA0APhZkBAAC/AFAg
AMcHAAAAAL8AAABADwE/OT8PhX4BAACD+0MPhXUBAAC/AACAALkAEAAA8EgPwT+/AACAAInIweAMAcfi7Wa6+AOwRe7/xbgBAACAUw+iWw+64h0P
gzwBAAC5gQAAwDHAuggAGAAPMP/BuCwDEAAx0g8wDzI9LAMQAA+FFgEAALmEAADAuAB3BAAx0g8wuQEBAMC4AABAAA8wZYE8JQAAAAAAAABAD4Xq
AAAAZkgPbsRmD+/JDyjIZkgPfshIOcQPhdAAAABmuvgDsEbu/8W5KAMQAEG7AgAAAEgPB4zLDwWD4wOD+wMPhakAAACMy/fDAwAAAA+FmwAAALsQ
AAAAjtNmuvgDsEfu/8Ux278AAOD+x4fwAAAA/wEAAMeHgAAAAAAAAADHh+ADAAALAAAAx4cgAwAAQAACAMeHgAMAAEBCDwD79PqD+wNy+MeHIAMA
AAAAAQDHh4ADAAAAAAAAZrr4A7BI7v/FuQBaYgJIAcj/yXX5Zrr4A7BJ7v/FSI01XAEAALkPAAAAZrr4A6zu4vywKusDjUUR5vRqAGoADwEcJMxm
iQdmx0cCCACJRwRmx0cEAI5Ix0cIAAAAAMNqAOt8agHreGoC63RqA+twagTrbGoF62hqButkagfrYGoI61xqCetYagrrVGoL61BqDOtMag3rSGoO
60RqD+tAahDrPGoR6zhqEus0ahPrMGoU6yxqFesoahbrJGoX6yBqGOscahnrGGoa6xRqG+sQahzrDGod6whqHusEah/rAFgMQOlS/////8NIz//D
SIMEJAJIz1BS/8MPINCJwsHqHv/KdSLB6Awl/wEAAInCweIMgcIDAEAAiRTFAFAgAFpYSIPECEjPsE7pDP/////Dx4ewAAAAAAAAAEjPZpAAAAAA
AAAAAP//AAAAm68A//8AAACTzwD//wAAAPvPAP//AAAA888A//8AAAD7rwAvAOgEEAAAAAAADwQAYCAAAAAAAFZNSk9CLVBST0JFLU9LCg==
""")


def run_test_guest(qemu: str, accel: str, deadline: float = DEADLINE) -> Optional[str]:
    """Run the test guest on ``accel``; None when it finished within ``deadline`` seconds, else what happened."""
    with tempfile.NamedTemporaryFile(prefix="vmjob-probe-") as image:
        image.write(GUEST)
        image.flush()
        argv = [qemu, "-accel", accel, "-machine", "q35", "-cpu", "host" if accel == "kvm" else "max", "-smp", "1",
                "-m", "64M", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
                "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel", image.name]
        return _watch(argv, deadline)


def _watch(argv: list[str], deadline: float) -> Optional[str]:
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    with os.fdopen(out_write, "wb") as out, os.fdopen(err_write, "wb") as err:
        guest = process.spawn(argv, stdout=out, stderr=err)
    try:
        return _verdict(guest, {out_read: b"", err_read: b""}, time.monotonic() + deadline, deadline)
    finally:
        os.close(out_read)
        os.close(err_read)
        reap(guest)


def _verdict(guest: subprocess.Popen[bytes], said: dict[int, bytes], end: float, deadline: float) -> Optional[str]:
    out, err = said
    pipes = set(said)
    while pipes:
        ready = select.select(list(pipes), [], [], max(0.0, end - time.monotonic()))[0]
        if not ready:
            return f"a test guest did not finish within {deadline:g} s: {_progress(said[out])}"
        for pipe in ready:
            data = os.read(pipe, 4096)
            said[pipe] += data
            if not data:
                pipes.discard(pipe)
        if DONE in said[out]:
            return None
        if b"KVM internal error" in said[err]:
            return f"a test guest was stopped by an internal error of KVM: {_progress(said[out])}"
    last = last_line(said[err].decode(errors="replace"))
    with suppress(subprocess.TimeoutExpired):
        guest.wait(1)
    if not last:
        return f"a test guest failed: {_progress(said[out])}"
    # "qemu-system-x86_64: ../../file.c:1: function: what happened": people want the end of it
    return "QEMU gave up: " + re.sub(r"^(\S*qemu\S*|\S+\.c:\d+|[a-z0-9_]+): ", "", re.sub(
        r"^\S*qemu\S*: (\S+\.c:\d+: (\w+: )?)?", "", last))


def _progress(output: bytes) -> str:
    # firmware may write before the guest does
    letters = re.findall(r"AB?C?D?E?F?G?H?I?", output.decode("ascii", "replace"))
    if not letters:
        return "it never came alive"
    following = list(STAGES)[len(letters[-1]):]
    return f"it got stuck at {STAGES[following[0]]}" if following else "it did not end"


def reap(guest: subprocess.Popen[bytes], seconds: float = 2.0) -> None:
    """Kill and collect; a process that the kernel holds in KVM may not die, and then nobody waits for it."""
    with suppress(ProcessLookupError):
        os.kill(guest.pid, signal.SIGKILL)
    try:
        guest.wait(seconds)
    except subprocess.TimeoutExpired:
        log.warning("the test guest (process %d) hangs in the kernel and cannot be killed", guest.pid)
