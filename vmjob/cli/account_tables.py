"""Sums of usage records as a table with bars, and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vmjob.accounting.ledger import Sum
from vmjob.cli.tables import table as columns
from vmjob.core.errors import JobError
from vmjob.core.units import format_size

Table = tuple[tuple[str, ...], list[Sum]]
_BAR, _PANEL = 24, 10  # characters; rows of one panel, the largest
_SUFFIXES = (".png", ".svg", ".pdf")


def table(by: Sequence[str], rows: Sequence[Sum]) -> str:
    """One line a sum, with a bar for the core hours, and the total."""
    most = max((one.occupied for one in rows), default=0.0)
    total = Sum(("all", *("" for _ in by[1:])), *(sum(getattr(one, name) for one in rows) for name in (
        "runs", "failed", "wall", "suspended", "cpu", "occupied", "bytes_in", "bytes_out")))
    lines = [[*(text or "-" for text in one.by), str(one.runs), str(one.failed), _hours(one.occupied), _hours(one.cpu),
              _hours(one.suspended), format_size(one.bytes_in), format_size(one.bytes_out),
              "█" * round(_BAR * one.occupied / most) if most and one is not total else ""]
             for one in ([*rows, total] if len(rows) > 1 else rows)]
    head = [*(key.upper() for key in by), "RUNS", "FAILED", "CORE HOURS", "CPU HOURS", "SUSPENDED h", "NETWORK IN",
            "NETWORK OUT", ""]
    return columns(head, lines)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f}"


def plotter(path: Path) -> Callable[[Sequence[Table]], None]:
    """What draws tables by one key each into ``path``. Raises JobError where it cannot."""
    if path.suffix not in _SUFFIXES:
        raise JobError(f"--plot: {path} does not say what it shall be", f"its name ends in {', '.join(_SUFFIXES)}")
    try:
        import matplotlib
    except ImportError as missing:
        raise JobError("--plot: matplotlib is not installed here",
                       "install the package python3-matplotlib, or by pip 'matplotlib'; the table has bars too"
                       ) from missing
    matplotlib.use("Agg")  # no screen is needed
    return partial(_plot, path)


def _plot(path: Path, tables: Sequence[Table]) -> None:
    """A panel for each table: core hours, and in them CPU hours."""
    from matplotlib.figure import Figure

    wide = 2 if len(tables) > 1 else 1
    figure = Figure(figsize=(6.4 * wide, 3.6 * -(-len(tables) // wide)), layout="constrained")
    panels = figure.subplots(-(-len(tables) // wide), wide, squeeze=False)
    for panel, (by, rows) in zip(panels.flat, tables):
        _panel(panel, by[0], rows)
    for panel in panels.flat[len(tables):]:
        panel.axis("off")
    panels.flat[0].legend(fontsize=8)
    try:
        figure.savefig(path, dpi=120)
    except OSError as refused:
        raise JobError(f"{path}: {refused.strerror}", "name a file that can be written") from refused


def _panel(panel: Any, key: str, rows: Sequence[Sum]) -> None:
    panel.set_title(f"by {key}", fontsize=10, parse_math=False)
    panel.tick_params(labelsize=8)
    if key == "day":
        draw, place = panel.bar, range(len(rows))
        every = max(1, len(rows) // 8)
        panel.set_xticks(list(place)[::every], [one.by[0] for one in rows][::every], rotation=30, ha="right")
        panel.set_ylabel("hours", fontsize=8)
    else:
        rows = sorted(rows, key=lambda one: one.occupied)[-_PANEL:]
        draw, place = panel.barh, range(len(rows))
        # a name is text, also one with a $ in it, which would be a formula
        panel.set_yticks(list(place), [(one.by[0] or "-")[-32:] for one in rows], parse_math=False)
        panel.set_xlabel("hours", fontsize=8)
    draw(place, [one.occupied / 3600 for one in rows], color="#b8cbe0", label="core hours")
    draw(place, [one.cpu / 3600 for one in rows], color="#2b5c8a", label="CPU hours")
