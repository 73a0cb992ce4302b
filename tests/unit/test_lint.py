"""What tools can check about the code, checked like everything else."""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.unit

# a folder may import only what stands below it in this list; those on one line do not know each other
LAYERS = [
    {"errors", "model", "units", "process", "config", "progress", "schema", "job", "files", "manifests", "payload",
     "chirp", "glideins", "result", "tokens", "pyz", "pyz_build", "version", "pool_errors", "blockdev", "endorsement",
     "policy", "verdict", "safepath", "sitead", "siteconfig", "site_errors", "matching", "sitememory", "classads",
     "landlock", "fences", "escapes", "ownnames", "requirements", "nodead", "nodekinds", "runs", "health",
     "machinetext", "locks", "ownway", "opened", "usage",
     "interrupt", "node_errors", "pace", "spool", "ledger", ""},
    {"image", "stage", "slot", "vm", "guest", "batch", "node"},
    {"compose", "outcome", "resultfile", "guestwatch", "supervise", "prepare", "bundle", "run", "submit", "planning",
     "api", "slotrun",
     "submission", "local", "parameters", "factory", "keeping", "logbook", "admission", "identity", "staging",
     "trying", "nodecheck", "poolview", "advertise", "placing", "sites", "accounting", "payer"},
    {"cli", "__main__", "__init__"},
]
PUBLISHER = ROOT / "ceMon-publisher"
MODULES = [*(ROOT / "vmjob").rglob("*.py"), *PUBLISHER.rglob("*.py")]
SHELL = [*ROOT.glob("vmjob/**/*.sh"), *ROOT.glob("wrappers/*.sh"), *ROOT.glob("tests/*/*.sh"),
         *ROOT.glob("pkg/files/*.sh"), *ROOT.glob("pkg/debian/*.p*"),
         *(p for p in ROOT.glob(".ci/*") if p.is_file()),
         *(p for p in PUBLISHER.rglob("*") if p.is_file() and p.read_bytes().startswith(b"#!/bin/sh"))]


def run(*argv: str) -> None:
    done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    run("ruff", "check", "hatch_build.py", "vmjob", "ceMon-publisher", "tests", "bench", "examples", "pkg")


def test_mypy() -> None:
    run("mypy")


@pytest.mark.parametrize("script", SHELL, ids=lambda p: str(p.relative_to(ROOT)))
def test_shellcheck(script: Path) -> None:
    tool = shutil.which("shellcheck")
    if not tool:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    done = subprocess.run([tool, "-s", "sh", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def imports(path: Path) -> set[str]:
    """First name below vmjob of everything that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "vmjob" else [f"vmjob.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "vmjob":
                found.add(".".join(name.split(".")[1:2]))
    return {name for name in found if not name.startswith("__")}


def test_imports_point_downward() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for path in sorted((ROOT / "vmjob").rglob("*.py")):
        parts = path.relative_to(ROOT / "vmjob").parts
        here = parts[0] if len(parts) > 1 else path.stem
        assert here in level, f"{path}: new at the top of the package: say in LAYERS where it stands"
        for there in imports(path) - {here}:
            assert there in level, f"{path} imports vmjob.{there}, which is no module at the top of the package"
            siblings = level[here] == level[there] == 1
            if level[there] > level[here] or siblings:
                wrong.append(f"{path.relative_to(ROOT)} imports vmjob.{there}")
    assert not wrong, "\n".join(wrong)


def test_only_the_cli_prints_and_exits() -> None:
    wrong = []
    for path in (ROOT / "vmjob").rglob("*.py"):
        if "cli" in path.parts or path.stem == "__main__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit"):
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_the_publisher_uses_the_library_and_never_the_reverse() -> None:
    wrong = [str(path) for path in (ROOT / "vmjob").rglob("*.py") if "cemon_publisher" in path.read_text()]
    for path in PUBLISHER.rglob("*.py"):
        prints = re.compile(r"^\s*(print|sys\.exit)\(|vmjob\.cli", re.M)
        if path.stem not in ("cli", "__main__") and prints.search(path.read_text()):
            wrong.append(str(path))
    assert not wrong, "\n".join(wrong)


def test_only_process_starts_programs() -> None:
    doors = re.compile(r"\bsubprocess\.(run|Popen|call|check_\w+)\(|\bos\.(system|popen|fork|spawn\w+)\(")
    found = {p.name for p in MODULES if doors.search(p.read_text())}
    assert found == {"process.py"}


# Where one of Python's own readers of Unicode may stand, and why.
_READERS = {
    "machinetext.py": "isdigit, of text that is ASCII",
    "tar.py": "isdigit of bytes, which knows ASCII alone",
}


def test_text_of_machines_is_read_by_the_rules_of_machines() -> None:
    """str.splitlines knows eleven line ends, isdigit hundreds of digits: a stranger's value becomes lines and numbers.
    vmjob.machinetext has what to call instead."""
    names = {"splitlines", "isdigit", "isspace", "isdecimal", "isnumeric", "isalpha", "isalnum"}
    wrong = [f"{path.relative_to(ROOT)}:{node.lineno}: {node.attr}"
             for path in MODULES if path.name not in _READERS for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Attribute) and node.attr in names]
    assert not wrong, "\n".join(wrong)


def test_flock_is_called_in_one_place_and_never_without_end() -> None:
    """A lock that somebody suspended, or hostile, holds for ever must hold nobody else."""
    found = {str(path.relative_to(ROOT)) for path in MODULES
             if re.search(r"\bfcntl\.(flock|lockf|LOCK_[A-Z]+)\b", path.read_text())}
    assert found == {"vmjob/locks.py", "vmjob/node/tree.py"}  # the latter tries the lock of shadow(5), for 15 seconds


def test_modules_stay_small() -> None:
    long = {str(p.relative_to(ROOT)): n for p in MODULES
            if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_nothing_of_a_workplace_is_in_the_repository() -> None:
    """Home folders and temporary places of whoever wrote a file do not belong in it."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not names:
        pytest.skip("not a git checkout")
    pattern = re.compile("/" + r"(root|work)/[a-z.]|\." + "pyenv")
    wrong = [name for name in names if (ROOT / name).is_file() and os.access(ROOT / name, os.R_OK)
             and pattern.search((ROOT / name).read_bytes().decode(errors="replace"))]
    assert not wrong


def test_pytest_passes_no_folder_of_tests_over(request: pytest.FixtureRequest) -> None:
    """Its own list of folders that it does not enter has "dist" in it."""
    folders = {part for file in (ROOT / "tests").rglob("test_*.py") for part in file.relative_to(ROOT).parts[:-1]}
    assert {"unit", "dist"} <= folders
    assert not [name for name in folders for pattern in request.config.getini("norecursedirs")
                if fnmatch.fnmatch(name, pattern)]


# Where JSON is read that only we can have written, or a program that we started.
_OWN_JSON = {"vmjob/schema.py": "the schemas, two ways", "vmjob/version.py": "what the build wrote",
             "vmjob/image/compare.py": "qemu-img's map", "vmjob/sites/asking.py": "our parent's question",
             "vmjob/cli/images.py": "what was rendered the line before", "vmjob/vm/probe.py": "QEMU without a guest",
             "ceMon-publisher/cemon_publisher/render/json.py": "what was rendered the line before"}


def test_json_of_others_is_read_with_an_eye_to_its_depth() -> None:
    """Lists within lists without end are a RecursionError, which is no ValueError: a few kilobytes of brackets would be
    reported as a bug in vmjob."""
    wrong = []
    for path in MODULES:
        name, tree = str(path.relative_to(ROOT)), ast.parse(path.read_text())
        safe: set[int] = set()
        for outer in ast.walk(tree):
            if isinstance(outer, (ast.Try, ast.With)):
                caught = [one.type for one in outer.handlers] if isinstance(outer, ast.Try) else \
                    [one.context_expr for one in outer.items]
                if any(word in ast.unparse(one) for one in caught if one for word in ("RecursionError", "Exception")):
                    safe |= {id(one) for statement in outer.body for one in ast.walk(statement)}
        wrong += [f"{name}:{node.lineno}" for node in ast.walk(tree)
                  if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.loads", "json.load")
                  and id(node) not in safe and name not in _OWN_JSON]
    assert not wrong, "\n".join(wrong)
