"""Rules for the whole suite: Hypothesis profiles, and no silent skip of a real component.

Profiles are chosen by HYPOTHESIS_PROFILE: ``ci`` (the default) draws the same examples in every run, so that
a red build can be repeated; ``quick`` (``make check``) draws fewer of them; ``fuzz`` (``make fuzz``) many new ones.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
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
