"""Moving and removing files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmjob.core.files import copy_sparse, hash_file, place, remove_tree, take_secret, write_secret

pytestmark = pytest.mark.unit


def test_remove_tree_follows_no_links(tmp_path: Path) -> None:
    (tmp_path / "victim/deep").mkdir(parents=True)
    (tmp_path / "victim/file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/in").symlink_to(tmp_path / "victim")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "file", "victim"]


def test_remove_tree_deeper_than_python_recurses(tmp_path: Path) -> None:
    here = tmp_path / "top"
    for _ in range(1050):
        here.mkdir()
        here = here / "d"
    remove_tree(tmp_path / "top")
    assert not (tmp_path / "top").exists()


def test_remove_tree_in_spite_of_modes(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    for name in ("a/b/c", "a/b", "a"):
        (tmp_path / name).chmod(0)
    remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_copy_sparse_keeps_holes_and_stops_at_the_end(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as source, (tmp_path / "b").open("w+b") as target:
        source.seek(5 * 2**20)
        source.write(b"data")
        source.truncate(10 * 2**20)
        source.flush()
        target.truncate(10 * 2**20)
        assert copy_sparse(source.fileno(), target.fileno(), 0, 0, 10 * 2**20) == 10 * 2**20
        assert os.fstat(target.fileno()).st_blocks * 512 < 2**20
        target.seek(5 * 2**20)
        assert target.read(6) == b"data\0\0"
        assert copy_sparse(source.fileno(), target.fileno(), 9 * 2**20, 0, 5 * 2**20) == 2**20


def test_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"bytes")
    (tmp_path / "l").symlink_to("a")
    place(tmp_path / "l", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"bytes" and not (tmp_path / "b").is_symlink()
    with pytest.raises(FileExistsError):
        place(tmp_path / "a", tmp_path / "b")
    assert hash_file(tmp_path / "a") == hash_file(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "l"]


def test_a_secret_is_taken_once_and_its_bytes_are_gone(tmp_path: Path) -> None:
    path, other = tmp_path / "s", tmp_path / "o"
    write_secret(path, "words")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_secret(path, "other words")
    os.link(path, other)
    assert take_secret(path) == "words" and not path.exists() and other.read_bytes() == bytes(5)
    assert take_secret(path) == ""


def test_a_secret_is_not_followed_and_one_that_stays_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    write_secret(tmp_path / "s", "words")
    (tmp_path / "link").symlink_to("s")
    with pytest.raises(OSError, match="link"):
        take_secret(tmp_path / "link")

    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert take_secret(tmp_path / "s") == "words" and "Read-only" in caplog.text and "words" not in caplog.text
