"""RECIPE.yaml: what an image is built from."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmjob.core import schema, units
from vmjob.core.errors import ImageError, JobError
from vmjob.core.model import Manifest
from vmjob.core.units import GIB, MIB
from vmjob.image.build import micro


@dataclass(frozen=True)
class RecipeFile:
    """A file for the guest at the absolute path ``path``."""

    path: str
    data: bytes
    mode: int


@dataclass(frozen=True)
class Recipe:
    """Sizes in bytes. ``users``: programs run as the first."""

    name: str
    description: str = ""
    suite: str = "bookworm"
    mirror: str = ""
    packages: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    commands: tuple[str, ...] = ()
    users: tuple[str, ...] = (Manifest.user,)
    size: int = 4 * GIB
    needs_memory: int = 512 * MIB
    needs_cpus: int = 1
    kernel: str = micro.KERNEL
    hostname: str = "vmjob"
    sources: tuple[str, ...] = ()


def load(path: Path) -> Recipe:
    """Read and check a recipe. Raises ImageError naming the file and the key."""
    body = schema.load_yaml(path, "recipe", ImageError)
    needs = body.get("needs", {})
    if body.get("pip") and not any(p.partition("=")[0].startswith("python3") for p in body.get("packages", ())):
        raise ImageError(f"{path}: pip: there is no Python in this image", "add python3 to packages")
    plain = ("name", "description", "suite", "mirror", "kernel", "hostname")
    lists = ("packages", "pip", "commands", "users", "sources")
    given: dict[str, Any] = {key: body[key] for key in plain if key in body}
    given.update({key: tuple(body[key]) for key in lists if key in body})
    return Recipe(
        **given,
        files=tuple(_file(entry, path, f"{path}: files.{n}") for n, entry in enumerate(body.get("files", ()))),
        size=_size(body.get("size", Recipe.size), f"{path}: size"), needs_cpus=needs.get("cpus", 1),
        needs_memory=_size(needs.get("memory", Recipe.needs_memory), f"{path}: needs.memory"))


def _size(text: Any, where: str) -> int:
    try:
        return units.parse_size(text, where) // 4096 * 4096
    except JobError as wrong:
        raise ImageError(wrong.message, wrong.hint) from wrong


def _file(entry: dict[str, Any], recipe: Path, where: str) -> RecipeFile:
    target = entry["path"]
    if posixpath.normpath(target) != target or target == "/":
        raise ImageError(f"{where}.path: {target!r} is not a plain absolute path", "write it without .. and // and /.")
    mode = int(entry.get("mode", "644"), 8)
    if "content" in entry:
        return RecipeFile(target, entry["content"].encode(), mode)
    source = recipe.parent / entry["from"]
    try:
        return RecipeFile(target, source.read_bytes(), mode)
    except OSError as error:
        raise ImageError(f"{where}.from: {source} cannot be read: {error.strerror}",
                         "paths are relative to the recipe's folder") from error
