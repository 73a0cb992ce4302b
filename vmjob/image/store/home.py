"""Which of an image's files are here, and where this machine keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmjob.core import config
from vmjob.core.model import Manifest
from vmjob.image.store.images import Store


def present(manifest: Manifest, paths: Mapping[str, Path]) -> dict[str, Path]:
    """Of ``paths`` (by role) those that are there, where the image has sources to fetch the others from; else all, and
    what is missing is told by whoever opens it."""
    return {role: path for role, path in paths.items() if not manifest.sources or path.exists()}


def home_of(manifest: Manifest, paths: Mapping[str, Path], own: Path) -> Store:
    """The user's store (``own``) if all files are in it, else (an image used from a folder, or fetched) the cache,
    where nobody has to remove them. ``paths``: see ``present``."""
    whole = len(paths) == len(manifest.files) and all(own in path.parents for path in paths.values())
    return Store(own) if whole else Store(config.cache_dir(), cache=True)
