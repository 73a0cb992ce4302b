"""manifest.yaml: the small description that travels with an image. Read from strangers, so checked.

``load``/``dump`` are for files, ``from_document``/``to_document`` for a manifest inside another document.
"""

from __future__ import annotations

from pathlib import Path

from vmjob.core import schema
from vmjob.core.errors import ImageError
from vmjob.core.model import Manifest
from vmjob.manifests import DISK_FORMATS, manifest_from_dict, manifest_to_dict

__all__ = ["DISK_FORMATS", "FILE_NAME", "dump", "from_document", "load", "to_document"]

FILE_NAME = "manifest.yaml"
_HEADER = """\
# An image of vmjob. `vmjob image inspect` shows it, `vmjob run --image FOLDER -- COMMAND` boots it.
# The digest is over all that decides what boots; a name or a description may change without it.
"""

from_document, to_document = manifest_from_dict, manifest_to_dict  # shared with payload.json


def load(path: Path) -> Manifest:
    """The manifest in ``path`` (a YAML file, or a folder that holds manifest.yaml).

    Raises ImageError naming the file and the key, also where a stated digest is not the digest of the content.
    """
    file = path / FILE_NAME if path.is_dir() else path
    return from_document(schema.load_yaml(file, "manifest", ImageError), str(file), checked=True)


def dump(manifest: Manifest) -> str:
    """The text of manifest.yaml."""
    import yaml

    body: str = yaml.safe_dump(to_document(manifest), sort_keys=False, width=120, allow_unicode=True)
    return _HEADER + body
