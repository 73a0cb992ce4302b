"""The table for people, build/bench.json for programs, build/bench.png for a glance."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common import BUILD, Bench, Row, execute

_MARK = {True: "holds", False: "MISSED", None: ""}


def machine(bench: Bench) -> str:
    """Where the figures come from, in one line."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), "unknown CPU")
    accelerator = bench.plan("micro")["accelerator"]["name"]
    qemu = execute(["qemu-system-x86_64", "--version"]).stdout.decode().splitlines()[0]
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return (f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, {qemu}, "
            f"{accelerator}; load when it began {load}; medians of {bench.rounds}")


def table(rows: Sequence[Row]) -> str:
    """Markdown, so that it can stand in docs/performance.md as it is."""
    lines = ["| measurement | ours | other | ratio | goal | |", "|---|---|---|---|---|---|"]
    for row in rows:
        other = f"{_number(row.other)} {row.unit} ({row.peer})" if row.other is not None else row.peer
        ratio = f"{row.ratio:.3g}" if row.ratio is not None else ""
        lines.append(f"| {row.name} | {_number(row.ours)} {row.unit} | {other} | {ratio} | {row.goal or ''} | "
                     f"{_MARK[row.holds]} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def write(rows: Sequence[Row], partial: bool = False) -> None:
    """bench.json; a partial run replaces its own figures in it. Then the picture of all of them."""
    target = BUILD / "bench.json"
    new = [{"name": r.name, "ours": r.ours, "other": r.other, "unit": r.unit, "ratio": r.ratio,
            "goal": str(r.goal) if r.goal else None, "holds": r.holds} for r in rows]
    if partial and target.exists():
        names = {row.name for row in rows}
        new = [old for old in json.loads(target.read_text()) if old["name"] not in names] + new
    target.write_text(json.dumps(new, indent=1) + "\n")
    _picture([one for one in new if one["goal"]])


def _picture(figures: Sequence[dict[str, Any]]) -> None:
    """How much of its goal each figure uses: left of 1 holds, right of it misses."""
    if not figures:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=(9, 0.4 * len(figures) + 1.2))
    colours = ["#3a7" if one["holds"] else "#c33" for one in figures]
    axes.barh([one["name"] for one in figures], [_used(one) for one in figures], color=colours)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("measured / goal (below 1 holds)")
    axes.invert_yaxis()
    picture.tight_layout()
    picture.savefig(BUILD / "bench.png", dpi=110)


def _used(figure: dict[str, Any]) -> float:
    what, sense, limit = figure["goal"].split()
    share = float(figure[what]) / float(limit)
    return share if sense == "<=" else 1 / share
