"""What the kernel thinks of its clock."""

from __future__ import annotations

import ctypes


def kernel_clock() -> tuple[bool, float]:
    """adjtimex(2): is the clock synchronised, and how many seconds it may be off."""
    class Timex(ctypes.Structure):
        _fields_ = [("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long),
                    ("maxerror", ctypes.c_long), ("esterror", ctypes.c_long), ("status", ctypes.c_int),
                    ("rest", ctypes.c_char * 512)]

    answer, unsynchronised = Timex(), 0x40
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(answer))
    return state not in (-1, 5) and not answer.status & unsynchronised, answer.maxerror / 1e6
