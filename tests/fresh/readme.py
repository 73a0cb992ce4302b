"""The commands of README.md's set-up and main job, with what the README says becomes of them; pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SECTION = "## The first ten minutes"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FAILED = re.compile(r"\(\w+, status (\d+)\)")
# what differs from machine to machine: times, paths, numbers (of what was measured, of versions)
_VARIABLE = re.compile(r"\d+h\d\dm|\d+m\d\ds|[\d.]+ m?s\b|(?<!\w)/[^\s;,)]+|\d+(?:\.\d+)*")
_TIME = r"(?:\d+h\d\dm|\d+m\d\ds|[\d.]+ m?s)"


class Unreadable(Exception):
    """The README says something in a form that this module does not know; the message says what."""


@dataclass(frozen=True)
class Step:
    """One command: the shell's words, the lines shown as its output, and the exit status that follows from them."""

    command: str
    shown: tuple[str, ...] = ()
    status: int = 0

    def missing(self, output: str) -> list[str]:
        """The shown lines for which ``output`` has none."""
        lines = output.splitlines()
        return [line for line in self.shown
                if (pattern := pattern_of(line)) and not any(pattern.match(each) for each in lines)]


def steps(text: str) -> list[Step]:
    """What the section says before its first subsection, in order, as one shell session.

    Raises Unreadable where a console block cannot be understood, or there is no command.
    """
    found: list[Step] = []
    for kind, body in _blocks(text):
        if kind == "console":
            for command, shown in _commands(body):
                if command:
                    found.append(Step(command, tuple(shown), _status(shown)))
                elif found and not found[-1].shown:  # a block of output only belongs to the command before it
                    found[-1] = Step(found[-1].command, tuple(shown), _status(shown))
                else:
                    raise Unreadable(f"{SECTION}: output of no command: {shown[0]}")
    if not found:
        raise Unreadable(f"{SECTION}: no command in it")
    for number, step in enumerate(found[1:]):
        if step.command == "echo $?":
            if len(step.shown) != 1 or not step.shown[0].isdigit():
                raise Unreadable(f"{SECTION}: what does 'echo $?' print after {found[number].command}?")
            found[number] = Step(found[number].command, found[number].shown, int(step.shown[0]))
    return found


def job_file(text: str) -> tuple[str, str]:
    """Name and text of the job file that the section shows."""
    name = re.search(r"This is `(\S+)`:\n\n```yaml\n(.*?)^```$", _section(text), re.MULTILINE | re.DOTALL)
    if not name:
        raise Unreadable(f"{SECTION}: no job file in it ('This is `FILE`:', and a yaml block)")
    return name[1], name[2]


def bare_yaml(text: str) -> list[str]:
    """Its lines without comments."""
    return [told for line in text.splitlines() if (told := re.sub(r"(^|\s+)#.*", "", line))]


def pattern_of(line: str) -> re.Pattern[str] | None:
    """What a line of output must match to be the one that is shown; None where it need not be there: KVM and what is
    advised depend on the machine, as does all behind the first semicolon."""
    if line.strip() == "..." or line.startswith("warning") or re.match(r" +→|vmjob: accelerator ", line):
        return None
    if line.strip().isdigit():
        return re.compile(rf"{re.escape(line.strip())}$")
    told = line.split("; ")[0]
    parts: list[str] = []
    end = 0
    for found in _VARIABLE.finditer(told):
        parts += [_literal(told[end:found.start()]), _general(found[0])]
        end = found.end()
    return re.compile("".join([*parts, _literal(told[end:])]))


def _literal(text: str) -> str:
    return r"\s+".join(map(re.escape, re.split(r"\s+", text)))


def _general(found: str) -> str:
    if found.startswith("/"):
        return r"/[^\s;,)]+"
    return _TIME if found[-1].isalpha() else r"\d+(?:\.\d+)*"


def _section(text: str) -> str:
    start = text.find(f"\n{SECTION}\n")
    if start < 0:
        raise Unreadable(f"no section '{SECTION}'")
    return re.split(r"^###? ", text[start + len(SECTION) + 2:], maxsplit=1, flags=re.MULTILINE)[0]


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    section = _section(text)
    if section.count("```") % 2:
        raise Unreadable(f"{SECTION}: a block that does not end")
    for block in _BLOCK.finditer(section):
        yield block[1], block[2]


def _commands(body: str) -> Iterator[tuple[str, list[str]]]:
    """Each command (empty, where a block begins with output) and the lines shown after it."""
    command, shown, lines = "", list[str](), iter(body.splitlines())
    for line in lines:
        if not line.startswith("$ "):
            shown.append(line)
            continue
        if command or shown:
            yield command, shown
        command, shown = line[2:], []
        while command.endswith("\\"):
            command = f"{command}\n{next(lines, '')}"
    yield command, shown


def _status(shown: Sequence[str]) -> int:
    for line in shown:
        if failed := _FAILED.search(line):
            return int(failed[1])
    return 0
