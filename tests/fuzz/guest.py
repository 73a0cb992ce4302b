"""What a guest writes: its control channel."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.target import target
from vmjob.errors import AgentFailed
from vmjob.guest.channel import MAX_LINE, Channel, State


def _dialogues() -> list[bytes]:
    return [b"\x08hello 1 job 6.1.0\nready\nstarted\nheartbeat 1 50\nexit 0\nmissing x\noutputs ok\nbye\n",
            b"\x01hello 1 system k\nready\nstarted\nheartbeat 2\nexit 143\noutputs toolarge 5 GiB\nbye\n"]


@target(_dialogues, AgentFailed)
def channel(data: bytes, place: Path) -> None:
    """The guest's control channel, in pieces of the length that the first byte says."""
    step, data = data[0] + 1 if data else 1, data[1:]
    fed, state = Channel(), State.SILENT
    for at in range(0, len(data), step):
        fed.feed(data[at:at + step])
        assert fed.state >= state, "the state went backwards"
        state = fed.state
    assert len(fed._rest) <= MAX_LINE
    assert fed.exit_status is None or 0 <= fed.exit_status <= 255
    assert fed.percent is None or 0 <= fed.percent <= 100
    for text in (fed.boot, fed.kernel, fed.outputs_text, *fed.missing):
        assert text.isprintable(), f"{text!r} is not fit for a terminal"
