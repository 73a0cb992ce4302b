"""The payload as one folder or tar file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vmjob.core.errors import JobError, ScratchFull
from vmjob.core.files import FULL, place, real_kind, write_secret
from vmjob.core.model import Payload
from vmjob.core.ownnames import INPUT, NAME, PYZ, TOKEN, WRAPPER
from vmjob.core.progress import Reporter
from vmjob.core.scratch import claim, scratch
from vmjob.job.payload import LISTS, image_place, list_name, write_payload
from vmjob.job.pyz import carried_pyz, wrapper_text

_LISTS = tuple(map(list_name, range(LISTS)))


def pack(payload: Payload, target: Path, reporter: Reporter) -> int:
    """Write the payload as the folder ``target``, or as one file where it ends in ``.tar``; its size in bytes.

    An older payload there is replaced, all at once; files of the image are linked, not copied, where the disk can.
    Raises JobError when something else is in the way, FolderBusy when a job runs there, ScratchFull or
    SlotError when it cannot be written.
    """
    _check_target(target)
    if payload.token:
        reporter.note(f"{target} will hold the glide-in's token: let nobody else read it")
    parent = target.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with scratch(parent) as hidden:  # beside the target, so that one rename puts it there
            return _pack(payload, target, hidden, reporter)
    except OSError as trouble:
        if trouble.errno in FULL:
            raise ScratchFull(f"{target}: {trouble.strerror}", "free some space there") from trouble
        raise JobError(f"{target}: {trouble}", "check that the folder may be written") from trouble


def _pack(payload: Payload, target: Path, hidden: Path, reporter: Reporter) -> int:
    folder = hidden / "payload"
    folder.mkdir()
    write_small(folder, payload)
    if payload.token:
        write_secret(folder / TOKEN, payload.token)
    large = _large(payload)
    if target.name.endswith(".tar"):
        size = _as_tar(folder, large, hidden / "payload.tar", reporter)
        if payload.token:
            (hidden / "payload.tar").chmod(0o600)
        (hidden / "payload.tar").replace(target)
    else:
        size = _as_folder(folder, large)
        _swap(folder, target, hidden / "old")
    return size


def _check_target(target: Path) -> None:
    if target.name.endswith(".tar"):
        if real_kind(target) == "folder":
            raise JobError(f"{target} is a folder", "give another name, or one without .tar to get a folder")
        return
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise JobError(f"{target} is there and is no folder", "give another name, or FILE.tar to get one file")
    with claim(target):  # not while a job runs in it
        pass
    # results of a run by hand, or anything else that is somebody's, is not ours to replace
    other = sorted({path.name for path in target.iterdir()}
                   - {WRAPPER, PYZ, NAME, INPUT, TOKEN, "image", *_LISTS})
    if other:
        raise JobError(f"{target} is a folder with something else than a payload in it, such as {other[0]}",
                       "give another name, or empty it")


def write_small(folder: Path, payload: Payload) -> None:
    """Write into ``folder`` what each payload has, but for its archive, its image and a glide-in's token."""
    wrapper = folder / WRAPPER
    wrapper.write_bytes(wrapper_text())
    wrapper.chmod(0o755)
    shutil.copyfile(carried_pyz(), folder / PYZ)
    (folder / PYZ).chmod(0o755)
    for number, signed in enumerate(payload.lists):
        place(signed, folder / list_name(number))
    write_payload(folder, payload)


def _large(payload: Payload) -> list[tuple[str, Path]]:
    """(place in the payload, where it is now) of what is better not copied."""
    found = [(INPUT, payload.input_archive)] if payload.input_archive is not None else []
    return found + _image(payload)


def _image(payload: Payload) -> list[tuple[str, Path]]:
    return sorted((image_place(file.sha256), payload.image_files[file.role]) for file in payload.manifest.files
                  if file.role in payload.image_files)


def add_image(folder: Path, payload: Payload) -> None:
    """Put the image's files into the payload in ``folder``, linked where the disk can."""
    for name, path in _image(payload):
        (folder / name).parent.mkdir(exist_ok=True)
        place(path, folder / name)


def _as_folder(folder: Path, large: list[tuple[str, Path]]) -> int:
    for name, path in large:
        (folder / name).parent.mkdir(exist_ok=True)
        place(path, folder / name)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _as_tar(folder: Path, large: list[tuple[str, Path]], target: Path, reporter: Reporter) -> int:
    """Unpacks flat, as compute elements expect their input: ``tar xf FILE && sh vmjob-wrapper.sh``."""
    from vmjob.stage.archive.collect import Entry
    from vmjob.stage.archive.pack import write_archive

    members = [(name, folder / name) for name in (WRAPPER, NAME, PYZ, TOKEN, *_LISTS)
               if (folder / name).exists()] + large
    entries = [Entry(name, path, path.stat()) for name, path in members]
    entries.insert(len(entries) - len([name for name, _ in large if name != INPUT]),
                   Entry("image", folder, folder.stat()))
    with reporter.bar("payload", sum(path.stat().st_size for _, path in members)) as bar:
        return write_archive(entries, target, bar.advance)


def _swap(folder: Path, target: Path, old: Path) -> None:
    """Put the new folder in the place of the old one, which goes where it is removed."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    if target.exists():
        target.rename(old)
    folder.rename(target)
