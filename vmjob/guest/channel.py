"""The control channel, host side: lines from a guest we do not trust → typed messages in a legal order.

Guest to host, one message a line (at most MAX_LINE bytes)::

    hello VERSION BOOT KERNEL      once, when the agent runs
    ready                          it waits; nothing of a job has been read
    started                        the program runs
    heartbeat N [PERCENT]          every two seconds from "go" on; what the program says of its progress
    exit STATUS                    0–255; 128+N: killed by signal N, as shells tell it
    missing GLOB                   an output that is not there
    outputs ok|none|toolarge|failed [TEXT]
    bye                            nothing more will come; the machine may be ended
    error KIND TEXT                the agent gives up

A message that is out of order, malformed or endless is an AgentFailed: state never goes backwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Optional

from vmjob.core.errors import AgentFailed

MAX_LINE = 4096
MAX_MISSING = 100
PROTOCOL = "1"


class State(IntEnum):
    SILENT = 0
    HELLO = 1
    READY = 2
    STARTED = 3
    EXITED = 4
    OUTPUTS = 5
    BYE = 6


@dataclass
class Channel:
    """What the guest has told so far. ``feed`` takes bytes as they come; no I/O here."""

    state: State = State.SILENT
    boot: str = ""
    kernel: str = ""
    percent: Optional[int] = None
    exit_status: Optional[int] = None
    missing: list[str] = field(default_factory=list)
    outputs: str = ""
    outputs_text: str = ""
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take more bytes from the port. Raises AgentFailed on anything that the protocol does not allow."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise AgentFailed("the guest sent an endless line on the control channel",
                              "the image's agent is broken or was replaced; see vmjob image inspect")
        for line in lines:
            self._message(clean(line[:MAX_LINE]))

    def _message(self, line: str) -> None:
        word, _, text = line.partition(" ")
        handler = getattr(self, f"_on_{word}", None) if re.fullmatch(r"[a-z]{1,12}", word) else None
        if handler is None:
            raise AgentFailed(f"the guest sent {line[:80]!r} on the control channel, which means nothing",
                              "the image's agent may be of another version: rebuild or re-import the image")
        handler(text)

    def _step(self, expected: State, new: State, word: str) -> None:
        if self.state is not expected:
            raise AgentFailed(f"the guest said '{word}' in the state {self.state.name.lower()}",
                              "the image's agent is broken or was replaced")
        self.state = new

    def _on_hello(self, text: str) -> None:
        self._step(State.SILENT, State.HELLO, "hello")
        version, _, rest = text.partition(" ")
        if version != PROTOCOL:
            raise AgentFailed(f"the agent in the image speaks protocol {version[:10]!r}, this vmjob {PROTOCOL}",
                              "rebuild the image with this version of vmjob")
        self.boot, _, self.kernel = rest.partition(" ")

    def _on_ready(self, _text: str) -> None:
        self._step(State.HELLO, State.READY, "ready")

    def _on_started(self, _text: str) -> None:
        self._step(State.READY, State.STARTED, "started")

    def _on_heartbeat(self, text: str) -> None:
        # in any state, as one may still be on its way when the program ends
        percent = text.partition(" ")[2]
        if re.fullmatch(r"[0-9]{1,3}", percent):
            self.percent = min(100, int(percent))

    def _on_exit(self, text: str) -> None:
        self._step(State.STARTED, State.EXITED, "exit")
        if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > 255:
            raise AgentFailed(f"the guest sent the exit status {text[:20]!r}", "it must be 0 to 255")
        self.exit_status = int(text)

    def _on_missing(self, text: str) -> None:
        if self.state is not State.EXITED:
            self._step(State.EXITED, State.EXITED, "missing")
        if len(self.missing) < MAX_MISSING:
            self.missing.append(text)

    def _on_outputs(self, text: str) -> None:
        self._step(State.EXITED, State.OUTPUTS, "outputs")
        self.outputs, _, self.outputs_text = text.partition(" ")
        if self.outputs not in ("ok", "none", "toolarge", "failed"):
            raise AgentFailed(f"the guest said 'outputs {self.outputs[:20]}'", "expected ok, none, toolarge or failed")

    def _on_bye(self, _text: str) -> None:
        self._step(State.OUTPUTS, State.BYE, "bye")

    def _on_error(self, text: str) -> None:
        kind, _, rest = text.partition(" ")
        raise AgentFailed(f"the agent in the guest gave up ({kind}): {rest}", "see console.log for what the guest said")


def clean(raw: bytes) -> str:
    """Text from a guest made fit for a terminal and a log: control characters replaced."""
    text = raw.decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text.rstrip("\r"))
