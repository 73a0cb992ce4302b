"""The channel's rules, the control files, the seed."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest

from vmjob.core.errors import AgentFailed
from vmjob.core.model import Granted, Job, Slot
from vmjob.guest.channel import MAX_LINE, Channel, State, clean
from vmjob.guest.script import control_lines, features, job_script
from vmjob.guest.seed import agent_text, user_data, write_seed

pytestmark = pytest.mark.unit

GOOD = b"hello 1 job 6.1.0\nready\nheartbeat 1\nstarted\nheartbeat 2 40\nexit 7\nmissing *.x\noutputs ok\nbye\n"
SLOT = Slot("machine", Path("/var/tmp"), 2, 2**30, 2**30)


def test_a_whole_conversation_byte_by_byte() -> None:
    channel = Channel()
    for number in range(len(GOOD)):
        channel.feed(GOOD[number:number + 1])
    assert channel.state is State.BYE
    assert (channel.boot, channel.kernel, channel.exit_status) == ("job", "6.1.0", 7)
    assert channel.missing == ["*.x"] and channel.percent == 40 and channel.outputs == "ok"


@pytest.mark.parametrize("said", [
    b"ready\n", b"exit 0\n", b"hello 2 job x\n", b"hello 1 job x\nhello 1 job x\n", b"what\n", b"__init__ x\n", b"\n",
    b"hello 1 job x\nready\nexit 0\n", b"hello 1 job x\nready\nstarted\nexit 256\n",
    b"hello 1 job x\nready\nstarted\nexit -1\n", b"hello 1 job x\nready\nstarted\nexit 0\nexit 0\n",
    b"hello 1 job x\nready\nstarted\nexit 0\noutputs fine\n", b"hello 1 job x\nready\nstarted\nmissing x\n",
    b"error user there is none\n", b"x" * (MAX_LINE + 1),
])
def test_what_the_protocol_does_not_allow(said: bytes) -> None:
    with pytest.raises(AgentFailed) as caught:
        Channel().feed(said)
    assert caught.value.hint


def test_control_characters_of_a_guest_do_not_reach_a_terminal() -> None:
    assert "\x1b" not in clean(b"\x1b[31mred\x07\x9b")


@pytest.mark.parametrize("word", ["plain", "", "a b", "it's", '"', "$HOME `id` \\", "line\nbreak", "é\u2028"])
def test_words_survive_the_guests_shell(word: str, tmp_path: Path) -> None:
    job = Job("j", "i", ("printf", "%s|%s", word, "end"), environment=(("WORD", word),))
    script = tmp_path / "job.sh"
    script.write_text(job_script(job).replace("exec printf", 'printf "%s|" "$WORD"; exec printf'))
    out = subprocess.run(["/bin/sh", script], capture_output=True, check=True).stdout.decode()
    assert out == f"{word}|{word}|end"


def test_control_lines_rebuild_every_file() -> None:
    job = Job("j", "i", script="#!/bin/sh\necho 'a'\n\n  | b\n", outputs=("*.root", "log"))
    lines = control_lines(job, "me", Granted(2, 2**30, 2**20, 600), SLOT, 1000, "ab").decode().split("\n")
    assert lines[0] == "start 1000 ab" and lines[-2:] == ["go", ""]
    files: dict[str, str] = {}
    name = ""
    for line in lines[1:-2]:
        if line.startswith("|"):
            files[name] += line[1:] + "\n"
        else:
            name = line.split(" ", 1)[1]
            files[name] = ""
    assert files["script"] == job.script and files["outputs"] == "*.root\nlog\n" and files["user"] == "me\n"
    assert files["jobfeatures/shutdowntime_job"] == "1600\n"


def test_features_name_only_what_is_known() -> None:
    without = features(Granted(1, 2**28, 2**20, None), SLOT, 5)
    assert "jobfeatures/wall_limit_secs" not in without and without["jobfeatures/allocated_cpu"] == "1"


def test_seed_is_what_cloud_init_looks_for(tmp_path: Path) -> None:
    import pycdlib

    write_seed(tmp_path / "seed.iso", "i-1")
    iso = pycdlib.PyCdlib()
    iso.open(str(tmp_path / "seed.iso"))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    data = io.BytesIO()
    iso.get_file_from_iso_fp(data, rr_path="/user-data")
    iso.close()
    text = data.getvalue().decode()
    assert text == user_data(agent_text()) and text.startswith("#cloud-boothook\n")
    assert agent_text() in text  # word for word: the here-document is quoted
    assert subprocess.run(["sh", "-n"], input=text.encode()).returncode == 0


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_agent_is_valid_in_every_shell_there_is(shell: str, tmp_path: Path) -> None:
    import shutil

    if not shutil.which(shell):
        pytest.skip(f"needs {shell}: apt-get install {shell}")
    (tmp_path / "agent").write_text(agent_text())
    argv = ["busybox", "sh"] if shell == "busybox" else [shell]
    assert subprocess.run([*argv, "-n", tmp_path / "agent"]).returncode == 0
