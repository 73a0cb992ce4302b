"""Hatchling's hook: a wheel and an sdist carry vmjob.pyz and what ``vmjob --version`` reports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PyzHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        sys.path.insert(0, str(root))
        from vmjob.job import pyz_build

        if version == "editable":  # a checkout makes its own, as its files change
            pyz_build.worker_set(root)
            return
        folder = root / "vmjob"
        if not (folder / "vmjob.pyz").exists():  # an unpacked sdist has it
            folder = pyz_build.kept(root) / "carried"
            folder.mkdir(exist_ok=True)
            built = pyz_build.built_from(root)
            (folder / "built.json").write_bytes(pyz_build.built_text(built))
            pyz_build.write(folder / "vmjob.pyz", root, built)
        for name in ("vmjob.pyz", "built.json"):
            build_data["force_include"][str(folder / name)] = f"vmjob/{name}"
