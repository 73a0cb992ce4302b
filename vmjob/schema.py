"""Documents from outside, checked once against the JSON schemas we ship (vmjob/schemas/).

The same files complete job.yaml and recipes in an editor; ``vmjob schema NAME`` prints them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from vmjob.errors import JobError, VmjobError

NAMES = ("job", "recipe", "manifest", "payload", "result", "targets", "policy", "feed", "test", "list", "site",
         "site-ad", "sites", "node-ad", "usage")


_LARGEST = 2**63


def schema_text(name: str) -> str:
    """The JSON schema called ``name`` (one of NAMES) as shipped."""
    import pkgutil  # finds package data in a zipped application too

    data = pkgutil.get_data("vmjob", f"schemas/{name}.schema.json")
    if data is None:
        raise VmjobError(f"the schema {name} is missing from this installation", "reinstall vmjob")
    return data.decode()


@cache
def _checker(name: str) -> Callable[[Any], Any]:
    import fastjsonschema

    compiled: Callable[[Any], Any] = fastjsonschema.compile(json.loads(schema_text(name)), use_default=False)
    return compiled


def check(document: Any, name: str, where: str, error: type[VmjobError] = JobError) -> dict[str, Any]:
    """``document`` itself if it fits schema ``name``; else ``error`` naming ``where`` (the file) and the key."""
    import fastjsonschema

    try:
        _named_keys(document, where, error)
    except RecursionError as deep:
        raise error(f"{where}: lists within lists without end", "write it flatter") from deep
    try:
        _checker(name)(document)
    except fastjsonschema.JsonSchemaValueException as wrong:
        message, hint = _explain(wrong)
        raise error(f"{where}: {message}", hint or f"vmjob schema {name} shows what is allowed") from wrong
    if not isinstance(document, dict):
        raise error(f"{where}: expected a mapping of keys to values", f"vmjob schema {name} shows what is allowed")
    return document


def _named_keys(document: Any, where: str, error: type[VmjobError]) -> None:
    """YAML makes booleans and numbers of some words; as a key that is never meant. And JSON, as Python reads it, has
    numbers of any length, and some that are none: nothing here can be that large, and whoever calculates with it fails.
    """
    if isinstance(document, (int, float)) and not abs(document) < _LARGEST:  # so is NaN
        raise error(f"{where}: a number in it is none, or has more than 18 digits", "nothing that is meant is so large")
    for value in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        _named_keys(value, where, error)
    for key in document if isinstance(document, dict) else ():
        if not isinstance(key, str):
            raise error(f"{where}: YAML reads a key as {key!r}, not as a word",
                        "write it in quotes (on, off, yes and no are booleans in YAML)")


def _explain(wrong: Any) -> tuple[str, str]:
    """One line for people, and the next action, from what the checker complains about."""
    import difflib

    key = ".".join(str(part) for part in wrong.path[1:])
    at = f"{key}: " if key else ""
    if wrong.rule == "additionalProperties" and isinstance(wrong.value, dict):
        known = wrong.definition.get("properties", {})
        strange = sorted(str(k) for k in wrong.value if k not in known)
        close = difflib.get_close_matches(strange[0], list(known), 1)
        hint = f"did you mean '{close[0]}'?" if close else f"the keys known here: {', '.join(sorted(known))}"
        return f"{at}unknown key '{strange[0]}'", hint
    if wrong.rule == "required":
        lacking = [k for k in wrong.rule_definition if k not in wrong.value]
        return f"{at}the key '{lacking[0]}' is missing", ""
    if wrong.rule == "enum":
        return f"{at}{wrong.value!r} is not one of {', '.join(map(str, wrong.rule_definition))}", ""
    if wrong.rule == "type":
        wanted = wrong.rule_definition
        if isinstance(wrong.value, bool):
            return f"{at}YAML reads this word as {str(wrong.value).lower()}", "write it in quotes"
        return f"{at}expected {wanted if isinstance(wanted, str) else ' or '.join(wanted)}, found {wrong.value!r}", ""
    if wrong.rule == "pattern" and wrong.definition.get("description"):
        return f"{at}{wrong.value!r} is not of the right form", str(wrong.definition["description"])
    text = str(wrong.message).replace("data." + key, "value").replace("data", "document", 1)
    return f"{at}{text}", str(wrong.definition.get("description", ""))


class _Decimal(str):
    """A word such as 1.10, until the schema says whether a number is meant, or a version."""


def _settled(document: Any, rule: Any) -> Any:
    """``document``, each decimal in it a number where ``rule``, its schema, wants just that, and text elsewhere."""
    rule = rule if isinstance(rule, dict) else {}
    if isinstance(document, _Decimal):
        return float(document) if rule.get("type") == "number" else str(document)
    if isinstance(document, list):
        return [_settled(one, rule.get("items")) for one in document]
    if not isinstance(document, dict):
        return document
    known, other = rule.get("properties", {}), rule.get("additionalProperties")
    return {str(key) if isinstance(key, _Decimal) else key: _settled(value, known.get(key, other))
            for key, value in document.items()}


@cache
def _plain_loader(strict: bool = False) -> Any:
    """YAML's safe loader, reading only what JSON has as more than text: true, false, null and decimal numbers. YAML 1.1
    would make 493 of 0755, 90 of 1:30 and a boolean of "on"; in a command or a duration that is never meant.
    Numbers with a point are _Decimal. ``strict``: no key twice."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # a few lines of them stand for billions of values
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, "aliases (*name) are not used here", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value if strict and isinstance(node, yaml.MappingNode) else ():
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' stands here twice",
                                                            key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
            return super().construct_mapping(node, deep)

    for kind, pattern, first in (("bool", "true|false", "tf"), ("null", "null|~|", ["n", "~", ""]),
                                 ("int", "0|-?[1-9][0-9]{0,17}", "-0123456789"),
                                 ("float", r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,18}", "-0123456789"),
                                 ("merge", "<<", "<")):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$"), list(first))
    Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: _Decimal(node.value))
    return Loader


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")  # YAML's reader tells which
    return found


def load_yaml(path: Path, name: str, error: type[VmjobError] = JobError, *, strict: bool = False) -> dict[str, Any]:
    """Read a YAML (or JSON) file and check it; with ``strict`` also that no key stands twice in a mapping, where the
    first would be lost without a word. Raises ``error`` naming the file, and line where YAML is broken."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as missing:
        raise error(f"{path}: no such file", "check the path") from missing
    except (OSError, UnicodeDecodeError) as unreadable:
        why = getattr(unreadable, "strerror", None) or unreadable
        raise error(f"{path}: cannot be read: {why}", "check that it is a readable text file") from unreadable
    if text.startswith("{"):  # mostly our own: without YAML, whose import alone takes 20 ms
        with contextlib.suppress(ValueError, RecursionError):
            return check(json.loads(text, object_pairs_hook=_each_once if strict else None), name, str(path), error)
    import yaml

    try:
        document = _settled(yaml.load(text, Loader=_plain_loader(strict)), json.loads(schema_text(name)))
    except RecursionError as deep:
        raise error(f"{path}: lists within lists without end", "write it flatter") from deep
    except yaml.YAMLError as broken:
        mark = getattr(broken, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(broken, "problem", None) or "not valid"
        raise error(f"{path}{line}: YAML: {problem}", "mend the line; indentation is by spaces") from broken
    return check(document, name, str(path), error)
