"""What a record holds in each field, and how text is folded."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from audit.query import Kind, facets_of, fields
from audit.query.facets import microseconds
from audit.query.text import MAX_TEXT_CHARS, fold, words
from tests.audit.query.documents import DECISION, documents

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def test_a_decision_is_found_by_everything_in_it() -> None:
    found = facets_of(7, DECISION)
    assert found[fields.VM_NAME] == ("web-1",)
    assert found[fields.SOURCE_NAME] == ("a",)
    assert found[fields.DESTINATION_NAME] == ("host-zz",)  # nobody knows it, so what was asked for
    assert fields.DESTINATION_ID not in found
    assert found[fields.GROUP] == ("ops", "s-1-5-32-544")
    assert found[fields.REASON] == ("kernel update tonight",)
    assert found[fields.TICKET] == ("chg-42",)
    assert found[fields.TIME] == (microseconds("2026-11-22T21:42:21.123456Z"),)


@given(st.one_of(documents(), st.dictionaries(st.sampled_from([*DECISION, "claims"]), _JSON)))
def test_any_document_gives_values_of_the_right_kind(document: dict[str, Any]) -> None:
    for atom, values in facets_of(1, document).items():
        is_text = atom.kind in {Kind.TEXT, Kind.WORDS}
        assert values
        assert len(values) == 1 or atom.many
        assert all(isinstance(value, str if is_text else int) for value in values)


@given(st.text())
def test_folding_twice_changes_nothing_that_is_compared(text: str) -> None:
    assert len(fold(text)) <= MAX_TEXT_CHARS
    assert "\0" not in fold(text)
    assert all(words(word) == (word,) or not word.islower() for word in words(text))


def test_a_character_stays_one() -> None:
    assert fold("İ") == "i"
    assert fold("\u03a3X\u03a3") == "\u03c3x\u03c3"  # not the final sigma: it would depend on what stands around it
    assert fold("e\u0301") == "é"
