"""Hands the program's output to whoever listens, without ever standing still itself.

A reader that is slow or stopped (a full pipe, a stopped terminal) blocks the one who writes to it. That must not
be the event loop, or the guest's signs of life and the batch system's signals would go unheard. So each stream
has a thread that waits instead; the guest waits with it, as a program waits for its pipe.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Optional

_END = 0.5  # seconds that a reader who is slow is waited for at the end


class Courier:
    """``deliver`` to ``take`` in a thread of its own, one piece at a time. The thread is a daemon: where a reader never
    comes back, the process can end all the same."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._work: queue.SimpleQueue[Optional[tuple[bytes, asyncio.Future[None]]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    async def deliver(self, data: bytes) -> None:
        """Until ``take`` has it. Raises what ``take`` raises."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work.put((data, done))
        await done

    def close(self) -> None:
        """The thread ends, when whoever it hands something to has taken it."""
        self._work.put(None)
        self._thread.join(_END)

    def _run(self) -> None:
        while work := self._work.get():
            data, done = work
            wrong = None
            try:
                self._take(data)
            except Exception as error:
                wrong = error
            try:
                done.get_loop().call_soon_threadsafe(_tell, done, wrong)
            except RuntimeError:  # the loop has ended meanwhile: nobody waits
                return


def _tell(done: asyncio.Future[None], wrong: Optional[Exception]) -> None:
    if done.done():
        return
    if wrong is None:
        done.set_result(None)
    else:
        done.set_exception(wrong)
