from __future__ import annotations

from pathlib import Path

from audit.siem.quarantine import Quarantine, Untold
from audit.siem.sink import Refusal
from certs.files import write_atomically
from tests.audit.siem.entries import log_entry


def test_what_was_refused_is_kept_with_its_cause_and_can_be_discarded(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", write_atomically)
    assert quarantine.list() == ([], 0)
    batch = [log_entry(index) for index in range(8, 12)]
    quarantine.put([Refusal(9, "too\nlong"), Refusal(11, "odd")], batch)
    quarantine.put([Refusal(9, "too\nlong")], batch)
    kept, count = quarantine.list()
    assert [(each.index, each.cause) for each in kept] == [(9, "too long"), (11, "odd")]
    assert (kept[0].entry.encode(), count) == (batch[1].entry, 2)
    assert [each.index for each in quarantine.list(after=9)[0]] == [11]
    quarantine.discard([9, 10])
    assert [each.index for each in quarantine.list()[0]] == [11]


def test_refusals_are_told_together_and_at_most_once_in_a_while() -> None:
    untold = Untold()
    assert untold.take(0, 60) is None
    untold.add([Refusal(3, "odd"), Refusal(5, "odd, too")])
    assert untold.take(0, 60) == {"count": 2, "first": 3, "last": 5, "cause": "odd"}
    untold.add([Refusal(7, "later")])
    untold.add([Refusal(8, "still later")])
    assert untold.take(59, 60) is None
    assert untold.take(60, 60) == {"count": 2, "first": 7, "last": 8, "cause": "later"}
    assert untold.take(1000, 60) is None
