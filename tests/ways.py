"""Ways that an image's files come, of plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from vmjob.core.model import Fetcher, ImageFile


class Way(Fetcher):
    """A function of a file and of the byte to begin at, whose pieces are brought; for use as a decorator."""

    def __init__(self, pieces: Callable[[ImageFile, int], Iterable[bytes]]) -> None:
        self._pieces = pieces

    def __call__(self, file: ImageFile, start: int) -> Iterator[bytes]:
        return iter(self._pieces(file, start))
