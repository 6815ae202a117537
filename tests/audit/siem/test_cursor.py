from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audit.siem.cursor import Cursor, is_sink_name, read_cursor
from audit.siem.sink import SinkStopped


def test_without_a_file_delivery_begins_at_the_start(tmp_path: Path) -> None:
    assert read_cursor(tmp_path / "none", "o") == Cursor("o", 0, None)


def test_a_cursor_reads_back(tmp_path: Path) -> None:
    cursor = Cursor("o", 7, "ab" * 32, 2)
    (tmp_path / "c").write_bytes(msgspec.json.encode(cursor))
    assert read_cursor(tmp_path / "c", "o") == cursor


def test_the_cursor_of_another_log_stops_the_sink(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(msgspec.json.encode(Cursor("other", 7, "ab" * 32)))
    with pytest.raises(SinkStopped, match="belongs to the log other"):
        read_cursor(tmp_path / "c", "o")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"origin":"o","position":-1}',
        b'{"origin":"o","position":5}',
        b'{"origin":"o","position":0,"last":"' + b"ab" * 32 + b'"}',
        b'{"origin":"o","position":5,"last":"xy"}',
        b'{"origin":"o","position":5,"last":"' + b"ab" * 32 + b'","more":1}',
        b"\xff" * 5000,
    ],
)
def test_a_damaged_cursor_stops_the_sink_and_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(SinkStopped, match="remove it"):
        read_cursor(tmp_path / "c", "o")


@given(st.text(max_size=70) | st.text("abc09-./A\n\0é", max_size=4))
@example("elastic-1")
@example("a" * 63)
def test_names_of_sinks_are_safe_in_file_names(name: str) -> None:
    plain = bool(name) and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert is_sink_name(name) == (plain and len(name) <= 63 and name.strip("-") == name)
