"""Who may import whom: the contract in pyproject.toml, no circles, no private names, one tree in the docs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.unit

PACKAGE = ROOT / "vmjob"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in PACKAGE.rglob("*.py")}
FLOORS = re.search(r'containers = \["vmjob"\]\nlayers = \[\n(.*?)\n\]', (ROOT / "pyproject.toml").read_text(), re.S)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name in it or nothing) of all that a module imports of ours, in functions and for types as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vmjob":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in MODULES else (node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in MODULES)


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, by whatever way around. What nothing points to, or what points to nothing, is in
    no circle; so it goes, until only circles, and what is between them, stay."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while True:
        pointed = set().union(*left.values()) if left else set()
        ends = {name for name, targets in left.items() if not targets & set(left) or name not in pointed}
        if not ends:
            return [sorted(left)] if left else []
        left = {name: targets - ends for name, targets in left.items() if name not in ends}


def test_the_contract_holds() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("needs import-linter: .ci/setup test")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_by_whatever_way() -> None:
    assert circles({name: {there for there, _ in imports(path)} for name, path in MODULES.items()}) == []


def test_nobody_imports_what_is_private() -> None:
    wrong = [f"{path.relative_to(ROOT)}: {there}.{name}" for path in MODULES.values() for there, name in imports(path)
             if name.startswith("_") and not name.startswith("__")]
    assert not wrong, "\n".join(wrong)


def test_three_modules_are_at_the_top() -> None:
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "__main__.py", "api.py"]


def test_the_docs_show_the_tree_of_the_contract() -> None:
    assert FLOORS
    floors = [set(re.findall(r"\w+", line)) for line in FLOORS[1].splitlines()]
    contract = {name: len(floors) - 1 - number for number, floor in enumerate(floors) for name in floor}
    contract.pop("__main__")
    told = re.findall(r"^  (\d) (\w+)(?:/|\.py) ", (ROOT / "docs/developer.md").read_text(), re.M)
    assert {name: int(floor) for floor, name in told} == contract
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} <= set(contract)
