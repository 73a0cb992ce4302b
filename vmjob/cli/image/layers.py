"""``vmjob image layer`` and ``flatten``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmjob.core import config
from vmjob.core.errors import JobError

if TYPE_CHECKING:
    from vmjob.core.model import Manifest
    from vmjob.image.build.layer import Made

_LAYER = """\
Make an image that is BASE and a layer: a file that holds only what changes in BASE's disk. Nodes that have BASE fetch
the layer alone. What it becomes is built from RECIPE.yaml, or is a disk or an image that there is already; the result
is compared with it byte for byte before anybody gets it.
"""
_LAYER_EXAMPLES = """\
examples:
  vmjob image layer pythia recipe-2.yaml -o pythia-2                the recipe with one more package, built and compared
  vmjob image layer debian-12 --from-disk changed.qcow2 -o tuned    a copy of the disk in which something was changed
  vmjob image layer pythia --from-image pythia-new/ -o pythia-2     an image that was built already
"""
_FLATTEN_EXAMPLES = "example:\n  vmjob image flatten pythia-2 -o pythia-3 --name pythia-3\n"


def add_verbs(nouns: Any) -> None:
    """The verbs ``layer`` and ``flatten`` of ``vmjob image``."""
    layer = _verb(nouns, "layer", "make an image that is another and what changes in it", _LAYER, _LAYER_EXAMPLES,
                  _layer)
    layer.add_argument("base", metavar="BASE", help="name, digest or path of a manifest.yaml; may have layers itself")
    layer.add_argument("recipe", metavar="RECIPE.yaml", nargs="?", help="what to build (vmjob schema recipe)")
    layer.add_argument("--from-disk", metavar="FILE", help="a disk: all but the disk stays as in BASE")
    layer.add_argument("--from-image", metavar="IMAGE", help="name, digest or path of an image")
    layer.add_argument("--name", metavar="NAME", help="its name (default: the recipe's, the image's, the file's)")
    flatten = _verb(nouns, "flatten", "make an image with layers into one without",
                    "Make the disk and the layers of an image one disk again. The guest sees the same bytes.",
                    _FLATTEN_EXAMPLES, _flatten)
    flatten.add_argument("image", metavar="IMAGE", help="name, digest or path of a manifest.yaml")
    flatten.add_argument("--name", metavar="NAME", help="name of the new image (default: NAME-flat)")


def _verb(nouns: Any, name: str, text: str, description: str, examples: str,
          handler: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = nouns.add_parser(name, help=text, description=description, epilog=examples,
                                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    one.set_defaults(handler=handler)
    one.add_argument("-o", "--out", metavar="DIR", required=True, help="folder for the image and its manifest.yaml")
    one.add_argument("--no-register", action="store_true", help="do not put it into the local store")
    one.add_argument("--json", action="store_true", help="print the answer as JSON")
    one.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: every command that is run")
    return one


def _layer(args: argparse.Namespace) -> int:
    import tempfile
    from contextlib import ExitStack
    from functools import partial

    from vmjob.cli import report
    from vmjob.core.units import format_size
    from vmjob.image.build import layer as layering
    from vmjob.image.store.images import Store
    from vmjob.job.fetching import fetch_of

    if [bool(args.recipe), bool(args.from_disk), bool(args.from_image)].count(True) != 1:
        raise JobError("what shall the base become? one of RECIPE.yaml, --from-disk and --from-image",
                       "vmjob image layer --help shows an example of each")
    reporter, store, out = report.choose(json=args.json), Store(config.store_dir()), Path(args.out)
    fetcher = partial(fetch_of, reporter=reporter)
    with ExitStack() as stack:
        base = stack.enter_context(layering.opened(args.base, store, reporter, fetcher))
        if args.from_disk:
            disk = Path(args.from_disk)
            made = layering.layer_on_disk(base, disk, args.name or disk.stem, out, reporter)
        else:
            ref = args.from_image
            if args.recipe:
                if args.name:
                    layering.check_name(base, args.name)
                from vmjob.image.build.from_recipe import build

                work = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmjob-"))
                build(Path(args.recipe), Path(work) / "built", reporter)
                ref = f"{work}/built"
            new = stack.enter_context(layering.opened(ref, store, reporter, fetcher))
            made = layering.layer_on_image(base, new, args.name or new.manifest.name, out, reporter)
    if not args.no_register:
        store.add(made.manifest, out, reporter)
    if args.json:
        return _json(made.manifest, **_sizes(made))
    manifest = made.manifest
    print(f"{manifest.name}: {manifest.digest[:19]}…, {format_size(manifest.size)} with "
          f"{base.manifest.name if len(manifest.layers) == 1 else 'all below'}, of which the layer is "
          f"{format_size(made.layer.size)} ({made.layer.size / manifest.size:.1%})")
    print(f"it brings {format_size(made.new)} that the base does not have, and moves {format_size(made.copied)} in it")
    print(f"written to {out}/")
    return 0


def _flatten(args: argparse.Namespace) -> int:
    from functools import partial

    from vmjob.cli import report
    from vmjob.core.units import format_size
    from vmjob.image.build import layer as layering
    from vmjob.image.store.images import Store
    from vmjob.job.fetching import fetch_of

    reporter, store, out = report.choose(json=args.json), Store(config.store_dir()), Path(args.out)
    fetcher = partial(fetch_of, reporter=reporter)
    with layering.opened(args.image, store, reporter, fetcher) as image:
        made = layering.flatten(image, args.name or f"{image.manifest.name}-flat", out, reporter)
    if not args.no_register:
        store.add(made, out, reporter)
    if args.json:
        return _json(made)
    print(f"{made.name}: {made.digest[:19]}…, {format_size(made.size)} without layers; it was "
          f"{format_size(image.manifest.size)} with {len(image.manifest.layers)}")
    print(f"written to {out}/")
    return 0


def _sizes(made: Made) -> dict[str, int]:
    return {"layer_size": made.layer.size, "layer_new": made.new, "layer_copied": made.copied}


def _json(manifest: Manifest, **more: int) -> int:
    from vmjob.image.manifest import to_document

    print(json.dumps({**to_document(manifest), **more}))
    return 0
