"""What differs between the jobs of one submission: ``--set NAME=VALUE``, ``--from FILE.csv``, ``-n N``."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional
from urllib.parse import quote_plus, urlencode

from vmjob.core.errors import JobError

MOST_JOBS = 1_000_000
_TABLE = "a CSV file, its first line names the parameters"


def parameters(count: Optional[int], settings: Sequence[str], table: Optional[Path]) -> Parameters:
    """``settings``: NAME=VALUE for all jobs, $(Process) in a value is the job's number from 0 on; ``table``: a CSV file
    whose first line names parameters, one job a line, which win. Raises JobError naming option, file and line."""
    shared = "&".join(f"{name}={PROCESS.join(quote_plus(part) for part in value.split(PROCESS))}"
                      for name, value in dict(map(_setting, settings)).items())
    rows = _table(table) if table else None
    if rows is not None and count is not None and count != len(rows):
        raise JobError(f"-n {count}, but {table} has {len(rows)} rows", "leave -n out: it is one job a row")
    number = len(rows) if rows is not None else 1 if count is None else count
    if not 0 < number <= MOST_JOBS:
        raise JobError(f"-n {number}: a submission has 1 to {MOST_JOBS} jobs",
                       "submit more than once" if number > 0 else "-n 10, say")
    return Parameters(number, shared, tuple(urlencode(row) for row in rows or ()))


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not _named(name):
        raise JobError(f"--set {text}: expected NAME=VALUE", "--set SEED='$(Process)' sets a variable of the program")
    if "$(" in value.replace(PROCESS, ""):
        raise JobError(f"--set {text}: only $(Process) is filled in", "other values: one job a row, --from FILE.csv")
    return name, value


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            cells = [[cell.strip() for cell in line] for line in csv.reader(file, skipinitialspace=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as unreadable:
        raise JobError(f"--from {path}: cannot be read: {unreadable}", _TABLE) from unreadable
    names, *lines = [line for line in cells if any(line)] or [[]]
    if not names or not lines:
        raise JobError(f"--from {path}: has no row of values", _TABLE)
    for name in names:
        if not _named(name) or names.count(name) > 1:
            raise JobError(f"--from {path}: line 1: '{name}' is no name of a parameter, or twice there",
                           "the first line has the names, such as SEED,EVENTS")
    for at, line in enumerate(lines, 2):
        if len(line) != len(names):
            raise JobError(f"--from {path}: row {at} has {len(line)} values, line 1 names {len(names)}",
                           "one value for each name")
    return [dict(zip(names, line)) for line in lines]


def _named(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None


PROCESS = "$(Process)"


@dataclass(frozen=True)
class Parameters:
    """How many jobs, and what differs between them, in the form of a URL's query (slot-run --parameters). ``shared``
    may have $(Process) in it, the job's number, for HTCondor to fill in; ``rows`` (none, or one for each job) comes
    after it and wins."""

    count: int = 1
    shared: str = ""
    rows: tuple[str, ...] = ()

    def of(self, process: int) -> str:
        """The parameters of one job."""
        own = self.rows[process] if self.rows else ""
        return "&".join(filter(None, (self.shared.replace(PROCESS, str(process)), own)))
