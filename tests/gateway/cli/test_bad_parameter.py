from __future__ import annotations

import pytest

from tests.gateway.cli.conftest import Sealane


@pytest.mark.parametrize("minutes", ["0", "-1", "99999999999999999999999999", "abc", "1.5", "10081"])
def test_the_whole_range_of_an_option_is_said(sealane: Sealane, minutes: str) -> None:
    result = sealane("certs", "token", "fra7", "--minutes", minutes)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.endswith(f"'--minutes': '{minutes}' is not allowed; allowed is a whole number from 1 to 10080")


def test_a_word_that_is_no_choice_is_told_the_choices_and_nothing_of_python(sealane: Sealane) -> None:
    result = sealane("audit", "query", "--format", "xml")
    assert result.exit_code == 2
    assert result.stderr.endswith("'--format': 'xml' is not one of 'table', 'jsonl', 'csv'.\n")
    assert "Value error" not in result.stderr
