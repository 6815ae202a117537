"""How good the machine's clock is, by the kernel's own account (adjtimex(2)), for the stamp of each record.

The kernel keeps a bound of the clock's error, which the NTP or PTP daemon sets with every measurement and which grows
by itself between them. Without a daemon the kernel says that the clock is not synchronised: then the error is unknown,
which is not the same as none.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.recording import Clock

ASK_AGAIN_NS: Final = 1_000_000_000  # the bound changes by less than a millisecond in that time

_TIME_ERROR: Final = 5  # adjtimex: the clock is not synchronised
_STA_UNSYNC: Final = 0x0040
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class _Timex(ctypes.Structure):
    """struct timex of <sys/timex.h>, as far as it is read here; the kernel fills all of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # microseconds
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def system_clock() -> Clock:
    return Clock(lambda: datetime.now(UTC), time.monotonic_ns, cached(kernel_clock_error_us, time.monotonic_ns))


def kernel_clock_error_us() -> int | None:
    """The most, in microseconds, that the wall clock may be wrong by; None where the kernel cannot say."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None  # not Linux
    timex = _Timex()  # modes 0: only asks
    state = adjtimex(ctypes.byref(timex))
    if state in {-1, _TIME_ERROR} or timex.status & _STA_UNSYNC or timex.maxerror < 0:
        return None
    return int(timex.maxerror)


def cached(ask: Callable[[], int | None], monotonic_ns: Callable[[], int]) -> Callable[[], int | None]:
    """`ask`, at most once in ASK_AGAIN_NS."""
    answer: int | None = None
    asked_at: int | None = None

    def again() -> int | None:
        nonlocal answer, asked_at
        now = monotonic_ns()
        if asked_at is None or now - asked_at >= ASK_AGAIN_NS:
            answer, asked_at = ask(), now
        return answer

    return again


def machine_boot_id() -> str | None:
    """The kernel's id of this boot of the machine: `boot_id` in records is of the process."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
