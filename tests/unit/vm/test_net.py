"""The choice of a network, from what the host has."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmjob.core.errors import NetworkRefused
from vmjob.core.model import Network, QemuInfo
from vmjob.vm import net

pytestmark = pytest.mark.unit

FULL = ("stream", "user", "filter-redirector")


def kind(monkeypatch: pytest.MonkeyPatch, netdevs: tuple[str, ...], passt: bool = True, route: bool = True) -> str:
    monkeypatch.setattr(net, "has_route", lambda: route)
    monkeypatch.setattr(net.process, "which", lambda name: f"/usr/bin/{name}" if passt else None)
    return net.plan(Network.NAT, QemuInfo("q", (8, 0, 0), (), netdevs)).kind


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(net.OVERRIDE, raising=False)
    assert kind(monkeypatch, FULL) == "passt"
    assert kind(monkeypatch, FULL, passt=False) == "user"
    assert kind(monkeypatch, ("user", "filter-redirector")) == "user"       # QEMU before 7.2
    assert kind(monkeypatch, ("stream", "filter-redirector")) == "passt"    # RHEL 9: no user-mode network
    assert kind(monkeypatch, FULL, route=False) == "isolated"


def test_refusal_without_a_guard_and_its_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(net.OVERRIDE, raising=False)
    with pytest.raises(NetworkRefused, match="loopback") as told:
        kind(monkeypatch, ("user", "stream"))
    assert net.OVERRIDE in told.value.hint
    monkeypatch.setenv(net.OVERRIDE, "1")
    assert kind(monkeypatch, ("user", "stream")) == "passt"
    assert kind(monkeypatch, ("user",)) == "user"
    with pytest.raises(NetworkRefused, match="no user-mode network"):
        kind(monkeypatch, ())


def test_routes(tmp_path: Path) -> None:
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    table = tmp_path / "route"
    table.write_text(head + "eth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n")
    assert not net.has_route(table)
    table.write_text(head + "eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n")
    assert net.has_route(table)
    assert not net.has_route(tmp_path / "missing")


def test_name_server(tmp_path: Path) -> None:
    etc, systemd = tmp_path / "etc", tmp_path / "systemd"
    etc.write_text("search x\nnameserver 127.0.0.53\noptions edns0\n")
    assert net.upstream_dns(etc, systemd) == ""
    systemd.write_text("nameserver ::1\nnameserver 192.0.2.53\n")
    assert net.upstream_dns(etc, systemd) == "192.0.2.53"
    etc.write_text("nameserver 192.0.2.1\n")
    assert net.upstream_dns(etc, systemd) == ""
