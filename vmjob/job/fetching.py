"""How a job's image comes to the node: from its sources or the submit side, made when the first byte is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Optional

from vmjob.core import config
from vmjob.core.model import Fetcher, ImageFile, Manifest
from vmjob.core.progress import Reporter


class Fetching(Fetcher):
    """Another Fetcher, which is made when it is first asked for anything: mostly a machine has the image, and what
    brings others need not even be imported. ``count`` hears of the bytes."""

    def __init__(self, make: Callable[[], Fetcher], count: Callable[[int], None]) -> None:
        self._make, self._count = make, count

    def __call__(self, file: ImageFile, start: int) -> Iterator[bytes]:
        for piece in self._made(file, start):
            self._count(len(piece))
            yield piece

    @cached_property
    def _made(self) -> Fetcher:
        return self._make()

    @property
    def tries(self) -> int:
        return self._made.tries

    def unreached(self, file: ImageFile) -> list[str]:
        return self._made.unreached(file)

    def wrong(self, file: ImageFile) -> list[str]:
        return self._made.wrong(file)


def fetch_of(manifest: Manifest, reporter: Reporter, way: Optional[Fetcher] = None, left: Optional[float] = None,
             count: Callable[[int], None] = lambda _: None) -> Optional[Fetcher]:
    """Brings files of the image from its sources, or by the submit side's own ``way``; None where there is neither.
    ``left``: seconds until it is of no use any more, None for no end; ``count`` hears of the bytes that come."""
    if not manifest.sources:
        return way and Fetching(lambda: way, count)

    def make() -> Fetcher:
        from vmjob.stage.transfer.fetch import fetcher

        made = fetcher(manifest, carried=way, timeout=stage_time(left), rate=config.stage_rate(), note=reporter.note)
        assert made  # as there are sources
        return made

    return Fetching(make, count)


def stage_time(left: Optional[float]) -> float:
    """Seconds that fetching or sending may take, of which ``left`` are left in all. Raises JobError for a setting that
    is no duration."""
    return float(config.stage_timeout()) if left is None else max(1.0, min(config.stage_timeout(), left))
