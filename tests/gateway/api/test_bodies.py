"""Bodies of requests: a reason of blanks is none, and thousands of errors are one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.api.bodies import HostRevocation, Move, RolloverStep, SignIn, StepOfBreakGlass
from gateway.api.evacuation_calls import Prepare


@pytest.mark.parametrize("reason", ["", " ", "\t\n "])
def test_blanks_give_no_reason(reason: str) -> None:
    for body in (HostRevocation, RolloverStep):
        with pytest.raises(ValidationError, match="at least 1 character"):
            body.model_validate({"reason": reason})


@pytest.mark.parametrize("reason", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\u2028b", "a\x7f", "a\x85b"])
def test_a_reason_is_one_line_of_plain_text_whatever_it_is_for(reason: str) -> None:
    for body in (HostRevocation, RolloverStep, Prepare, Move, StepOfBreakGlass):
        with pytest.raises(ValidationError, match="control, surrogate or text-direction") as refused:
            body.model_validate({"reason": reason, "host": "a", "hours": 1, "vm": "web", "destination": "b"})
        assert all("control" in error["msg"] for error in refused.value.errors() if error["loc"] == ("reason",))


def test_a_reason_is_what_lies_between_its_blanks() -> None:
    assert RolloverStep(reason=" CHG-118 ").reason == "CHG-118"


def test_thousands_of_unknown_members_are_one_error() -> None:
    with pytest.raises(ValidationError) as refused:
        SignIn.model_validate({"username": "a", "password": "b", **{str(number): 0 for number in range(8000)}})
    assert refused.value.error_count() == 1
    with pytest.raises(ValidationError, match="extra_forbidden"):
        SignIn.model_validate({"username": "a", "password": "b", "more": 0})
