"""The plug-ins of a node's HTCondor: which there are, what they are asked, what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from vmjob import process
from vmjob.errors import CommandFailed, CommandMissing
from vmjob.stage.flow import Failed


class Plugins:
    """The plug-ins of this node's HTCondor; each is asked once what it can."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._known: dict[str, tuple[set[str], bool]] = {}

    def find(self, scheme: str) -> tuple[str, bool]:
        """The plug-in for a scheme, and whether it takes lists. Raises Failed."""
        self._names = self._names or _plugin_names()
        for name in self._names:
            if name not in self._known:
                try:
                    said = process.run([name, "-classad"], timeout=20).stdout.decode(errors="replace")
                except (CommandFailed, CommandMissing, OSError):  # one that does not run here is as none
                    said = ""
                self._known[name] = plugin_methods(said)
            if scheme in self._known[name][0]:
                return name, self._known[name][1]
        offered = sorted(set[str]().union(*(methods for methods, _ in self._known.values())))
        raise Failed(f"no plug-in of HTCondor here fetches {scheme}: (there are {', '.join(offered) or 'none'})",
                     broken=True)


def _plugin_names() -> list[str]:
    asker = process.which("condor_config_val")
    if not asker:
        raise Failed("this node has no HTCondor whose plug-ins could fetch it (no condor_config_val)", broken=True)
    try:
        told = process.run([asker, "FILETRANSFER_PLUGINS"], timeout=20, check=False)
    except (CommandMissing, OSError) as broken:
        raise Failed(f"{asker} cannot be started", broken=True) from broken
    except CommandFailed as slow:
        raise Failed(slow.message) from slow
    names = [n for n in re.split(r"[,\s]+", told.stdout.decode(errors="replace")) if n.startswith("/")]
    if told.returncode or not names:
        raise Failed("HTCondor here has no plug-ins for file transfer (condor_config_val FILETRANSFER_PLUGINS)",
                     broken=True)
    return names


def plugin_request(url: str, target: Path) -> str:
    """What a plug-in of HTCondor is asked for: one ClassAd."""
    def text(value: object) -> str:
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

    return f"[ Url = {text(url)}; LocalFileName = {text(target)}; ]\n"


def plugin_failure(answer: str) -> Optional[str]:
    """Why a plug-in says that its transfer failed, None where it went well."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', answer)  # what a server says within a string is no attribute
    if re.search(r"\bTransferSuccess\s*=\s*true\b", bare, re.IGNORECASE):
        return None
    found = re.search(r'\bTransferError\s*=\s*"((?:[^"\\]|\\.)*)"', answer)
    text = re.sub(r"\\(.)", r"\1", found.group(1)) if found else ""
    return "".join(c for c in text if c.isprintable())[:300] or "HTCondor's plug-in does not say that it went well"


def plugin_methods(answer: str) -> tuple[set[str], bool]:
    """The schemes that a plug-in serves, and whether it takes a list of files, from what ``-classad`` printed."""
    found = re.search(r'^[ \t\r]*SupportedMethods\s*=\s*"([^"]*)"', answer, re.IGNORECASE | re.MULTILINE)
    names = {name.strip().lower() for name in found.group(1).split(",")} if found else set()
    many = re.search(r"^[ \t\r]*MultipleFileSupport\s*=\s*true\b", answer, re.IGNORECASE | re.MULTILINE)
    return names - {""}, bool(many)
