"""One table of many PYTHIA jobs: python3 table.py DIR, where DIR has a folder of results for each job (vmjob fetch)."""

import json
import sys
from pathlib import Path


def number(text):
    return f"{text:.1f}" if text is not None else "-"


def row(folder):
    result = json.loads((folder / "result.json").read_text())
    stages = {stage["name"]: stage["seconds"] for stage in result["stages"]}
    statistics = folder / "statistics.txt"
    told = dict(line.rsplit(None, 1) for line in statistics.read_text().splitlines()) if statistics.exists() else {}
    return [folder.name, result["outcome"], result["host"], (result["accelerator"] or {}).get("name", "-"),
            *(number(stages.get(name)) for name in ("verify", "boot", "payload", "collect")),
            told.get("events", "-"), told.get("mean charged", "-"), f"{result['bytes_image'] / 2**20:.1f}"]


def main():
    folders = sorted((path.parent for path in Path(sys.argv[1]).glob("*/result.json")), key=lambda path: int(path.name))
    if not folders:
        sys.exit(f"{sys.argv[1]}: no results here")
    head = ["job", "outcome", "node", "accel", "image s", "boot s", "run s", "back s", "events", "charged", "image MiB"]
    rows = [head, *map(row, folders)]
    widths = [max(len(line[at]) for line in rows) for at in range(len(rows[0]))]
    for line in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    events = sum(int(line[8]) for line in rows[1:] if line[8].isdigit())
    moved = {}
    for line in rows[1:]:
        moved[line[2]] = moved.get(line[2], 0.0) + float(line[10])
    texts = [f"{size:.1f} MiB to {node}" for node, size in sorted(moved.items())]
    print(f"\n{events} events; image moved: {', '.join(texts)}")


main()
