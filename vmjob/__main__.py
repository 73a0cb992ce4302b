"""python -m vmjob, and the entry of vmjob.pyz and of the command vmjob."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

from vmjob.interrupt import hear_early


def start() -> NoReturn:
    """Become vmjob. The status that main returns is the process's: neither a stream that cannot be written nor a signal
    changes it while Python ends."""
    hear_early()
    os.umask(os.umask(0o077) | 0o002)  # nothing that is made here can be written by all, whoever starts us how
    from vmjob.cli.main import main

    try:
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    start()
