"""Which version relay and gateway agree on: the lower, if they are no further apart than one."""

from __future__ import annotations

import pytest

from transport import link_version
from transport.link_version import FIRST, NEWEST, LinkRefused, agreed


def test_who_names_no_version_speaks_the_first_and_both_keep_to_the_lower_one() -> None:
    assert agreed(None) == FIRST
    assert agreed(str(NEWEST)) == NEWEST
    assert agreed(str(NEWEST + 1)) == NEWEST, "the newer one speaks as we do"
    assert agreed(str(NEWEST - 1)) == NEWEST - 1


def test_two_versions_apart_the_older_one_is_to_be_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_version, "NEWEST", 7)
    assert agreed("6") == 6
    for theirs, ours_is_older in (("5", False), (None, False), ("9", True)):
        with pytest.raises(LinkRefused) as refused:
            agreed(theirs)
        assert refused.value.ours_is_older is ours_is_older


@pytest.mark.parametrize("theirs", ["", "0", "02", "-1", "2.0", "2, 2", "two", "99999", " 2", "2\n", "٢"])
def test_what_is_no_version_is_refused_and_not_repeated(theirs: str) -> None:
    with pytest.raises(LinkRefused) as refused:
        agreed(theirs)
    assert "version ? of" in str(refused.value)
