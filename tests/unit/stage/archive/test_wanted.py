"""What may come back from a guest: patterns as a shell understands them, and names that never come."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from vmjob.core.errors import JobError
from vmjob.core.ownnames import reserved
from vmjob.job.file import check_output
from vmjob.stage.archive.wanted import Wanted

pytestmark = pytest.mark.unit

NAMES = ["a", "ab", "abc", ".a", "a-b", "a]b", "[", "[a", "ü", "1", "a\nb", "*", "a*", "\\", "a b", "-", "^a", "!a",
         "Z", "a.txt", ".txt", "b.txt.gz", "x" * 255]
PATTERNS = ["*", "?", "??", "a*", "*b", "*.txt", "a?c", "[ab]", "[!a]", "[^a]", "[a-c]b", "[]]", "a[]]b", "[[]", "[",
            "[a",
            "[[:digit:]]", "[[:alpha:]]*", "[a-]", "a[-]b", ".*", "a\\*", "\\*", "\\[", "*[b]*", "*a*b*", "**", "a b",
            "[a-c]*[!z]", "[z-a]", "[[:nosuch:]]"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_a_shell_expands_is_taken(tmp_path: Path, pattern: str) -> None:
    """The other way round a reading more is fine, but for hidden files."""
    for name in NAMES:
        (tmp_path / name).touch()
    done = subprocess.run(["sh", "-c", "IFS=; for one in $1; do printf '%s\\0' \"$one\"; done", "sh", pattern],
                          cwd=tmp_path, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    for name in done.stdout.decode().split("\0")[:-1]:
        if (tmp_path / name).exists() and name not in (".", ".."):
            assert Wanted([pattern]).take([name]), f"{pattern!r} {name!r}"


@pytest.mark.parametrize(("pattern", "names"), [
    ("x", ["y", "x2", "X", ".x", "", "x\n"]), ("*", [".bashrc", ".ssh/authorized_keys", ".x/y"]),
    ("*.txt", ["a.txt.sh"]), ("?", ["ab", ".", "abc"]),
    ("a/*", ["a", "b/a", "ab", "a/.hidden", ".a/b"]), ("[ab]", ["c", "ab", "[ab"]),
    ("[!a]", ["a", ".b"]), ("a/b", ["a", "a/c", "b"]), ("[[:digit:]]", ["a", ":"]), (".[a]", ["xa", ".b"])])
def test_what_no_pattern_matches_is_not(pattern: str, names: list[str]) -> None:
    for name in names:
        wanted = Wanted([pattern])
        assert not wanted.take(name.split("/")) and wanted.missing == [pattern], name


def test_below_a_match_all_may_come() -> None:
    wanted = Wanted(["./d/", "x*", "never"])
    assert wanted.take(["d"]) and wanted.take(["d", ".hidden", "deep"]) and wanted.take(["x1", "y"])
    assert wanted.missing == ["never"]
    assert Wanted(["."]).take(["anything"])


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    """A guest chooses the names; a matcher that tries every way needs years for this one."""
    began = time.process_time()
    assert not Wanted(["*a" * 30 + "*b"]).take(["a" * 255])
    assert Wanted(["*a" * 30 + "*b"]).take(["a" * 254 + "b"])
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", [
    "vmjob-wrapper.sh", "vmjob.pyz", "payload.json", "input.tar", "token", "token-3", "list-0.smime", "image",
    "0" * 64, "result.json", "console.log", "stdout.txt", "stderr.txt", "vmjob-results.tar", ".vmjob.lock",
    "vmjob-results.tar.part", ".job.ad", ".machine.ad", ".update.ad", ".chirp.config", "_condor_stdout",
    "_condor_creds", "condor_exec.exe", ".docker_sock", "docker_stdout", ".diag", "1234.diag", ".comment",
    "slurm-12_3.out"])
def test_names_that_others_rely_on(name: str) -> None:
    assert reserved(name)
    for glob in (name, f"./{name}", f"{name}/x"):
        with pytest.raises(JobError, match="keeps for itself"):
            check_output(glob, "--output")


@pytest.mark.parametrize("name", ["tokens.txt", "tokenizer.json", "images", "list.txt", "out.txt", "my-console.log",
                                  "x.json", "condor", "slurm.out", "a\n.diag.txt", "input.tar.gz"])
def test_names_that_are_the_jobs(name: str) -> None:
    assert not reserved(name)


def test_what_others_write_in_a_slot_is_reserved() -> None:
    """The lists are written once: what makes the payload, and what HTCondor's own jobs find."""
    from vmjob.batch.description import RESULTS, token_names
    from vmjob.core import ownnames
    from vmjob.core.files import RESULT_FILES
    from vmjob.job import payload

    names = [ownnames.NAME, ownnames.INPUT, ownnames.TOKEN, ownnames.WRAPPER,
             payload.image_place("0" * 64).split("/")[0],
             *map(payload.list_name, range(payload.LISTS)), ownnames.PYZ, RESULTS, f"{RESULTS}.part", *RESULT_FILES,
             *(name.replace("$(Process)", "7") for name in token_names(3))]
    assert [name for name in names if not reserved(name)] == []
