"""``vmjob image …``: the image maker's verbs and their options."""

from __future__ import annotations

import argparse
from typing import Any

from vmjob.cli.image import cache, layers, trust_options, vet
from vmjob.cli.options import common, later, verb

_EXAMPLES = """\
examples:
  vmjob image micro                                 build the small image to try things with
  vmjob image build recipe.yaml -o pythia-image     build an image from Debian packages
  vmjob image import debian-12-generic.qcow2 --name debian-12
  vmjob image list
"""


def add_verbs(verbs: Any) -> None:
    """The verb ``image`` with its own verbs."""
    image = verbs.add_parser("image", epilog=_EXAMPLES,
                             description="Build, import and look at images.",
                             formatter_class=argparse.RawDescriptionHelpFormatter)
    nouns = image.add_subparsers(dest="what", metavar="WHAT", required=True)

    micro = _verb(nouns, "micro", "build the micro image (kernel + busybox) and register it",
                  "example:\n  vmjob image micro && vmjob run --image micro -- uname -a\n", "micro")
    _source(micro)
    micro.add_argument("-o", "--out", metavar="DIR", help="write it into this folder too")

    build = _verb(nouns, "build", "build an image from a recipe",
                  "example:\n  vmjob image build examples/pythia/image.yaml -o pythia-image\n", "build")
    build.add_argument("recipe", metavar="RECIPE.yaml", help="what goes in (vmjob schema recipe)")
    build.add_argument("-o", "--out", metavar="DIR", required=True, help="folder for the image and its manifest.yaml")
    _source(build)
    build.add_argument("--no-register", action="store_true", help="do not put it into the local store")

    add = _verb(nouns, "import", "take a disk image that exists",
                "example:\n  vmjob image import debian-12-generic.qcow2 --name debian-12\n", "import_")
    add.add_argument("file", metavar="FILE",
                     help="qcow2, vmdk, vdi or vhdx, kept as it is; raw, packed as qcow2; or a manifest.yaml")
    add.add_argument("--name", metavar="NAME", help="name in the store (default: the file's)")
    _source(add)
    add.add_argument("--firmware", choices=("bios", "uefi"), help="how it boots (default: read from its partitions)")
    add.add_argument("--user", metavar="NAME", default=None, help="who runs programs in the guest (default: vmjob)")

    inspect = _verb(nouns, "inspect", "show an image's manifest",
                    "example:\n  vmjob image inspect micro\n", "inspect")
    inspect.add_argument("image", metavar="IMAGE", help="name, digest or path of a manifest.yaml")

    _verb(nouns, "list", "list the local store", "example:\n  vmjob image list --json\n", "list_")

    remove = _verb(nouns, "rm", "remove images from the local store", "example:\n  vmjob image rm micro\n", "remove")
    remove.add_argument("image", metavar="IMAGE", nargs="+", help="name or digest")
    vet.add_verbs(_verb, nouns)
    trust_options.add_verbs(_verb, nouns)
    layers.add_verbs(nouns)
    cache.add_verbs(nouns)


def _source(one: argparse.ArgumentParser) -> None:
    one.add_argument("--source", metavar="ADDRESS", action="append", default=[],
                     help="where its files will be, a folder's address ends in /: nodes fetch them there (repeatable)")


def _verb(nouns: Any, name: str, text: str, examples: str, function: str) -> argparse.ArgumentParser:
    one = verb(nouns, name, text, examples, later("image.store", function))
    common(one)
    return one
