"""`sealane policy fmt`: nothing is lost, and a second run changes nothing."""

from __future__ import annotations

import cedarpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.authoring.format import format_bundle, format_policies
from policy.bundle_files import read_bundle_files
from policy.errors import BundleRefused
from tests.policy.cedar_world import BANK

_SPACE = st.sampled_from([" ", "\n", "\n\n", "\t", " // a comment\n", "\n// one\n// two\n"])
_ATOM = st.sampled_from(
    ['resource.zone == "a"', "context.reason_given", "[1, 2,].contains(1)", "!(1 < 2)", '"(;" == "//"']
)


@st.composite
def policies(draw: st.DrawFn) -> str:
    text = ""
    for number in range(draw(st.integers(0, 3))):
        words = [f'@id("p{number}")', "permit", "(", "principal", ",", "action", ",", "resource", ")"]
        for _ in range(draw(st.integers(0, 2))):
            body = draw(st.sampled_from([" && ", " || "])).join(draw(st.lists(_ATOM, min_size=1, max_size=3)))
            words += [draw(st.sampled_from(["when", "unless"])), "{", body, "}"]
        text += "".join(word + draw(_SPACE) for word in [*words, ";"])
    return text


@given(policies())
def test_formatting_twice_is_formatting_once_and_loses_nothing(text: str) -> None:
    done = format_policies("a", text)
    assert format_policies("a", done) == done
    assert cedarpy.policies_to_json_str(done) == cedarpy.policies_to_json_str(text)
    assert done.count("// a comment") == text.count("// a comment")
    assert done.count("// two") == text.count("// two")


def test_the_example_bundle_is_formatted() -> None:
    assert format_bundle(read_bundle_files(BANK)) == {}


@pytest.mark.parametrize("text", ["permit (", "(" * 100_000, "permit (principal, action, resource)"])
def test_what_is_not_cedar_is_refused(text: str) -> None:
    with pytest.raises(BundleRefused):
        format_policies("a", text)
