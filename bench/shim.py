"""A QEMU that writes down when it was started, then is the real one, or ends at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.common import tool

# questions about the binary (-machine none) are answered; the probe's cache knows the shim by its own path and time
_TEXT = """\
#!/bin/sh
case "$*" in *"-machine none"*) exec {qemu} "$@" ;; esac
now=$(date +%s.%N)
disk=$(stat -c %.9Y overlay.qcow2 2>/dev/null || echo 0)
read -r _ bytes </proc/$PPID/io
echo "$now $disk $bytes" >>{log}
{end}
"""


@dataclass(frozen=True)
class Start:
    """``at``: when QEMU was executed; ``disk_at``: when its overlay was complete (0: none); both seconds since 1970.
    ``bytes_read``: what vmjob had read from files until then, its own code included."""

    at: float
    disk_at: float
    bytes_read: int


class Shim:
    """Give ``environment`` to vmjob; ``last`` tells of the latest start."""

    def __init__(self, folder: Path, real: bool) -> None:
        qemu = tool("qemu-system-x86_64")
        self.path, self.log = folder / f"qemu-{'real' if real else 'none'}", folder / f"starts-{real}.log"
        text = _TEXT.format(qemu=qemu, log=self.log, end=f'exec {qemu} "$@"' if real else "exit 1")
        if not self.path.exists() or self.path.read_text() != text:
            self.path.write_text(text)
            self.path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {"VMJOB_QEMU": str(self.path)}

    def last(self) -> Start:
        words = self.log.read_text().splitlines()[-1].split()
        return Start(float(words[0]), float(words[1]), int(words[2]))

    def forget(self) -> None:
        self.log.unlink(missing_ok=True)
