"""Jobs in the micro image, by the command, on real QEMU: what goes right."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.conftest import Cli, qemus, result_of

pytestmark = pytest.mark.integration


def test_exit_status_is_the_programs(cli: Cli) -> None:
    done = cli.micro("--", "sh", "-c", "exit 7")
    assert done.status == 7, done.err
    assert cli.left_over() == []


def test_true_is_zero_and_false_is_not(cli: Cli) -> None:
    assert cli.micro("-q", "--", "true").status == 0
    assert cli.micro("-q", "--", "false").status == 1


def test_output_streams_are_kept_apart_and_exact(cli: Cli) -> None:
    done = cli.micro("-q", "--", "sh", "-c", r"printf 'a\000\377b\n'; echo err >&2; echo dev > /dev/stderr")
    assert done.out == b"a\0\xffb\n"
    assert done.err == "err\ndev\n"


def test_a_megabyte_of_stdout_arrives_whole(cli: Cli) -> None:
    data = os.urandom(1_000_003)
    (cli.cwd / "data").write_bytes(data)
    done = cli.micro("-q", "--input", "data", "--", "cat", "data")
    assert done.status == 0
    assert done.out == data


def test_arguments_and_environment_pass_unchanged(cli: Cli) -> None:
    odd = "a 'b' \"c\" $HOME `id` \\ *\nsecond line é"
    done = cli.micro("-q", "--env", f"ODD={odd}", "--", "sh", "-c", 'printf "%s|%s" "$ODD" "$1"', "sh", odd)
    assert done.out.decode() == f"{odd}|{odd}"


def test_program_is_an_ordinary_user_in_a_fresh_folder(cli: Cli) -> None:
    done = cli.micro("-q", "--", "sh", "-c", "id -u; pwd; ls -A; touch here && echo writable")
    uid, folder, *rest = done.out.decode().split("\n")
    assert uid != "0"
    assert rest == ["writable", ""]
    assert folder.startswith("/")


def test_limits_reach_the_guest_as_machine_job_features(cli: Cli) -> None:
    script = "cat $JOBFEATURES/allocated_cpu $MACHINEFEATURES/total_cpu $JOBFEATURES/wall_limit_secs; nproc"
    done = cli.micro("-q", "--cpus", "2", "--walltime", "10m", "--", "sh", "-c", script)
    assert done.out.split() == [b"2", b"2", b"600", b"2"]


def test_inputs_and_outputs_with_folders_globs_and_odd_names(cli: Cli) -> None:
    (cli.cwd / "in put").mkdir()
    (cli.cwd / "in put" / "é ü.txt").write_text("text")
    (cli.cwd / "tool.sh").write_text("#!/bin/sh\necho made > made.dat\nmkdir -p d/e; echo deep > d/e/f\n"
                                     "cp 'renamed/é ü.txt' ./-dash.txt\n")
    (cli.cwd / "tool.sh").chmod(0o755)
    done = cli.micro("--input", "in put:renamed", "--input", "*.sh", "--output", "*.dat", "--output", "d",
                     "--output", "*dash.txt", "--results", "res", "--", "./tool.sh")
    assert done.status == 0, done.err
    assert (cli.cwd / "res/made.dat").read_text() == "made\n"
    assert (cli.cwd / "res/d/e/f").read_text() == "deep\n"
    assert (cli.cwd / "res/-dash.txt").read_text() == "text"
    result = result_of(cli.cwd / "res")
    assert result["outcome"] == "ok"
    assert result["bytes_in"] > 0 and result["bytes_out"] == 5 + 5 + 4
    assert "made.dat" in result["outputs"]


def test_large_and_odd_sized_outputs_are_exact(cli: Cli) -> None:
    script = ("dd if=/dev/urandom of=big bs=1M count=70 2>/dev/null; echo odd >> big; cp big big2; "
              "sha256sum big; printf x > small; : > empty")
    done = cli.micro("-q", "--memory", "1GiB", "--output", "*", "--results", "res", "--", "sh", "-c", script)
    assert done.status == 0, done.err
    digest = done.out.decode().split()[0]
    for name in ("big", "big2"):
        data = (cli.cwd / "res" / name).read_bytes()
        assert len(data) == 70 * 2**20 + 4
        assert hashlib.sha256(data).hexdigest() == digest
    assert (cli.cwd / "res/small").read_text() == "x"
    assert (cli.cwd / "res/empty").read_bytes() == b""


def test_result_tells_all_there_is_to_tell(cli: Cli) -> None:
    done = cli.micro("--json", "--results", "res", "--", "sh", "-c", "echo visible; exit 3")
    assert done.status == 3
    body = result_of(cli.cwd / "res")
    assert body == done.json
    assert "visible" in done.err
    assert body["outcome"] == "program-failed" and body["exit_status"] == 3 and body["failure"] is None
    assert [s["name"] for s in body["stages"]] == ["stage", "verify", "probe", "boot", "payload", "collect", "teardown"]
    assert all(s["seconds"] >= 0 for s in body["stages"])
    assert body["accelerator"]["name"] in ("kvm", "tcg") and body["accelerator"]["reason"]
    assert body["image_digest"].startswith("sha256:") and body["qemu_version"][0].isdigit()
    assert body["cpu_seconds"] > 0 and body["peak_memory"] > 2**24 and body["stop"] == "quit"


def test_killed_by_a_signal_is_told_as_a_shell_does(cli: Cli) -> None:
    done = cli.micro("--json", "--", "sh", "-c", "kill -9 $$")
    assert done.status == 137
    assert done.json["signal"] == 9 and done.json["outcome"] == "program-failed"


def test_a_program_that_is_not_there_is_127(cli: Cli) -> None:
    done = cli.micro("-q", "--", "no-such-program")
    assert done.status == 127
    assert "no-such-program" in done.err


def test_a_child_left_behind_does_not_hang_the_job(cli: Cli) -> None:
    done = cli.micro("--", "sh", "-c", "sleep 1000 & setsid sleep 1000 & echo done; exit 5", timeout=60)
    assert done.status == 5
    assert done.out == b"done\n"


def test_script_with_and_without_interpreter(cli: Cli) -> None:
    job = cli.cwd / "job.yaml"
    for first in ("", "#!/bin/sh -e\n"):
        job.write_text("image: micro\nscript: |\n" + "".join(
            f"  {line}\n" for line in f'{first}echo "two  spaces"\n\nfalse\necho after'.split("\n")))
        done = cli("run", "job.yaml", "-q")
        assert done.out.decode() == ("two  spaces\n" if first else "two  spaces\nafter\n")
        assert done.status == (1 if first else 0)


def test_job_file_gives_a_results_folder_named_after_the_job(cli: Cli) -> None:
    (cli.cwd / "j.yaml").write_text("name: first\nimage: micro\ncommand: echo hello\n")
    done = cli("run", "j.yaml")
    assert done.status == 0, done.err
    assert result_of(cli.cwd / "first.out")["job"] == "first"
    assert (cli.cwd / "first.out/console.log").exists()


def test_options_win_over_the_job_file(cli: Cli) -> None:
    (cli.cwd / "j.yaml").write_text("image: nowhere\ncommand: nothing\nresources: {cpus: 1, memory: 512MiB}\n")
    done = cli("run", "j.yaml", "--image", "micro", "--cpus", "2", "--json", "--", "true")
    assert done.status == 0, done.err
    assert done.json["cpus"] == 2 and done.json["memory"] == 512 * 2**20


def test_progress_of_the_program_is_heard(cli: Cli) -> None:
    assert cli.micro("-q", "--", "sh", "-c", "echo 50 > $VMJOB_PROGRESS; sleep 3").status == 0


@pytest.mark.parametrize("network", ["none", "isolated"])
def test_without_a_way_out(cli: Cli, network: str) -> None:
    done = cli.micro("-q", "--network", network, "--", "sh", "-c", "ls /sys/class/net | wc -l")
    assert done.status == 0
    assert done.out.strip() == (b"1" if network == "none" else b"2")


def test_nothing_runs_on_afterwards(cli: Cli) -> None:
    before = set(qemus())
    cli.micro("-q", "--", "true")
    assert set(qemus()) <= before
    assert not list(Path(cli.cwd).glob("**/*.sock"))
