"""The reader of README.md's commands, which ``make fresh`` runs."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import ROOT
from tests.fresh import readme, session
from tests.fresh.readme import Step, Unreadable

pytestmark = pytest.mark.unit


def section(*blocks: str, after: str = "") -> str:
    body = "\n".join(f"```console\n{block}\n```\n" for block in blocks)
    return f"# x\n\n## The first ten minutes\n\nWords.\n\n{body}\n### More\n\n```console\n$ more\n```\n{after}"


def test_our_own_says_the_main_job() -> None:
    text = (ROOT / "README.md").read_text()
    found = readme.steps(text)
    commands = [step.command.split("#")[0].strip() for step in found]
    assert commands[:3] == ["make demo", ". .venv/bin/activate", "vmjob doctor"]
    assert {f"vmjob {verb} examples/pythia/job.yaml" for verb in ("run", "plan")} < set(commands)
    assert {step.status for step in found} == {0, 7, 246}
    assert sum(1 for step in found for line in step.shown if readme.pattern_of(line)) > 20
    name, job = readme.job_file(text)
    assert readme.bare_yaml(job) == readme.bare_yaml((ROOT / name).read_text())


def test_commands_output_and_status() -> None:
    assert readme.steps(section("$ make", "out 1", "$ a \\\n  b   # why\nsaid\n$ c\n$ echo $?\n7",
                                "$ d\nx: failed (Bad, status 246); 2 s")) == [
        Step("make", ("out 1",)), Step("a \\\n  b   # why", ("said",)), Step("c", (), 7), Step("echo $?", ("7",)),
        Step("d", ("x: failed (Bad, status 246); 2 s",), 246)]


@pytest.mark.parametrize("text", [
    "# x\n", section(), section("only output"), section("$ a\nout", "out of what?"), section("$ a\n$ echo $?"),
    section("$ a").replace("```\n\n###", "\n\n###")])
def test_what_cannot_be_understood_is_not_passed_over(text: str) -> None:
    with pytest.raises(Unreadable):
        readme.steps(text)


@pytest.mark.parametrize(("shown", "printed"), [
    ("vmjob: boot         1.81 s", "vmjob: boot         1m02s"),
    ("vmjob: stage        0.00 s", "vmjob: stage        85 ms"),
    ("ok       python       Python 3.11.2 (/home/ada/vmjob/.venv/bin/python)", "ok   python  Python 3.13 (/opt/bin/p)"),
    ("vmjob: the program ended with exit status 7; 1.96 s; tcg", "vmjob: the program ended with exit status 7; 3 s"),
    ("event    190    46.8 events/s", "event    190    4.1 events/s")])
def test_numbers_times_and_paths_are_the_machine_s(shown: str, printed: str) -> None:
    assert Step("x", (shown,)).missing(f"before\n{printed}\nafter") == []


@pytest.mark.parametrize(("shown", "printed"), [
    ("hello from vmjob", "hello from elsewhere"), ("7", "8"), ("7", "70"),
    ("ok       network      NAT by passt", "warning  network      no NAT"),
    ("vmjob: collect: the program left no file that matches 'result.root'", "vmjob: collect")])
def test_what_the_command_does_not_say_is_missing(shown: str, printed: str) -> None:
    assert Step("x", (shown,)).missing(printed) == [shown]


def test_the_session_s_script_keeps_statuses() -> None:
    """Run by a real shell: each command's status, which the next one's $? is too."""
    steps = [Step("(exit 7)"), Step("echo $?"), Step("cd /"), Step("pwd")]
    done = subprocess.run(["bash"], input=session.script(steps), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines == ["@@ step 0 7", "7", "@@ step 1 0", "@@ step 2 0", "/", "@@ step 3 0"]
