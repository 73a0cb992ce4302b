"""What is known of a run while it goes on."""

from __future__ import annotations

import threading

import pytest

from vmjob.run.state import CpuTime

pytestmark = pytest.mark.unit


def test_cpu_of_a_qemu_that_ends_while_somebody_asks_is_counted_once() -> None:
    cpu = CpuTime()
    ends = threading.Thread(target=cpu.ended, args=(5.0,))

    def running() -> float:
        ends.start()
        ends.join(0.2)  # it must not get through: what is asked for now is of one moment
        assert ends.is_alive()
        return 4.9

    cpu.ended(1.0)  # the first boot's
    cpu.began(running)
    assert cpu.now() == pytest.approx(5.9)
    ends.join()
    assert cpu.now() == pytest.approx(6.0)
