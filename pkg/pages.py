"""Manual pages and completion for shells, from the parsers that print --help."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator

from pkg.release import Release

# (path of words, its parser, what it does in a few words)
Verb = tuple[tuple[str, ...], argparse.ArgumentParser, str]


def verbs(parser: argparse.ArgumentParser, text: str, path: tuple[str, ...] = ()) -> Iterator[Verb]:
    """The parser, and those of all its verbs, each once."""
    path = path or (parser.prog,)
    yield path, parser, text
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for entry in action._choices_actions:
                yield from verbs(action.choices[entry.dest], entry.help or "", (*path, entry.dest))


def manual(verb: Verb, beside: list[Verb], release: Release) -> str:
    """The page of one verb in the language of man(7). ``beside``: all verbs, for those that belong to this one."""
    from argparse_manpage.manpage import Manpage

    path, parser, text = verb
    own = [one for one in beside if one[0][:-1] == path]
    usage = parser.format_usage().partition(":")[2].split()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.help = argparse.SUPPRESS  # each has a page of its own
    epilog, parser.epilog = parser.epilog, None
    day = time.strftime("%Y-%m-%d", time.gmtime(release.epoch))
    page = Manpage(parser, {"project_name": "vmjob", "version": release.version, "manual_title": "vmjob",
                            "description": text, "date": day})
    page.prog, page.synopsis = "-".join(path), usage
    if own:
        page.add_section("commands", ">", "\n".join(
            f".TP\n.BR {_roff('-'.join(one[0]))} (1)\n{_lines(one[2])}" for one in own))
    for number, part in enumerate(re.split(r"\n\n+", (epilog or "").strip("\n")) if epilog else ()):
        page.add_section(*_part(part, number))
    near = [path[:-1]] if path[:-1] else []
    also = [f".BR {_roff('-'.join(one))} (1)" for one in near]
    page.add_section("see also", ">", "\n".join([*(f"{one}," for one in also), _lines(
        "the documents in /usr/share/doc/vmjob/docs")]))
    # a line of text that begins with one of these would be an order
    return re.sub(r"^'", r"\\(aq", str(page), flags=re.M)


def _part(part: str, number: int) -> tuple[str, str, str]:
    """A paragraph of an epilog: one that ends its first line with a colon is a section with lines as they are."""
    first, _, rest = part.partition("\n")
    if first.endswith(":") and rest:
        return first[:-1], ">", f".nf\n{_lines(rest)}\n.fi"
    return "notes", ">", (".PP\n" if number else "") + _lines(part) + "\n"


def _roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def _lines(text: str) -> str:
    """Text that is shown as it is: no line of it is an order."""
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in _roff(text).splitlines())


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """For bash, zsh or fish."""
    import shtab

    return str(shtab.complete(parser, shell=shell))
