"""YAML that is not what it seems is refused, with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.yaml_text import MAX_CHARACTERS, NotStrict, decode


def test_text_numbers_and_truth_are_what_they_seem() -> None:
    text = (
        "a: text of words\nb: [1, -2, 0, true, false]\nc: {d: \"no\", e: '017'}\nf: |\n  yes\ng: 2026-01-05T12:00:00Z\n"
    )
    assert decode(text).value == {
        "a": "text of words",
        "b": [1, -2, 0, True, False],
        "c": {"d": "no", "e": "017"},
        "f": "yes\n",
        "g": "2026-01-05T12:00:00Z",
    }
    assert decode("").value == {}


@pytest.mark.parametrize(
    "word",
    [
        "no", "NO", "Yes", "on", "off", "y", "N", "True", "FALSE", "null", "~", "", "017", "0o17", "0x1f", "0b1",
        "1_000", "1:30", "190:20:30", "1.5", "1e3", ".5", ".inf", "-.INF", ".nan", "+1", "-0", "=",
    ],
)  # fmt: skip
def test_a_word_that_some_yaml_reads_otherwise_is_refused(word: str) -> None:
    with pytest.raises(NotStrict, match=r"line 1, column .*: .* is not the same in every YAML"):
        decode(f"zone: {word}")
    assert decode(f'zone: "{word}"').value == {"zone": word}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x 1\nb: *x", "line 1, column 4: uses an anchor"),
        ("a: *x", "uses an anchor or alias"),
        ("a: !!python/object/apply:os.system [x]", "uses a tag"),
        ("a: !!str 1", "uses a tag"),
        ("a: 1\na: 2", "line 2, column 1: has the key 'a' twice"),
        ("a: 1\n---\nb: 2", "second document"),
        ("<<: {a: 1}", "is not the same in every YAML"),
        ("1: a", "a key that is no text"),
        ("? [a]\n: b", "a key that is no text"),
        ("a: [", "is not YAML"),
        ("a: b: c", "line 1, column 5: is not YAML"),
        ("a:\n\t- b", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("[" * 100_000, "nest"),
        ("[" * 50 + "]" * 50, "is nested deeper"),
        ("a: " + "x" * MAX_CHARACTERS, "split the file"),
    ],
)
def test_what_no_test_file_needs_is_refused(text: str, words: str) -> None:
    with pytest.raises(NotStrict) as caught:
        decode(text)
    assert words in str(caught.value)


def test_a_part_has_the_place_where_it_stands() -> None:
    document = decode("cases:\n  - name: a\n  - name: b\n    expect: maybe\n")
    assert document.place(("cases", 1)) == (3, 5)
    assert document.place(("cases", 1, "expect")) == (4, 13)
    assert document.place(("cases", 1, "missing")) == (3, 5)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        decode(text)
    except NotStrict:
        return


VALUES = st.recursive(
    st.booleans() | st.integers(-(10**17), 10**17) | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text("abc", min_size=1), VALUES))
def test_json_is_read_as_what_it_is(value: dict[str, object]) -> None:
    assert decode(json.dumps(value)).value == value
