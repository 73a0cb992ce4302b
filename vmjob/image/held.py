"""Which images a cache that an admin keeps has whole: asked each minute, so it reads only manifests that are new."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

from vmjob.core.errors import ImageError
from vmjob.image import manifest as manifests
from vmjob.image.store.shared import distrusted

_LONGEST = 5.0  # seconds for reading manifests; the others' turn comes


def whole_images(root: Path, known: Mapping[str, list[str]]) -> tuple[tuple[str, ...], dict[str, list[str]], str]:
    """(digests of the images in the cache ``root`` whose files are all there, what to hand in as ``known`` next time,
    why the cache does not count). ``known``: digest → SHA-256 of its files, which never changes."""
    blobs = root / "blobs/sha256"
    wrong = next(filter(None, map(distrusted, (root, blobs.parent, blobs))), "")
    if wrong:
        return (), {}, f"the shared cache is not used: {wrong}"
    try:
        here = {path.name for path in blobs.iterdir()}
        names = [path.stem for path in (root / "images").glob("[!.]*.yaml")]
    except OSError as refused:
        return (), {}, f"the shared cache is not used: {refused.filename}: {refused.strerror}"
    found: dict[str, list[str]] = {}
    end = time.monotonic() + _LONGEST
    for name in sorted(names):
        if f"sha256:{name}" in known:
            found[f"sha256:{name}"] = list(known[f"sha256:{name}"])
        elif time.monotonic() < end:
            with contextlib.suppress(ImageError, OSError):
                manifest = manifests.load(root / "images" / f"{name}.yaml")
                if manifest.digest == f"sha256:{name}":
                    found[manifest.digest] = [file.sha256 for file in manifest.files]
    return tuple(digest for digest, files in found.items() if here.issuperset(files)), found, ""
