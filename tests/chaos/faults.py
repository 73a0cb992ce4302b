"""What is done to runs. Each fault names the outcomes that it may have, and no other is right."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.chaos.trial import Fault, Trial

WHOLE = 5.0  # seconds that a run takes about, on an idle machine
STOPPED = ("", "Interrupted")
LONG = "echo up; sleep 60; echo data >out.txt"


def nothing(_: Trial) -> None:
    return


def signals(*names: str, most: float = WHOLE) -> Callable[[Trial], None]:
    """At a moment anywhere in a run, its first and last ones included."""
    def act(trial: Trial) -> None:
        trial.pause(most)
        for name in names:
            trial.send(name)
            trial.pause(0.2)
    return act


def storm(trial: Trial) -> None:
    while trial.alive():
        trial.pause(0.4)
        trial.send(trial.random.choice(["USR1", "USR2", "TSTP", "CONT", "USR2", "CONT"]))
        trial.send("CONT", "USR2")


def storm_at_the_end(trial: Trial) -> None:
    """From the first moment of the end on until it is gone."""
    trial.until(lambda: b'"ended"' in (text := _result(trial)) and b'"begun"' not in text)
    while trial.alive():
        trial.send(trial.random.choice(["TERM", "INT", "HUP", "USR1", "USR2"]))


def _result(trial: Trial) -> bytes:
    try:
        return (trial.folder / "res/result.json").read_bytes()
    except FileNotFoundError:
        return b""


def when_up(act: Callable[[Trial], None], most: float = 0.5) -> Callable[[Trial], None]:
    def later(trial: Trial) -> None:
        if trial.up():
            trial.pause(most)
            act(trial)
    return later


def group(name: str) -> Callable[[Trial], None]:
    """Every process of the run at once, as a batch system does."""
    def act(trial: Trial) -> None:
        trial.pause(WHOLE)
        pids = [trial.pid, *(pid for pid in _below(trial.pid))]
        trial.random.shuffle(pids)
        for pid in pids:
            trial.send(name, to=pid)
    return act


def _below(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def helper(program: str, name: str) -> Callable[[Trial], None]:
    def act(trial: Trial) -> None:
        pid = trial.process(program)
        if pid is not None:
            trial.pause(WHOLE / 2)
            trial.send(name, to=pid)
    return act


def tidy(trial: Trial) -> None:
    for folder in (trial.folder / "scratch").glob("vmjob-run-*"):
        shutil.rmtree(folder, ignore_errors=True)


def tidy_file(name: str) -> Callable[[Trial], None]:
    def act(trial: Trial) -> None:
        for path in (trial.folder / "scratch").glob(f"vmjob-run-*/{name}"):
            path.unlink()
    return act


def starve(trial: Trial) -> None:
    """QEMU last in the row, behind hogs."""
    pid = trial.process("qemu")
    trial.hog(2 * (os.cpu_count() or 1))
    if pid is not None:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 10)


def hogs(trial: Trial) -> None:
    trial.hog(4 * (os.cpu_count() or 1))


NODE = ("NodeExhausted", "HostError", "CommandFailed", "QemuFailed", "QemuMissing", "ScratchFull", "SlotError")
FAULTS = (
    Fault("nothing", nothing),
    *(Fault(f"SIG{name} anywhere", signals(name), STOPPED) for name in ("TERM", "INT", "HUP")),
    *(Fault(f"SIG{name} in the first 0.6 s", signals(name, most=0.6), STOPPED) for name in ("TERM", "INT", "HUP")),
    Fault("SIGUSR2 in the first 0.6 s", signals("USR2", most=0.6)),
    Fault("SIGUSR1, then SIGUSR2", signals("USR1", "USR2")),
    Fault("SIGTSTP, then SIGCONT", signals("TSTP", "CONT")),
    Fault("SIGTSTP twice, then SIGCONT", signals("TSTP", "TSTP", "CONT")),
    Fault("pauses all the time", storm),
    Fault("SIGTERM twice", signals("TERM", "TERM"), STOPPED),
    Fault("SIGTERM while it is paused", signals("USR1", "TERM", "USR2"), STOPPED),
    Fault("SIGINT, SIGTERM, SIGHUP", signals("INT", "TERM", "HUP"), STOPPED),
    Fault("signals once the result is there", storm_at_the_end),
    Fault("SIGTERM to all processes", group("TERM"), STOPPED),
    Fault("SIGTERM while the program runs", when_up(signals("TERM", most=0.5)), ("Interrupted",), program=LONG),
    Fault("kill -9 of vmjob anywhere", signals("KILL"), killed=True),
    Fault("kill -9 of all processes", group("KILL"), killed=True),
    Fault("kill -9 of vmjob in the first 0.6 s", signals("KILL", most=0.6), killed=True),
    Fault("kill -9 of QEMU", helper("qemu", "KILL"), ("", "QemuFailed", "NodeFailed")),
    Fault("SIGTERM to QEMU", helper("qemu", "TERM"), ("", "QemuFailed")),
    Fault("SIGSTOP to QEMU", when_up(helper("qemu", "STOP")), ("", "GuestHung", "GuestStarved"),
          env=(("VMJOB_SILENCE_TIMEOUT", "6s"),), program="echo up; sleep 20; echo data >out.txt"),
    Fault("kill -9 of passt", helper("passt", "KILL"), ("",)),
    Fault("SIGTERM to passt", helper("passt", "TERM"), ("",)),
    Fault("walltime in the program", nothing, ("WalltimeOver",), walltime="20s", program=LONG),
    Fault("walltime anywhere", nothing, ("", "WalltimeOver"), walltime="6s"),
    Fault("the scratch folder is removed", when_up(tidy), ("ScratchLost",), program=LONG),
    Fault("its output disk is removed", when_up(tidy_file("out.raw")), ("", "ScratchLost")),
    Fault("its lock is removed", when_up(tidy_file(".lock")), ("ScratchLost",), program=LONG),
    Fault("stdout is full", nothing, ("", "HostError", "ScratchFull"), redirect=">/dev/full"),
    Fault("stdout is closed", nothing, redirect=">&-"),
    Fault("stderr is full", nothing, redirect="2>/dev/full"),
    Fault("all streams are closed", nothing, redirect="<&- >&- 2>&-"),
    *(Fault(f"{count} descriptors", nothing, ("", *NODE), limits=((resource.RLIMIT_NOFILE, count),))
      for count in (12, 16, 20, 24, 32)),
    *(Fault(f"files of {size} KiB", nothing, ("", *NODE, "OutputTooLarge", "BootFailed", "GuestVanished"),
            limits=((resource.RLIMIT_FSIZE, size * 1024),)) for size in (64, 2048)),
    *(Fault(f"{size} MiB of address space", nothing, ("", *NODE), limits=((resource.RLIMIT_AS, size << 20),))
      for size in (200, 600)),
    Fault("hogs on all CPUs", hogs, ("", "BootStarved", "GuestStarved")),
    Fault("hogs, and QEMU at nice 10", starve, ("", "BootStarved", "GuestStarved")),
    Fault("the program kills itself", nothing, program="echo up; kill -SEGV $$", exits=139),
    Fault("the output is missing", nothing, ("OutputMissing",), program="echo up", exits=0),
)
