"""docs/security.md has a row for each boundary of the code, and a test for each row."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vmjob.model import Network
from vmjob.vm import cmdline

pytestmark = pytest.mark.unit

PAGE = ROOT / "docs/security.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
MODULE = re.compile(r"`((?:vmjob|ceMon-publisher)/[\w/-]+\.(?:py|sh))`")
# What a module has that stands at a boundary: it guards a path or bounds a program, or speaks to strangers.
SIGNS = re.compile(r"O_NOFOLLOW|O_PATH|dir_fd=|PR_SET_|RLIMIT_|\blandlock\.\w|\bfences\.\w|\bownway\b|\bsafepath\b"
                   r"|\bopen_own\(|\bimport socket$|\bimport (ssl|urllib3)\b|\bfrom (http|urllib3|ssl|ldap3)\b", re.M)
ATTACKS = {
    "vmdk_backing", "formats_crash", "overwrite", "slowtar", "manynames", "fakeqemu", "classad_forge", "ca_name",
    "runs_fifo", "lists_lock", "cache_parent", "fuzz"}


def rows(title: str) -> list[list[str]]:
    """The table below a heading, cell by cell."""
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.split("\n") if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


BOUNDARIES, FOUND = rows("Boundaries"), rows("What was found")
TEXT = "\n".join(" | ".join(row) for row in BOUNDARIES)


@cache
def functions(path: Path) -> dict[str, str]:
    """The tests of a file by name, with their docstrings."""
    return {node.name: ast.get_docstring(node) or "" for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", [*BOUNDARIES, *FOUND], ids=lambda row: re.sub(r"\W+", "-", " ".join(row[:2]))[:40])
def test_each_row_has_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 4 and all(row[1:]), row
    named = TEST.findall(row[3])
    assert named, f"{row[0]}: no test"
    for file, name in named:
        assert name in functions(ROOT / file), f"{row[0]}: {file} has no {name}"


def test_each_module_exists_and_each_boundary_has_one() -> None:
    for name in MODULE.findall(PAGE.read_text()):
        assert (ROOT / name).is_file(), name
    for row in BOUNDARIES:
        assert MODULE.search(row[2]) or "network" in row[2], f"{row[0]}: which module holds it?"
    assert len({row[0] for row in BOUNDARIES}) == len(BOUNDARIES)


def test_each_module_that_meets_strangers_is_in_a_row() -> None:
    modules = {str(path.relative_to(ROOT)) for folder in ("vmjob", "ceMon-publisher")
               for path in (ROOT / folder).rglob("*.py") if SIGNS.search(path.read_text())}
    named = set(MODULE.findall(TEXT))
    assert len(modules) > 40  # the signs are still found
    assert not modules - named, f"{PAGE.name} needs rows, each with a test, for: {sorted(modules - named)}"


@pytest.mark.parametrize("name", [
    *(f"`{path.name}`" for path in sorted((ROOT / "vmjob/schemas").glob("*.json"))),
    *(f"`{name}`" for name in cmdline.SOCKETS), *(f"`{network.value}`" for network in Network),
    *(f"`{serial}`" for serial in sorted(set(re.findall(r'"(vmjob-[a-z]+)"', Path(cmdline.__file__).read_text())))),
    *(f"`{name}`" for name in re.findall(r"^def ([a-z]\w*)", (ROOT / "vmjob/fences.py").read_text(), re.M))])
def test_each_way_in_is_in_a_row(name: str) -> None:
    """Documents from outside, a guest's sockets and disks, kinds of network, and fences."""
    assert name in TEXT


def test_each_hostile_test_is_in_a_row() -> None:
    named = set(TEST.findall(TEXT))
    for file in sorted((ROOT / "tests/hostile").glob("test_*.py")):
        missing = [name for name in functions(file) if (str(file.relative_to(ROOT)), name) not in named]
        assert not missing, f"{file.name}: {missing}"


def test_each_attack_is_in_the_docstring_of_its_tests() -> None:
    attacks = {row[1]: TEST.findall(row[3]) for row in FOUND}
    assert set(attacks) >= ATTACKS and {int(row[0]) for row in FOUND if row[0]} == set(range(1, 20))
    for attack, tests in attacks.items():
        for file, name in tests:
            said = functions(ROOT / file)[name].partition(".")[0].partition(":")[0]
            assert re.search(rf"^Attacks? .*\b{attack}\b", said), f"{file}::{name} does not name {attack}"
