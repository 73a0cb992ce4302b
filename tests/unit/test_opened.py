"""Files that are read by the descriptor that they were verified by."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmjob import files, opened, process
from vmjob.errors import CommandFailed, ImageRefused


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("verified")
    return path


def swap(path: Path) -> None:
    spare = path.with_name("spare")
    spare.write_text("another")
    spare.replace(path)


def test_it_stays_the_file_that_was_opened(file: Path) -> None:
    with ExitStack() as stack:
        one = opened.hold(file, stack)
        swap(file)
        assert (one.name, one.place.read_text(), file.read_text()) == (file, "verified", "another")
        number, = opened.numbers(str(one.place))
        assert not os.get_inheritable(number)  # only who is to read it gets it
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_program_reads_it(file: Path) -> None:
    with ExitStack() as stack:
        place = str(opened.hold(file, stack).place)
        swap(file)
        done = process.run(["cat", place], pass_fds=opened.numbers(place, str(file), ""))
        assert done.stdout == b"verified"
        with pytest.raises(CommandFailed):
            process.run(["cat", place])


def test_files_alone(tmp_path: Path, file: Path) -> None:
    """A pipe holds nobody up, and a link is followed only where that is wanted."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(file)
    with ExitStack() as stack:
        for other in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
            with pytest.raises(OSError, match="not a regular file"):
                opened.hold(other, stack)
        assert opened.hold(tmp_path / "link", stack).place.read_text() == "verified"
        with pytest.raises(OSError) as refused:
            opened.hold(tmp_path / "link", stack, follow=False)
        assert refused.value.errno == errno.ELOOP


def test_without_streams(file: Path) -> None:
    """Numbers 0 to 2 mean something else in a child, also where we were started without them."""
    code = ("import os; from contextlib import ExitStack; from pathlib import Path; from vmjob import opened, process\n"
            f"for number in (0, 1): os.close(number)\n"
            f"with ExitStack() as stack:\n"
            f"    place = str(opened.hold(Path({str(file)!r}), stack).place)\n"
            f"    said = process.run(['cat', place], pass_fds=opened.numbers(place)).stdout\n"
            f"os.write(2, said)")
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert done.stderr == b"verified"


def test_people_read_names(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        place = str(opened.hold(file, stack).place)
        assert opened.named(f"'{place}': what") == f"'{file}': what"
        with pytest.raises(ImageRefused) as refused, opened.naming():
            raise ImageRefused(f"{place} is odd", f"look at {place}")
        assert (refused.value.message, refused.value.hint) == (f"{file} is odd", f"look at {file}")
        with pytest.raises(OSError, match=f"'{file}'"), opened.naming():
            raise OSError(errno.EIO, "broken", place)
        with caplog.at_level(logging.DEBUG, "vmjob.process"), pytest.raises(CommandFailed, match=f"ls: .*{file}/x"):
            process.run(["ls", f"{place}/x"], pass_fds=opened.numbers(place))
        assert f"run: ls {place}/x  # {place}: {file}" in caplog.text
    assert opened.named(place) == place  # nothing is open there any more


def test_a_link_is_made_of_what_is_open(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """files.place, where the file system has no reflinks."""
    def no_reflink(source: int, target: int) -> bool:
        swap(file)
        return False

    monkeypatch.setattr(files, "reflink", no_reflink)
    os.link(file, tmp_path / "other-name")  # a file of no name at all cannot be linked, and is copied
    inode = file.stat().st_ino
    with ExitStack() as stack:
        files.place(opened.hold(file, stack).place, tmp_path / "placed")
    assert (tmp_path / "placed").read_text() == "verified" and (tmp_path / "placed").stat().st_ino == inode
