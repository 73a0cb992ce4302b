"""vmjob submit --to local: the payload's own wrapper, here; and what plan shows of a submission without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli, result_of

pytestmark = pytest.mark.integration


def test_jobs_of_a_submission_run_one_after_the_other(cli: Cli) -> None:
    done = cli("submit", "--to", "local", "--image", "micro", "--name", "few", "-n", 2, "--set", "WORD=n $(Process)",
               "--output", "o.txt", "--", "sh", "-c", 'echo "$WORD" | tee o.txt; [ "$WORD" = "n 0" ]')
    assert done.status == 1 and "1 of 2 jobs ended with 0" in done.err
    for number in (0, 1):
        folder = cli.cwd / f"few.out/{number}"
        assert (folder / "o.txt").read_text() == f"n {number}\n" == (folder / "stdout.txt").read_text()
        assert result_of(folder)["status"] == number
    assert cli.left_over() == []


def test_a_single_job_leaves_its_results_in_the_folder_itself(cli: Cli) -> None:
    done = cli("submit", "--to", "local", "--image", "micro", "--json", "--results", "here", "--", "true")
    assert done.status == 0 and done.json["statuses"] == [0], done.err
    assert result_of(cli.cwd / "here")["outcome"] == "ok"


def test_other_verbs_say_that_local_has_no_queue(cli: Cli) -> None:
    for verb in (["status"], ["wait", "1"], ["fetch", "1"], ["rm", "1"]):
        done = cli(*verb, "--to", "local")
        assert done.status == 200 and "no queue" in done.err


def test_plan_shows_the_submit_file_and_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    done = cli("plan", "--to", "condor-ce://no-such-host.invalid", "--image", "micro", "-n", 3, "--set",
               "SEED=$(Process)", "--json", "--", "true")
    assert done.status == 0, done.err
    assert "--parameters=SEED=$(Process)" in done.json["submit"] and "\nqueue 3\n" in done.json["submit"]
    assert done.json["payload"]["job"]["command"] == ["true"] and cli.left_over() == []
    # without a target these mean nothing
    assert cli("plan", "--image", "micro", "-n", 3, "--", "true").status == 200
