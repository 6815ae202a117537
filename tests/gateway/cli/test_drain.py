"""`sealane drain` as a person reads it; its queue is tested in `test_draining`."""

from __future__ import annotations

import json

import pytest

from tests.gateway.cli.conftest import CannedGateway, Sealane


@pytest.mark.parametrize(
    ("is_heard", "said", "outcome", "exit_code"),
    [
        (True, "a: no VM is there, for all that is known.\n", "empty", 0),
        (False, "a: its relay has not said lately what runs there, and nobody else knows.\n", "unknown", 1),
    ],
)
@pytest.mark.parametrize("check_only", [True, False])
def test_a_silent_host_is_not_called_empty(  # noqa: PLR0917
    logged_in: CannedGateway,
    sealane: Sealane,
    is_heard: bool,
    said: str,
    outcome: str,
    exit_code: int,
    check_only: bool,
) -> None:
    nothing = {"host": "a", "vms": 0, "may_move": 0, "hosts": 1, "prospects": [], "record_index": 0}
    logged_in.answer("POST", "/v1/drain/check", (200, {**nothing, "is_heard": is_heard}))
    command = ["drain", "a", *(["--check"] if check_only else [])]
    result = sealane(*command)
    assert (result.stdout, result.exit_code) == (said, exit_code)
    document = json.loads(sealane(*command, "--json").stdout)
    assert document["is_heard" if check_only else "outcome"] == (is_heard if check_only else outcome)
