"""Rules for the whole suite: Hypothesis profiles, a deadline for each test, no silent skip of a real component, and
none left out silently.

Profiles are chosen by HYPOTHESIS_PROFILE: ``ci`` (the default) draws the same examples in every run, so that
a red build can be repeated; ``quick`` (``make check``) draws fewer of them; ``fuzz`` (``make fuzz``) many new ones.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from httpcore import AsyncNetworkStream
from httpcore._backends.trio import TrioStream
from hypothesis import HealthCheck, settings

# No deadline for one example: on a machine shared with QEMU, slow says nothing about the code.
settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=25)
settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A shell starts what it puts into the background with SIGINT ignored, and so would be every command that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# httpcore (1.0) leaves the socket of a TLS handshake that is cancelled, as when a gateway stops, to the garbage
# collector, which then fails whatever test runs. What else is left open is an error still.
_start_tls = TrioStream.start_tls


async def _start_tls_or_close(stream: TrioStream, *arguments: Any, **options: Any) -> AsyncNetworkStream:
    try:
        return await _start_tls(stream, *arguments, **options)
    except BaseException:
        stream.get_extra_info("socket").close()
        raise


TrioStream.start_tls = _start_tls_or_close  # type: ignore[method-assign, assignment]

SUITE = os.getpid()
# Of a test, and of what is laid out for it: nothing of `make test` takes a third of it. From then on again and again,
# since what is put away may hang as well.
DEADLINE_SECONDS = float(os.environ.get("TEST_DEADLINE_SECONDS", "600"))
AGAIN_SECONDS = DEADLINE_SECONDS / 10


def end_as_by_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    """Who ends a worker, say one that hangs, ends what its fixtures started."""
    if os.getpid() != SUITE:  # a process forked off it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)


signal.signal(signal.SIGTERM, end_as_by_ctrl_c)


@contextmanager
def deadline() -> Iterator[None]:
    """Interrupts by SIGINT, which trio can be in the middle of; another error from a handler would break it."""
    is_over = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_over
        is_over = True
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_SECONDS, AGAIN_SECONDS)
    try:
        yield
    except BaseException as error:
        if is_over:
            raise pytest.fail.Exception(f"hangs: not over after {DEADLINE_SECONDS:g} s") from error
        if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from error  # of trio's tasks; pytest takes a group for a test's own failure
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    with deadline():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    with deadline():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    with deadline():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped ``real`` test is a failure: a missing component must not look like a pass."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and item.get_closest_marker("real") is not None:
        report.outcome = "failed"
        report.longrepr = f"a `real` test may not skip: `make test` installs what it needs\n{report.longrepr}"
    return report


# What `make test` does not fetch: with what a tree of it is whole.
FETCHED = {
    "newest-qemu": ".qemu-newest/qemu-system-x86_64",
    "other-libvirt": ".other-libvirt/suite",
    "nova": ".nova/lock",
}
LEFT_OUT = pytest.StashKey[dict[str, int]]()


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``fetched(goal)`` are part of a run once `make GOAL` was; until then they are counted, left out.

    What is kept is put into the order in which several workers are over soonest.
    """
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    counts: dict[str, int] = {}
    for item in items:
        mark = item.get_closest_marker("fetched")
        if mark is None or (config.rootpath / FETCHED[mark.args[0]]).exists():
            kept.append(item)
        else:
            left.append(item)
            counts[mark.args[0]] = counts.get(mark.args[0], 0) + 1
    config.stash[LEFT_OUT] = counts
    items[:] = longest_first(kept)
    if left:
        config.hook.pytest_deselected(items=left)


def longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Modules that last longest first, so that no worker is left alone with one: what needs real components, which is
    waited for most of the time, then what runs for seconds. All others take milliseconds and fill the workers up."""

    def rank(item: pytest.Item) -> int:
        return 0 if item.get_closest_marker("real") else 1 if item.get_closest_marker("whole") else 2

    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = min(rank(item), ranks.get(item.path, 2))
    return sorted(items, key=lambda item: ranks[item.path])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells what it left out; each of them collects the whole."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})  # none of a worker that died
    node.config.stash[LEFT_OUT] = {**node.config.stash.get(LEFT_OUT, {}), **output.get("left_out", {})}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for goal, count in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.write_line(
            f"LEFT OUT {count}: `make {goal}` fetches what they need, which `make test` does not"
        )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself while it is imported would hide the marks of its tests: a failure too."""
    report = yield
    if report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"a module may not skip itself as a whole\n{report.longrepr}"
    return report
