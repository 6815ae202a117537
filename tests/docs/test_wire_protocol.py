"""docs/wire-protocol.md, section 11: each property and each mistake names tests that are there."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT, read

PAGE = read(ROOT / "docs" / "wire-protocol.md")
TEST = re.compile(r"`([\w/]+\.py)`")


def test_each_property_and_each_mistake_has_a_test_that_is_there() -> None:
    _, found, section = PAGE.partition("\n## 11. Properties\n")
    assert found
    rows = [line for line in section.split("\n") if line.startswith("|") and not line.startswith("|---")]
    named = {row: TEST.findall(row.split(" | ")[-1]) for row in rows}
    without = [row for row, tests in named.items() if not tests]
    assert [row.split(" | ")[0] for row in without] == [
        "| property",
        "| Two colluding hosts bypass log and policy; a gateway that holds permit and log keys can show a split view",
        "| mistake",
    ]
    folders = (ROOT, ROOT / "tests" / "transport", ROOT / "tests" / "transport" / "relay")
    absent = [test for tests in named.values() for test in tests if not any((each / test).exists() for each in folders)]
    assert absent == []
