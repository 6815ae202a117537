"""Times as text: one form for programs, two for people, and no number from outside that breaks the telling."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.times import record_time_to_the_second, rfc3339, to_the_minute, to_the_second

IN_TOKYO = datetime(2026, 11, 23, 6, 42, 21, tzinfo=timezone(timedelta(hours=9)))


def test_programs_get_utc_with_a_fraction_only_where_there_is_one() -> None:
    assert rfc3339(IN_TOKYO) == "2026-11-22T21:42:21Z"
    assert rfc3339(IN_TOKYO.replace(microsecond=5000)) == "2026-11-22T21:42:21.005000Z"


def test_people_get_utc_whether_a_moment_or_unix_seconds_were_told() -> None:
    assert to_the_minute(IN_TOKYO) == to_the_minute(int(IN_TOKYO.timestamp())) == "2026-11-22 21:42 UTC"
    assert to_the_second(IN_TOKYO.astimezone(UTC)) == "2026-11-22 21:42:21 UTC"


@pytest.mark.parametrize("seconds", [2**63, -(2**63), 2**200], ids=str)
def test_a_number_that_is_no_time_is_called_that(seconds: int) -> None:
    assert to_the_second(seconds) == "an impossible time"


@pytest.mark.parametrize(
    ("told", "shown"),
    [("2026-11-22T21:42:21.000123Z", "2026-11-22 21:42:21"), (None, ""), (7, "7"), ("soon", "soon")],
)
def test_a_records_time_is_shown_to_the_second_and_what_is_none_as_it_stands(told: object, shown: str) -> None:
    assert record_time_to_the_second(told) == shown
