"""A node of its own for one run: addresses on which services listen that no guest may reach, and a name server that
means harm. Started in a network and a mount namespace::

    python -m tests.hostile.node KIND REPORT COMMAND…

KIND: which NAT shall serve, passt or user. REPORT gets, as JSON, what the services heard: [service, protocol].
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

WORLD, OPEN = "203.0.113.5", "2001:db8::5"  # of the node's card: anybody may come there
SERVICES = {"loopback": "127.0.0.1", "resolver": "127.0.0.53", "metadata": "169.254.169.254", "loopback6": "::1",
            "world": WORLD, "world6": OPEN}
TCP, UDP, NAMES = 80, 69, 53
REBOUND = (WORLD, "127.0.0.1", "169.254.169.254")  # what one name means, question by question

heard: list[tuple[str, str]] = []


def command(*words: str) -> None:
    subprocess.run(words, check=True)


def surroundings(kind: str, folder: Path) -> None:
    command("ip", "link", "set", "lo", "up")
    for address in (f"{SERVICES['metadata']}/32", f"{WORLD}/24"):
        command("ip", "address", "add", address, "dev", "lo")
    command("ip", "route", "add", "default", "dev", "lo")
    subprocess.run(["ip", "-6", "address", "add", f"{OPEN}/64", "dev", "lo", "nodad"], stderr=subprocess.DEVNULL)
    (folder / "resolv.conf").write_text(f"nameserver {WORLD}\n")
    command("mount", "--bind", str(folder / "resolv.conf"), os.path.realpath("/etc/resolv.conf"))
    passt = shutil.which("passt")
    if kind == "user" and passt:
        (folder / "none").touch(0o644)
        command("mount", "--bind", str(folder / "none"), os.path.realpath(passt))


def listen(name: str, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        tcp = socket.create_server((address, TCP), family=family)
    except OSError:  # a machine without IPv6
        return
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.bind((address, UDP))

    def visitors() -> None:
        while True:
            visitor, _ = tcp.accept()
            heard.append((name, "tcp"))
            visitor.close()

    def datagrams() -> None:
        while udp.recv(2000):
            heard.append((name, "udp"))

    for work in (visitors, datagrams):
        threading.Thread(target=work, daemon=True).start()


def name_server() -> None:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((WORLD, NAMES))

    def answers() -> None:
        turn = 0
        while True:
            question, visitor = udp.recvfrom(2000)
            heard.append(("names", "udp"))
            address = socket.inet_aton(REBOUND[min(turn, len(REBOUND) - 1)])
            turn += 1
            body = question[12:question.index(b"\0", 12) + 5]
            udp.sendto(question[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + body
                       + struct.pack("!HHHIH", 0xC00C, 1, 1, 0, 4) + address, visitor)

    threading.Thread(target=answers, daemon=True).start()


def main() -> int:
    kind, report, *words = sys.argv[1:]
    surroundings(kind, Path(report).parent)
    for name, address in SERVICES.items():
        listen(name, address)
    name_server()
    status = subprocess.run(words).returncode
    Path(report).write_text(json.dumps(heard))
    return status


if __name__ == "__main__":
    sys.exit(main())
