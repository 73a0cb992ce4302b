"""The verbs: what each is for, and the module that adds it. A start imports one of these modules and no more."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any, NamedTuple


class Verb(NamedTuple):
    """``module`` of vmjob.cli has ``add_verbs``; ``help``: one line, empty where only the wrapper calls it."""

    module: str
    help: str


VERBS = {
    "run": Verb("job", "run a job here, in a virtual machine"),
    "pack": Verb("job", "make a job the input of any batch system"),
    "plan": Verb("plan", "show what would be submitted and started; starts nothing, touches no network"),
    "doctor": Verb("doctor", "what this machine can do, and what to fix"),
    "schema": Verb("schema", "print a JSON schema, for editors and programs"),
    "slot-run": Verb("job", ""),
    "slot-attach": Verb("slot_attach", ""),
    "submit": Verb("submit", "send jobs to a pool or a compute element"),
    "status": Verb("queue", "show jobs in the queue"),
    "wait": Verb("queue", "wait until jobs have ended; the exit status is the first one's that is not 0"),
    "logs": Verb("queue", "print what a job's program wrote to its output"),
    "fetch": Verb("queue", "bring results of ended jobs here"),
    "rm": Verb("queue", "remove jobs from the queue"),
    "release": Verb("queue", "let held jobs run again"),
    "history": Verb("queue", "show jobs that have left the queue"),
    "console": Verb("queue", "follow the console of a running job's guest"),
    "ssh": Verb("queue", "a shell in a running job's guest, as the job's user"),
    "glidein": Verb("glidein", "make slots of a site workers of the VO's own pool"),
    "image": Verb("image.verbs", "build, import and look at images"),
    "policy": Verb("policy", "what a site lets run, and why"),
    "site": Verb("site", "for admins: let virtual machines into this node, and say so"),
    "sites": Verb("sites", "which sites can run it"),
    "account": Verb("account", "what runs have used"),
}


class Verbs(argparse._SubParsersAction):  # type: ignore[type-arg]  # as argparse has it: add_subparsers(action=…)
    """All verbs are listed; those that modules add get their line of help from the table."""

    def add_parser(self, name: str, **more: Any) -> Any:
        self._name_parser_map.pop(name, None)  # listed before, and its help with it
        more.pop("help", None)
        return super().add_parser(name, **more)

    def fill(self, only: str = "") -> None:
        """Add the verb ``only`` with its options (and those of its module), or all; list the others."""
        for name, verb in VERBS.items():
            if verb.help:
                self._choices_actions.append(self._ChoicesPseudoAction(name, (), verb.help))
            self._name_parser_map[name] = argparse.ArgumentParser(add_help=False)
        modules = dict.fromkeys(verb.module for name, verb in VERBS.items() if only in ("", name))
        for module in modules:
            import_module(f"vmjob.cli.{module}").add_verbs(self)
