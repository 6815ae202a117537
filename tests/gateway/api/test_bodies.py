"""Bodies of requests: a reason of blanks is none, and thousands of errors are one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.api.bodies import HostRevocation, RolloverStep, SignIn


@pytest.mark.parametrize("reason", ["", " ", "\t\n "])
def test_blanks_give_no_reason(reason: str) -> None:
    for body in (HostRevocation, RolloverStep):
        with pytest.raises(ValidationError, match="at least 1 character"):
            body.model_validate({"reason": reason})


def test_a_reason_is_what_lies_between_its_blanks() -> None:
    assert RolloverStep(reason=" CHG-118 ").reason == "CHG-118"


def test_thousands_of_unknown_members_are_one_error() -> None:
    with pytest.raises(ValidationError) as refused:
        SignIn.model_validate({"username": "a", "password": "b", **{str(number): 0 for number in range(8000)}})
    assert refused.value.error_count() == 1
    with pytest.raises(ValidationError, match="extra_forbidden"):
        SignIn.model_validate({"username": "a", "password": "b", "more": 0})
