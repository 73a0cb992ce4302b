"""The docs name only files and modules that exist, and a table is to be read at a glance."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.unit

PACKAGE = ROOT / "vmjob"
DOCS = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "ceMon-publisher/README.md",
               ROOT / "submit-templates/README.md"])
ROOTS = (ROOT, PACKAGE, ROOT / "ceMon-publisher")  # a path in the docs begins in one of these
MADE = ("build", "dist", ".venv", "demo-out", "demo-pool-out")  # by make, in a checkout
FOLDERS = {path.name for root in ROOTS for path in root.iterdir() if path.is_dir()} - {*MADE}

# Paths that look like files of the repository, and why there is no such file.
EXCEPTIONS = {
    "job.sh": "a file of the channel", "glidein/why": "a file of a glide-in's results",
    "vmjob/vmjob.pyz": "in wheels only",
}
PLACES = re.compile(r"(PACKAGE|MODULE|METHOD|NAME|TARGET)\b")  # words that stand for many


def words(text: str) -> Iterator[str]:
    """Paths in backquotes, and targets of links in the repository. Blocks of code are examples with their own tests."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)
    for quoted in re.findall(r"`([^`\n]+)`", prose):
        yield from (word.strip("().,:;") for word in quoted.split())
    yield from (f"]({link}" for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", prose))


def missing(text: str, beside: Path) -> list[str]:
    """Words of ``text`` (a page in the folder ``beside``) that name a file of the repository which does not exist."""
    wrong = []
    for word in words(text):
        if word.startswith("]("):
            if not (beside / word[2:]).exists():
                wrong.append(word[2:])
            continue
        path = word.rstrip("/")
        if path in EXCEPTIONS or PLACES.search(path) or not re.fullmatch(r"[\w.*][\w.*-]*(/[\w.*-]+)*", path):
            continue
        if "/" in word and path.split("/")[0] in FOLDERS:
            if not any(list(root.glob(path)) for root in ROOTS):
                wrong.append(word)
        elif "/" not in word and re.search(r"\.(py|sh)$", word) and word not in _names():
            wrong.append(word)
    return wrong


@cache
def _names() -> set[str]:
    """What files of the repository are called."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return {Path(name).name for name in listed.stdout.split("\n")} or {path.name for path in ROOT.rglob("*.*")}


def modules(text: str) -> Iterator[str]:
    """Dotted words that begin with our package's name, without those that are files (vmjob.pyz)."""
    for word in re.findall(r"(?<![\w./@-])vmjob(?:\.\w+)+", text):
        if not re.search(r"\.(pyz|yaml|conf|prom|test|lock|spec|control|service|timer|net|boot)$", word):
            yield word


def short(text: str) -> Iterator[str]:
    """Dotted words that begin with a package of ours (image.store.blobs), with our package's name before them."""
    packages = "|".join(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    for word in re.findall(rf"(?<![\w./$-])(?:{packages})(?:\.[A-Za-z_]\w*)+", text):
        if not re.search(r"\.(yaml|json|sh|py|config|out|service)$", word):
            yield f"vmjob.{word}"


def exists(word: str) -> bool:
    """Is the dotted ``word`` a module of ours, or a name that stands in one?"""
    parts = word.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.exists():
                return length == len(parts) or bool(re.search(rf"\b{parts[length]}\b", file.read_text()))
    return False


def test_a_word_that_names_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").touch()
    text = "`vmjob/image/blobs.py` `vmjob/core/errors.py` `supervise.py` [a](gone.md) [b](there.md#x)\n`tests/unit/`"
    assert missing(text, tmp_path) == ["vmjob/image/blobs.py", "supervise.py", "gone.md"]
    assert list(short("see image.blobs, job.yaml")) == ["vmjob.image.blobs"] and not exists("vmjob.image.blobs")
    assert not exists("vmjob.nodead") and not exists("vmjob.core.errors.Nothing")
    assert exists("vmjob.core.errors") and exists("vmjob.core.errors.ImageMissing") and exists("vmjob.run_job")


@pytest.mark.parametrize("page", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_docs_name_files_that_exist(page: Path) -> None:
    text = page.read_text()
    assert missing(text, page.parent) == []
    assert [word for word in modules(text) if not exists(word)] == []


def test_the_tree_names_what_each_folder_holds() -> None:
    """In docs/developer.md below each folder: every word of the left column is a module, a script or a folder in it."""
    tree = re.search(r"^```\nvmjob/\n(.*?)^```", (ROOT / "docs/developer.md").read_text(), re.S | re.M)
    assert tree
    folder, wrong, named = PACKAGE, [], set()
    for line in tree[1].splitlines():
        if top := re.match(r"  \d (\w+)/", line):
            folder = PACKAGE / top[1]
            continue
        left = re.match(r"      ((?:[\w./(,)*]+, )*[\w./(,)*]+)(?: |$)", line)
        for entry in left[1].split(", ") if left and "X" not in left[1] else []:
            stem = re.sub(r"\(.*|/$", "", entry)
            extra = [stem + end for end in re.findall(r"\.\w+", entry.partition("(")[2])]
            made = [folder / stem] if entry.endswith(("/", ".sh")) else [folder / f"{stem}.py"]
            wrong += [str(path.relative_to(ROOT)) for path in [*made, *(folder / name for name in extra)]
                      if not path.exists()]
            named.add(made[0])
    assert wrong == []
    modules = {path for path in PACKAGE.glob("*/*.py") if path.parent.name != "cli" and path.stem != "__init__"}
    assert sorted(str(path.relative_to(ROOT)) for path in modules - named) == []


def test_docstrings_and_comments_name_modules_that_exist() -> None:
    wrong = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "ceMon-publisher").rglob("*.py")]:
        source = path.read_text()
        texts = [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)
                 if token.type == tokenize.COMMENT]
        texts += [node.value.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)
                  and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]
        wrong += [f"{path.relative_to(ROOT)}: {word}" for text in texts for word in [*modules(text), *short(text)]
                  if not exists(word)]
    assert wrong == ["vmjob/api.py: vmjob.stage.name"]  # a variable of the doctest


def test_a_cell_of_a_table_is_short() -> None:
    for page in ("developer.md", "internals.md", "testing.md"):
        cells = [cell.strip() for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("|")
                 for cell in line.strip("|").split("|")]
        assert [cell for cell in cells if len(cell) > 300] == []
