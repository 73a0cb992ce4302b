"""``vmjob account``: what runs have used, for a site's admin."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from vmjob.core.errors import JobError

if TYPE_CHECKING:
    from vmjob.accounting.ledger import Sum
    from vmjob.accounting.record import UsageRecord

_KEYS = ("vo", "image", "user", "day", "site", "machine", "accelerator", "outcome")  # of accounting.ledger
_TOLD = 5  # pages that do not count are named, at most
_EXAMPLES = """\
examples:
  vmjob account report                                        this node's runs, by VO, by image, by user and by day
  vmjob account report --by vo,day --from 2026-11-01 --to 2026-11-30 --csv
  vmjob account report --spool /srv/spools/n1 --spool /srv/spools/n2 --plot november.png
  vmjob account sweep                                         bring out records of runs that were killed (root's cron)
  vmjob account show /var/spool/vmjob/ledger/UUID.json --format apel-cloud
"""


def add_verbs(verbs: Any) -> None:
    """The verb ``account`` with its own verbs."""
    form = argparse.RawDescriptionHelpFormatter
    account = verbs.add_parser("account", epilog=_EXAMPLES, formatter_class=form,
                               description="What runs have used, by the usage records of a site's nodes.")
    whats = account.add_subparsers(dest="what", metavar="WHAT", required=True)
    one = whats.add_parser("report", help="sums by VO, image, user and day", epilog=_EXAMPLES, formatter_class=form,
                           description="Sums of the records in the ledger of one or more spools. CORE HOURS are CPUs "
                                       "of the guest times wall time, CPU HOURS what QEMU used; days are those of the "
                                       "ends of runs, in UTC.")
    one.add_argument("--spool", metavar="DIR", action="append", type=Path,
                     help="a spool (repeatable; default: accounting.spool of this machine's site.yaml)")
    one.add_argument("--from", metavar="DATE", dest="since", help="runs that ended on this day or later (2026-11-01)")
    one.add_argument("--to", metavar="DATE", dest="until", help="… on this day or earlier")
    one.add_argument("--by", metavar="KEYS", help="one table by these together, of: " + ", ".join(_KEYS))
    how = one.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON; sizes in bytes, times in seconds")
    how.add_argument("--csv", action="store_true", help="print comma-separated values, likewise")
    one.add_argument("--plot", metavar="FILE", type=Path, help="draw the tables too (.png, .svg or .pdf)")
    one.set_defaults(handler=report)
    one = whats.add_parser("sweep", help="bring out records of runs that were killed", epilog=_EXAMPLES,
                           formatter_class=form,
                           description="Complete and hand over the records of runs that were killed: yours, or as root "
                                       "everybody's. The next run of the same user does it too. The exit status is 229 "
                                       "where a record is stuck.")
    one.add_argument("--spool", metavar="DIR", type=Path, help="the spool (default: that of site.yaml)")
    one.add_argument("--dry-run", action="store_true", help="only say what would be done")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.set_defaults(handler=sweep)
    one = whats.add_parser("show", help="print a record, in any of the formats", epilog=_EXAMPLES, formatter_class=form,
                           description="Print a page of the ledger, or render it in another format.")
    one.add_argument("file", metavar="FILE", type=Path, help="a page of a ledger")
    one.add_argument("--format", choices=("apel-cloud", "gratia", "json"), help="render it so")
    one.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    one.set_defaults(handler=show)
    for verb in whats.choices.values():
        verb.add_argument("-v", "--verbose", action="count", default=0, help="say more")


def show(args: argparse.Namespace) -> int:
    """Print one record. Raises JobError."""
    from vmjob.accounting.ledger import page
    from vmjob.accounting.record import render, to_json

    try:
        record = page(args.file)
    except OSError as refused:
        raise JobError(f"{args.file}: {refused.strerror}", "name a page: SPOOL/ledger/UUID.json") from refused
    except JobError as wrong:
        raise JobError(f"{args.file}: {wrong}", wrong.hint or "name a page: SPOOL/ledger/UUID.json") from wrong
    if args.format:
        print(render(record, args.format).decode(), end="")
    else:
        print("\n".join(f"{key:<16}{value}" for key, value in to_json(record).items() if value not in ("", None)))
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Hand over what dead runs left. Raises JobError where there is no spool."""
    from vmjob.accounting.sweep import sweep_all
    from vmjob.core.site_errors import RecordSpoolFull

    place = args.spool or _own_spool()
    try:
        swept = sweep_all(place, args.dry_run)
    except OSError as refused:
        raise JobError(f"{refused.filename or place}: {refused.strerror}",
                       "--spool names what accounting.spool does in site.yaml") from refused
    if args.json:
        print(json.dumps({"delivered": swept.delivered, "stuck": swept.stuck, "alive": swept.alive}, indent=1))
    else:
        would = "would go" if args.dry_run else "went"
        print(f"{len(swept.delivered)} records {would} to {place / 'outgoing'}; {swept.alive} runs go on")
    return RecordSpoolFull.status if swept.stuck else 0


def _own_spool() -> Path:
    from vmjob.ads.site_yaml import find, load

    path = find()
    site = load(path) if path else None
    if site is None or site.accounting is None:
        raise JobError(f"{path or '/etc/vmjob/site.yaml'}: there is no accounting on this machine",
                       "--spool DIR names a spool; docs/site-admin.md tells how to set one up")
    return site.accounting.spool


# ---------------------------------------------------------------- report


def report(args: argparse.Namespace) -> int:
    """Sum, print, draw. Raises JobError."""
    from vmjob.accounting.ledger import sums
    from vmjob.cli import account_tables

    keys = tuple(dict.fromkeys(args.by.split(","))) if args.by else ()
    for key in keys:
        if key not in _KEYS:
            raise JobError(f"--by: there is no '{key}'", f"keys are {', '.join(_KEYS)}, with commas between")
    days = tuple(_day(text, option) for text, option in ((args.since, "--from"), (args.until, "--to")))
    draw = account_tables.plotter(args.plot) if args.plot else None  # what it lacks is said before the reading
    records, skipped = _read(args.spool or [_own_spool()], *days)
    single = [("vo",), ("image",), ("user",), ("day",)]
    together = keys or (tuple(key for key, in single) if args.csv else ())
    tables = [(by, sums(records, by)) for by in ([together] if together else single)]
    if args.json:
        print(json.dumps({"records": len(records), "skipped": skipped, "tables": [
            {"by": by, "rows": [_row(by, one) for one in rows]} for by, rows in tables]}, indent=1))
    elif args.csv:
        _csv(*tables[0])
    else:
        print("\n\n".join(account_tables.table(by, rows) for by, rows in tables) if records else "no runs")
    if draw:
        draw([((key,), sums(records, (key,))) for key in keys or _KEYS[:4]])
    return 0


def _row(by: Sequence[str], one: Sum) -> dict[str, Any]:
    from dataclasses import asdict

    numbers = {key: round(value, 3) for key, value in asdict(one).items() if key != "by"}
    return {**dict(zip(by, one.by)), **numbers}


def _csv(by: Sequence[str], rows: Sequence[Sum]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_row(by, rows[0] if rows else _nothing(by)))
    for one in rows:
        # a cell that begins like a formula is one to a spreadsheet, and names here are strangers'
        writer.writerow([f"'{cell}" if str(cell)[:1] in ("=", "+", "-", "@") else cell
                         for cell in _row(by, one).values()])


def _nothing(by: Sequence[str]) -> Sum:
    from vmjob.accounting.ledger import Sum

    return Sum(tuple(by))


def _day(text: Optional[str], option: str) -> str:
    """A date as it is compared with others: its text."""
    import time

    if text is None:
        return ""
    try:
        return time.strftime("%Y-%m-%d", time.strptime(text, "%Y-%m-%d"))
    except ValueError as wrong:
        raise JobError(f"{option}: '{text}' is no date", "write it as 2026-11-30") from wrong


def _read(spools: Sequence[Path], since: str, until: str) -> tuple[list[UsageRecord], int]:
    """The records of these days; how many pages do not count, the first of which are named."""
    from vmjob.accounting.ledger import names, read, value
    from vmjob.cli.report import choose, say

    pages = [path for spool in spools for path in names(spool)]
    records, skipped = [], 0
    with choose().bar("records", len(pages), "") as bar:
        for path, record, why in read(pages):
            bar.advance(1)
            if record is None:
                skipped += 1
                if skipped <= _TOLD:
                    say(f"{path} does not count: {why}")
            elif (not since or value(record, "day") >= since) and (not until or value(record, "day") <= until):
                records.append(record)
    if skipped > _TOLD:
        say(f"and {skipped - _TOLD} more pages do not count")
    return records, skipped
