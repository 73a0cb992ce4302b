"""The command line as a whole: each verb is listed once, and a start for one verb is that verb's."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from vmjob.cli.main import parser
from vmjob.cli.verbs import VERBS

pytestmark = pytest.mark.unit


def choices(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (verbs,) = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(verbs.choices)


def test_every_verb_of_the_table_is_added_and_no_other() -> None:
    full = choices(parser())
    assert set(full) == set(VERBS)
    assert not [name for name, one in full.items() if one.prog != f"vmjob {name}"]  # none that is only listed
    assert parser().format_help() == parser("--help").format_help()


@pytest.mark.parametrize("verb", VERBS)
def test_a_start_for_one_verb_has_all_of_it(verb: str) -> None:
    assert choices(parser(verb))[verb].format_help() == choices(parser())[verb].format_help()


def test_help_imports_no_verb() -> None:
    code = ("import sys; from vmjob.cli.main import main\n"
            "try: main(['--help'])\nexcept SystemExit: pass\n"
            "print([name for name in sys.modules if name.startswith('vmjob.cli.')], file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "['vmjob.cli.main', 'vmjob.cli.verbs']", done.stderr


def test_help_of_a_verb_imports_only_the_command_line() -> None:
    """What a handler needs is imported when it is called."""
    code = ("import sys; from vmjob.cli.main import main\n"
            f"for verb in {list(VERBS)}:\n"
            "    try: main([verb, '--help'])\n    except SystemExit: pass\n"
            "mine = {name.split('.')[1] for name in sys.modules if name.startswith('vmjob.')}\n"
            "print(sorted(mine | {'yaml', 'requests', 'htcondor2', 'tqdm'} & set(sys.modules)), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "['cli', 'core']", done.stderr
