"""Hostile text in a terminal."""

from __future__ import annotations

import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from gateway.cli.errors import Refused
from gateway.cli.output import print_json
from gateway.cli.terminal import harmless, plain

HOSTILE = [
    "\x1b[2J\x1b[Hall clear",  # clears the screen
    "\x1b]0;root@prod\x07",  # retitles the window
    "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",  # a hyperlink
    "\x1b]52;c;cm0gLXJm\x07",  # writes the clipboard
    '\x1bP$q"p\x1b\\',  # makes the terminal answer
    "\x9b31mC1 CSI",
    "web-1\rweb-2",  # overwrites the line
    "web-1\nrecord 7  allowed",  # forges a line
    "web\u2028forged",
    "\u202eyllacitcer",  # reads backwards
    "pay\u200broll",  # looks like payroll
    "\ud800 lone surrogate",
    "\x00\x08\x7f\U000e0041",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_reaches_the_terminal_and_nothing_is_dropped_in_silence(text: str) -> None:
    shown = harmless(text)
    assert shown.encode()  # can be written at all
    assert all(unicodedata.category(one)[0] not in "CZ" or one == " " for one in shown)
    assert "\\" in shown


@given(st.text(), st.integers(1, 50))
def test_any_text_becomes_one_short_line_of_visible_characters(text: str, limit: int) -> None:
    shown = harmless(text, limit)
    assert len(shown) <= limit
    assert all(unicodedata.category(one) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for one in shown)


@given(st.text(alphabet=st.characters(categories=["L", "M", "N", "P", "S"]), max_size=400))
def test_honest_text_of_any_script_is_left_as_it_is(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize("text", ["[bold red]x[/]", "[link=https://evil.example]x[/link]", "[/]", ":warning:", "\\[x]"])
def test_markup_is_only_text(text: str) -> None:
    out = Console(file=io.StringIO(), force_terminal=True, width=120)
    table = Table()
    table.add_row(plain(text))
    out.print(plain(text))
    out.print(table)
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count(text) == 2
    assert "\x1b]8" not in printed


def test_an_error_of_a_hostile_server_is_one_line() -> None:
    line = Refused("no\x1b[2J\nsealane: all is well", "operator\r", "x" * 5000).line()
    assert line.isprintable()
    assert len(line) <= 1200


@given(st.dictionaries(st.text(), st.text()))
def test_json_is_ascii_without_controls_and_says_the_same(
    document: dict[str, str],
) -> None:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        print_json(document)
    line = out.getvalue()
    assert line.endswith("\n")
    assert all(" " <= one <= "~" for one in line[:-1])
    assert json.loads(line) == document
