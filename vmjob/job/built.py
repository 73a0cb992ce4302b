"""What ``vmjob --version`` reports: the version, the commit it was made from, and the worker's set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmjob.core.version import __version__


@dataclass(frozen=True)
class Version:
    """``commit``: twelve digits, with ``+`` where files differ from it; empty where that is not known. ``worker``:
    distribution and version of what goes into vmjob.pyz."""

    version: str
    commit: str
    worker: tuple[tuple[str, str], ...]

    def lines(self) -> str:
        """For people: one line each."""
        worker = ", ".join(f"{name} {version}" for name, version in self.worker)
        return f"vmjob {self.version}\ncommit {self.commit or 'unknown'}\nworker's set: {worker or 'unknown'}"


def version() -> Version:
    """Of this installation, this vmjob.pyz or this checkout."""
    body = _built()
    return Version(__version__, str(body.get("commit", "")), tuple(sorted(body.get("worker", {}).items())))


def _built() -> dict[str, Any]:
    import json
    import pkgutil

    from vmjob.job.pyz import checkout

    root = checkout()
    if root:
        from vmjob.job import pyz_build

        return pyz_build.built_from(root)
    try:
        body: dict[str, Any] = json.loads(pkgutil.get_data("vmjob", "built.json") or b"{}")
    except (OSError, ValueError):
        return {}
    return body
