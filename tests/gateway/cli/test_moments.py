"""Times as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.errors import BadConfiguration
from gateway.cli.moments import parse_moment

NOW = datetime(2026, 11, 22, 21, 42, 21, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90m", "2026-11-22T20:12:21.123456Z"),
        ("7d", "2026-11-15T21:42:21.123456Z"),
        ("2026-11-22", "2026-11-22T00:00:00.000000Z"),
        ("2026-11-22T21:42:21", "2026-11-22T21:42:21.000000Z"),
        ("2026-11-22T21:42:21Z", "2026-11-22T21:42:21.000000Z"),
        ("2026-11-22T21:42:21.5+02:00", "2026-11-22T19:42:21.500000Z"),
    ],
)
def test_moments_become_what_records_hold(text: str, moment: str) -> None:
    assert parse_moment(text, NOW, "--since") == moment


@pytest.mark.parametrize(
    "text", ["", "yesterday", "7", "-7d", "\u0667d", "2026-13-01", "0001-01-01T00:00:00+14:00", "999999w"]
)
def test_what_is_no_time_is_refused_by_the_name_of_the_option(text: str) -> None:
    with pytest.raises(BadConfiguration, match="--since"):
        parse_moment(text, NOW, "--since")


@given(st.text() | st.text(alphabet="0123456789-:TZ+.smhdw"))
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    try:
        moment = parse_moment(text, NOW, "--until")
    except BadConfiguration:
        return
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", moment)
    assert parse_moment(moment, NOW, "--until") == moment
