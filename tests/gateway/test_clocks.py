"""The clock's error: what the kernel says, asked for rarely, and unknown where it does not know."""

from __future__ import annotations

import time

from gateway.clocks import ASK_AGAIN_NS, cached, kernel_clock_error_us, machine_boot_id, system_clock


def test_the_kernel_answers_or_says_that_it_does_not_know() -> None:
    error_us = kernel_clock_error_us()
    assert error_us is None or 0 <= error_us <= 16_000_000  # the kernel stops counting there


def test_it_is_asked_at_most_once_a_second() -> None:
    now, answers = 0, iter([5, None, 7])
    error_us = cached(lambda: next(answers), lambda: now)
    assert error_us() == error_us() == 5
    now = ASK_AGAIN_NS
    assert error_us() is None
    now += ASK_AGAIN_NS - 1
    assert error_us() is None
    now += 1
    assert error_us() == 7


def test_the_clock_of_a_process_has_all_three() -> None:
    clock = system_clock()
    assert clock.wall().tzinfo is not None
    assert abs(clock.monotonic_ns() - time.monotonic_ns()) < 10**9
    assert clock.error_us() == kernel_clock_error_us() or clock.error_us() is not None


def test_the_machine_says_which_boot_it_is() -> None:
    boot_id = machine_boot_id()
    assert boot_id is None or len(boot_id) == 36
