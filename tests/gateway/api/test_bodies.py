"""Bodies of requests: a reason of blanks is none."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.api.bodies import HostRevocation, RolloverStep


@pytest.mark.parametrize("reason", ["", " ", "\t\n "])
def test_blanks_give_no_reason(reason: str) -> None:
    for body in (HostRevocation, RolloverStep):
        with pytest.raises(ValidationError, match="at least 1 character"):
            body.model_validate({"reason": reason})


def test_a_reason_is_what_lies_between_its_blanks() -> None:
    assert RolloverStep(reason=" CHG-118 ").reason == "CHG-118"
