"""docs/failures.md: each row names the test that shows it, and the tables of libvirt have the rows that are run."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.docs.pages import ROOT, read
from tests.transport.libvirt.failures import ALONE, KINDS, MOMENTS, POST_COPY_ALONE, POST_COPY_MOMENTS, VICTIMS

PAGE = read(ROOT / "docs" / "failures.md")
WITH_TESTS = (
    "## The source relay dies",
    "## The destination relay dies",
    "## A relay dies in post-copy",
    "## A network that breaks and comes back",
    "## Hypervisors",
)
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


def section(heading: str) -> str:
    """Up to the next heading of any level."""
    _, found, rest = f"\n{PAGE}".partition(f"\n{heading}\n")
    assert found, heading
    return re.split(r"\n#+ ", rest, maxsplit=1)[0]


def tables(heading: str) -> Iterator[list[list[str]]]:
    """Cells by row, the head first."""
    for block in re.findall(r"(?:^\|.*\|$\n?)+", section(heading), re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.strip().split("\n")]
        yield [lines[0], *lines[2:]]


def test_each_row_names_a_test_that_is_there_or_a_goal() -> None:
    rows = [row for heading in WITH_TESTS for table in tables(heading) for row in table[1:]]
    assert len(rows) > 45
    for row in rows:
        tests = TEST.findall(row[-1])
        assert tests or "`make " in row[-1], row
        for path, name in tests:
            assert f"def {name}(" in read(ROOT / "tests" / "transport" / path), row


def test_each_group_of_rows_says_when_it_was_run_last() -> None:
    (repeated, *_) = tables("## How each table was made")
    assert all(re.search(r"2\d{3}-\d\d-\d\d", row[-1]) for row in repeated[1:]), repeated


def test_the_tables_of_libvirt_have_the_rows_and_columns_that_are_run() -> None:
    def at(moments: tuple[tuple[str, str], ...]) -> list[str]:
        return [f"{moment} at {host}" for host, moment in moments]

    def of_libvirt(calls: tuple[tuple[str, int], ...]) -> list[str]:
        return [f"{when} {number}" for when, number in calls]

    direct = KINDS["direct"]
    pre_copy, pre_copy_alone = tables("## libvirt")
    post_copy, post_copy_alone = tables("### Post-copy")
    assert [row[0] for row in pre_copy[1:]] == at(MOMENTS)
    assert [row[0] for row in post_copy[1:]] == at(POST_COPY_MOMENTS)
    assert [row[0] for row in pre_copy_alone[1:]] == of_libvirt(ALONE)
    assert [row[0] for row in post_copy_alone[1:]] == of_libvirt(POST_COPY_ALONE)
    assert [head.removesuffix(" (direct)") for head in pre_copy[0][1:]] == list(direct.victims)
    assert [head.removesuffix(" (direct)") for head in pre_copy_alone[0][1:]] == list(direct.alone_victims)
    assert post_copy[0][1:] == list(VICTIMS)
