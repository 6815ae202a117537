"""A permit is used once: in this process, in another, after a crash, and with the clock set back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from transport.errors import OfferRefused, RefusalCode, SpoolFailed
from transport.relay.used_permits import SKEW_SECONDS, UsedPermits

RACE = """
import sys
from pathlib import Path
from transport.errors import OfferRefused
from transport.relay.used_permits import UsedPermits
store = UsedPermits(Path(sys.argv[1]))
sys.stdin.readline()
won = []
for n in range(50):
    try:
        store.use("key", f"jti{n}", 1000, 900)
    except OfferRefused:
        continue
    won.append(n)
print(won)
"""


@pytest.fixture
def store(tmp_path: Path) -> UsedPermits:
    return UsedPermits(tmp_path / "used.sqlite")


def test_a_second_use_is_refused_also_after_a_restart(store: UsedPermits, tmp_path: Path) -> None:
    store.use("key", "jti", 1000, 900)
    for again in (store, UsedPermits(tmp_path / "used.sqlite")):
        with pytest.raises(OfferRefused) as refused:
            again.use("key", "jti", 1000, 900)
        assert refused.value.code is RefusalCode.PERMIT_REPLAYED


def test_the_same_name_under_another_key_is_another_permit(store: UsedPermits) -> None:
    store.use("key", "jti", 1000, 900)
    store.use("other key", "jti", 1000, 900)


def test_a_clock_set_back_brings_no_permit_to_life(store: UsedPermits) -> None:
    store.use("key", "old", 1000, 900)
    store.use("key", "new", 5000, 1000 + SKEW_SECONDS + 1)  # forgets the old one
    with pytest.raises(OfferRefused):
        store.use("key", "old", 1000, 900)
    store.use("key", "other", 1001 + SKEW_SECONDS, 900)


def test_a_clock_that_was_years_ahead_for_a_while_keeps_no_later_permit_out(store: UsedPermits) -> None:
    """Of gateway and relay alike, by one time server: the host took no permit until that year had come."""
    year = 365 * 86400
    store.use("key", "old", 1000, 900)
    store.use("key", "far ahead", 10 * year + 100, 10 * year)  # forgets the old one
    store.use("key", "new", 2000, 1900)
    for jti, exp in (("old", 1000), ("far ahead", 10 * year + 100), ("new", 2000)):
        with pytest.raises(OfferRefused):
            store.use("key", jti, exp, 1900)


def test_of_two_processes_exactly_one_wins_each_permit(tmp_path: Path) -> None:
    path = str(tmp_path / "used.sqlite")
    UsedPermits(Path(path))
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [json_list(racer.communicate(timeout=30)[0]) for racer in racers]
    assert sorted(won[0] + won[1]) == list(range(50))


def json_list(text: str) -> list[int]:
    return [int(n) for n in text.strip("[] \n").split(",") if n.strip()]


def test_a_store_that_cannot_be_written_takes_no_permit(tmp_path: Path) -> None:
    path = tmp_path / "used.sqlite"
    store = UsedPermits(path)
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(SpoolFailed):
        store.use("key", "jti", 1000, 900)
