"""What the verbs below ``vmjob site`` share: a verb, the options of those that change the node, the node's root."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmjob.cli.options import verb

if TYPE_CHECKING:
    from vmjob.node.tree import Tree


def noun(nouns: Any, name: str, text: str, examples: str, handler: Any) -> Any:
    one = verb(nouns, name, text, examples, handler)
    one.add_argument("--json", action="store_true", help="print the answer as JSON")
    one.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    return one


def changing(one: Any) -> None:
    one.add_argument("--dry-run", action="store_true", help="print what would change; change nothing")
    one.add_argument("--root", metavar="DIR", default="/", help="a tree other than this node's, such as an image's")


def tree_of(root: str) -> Tree:
    from vmjob.core.site_errors import NodeUnchanged
    from vmjob.node.tree import Tree

    if not Path(root).is_dir():
        raise NodeUnchanged(f"--root {root}: there is no such folder", "name the root of an unpacked system")
    return Tree(Path(root))
