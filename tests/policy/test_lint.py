"""What Cedar's own validator lets pass, and a bundle with it must not."""

from __future__ import annotations

import cedarpy
import pytest

from policy.errors import BundleRefused
from tests.policy.cedar_world import OUR_SCHEMA, bundle

POLICY = '@id("p") @reason("Why.") forbid (principal, action in Sealane::Action::"AnyMove", resource) %s;'
LOOK_ALIKE = "pr\u043educti\u043en"  # two Cyrillic letters


@pytest.mark.parametrize("word", [LOOK_ALIKE, "\u0391lpha", "x " + LOOK_ALIKE, "a-" + LOOK_ALIKE])
def test_a_word_of_two_alphabets_is_refused(word: str) -> None:
    text = POLICY % f'when {{ resource.zone == "{word}" }}'
    assert cedarpy.validate_policies(text, OUR_SCHEMA).validation_passed  # the trap
    with pytest.raises(BundleRefused, match="mixes alphabets"):
        bundle(text)


@pytest.mark.parametrize(
    "word",
    [
        "production",
        "\u043f\u0440\u043e\u0434",
        "M\u00fcnchen",
        "\u0441\u0435\u0440\u0432\u0435\u0440 web",
        "\u4e2d\u6587x",
    ],
)
def test_words_of_one_alphabet_are_names(word: str) -> None:
    assert bundle(POLICY % f'when {{ resource.zone == "{word}" }}' + f" // {LOOK_ALIKE}").policies


@pytest.mark.parametrize("condition", ["when { false }", "unless { true }", "when { true } when { false }"])
def test_a_policy_that_can_never_apply_is_refused(condition: str) -> None:
    text = POLICY % condition
    assert cedarpy.validate_policies(text, OUR_SCHEMA).validation_passed  # the trap
    with pytest.raises(BundleRefused, match="can never apply"):
        bundle(text)


@pytest.mark.parametrize("condition", ["when { true }", "unless { false }", "when { resource.zone == resource.name }"])
def test_a_policy_that_may_apply_is_taken(condition: str) -> None:
    assert bundle(POLICY % condition).policies
