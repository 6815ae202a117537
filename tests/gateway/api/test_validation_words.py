from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from gateway.api.bodies import TokenWish
from gateway.api.validation_words import words_of


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"host": "Lab 1!"}', "must be a host's name as the inventory has it: 1 to 63 of a-z, 0-9 and -"),
        ('{"host": 5}', "must be a text"),
        ('{"host": ""}', "must be a host's name"),
        ("{}", "is missing"),
        ('{"host": "a", "minutes": 0}', "must be 1 or more"),
        ('{"host": "a", "minutes": 99999}', "must be at most 10080"),
        ('{"host": "a", "minutes": 1.5}', "must be a whole number"),
        ('{"host": "a", "minutes": "5"}', "must be a whole number"),
        ('{"host": "a", "more": 5}', "is no member of this request"),
        ("[]", "must be an object"),
        ("{", "is no JSON"),
    ],
)
def test_what_is_allowed_is_said_and_what_was_sent_is_not(body: str, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(TokenWish).validate_json(body)
    words = words_of(refused.value.errors()[0])
    assert words.startswith(said)
    assert "Lab" not in words
