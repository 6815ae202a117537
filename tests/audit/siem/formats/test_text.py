from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.siem.formats.text import as_ascii, ascii_json, joined, member, milliseconds, printable
from tests.audit.siem.hostile import hostile_text


@given(st.dictionaries(hostile_text, hostile_text | st.integers() | st.none()))
def test_ascii_json_is_one_printable_line_of_the_same_value(value: dict[str, object]) -> None:
    line = ascii_json(value)
    assert line.isascii()
    assert line.decode().isprintable()
    assert msgspec.json.decode(line) == value


def test_json_that_is_ascii_is_left_as_it_is() -> None:
    plain = b'{"a":"b"}'
    assert as_ascii(plain) is plain


@given(hostile_text, st.integers(2, 50))
def test_a_printable_text_has_one_line_and_no_more_than_allowed(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E for c in shown)


def test_nothing_that_turns_the_reading_direction_is_left() -> None:
    turning = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # Unicode's Bidi_Control
    assert printable(f"a{turning}b") == f"a{' ' * len(turning)}b"


def test_long_text_says_that_it_was_cut() -> None:
    assert printable("abcdef", 4) == "abc…"


def test_times_are_milliseconds_since_the_epoch() -> None:
    assert milliseconds("2026-11-22T21:00:01.250000Z") == 1_795_381_201_250


@pytest.mark.parametrize(("value", "shown"), [(["a", "b"], "a,b"), ([], None), (None, None), ("a", None)])
def test_lists_are_joined(value: object, shown: str | None) -> None:
    assert joined(value) == shown


def test_members_that_are_not_there_are_none() -> None:
    assert member({"a": {"b": 1}}, "a", "b") == 1
    assert member({"a": "text"}, "a", "b") is None
    assert member({}, "a", "b") is None
