"""What a person sees of a migration."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gateway.cli.migration_view import Bar, fraction, numbers_line, show_preflight, show_summary, size, summarise
from gateway.cli.replies import Decision, DecisionReply, FindingReply, MigrationReply, PreflightReply, Progress

COUNTS = st.integers(0, 2**63 - 1)
ANSWER = DecisionReply(Decision(allowed=True), 9, "m-1")
EVIL = "\x1b[2J[bold]\r\n\x9b1m"


@given(st.sampled_from(["running", "completed", "failed"]), COUNTS, COUNTS)
def test_the_bar_stays_between_its_ends_whatever_a_host_says(state: str, remaining: int, total: int) -> None:
    assert 0.0 <= fraction(state, Progress(remaining_bytes=remaining, total_bytes=total)) <= 1.0


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (2**63, "8388608.0 TiB")]
)
def test_sizes_have_units(count: int, text: str) -> None:
    assert size(count) == text


def test_what_is_not_known_is_not_said() -> None:
    assert numbers_line(Progress()) == ""
    known = Progress(remaining_bytes=1 << 20, total_bytes=1 << 30, rate_bytes_per_second=1 << 30, pass_number=3)
    assert numbers_line(known) == "1.0 GiB/s  1.0 MiB remaining  pass 3"


def test_the_bar_shows_state_percent_rate_remaining_and_pass() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, markup=False, color_system=None)
    numbers = Progress(remaining_bytes=25 << 20, total_bytes=100 << 20, rate_bytes_per_second=7 << 20, pass_number=2)
    with Bar(console) as bar:
        bar.show(MigrationReply("m-1", "running", numbers))
        bar.show(MigrationReply("m-1", EVIL, numbers, message=EVIL))
        bar.note(EVIL)
    printed = out.getvalue()
    for said in ("running", "75%", "7.0 MiB/s", "25.0 MiB remaining", "pass 2", "\\x1b[2J[bold]"):
        assert said in printed
    assert "\x1b[2J" not in printed
    assert "\x9b" not in printed


@pytest.mark.parametrize(
    ("can_move", "severity", "headline"),
    [
        (True, "attention", "CAN move"),
        (True, "unknown", "CAN move, for all that could be found out"),
        (False, "unknown", "CANNOT move"),
    ],
)
def test_what_could_not_be_found_out_is_no_promise(can_move: bool, severity: str, headline: str) -> None:
    out = io.StringIO()
    finding = FindingReply("unreachable", severity, "operator", "a: cannot open the monitor")
    show_preflight(Console(file=out, width=120), PreflightReply(can_move, (finding,)))
    assert out.getvalue().splitlines()[0] == headline


def body(**members: Any) -> dict[str, Any]:
    return {"role": "source", "body": {"role": "source", **members}}


def test_a_summary_prefers_what_hosts_certified_over_what_they_reported() -> None:
    receipt = body(downtime_ms=40, channels=[{"sent_bytes": 7, "received_bytes": 1}], tls={"version": "TLSv1.3"})
    reply = MigrationReply("m-1", "completed", Progress(transferred_bytes=99, downtime_ms=99), receipts=(receipt,))
    summary = summarise(ANSWER, reply, 1.23456)
    assert (summary["bytes"], summary["downtime_ms"], summary["tls_version"]) == (8, 40, "TLSv1.3")
    assert summary["seconds"] == 1.235


def test_without_receipts_the_reports_are_what_is_known() -> None:
    reply = MigrationReply("m-1", "failed", Progress(transferred_bytes=99), message="no receipt arrived")
    summary = summarise(ANSWER, reply, 1.0)
    assert (summary["bytes"], summary["downtime_ms"], summary["tls_version"]) == (99, None, None)
    assert summary["message"] == "no receipt arrived"


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["sent_bytes", "version"]), inner),
)
BODIES = st.dictionaries(st.sampled_from(["role", "tls", "channels", "downtime_ms", "vm_binding", "body"]), JSON)


@given(st.lists(st.dictionaries(st.sampled_from(["role", "body"]), JSON | BODIES), max_size=3))
def test_receipts_of_any_shape_are_summarised_and_printed_as_text(receipts: list[dict[str, Any]]) -> None:
    out = io.StringIO()
    summary = summarise(ANSWER, MigrationReply(EVIL, "completed", receipts=tuple(receipts)), 1.0)
    show_summary(Console(file=out, markup=False, width=500), summary)
    assert not set(out.getvalue()) & set("\x1b\x9b\r\x07")
