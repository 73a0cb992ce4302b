"""A way that an image comes: made when it is first wanted, and asked for what the store has to know."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ways import Way
from vmjob.core.errors import ImageCorrupt, ImageOutOfReach
from vmjob.core.model import Fetcher, ImageFile
from vmjob.image.store.copy import receive_file
from vmjob.job.fetching import Fetching

pytestmark = pytest.mark.unit

FILE = ImageFile("disk", "disk", "raw", 4, hashlib.sha256(b"good").hexdigest())


class Places(Fetcher):
    """Bytes of so many places, one after the other; some do not answer."""

    def __init__(self, *bodies: bytes, down: tuple[str, ...] = ()) -> None:
        self._bodies, self._down, self.asked = list(bodies), down, 0

    @property
    def tries(self) -> int:
        return len(self._bodies)

    def __call__(self, file: ImageFile, start: int) -> Iterator[bytes]:
        self.asked += 1
        yield self._bodies[self.asked - 1][start:]

    def unreached(self, file: ImageFile) -> list[str]:
        return [f"{name}: no answer" for name in self._down]

    def wrong(self, file: ImageFile) -> list[str]:
        return [f"place{n}" for n in range(self.asked)]


def test_nothing_is_made_until_it_is_asked_and_then_once() -> None:
    made: list[Fetcher] = []

    def make() -> Fetcher:
        made.append(Places(b"good", b"good", b"good"))
        return made[-1]

    count: list[int] = []
    fetching = Fetching(make, count.append)
    assert not made
    assert fetching.tries == 3 and len(made) == 1
    assert b"".join(fetching(FILE, 1)) == b"ood" and sum(count) == 3 and len(made) == 1


def test_each_place_is_asked_and_the_wrong_ones_are_named(tmp_path: Path) -> None:
    places = Places(b"baad", b"baad", b"good")
    receive_file(FILE, Fetching(lambda: places, lambda _: None), tmp_path / "disk")
    assert places.asked == 3 and (tmp_path / "disk").read_bytes() == b"good"
    places = Places(b"baad", b"baad", b"baad")
    with pytest.raises(ImageCorrupt) as refused:
        receive_file(FILE, Fetching(lambda: places, lambda _: None), tmp_path / "other")
    assert refused.value.hint.startswith("place0, place1, place2: ")
    with pytest.raises(ImageOutOfReach, match="p9: no answer"):
        receive_file(FILE, Fetching(lambda: Places(b"baad", down=("p9",)), lambda _: None), tmp_path / "third")


def test_a_way_that_says_no_more_is_asked_twice(tmp_path: Path) -> None:
    asked = []

    @Way
    def baad(file: ImageFile, start: int) -> list[bytes]:
        asked.append(start)
        return [b"baad"]

    with pytest.raises(ImageCorrupt) as refused:
        receive_file(FILE, Fetching(lambda: baad, lambda _: None), tmp_path / "disk")
    assert asked == [0, 0] and refused.value.hint.startswith("the place that it is fetched from: ")
