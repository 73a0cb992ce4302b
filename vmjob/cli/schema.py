"""``vmjob schema``: the JSON schema of a document."""

from __future__ import annotations

import argparse
from typing import Any

from vmjob.cli.options import verb
from vmjob.cli.verbs import VERBS
from vmjob.core.schema import NAMES


def add_verbs(verbs: Any) -> None:
    """schema."""
    one = verb(verbs, "schema", VERBS["schema"].help,
                   "example:\n  vmjob schema job > job.schema.json\n", schema)
    one.add_argument("name", choices=NAMES)
    one.add_argument("--json", action="store_true", help="(it always is)")


def schema(args: argparse.Namespace) -> int:
    """``vmjob schema``."""
    from vmjob.core.schema import schema_text

    print(schema_text(args.name), end="")
    return 0
