"""A whole ``vmjob run`` in the micro image beside a bare QEMU command line that boots the same and powers off."""

from __future__ import annotations

from pathlib import Path

from bench.common import Bench, Goal, Row, alternate, seconds, value_after
from vmjob.image.build.cpio import Tree

# the least that a guest can do: no module, no mount
_INIT = b"#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n"


def measure(bench: Bench) -> list[Row]:
    with bench.folder() as work:
        argv = bare(bench, work)
        job = bench.words("run", "-q", "--image", "micro", "--", "true")
        ours, other = alternate(max(bench.rounds, 11), lambda: seconds(job, env=bench.environment()),
                                lambda: seconds(argv, timeout=60))
    return [Row("vmjob run --image micro -- true", ours, other, goal=Goal("ratio", "<=", 1.25),
                peer="bare QEMU, boot to poweroff")]


def bare(bench: Bench, work: Path, image: str = "micro") -> list[str]:
    """The shortest command line with vmjob's own machine, CPU, memory, kernel, initramfs and kernel arguments; the
    initramfs has a second /init appended that powers off at once."""
    plan = bench.plan(image)["qemu"]
    tree = Tree()
    tree.file("poweroff", _INIT, 0o755)
    initramfs = work / "initrd"
    initramfs.write_bytes(Path(value_after(plan, "-initrd")).read_bytes() + tree.pack())
    arguments = [word for word in value_after(plan, "-append").split() if not word.startswith("vmjob.")]
    kept = [word for option in ("-machine", "-accel", "-cpu", "-smp", "-m", "-kernel")
            for word in (option, value_after(plan, option))]
    return [plan[0], "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "null", *kept,
            "-initrd", str(initramfs), "-append", " ".join([*arguments, "rdinit=/poweroff"])]
