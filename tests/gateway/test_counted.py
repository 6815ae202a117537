"""What is counted agrees with its number."""

import pytest

from gateway.counted import counted


@pytest.mark.parametrize(
    ("number", "thing", "words"),
    [
        (0, "record", "0 records"),
        (1, "record", "1 record"),
        (2, "VM", "2 VMs"),
        (1, "policy", "1 policy"),
        (19, "policy", "19 policies"),
        (3, "day", "3 days"),
        (1, "hash", "1 hash"),
        (2, "hash", "2 hashes"),
    ],
)
def test_one_is_singular_and_all_else_plural(number: int, thing: str, words: str) -> None:
    assert counted(number, thing) == words
