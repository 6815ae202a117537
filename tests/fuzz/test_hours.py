"""How long each target was fuzzed is added up over runs, also when two run at once, and is told as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.hours import Hours, Spent, in_all, table


def test_what_several_runs_spent_is_added_up_by_target_and_commit(tmp_path: Path) -> None:
    file = tmp_path / "hours.json"
    Hours(file).add("permit", "aaaa", Spent(1.5, 10))
    Hours(file).add("crl", "aaaa", Spent(3, 7))
    assert Hours(file).add("permit", "bbbb+", Spent(2.25, 5)) == Spent(3.75, 15)
    assert Hours(file).add("permit", "aaaa", Spent(1, 1)) == Spent(4.75, 16)
    assert Hours(file).read() == {
        "crl": {"aaaa": Spent(3, 7)},
        "permit": {"aaaa": Spent(2.5, 11), "bbbb+": Spent(2.25, 5)},
    }


def test_runs_that_end_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    def run(_: int) -> None:
        Hours(tmp_path / "hours.json").add("permit", "aaaa", Spent(1, 2))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(64)))
    assert in_all(Hours(tmp_path / "hours.json").read()["permit"]) == Spent(64, 128)


def test_the_table_names_what_was_never_run_and_leaves_out_what_was_not_asked_for(tmp_path: Path) -> None:
    hours = Hours(tmp_path / "hours.json")
    assert hours.read() == {}
    hours.add("permit", "aaaa", Spent(3600.2, 1_234_567))
    hours.add("permit", "bbbb+", Spent(1, 1))
    hours.add("gone", "aaaa", Spent(9, 9))
    assert table(hours.read(), ["crl", "permit"]).splitlines()[2:] == [
        "| `crl` | 0 | 0 |  |",
        "| `permit` | 3,601 | 1,234,568 | aaaa, bbbb+ |",
        "| in all | 3,601 | 1,234,568 | |",
    ]
