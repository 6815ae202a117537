"""The register of hosts keeps what may still count, and what ended not long ago."""

from __future__ import annotations

from pathlib import Path

from gateway.enrolment.register import Issued, Note, Register

DAY = 86_400
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def test_years_of_renewals_leave_a_month_of_them(tmp_path: Path) -> None:
    register = Register(tmp_path / "hosts.sqlite")
    for day in range(400):
        register.apply([Note(Issued(f"{day:x}", "a", (day + 1) * DAY, KEY), day * DAY)])
    (kept,) = register._database.execute("SELECT count(*) FROM certificates").fetchone()
    assert kept <= 33
    assert register._database.execute("SELECT count(*) FROM keys").fetchone() == (kept,)
    assert register.valid_serials("a", 399 * DAY) == [f"{399:x}"]
    register.close()


def test_what_was_revoked_stays_known(tmp_path: Path) -> None:
    register = Register(tmp_path / "hosts.sqlite")
    register.apply([Note(Issued("1", "a", DAY, KEY), 0), Note(Issued("2", "b", DAY, OTHER_KEY), 0)])
    register.revoke("a", ["1"], 1)
    register.apply([Note(Issued("3", "a", 101 * DAY, OTHER_KEY), 100 * DAY)])
    assert register.revoked() == {"1": DAY}
    assert (register.has_revoked(KEY), register.has_revoked(OTHER_KEY)) == (True, False)
    assert register.valid_serials("b", 0) == ["2"]
    register.close()


def test_who_is_out_is_known_until_it_gets_another_certificate(tmp_path: Path) -> None:
    register = Register(tmp_path / "hosts.sqlite")
    register.apply([Note(Issued("1", "a", DAY, KEY), 0), Note(Issued("2", "b", DAY, OTHER_KEY), 0)])
    assert register.hosts_out() == []
    register.apply([Note(Issued("3", "a", 5 * DAY, KEY), 4 * DAY)])  # the first has ended
    register.revoke("a", ["3"], 4 * DAY + 1)
    assert register.hosts_out() == ["a"]
    register.apply([Note(Issued("4", "a", 5 * DAY, OTHER_KEY), 4 * DAY + 2)])
    assert register.hosts_out() == [], "and long after, too, when that one has ended"
    register.close()


def test_what_was_forgotten_of_revoked_certificates_is_recalled_once(tmp_path: Path) -> None:
    register = Register(tmp_path / "hosts.sqlite")
    register.apply([Note(Issued("1", "a", DAY, KEY), 0), Note(Issued("2", "a", DAY, KEY), 0)])
    register.revoke("a", ["1"], 1)
    assert register.forgotten(["1", "2", "3", "4"]) == ["2", "3", "4"], "the second is revoked by the log alone"
    register.recall(Issued("2", "a", DAY, KEY), 5)
    register.recall(Issued("3", "a", DAY, OTHER_KEY), 5)
    register.recall(Issued("4", "a", 0, b""), 5)
    assert register.forgotten(["1", "2", "3", "4"]) == []
    assert (register.has_revoked(KEY), register.has_revoked(OTHER_KEY), register.has_revoked(b"")) == (
        True,
        True,
        False,
    )
    assert register.revoked() == {"1": DAY, "2": DAY, "3": DAY}
    register.close()
