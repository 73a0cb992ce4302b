#!/usr/bin/env python3
"""A QEMU whose guest is hostile: VMJOB_QEMU=this file. Where it is asked what it is, it is the real one.

The guest is the Python file VMJOB_HOSTILE_GUEST, which defines ``guest(machine)`` and, where the control socket shall
misbehave too, ``qmp(machine)``. Only what a real QEMU has is here: sockets that it connects, and what comes on them.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import sys
import threading
from pathlib import Path

STREAMS = ("ctrl", "out", "err", "console", "shell")


class Machine:
    """``disk`` is the output disk, ``out``, ``err``, ``console`` … are the sockets."""

    def __init__(self) -> None:
        self.disk = Path("out.raw")
        for name in (*STREAMS, "qmp"):
            setattr(self, name, self._connected(name))

    @staticmethod
    def _connected(name: str) -> socket.socket:
        one = socket.socket(socket.AF_UNIX)
        one.connect(f"{name}.sock")
        return one

    def hello(self) -> bytes:
        """Boot, take the job (which is returned) and start it."""
        self.ctrl.sendall(b"hello 1 job 6.1.0\nready\n")  # type: ignore[attr-defined]
        job = b""
        while b"\ngo\n" not in job:
            data = self.ctrl.recv(65536)  # type: ignore[attr-defined]
            if not data:
                os._exit(3)
            job += data
        self.say("started")
        return job

    def say(self, *lines: str) -> None:
        self.ctrl.sendall("".join(f"{line}\n" for line in lines).encode())  # type: ignore[attr-defined]

    def done(self, status: int = 0, outputs: str = "ok") -> None:
        self.say(f"exit {status}", f"outputs {outputs}", "bye")

    def answer(self) -> None:
        """The control socket as a QEMU's that knows no command and agrees to each."""
        control: socket.socket = self.qmp  # type: ignore[attr-defined]
        version = {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}
        control.sendall(json.dumps({"QMP": {"version": version, "capabilities": ["oob"]}}).encode() + b"\r\n")
        rest = ""
        while data := control.recv(65536):
            rest = (rest + data.decode()).lstrip()
            while rest:  # commands come without a line's end
                try:
                    asked, end = json.JSONDecoder().raw_decode(rest)
                except ValueError:
                    break
                rest = rest[end:].lstrip()
                answer = {"return": {}, **({"id": asked["id"]} if "id" in asked else {})}
                control.sendall(json.dumps(answer).encode() + b"\r\n")
                if asked.get("execute") == "quit":
                    os._exit(0)


def main() -> None:
    words = sys.argv[1:]
    if "none" in words[:2] or "-accel" not in words:
        real = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"
        os.execv(real, [real, *words])
    script = runpy.run_path(os.environ["VMJOB_HOSTILE_GUEST"])
    machine = Machine()
    threading.Thread(target=script.get("qmp", Machine.answer), args=(machine,), daemon=True).start()
    try:
        script["guest"](machine)
    except ConnectionError as gone:
        print("the other side hung up:", gone, file=sys.stderr)
    threading.Event().wait()  # until somebody ends it


if __name__ == "__main__":
    main()
