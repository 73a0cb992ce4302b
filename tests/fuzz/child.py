"""``python -m tests.fuzz.child TARGET SECONDS SEED FOLDER``: one target under atheris. Inputs with new coverage go to
FOLDER/inputs, faults to the target's corpus, and a line for each to FOLDER/faults."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.fuzz.target import CPU, LARGEST, Target, TooSlow

MEMORY = 768 * 2**20  # bytes that a parser may take on top
_WALL = 60  # seconds after which an input hangs
_IMPORTS = 120.0  # of processor time, for the first inputs, with which libraries are imported and instrumented
_INSTRUMENTED = ["vmjob", "cemon_publisher", "yaml", "fastjsonschema", "htchirp", "qemu", "ldap3", "pyasn1"]


class _Formats(logging.Handler):
    """A log that is written, so that what cannot be is noticed."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


class Session:
    """A fault is counted and the fuzzing goes on; each kind of fault is kept once."""

    def __init__(self, one: Target, folder: Path, spare: Path) -> None:
        self.one, self.folder, self.spare = one, folder, spare
        self.seen: set[str] = set()

    def input(self, data: bytes, most: float = CPU) -> None:
        from tests.fuzz.target import run

        place = self.spare / "place"
        place.mkdir()
        signal.setitimer(signal.ITIMER_PROF, most)
        try:
            run(self.one, data, place, most)
        except BaseException as fault:
            self.fault(data, fault)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            shutil.rmtree(place)

    def fault(self, data: bytes, fault: BaseException) -> None:
        frames = traceback.extract_tb(fault.__traceback__)
        where = next((f"{Path(one.filename).name}:{one.lineno}" for one in reversed(frames)
                      if "/vmjob/" in one.filename or "/cemon_publisher/" in one.filename), "the target")
        kind = f"{type(fault).__name__} in {where}"
        if kind in self.seen:
            return
        self.seen.add(kind)
        name = f"{type(fault).__name__.lower()}-{hashlib.sha256(data).hexdigest()[:12]}"
        self.one.corpus.mkdir(parents=True, exist_ok=True)
        (self.one.corpus / name).write_bytes(data)
        with (self.folder / "faults").open("a") as file:
            file.write(f"{kind}: {' '.join(str(fault).split())[:200]!a}\t{self.one.corpus / name}\n")


def _slow(*_: Any) -> None:
    raise TooSlow("more than its share of processor time")


def main(name: str, seconds: str, seed: str, out: str) -> None:
    import atheris

    with ExitStack() as stack:
        stack.enter_context(atheris.instrument_imports(include=_INSTRUMENTED))
        from tests.fuzz.targets import TARGETS

        one, folder = TARGETS[name], Path(out)
        logging.getLogger().addHandler(_Formats())
        logging.getLogger("vmjob").setLevel(logging.DEBUG)
        spare = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmjob-fuzz-", dir=_memory())))
        session = Session(one, folder, spare)
        signal.signal(signal.SIGPROF, _slow)
        seeds = folder / "seeds"
        seeds.mkdir(exist_ok=True)
        for number, data in enumerate(one.seeds()):  # what a parser imports when it is called is instrumented too
            (seeds / f"{number}").write_bytes(data)
            session.input(data, _IMPORTS)
        (folder / "inputs").mkdir(exist_ok=True)
        _bounded()
        given = [folder / "inputs", seeds, *([one.corpus] if one.corpus.is_dir() else [])]
        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={_WALL}",
                       f"-max_len={LARGEST}", "-rss_limit_mb=4096", "-print_final_stats=1", "-len_control=20",
                       f"-artifact_prefix={folder}/lost-", *map(str, given)], session.input)
        atheris.Fuzz()


def _memory() -> str:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def _bounded() -> None:
    now = re.search(r"VmSize:\s*(\d+) kB", Path("/proc/self/status").read_text())
    most = int(now.group(1)) * 1024 + MEMORY if now else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
