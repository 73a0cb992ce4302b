"""vmjob.pyz: this program with all it needs as one file, for bare nodes.

It is made offline from what the running Python has installed; only pure Python goes in, and only
releases that still run on Python 3.9, because that is what a node may have.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import vmjob
from vmjob import config
from vmjob.errors import VmjobError
from vmjob.payload import WRAPPER

PYZ = "vmjob.pyz"
# beside the payload's wrapper: HTCondor's startd hook, and the configuration that starts it
HOOK, SNIPPET = "vmjob-startd.sh", "99-vmjob-node.conf"
_WRAPPERS = (WRAPPER, HOOK, SNIPPET)
OLDEST = (3, 9)
# Distribution → folder of the module in it that travels.
CARRIED = {"PyYAML": "yaml", "qemu.qmp": "qemu/qmp", "requests": "requests", "urllib3": "urllib3", "idna": "idna",
           "certifi": "certifi", "charset-normalizer": "charset_normalizer", "tqdm": "tqdm", "pycdlib": "pycdlib",
           "fastjsonschema": "fastjsonschema", "htchirp": "htchirp"}
# What no worker runs: interactive tools, notebooks, other event loops, test data.
_LEFT_OUT = re.compile(r"/(__pycache__|tests?|docs?|contrib/emscripten)/|\.(pyc|pyi|so|typed|1|sh\.in)$"
                       r"|^qemu/qmp/(qmp_shell|qmp_tui)\.py$|^charset_normalizer/cli/|^htchirp/(cli|__main__)\.py$"
                       r"|^tqdm/(contrib/|completion\.sh$|(keras|dask|tk|rich|notebook|autonotebook|_tqdm_notebook)\.py$)|^yaml/cyaml\.py$")
_MAIN = """import sys
if sys.version_info < (3, 9):
    sys.exit("vmjob needs Python 3.9 or newer, this is " + sys.version.split()[0])
from vmjob.cli.main import main
sys.exit(main())
"""


def build_pyz(target: Path) -> None:
    """Write the application vmjob.pyz: the same bytes from the same installed versions; about 1 MB.

    Raises VmjobError when something it needs is not installed, or does not run on Python 3.9.
    """
    running = getattr(vmjob.__spec__.loader, "archive", None) if vmjob.__spec__ else None
    if running:  # we are such a file ourselves
        shutil.copyfile(running, target)
        return
    import zipfile

    contents = sorted(_contents())
    with target.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, data in contents:
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.external_attr = 0o644 << 16
                entry.create_system = 3
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, data)
    target.chmod(0o755)


def cached_pyz() -> Path:
    """vmjob.pyz as made before from the same files, else made now: packing takes a tenth of a second. Raises as
    build_pyz, or OSError where nothing can be kept."""
    running = getattr(vmjob.__spec__.loader, "archive", None) if vmjob.__spec__ else None
    if running:
        return Path(running)
    folder = config.cache_dir() / "pyz"
    path = folder / f"{_made_from()}.pyz"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink(missing_ok=True)
        spare = folder / f".{os.getpid()}"
        build_pyz(spare)
        spare.chmod(0o555)  # payloads are links to it
        spare.replace(path)
    return path


def _made_from() -> str:
    """Changes when a file of ours, or a release that travels with us, does."""
    seen = [f"{path}:{state.st_mtime_ns}:{state.st_size}" for path in sorted(Path(vmjob.__file__).parent.rglob("*"))
            if path.suffix != ".pyc" and path.is_file() for state in [path.stat()]]
    for distribution, module in CARRIED.items():
        # an installer writes into the folder anew
        seen.append(f"{distribution}:{module}:{_module_folder(module, distribution).stat().st_mtime_ns}")
    text = "\n".join([*seen, hashlib.sha256(b"".join(map(wrapper_text, _WRAPPERS))).hexdigest(), sys.version])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _contents() -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", _MAIN.encode()
    yield "qemu/__init__.py", b""  # a namespace package elsewhere; zipimport wants a folder entry or this
    wrappers = {f"vmjob/wrappers/{name}": wrapper_text(name) for name in _WRAPPERS}
    yield from wrappers.items()
    own = Path(vmjob.__file__).parent
    yield from ((name, data) for name, data in _folder(own, "vmjob") if name not in wrappers)
    for distribution, module in CARRIED.items():
        yield from _licences(distribution)
        yield from _folder(_module_folder(module, distribution), module)


def _folder(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        inside = f"{name}/{path.relative_to(folder).as_posix()}"
        if path.is_file() and not _LEFT_OUT.search(inside):
            yield inside, path.read_bytes()


def _licences(distribution: str) -> Iterator[tuple[str, bytes]]:
    """The licence texts, which must travel with copies; after a check that this release runs on old Pythons."""
    from importlib import metadata

    # Python 3.9 looks for the name as it is on the disk
    own = distribution.replace(".", "_") if sys.version_info < (3, 10) else distribution
    try:
        found = metadata.distribution(own)
    except metadata.PackageNotFoundError as missing:
        raise VmjobError(f"the Python package {distribution} is not installed here, and vmjob.pyz needs it",
                         f"install it: pip install {distribution}") from missing
    wanted = found.metadata["Requires-Python"] or ""
    if not runs_on(wanted, OLDEST):
        raise VmjobError(f"{distribution} {found.version} needs Python {wanted}; vmjob.pyz must run on "
                         f"{'.'.join(map(str, OLDEST))}",
                         f"install a release that does: pip install '{distribution}<{found.version}'")
    for file in found.files or ():
        if ".dist-info" in file.parts[0] and re.match(r"(LICEN[CS]E|COPYING|NOTICE)", file.name):
            yield f"licences/{distribution}/{file.name}", Path(str(file.locate())).read_bytes()


def runs_on(wanted: str, version: tuple[int, int]) -> bool:
    """Does ``version`` fit the clauses of a Requires-Python?"""
    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        found = re.match(r"(>=|<=|==|!=|~=|>|<)\s*(\d+)(?:\.(\d+))?(\.\d+|\.\*)?", clause)
        if not found:
            return False
        sign, bound = found.group(1), (int(found.group(2)), int(found.group(3) or 0))
        loose = found.group(4) not in (None, ".*", ".0")  # 3.9.2 and the like: some micro releases of 3.9 do
        equal = version == bound if found.group(3) else version[0] == bound[0]
        fits = {">=": version >= bound, ">": version > bound or (loose and equal), "<=": version <= bound,
                "<": version < bound or (loose and equal), "==": equal, "!=": not equal or loose,
                "~=": version >= bound and version[0] == bound[0]}
        if not fits[sign]:
            return False
    return True


def _module_folder(module: str, distribution: str) -> Path:
    from importlib.util import find_spec

    try:
        spec = find_spec(module.replace("/", "."))
    except ImportError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise VmjobError(f"the module {module} of {distribution} is not in this Python",
                         f"install it again: pip install --force-reinstall {distribution}")
    return Path(next(iter(spec.submodule_search_locations)))


def wrapper_text(name: str = WRAPPER) -> bytes:
    """A file of wrappers/: package data of an installation, or a neighbour in a checkout."""
    import pkgutil

    try:
        data = pkgutil.get_data("vmjob", f"wrappers/{name}")
    except OSError:
        data = None
    if data is not None:
        return data
    neighbour = Path(vmjob.__file__).parent.parent / "wrappers" / name
    try:
        return neighbour.read_bytes()
    except OSError as missing:
        raise VmjobError(f"{neighbour} is missing from this installation", "reinstall vmjob") from missing
