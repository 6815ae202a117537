"""Where a key lies says which step was taken last, whatever was cut off, for files and for folders."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs.authority import Authority
from certs.errors import CredentialError
from gateway.dispatch import Dispatch
from gateway.rollover.authorities import Authorities
from gateway.rollover.places import Places, Stage
from gateway.rollover.progress import Holdings, Progress, who_holds
from transport.link_version import NEWEST

Make = Callable[[Path, str], None]


def file(path: Path, text: str) -> None:
    path.write_text(text)


def folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / "ca.key").write_text(text)


def holds(path: Path) -> str:
    return (path / "ca.key" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("make", [file, folder])
def test_the_steps_follow_each_other(make: Make, tmp_path: Path) -> None:
    places = Places(tmp_path / "key")
    make(places.current, "old")
    assert (places.stage, places.beside()) == (Stage.IDLE, ())
    make(places.next, "new")
    assert (places.stage, places.beside()) == (Stage.PREPARED, ())
    places.begin("permit:1")
    assert (places.stage, places.beside(), places.note) == (Stage.BEGUN, (places.next,), "permit:1")
    places.switch()
    assert (places.stage, places.beside()) == (Stage.SWITCHED, (places.former,))
    assert (holds(places.current), holds(places.former)) == ("new", "old")
    assert not places.begun.exists()
    retired = places.retire("1")
    assert (places.stage, places.retired()) == (Stage.IDLE, (retired,))
    assert (holds(places.current), holds(retired)) == ("new", "old")


@pytest.mark.parametrize("make", [file, folder])
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_switch_that_was_cut_off_after_any_rename_is_finished_or_was_not_begun(
    renames: int, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(tmp_path / "key")
    make(places.current, "old")
    make(places.next, "new")
    places.begin()
    real, left = Path.rename, [renames]

    def rename(self: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt  # the power goes
        left[0] -= 1
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        try:
            places.switch()
        except KeyboardInterrupt:
            pass
    places.mend()
    places.mend()
    assert places.stage is (Stage.SWITCHED if renames else Stage.BEGUN)
    assert holds(places.current) == ("new" if renames else "old")


def test_a_root_that_certifies_hosts_itself_is_not_asked_for_what_follows_it(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    Authority.create(tmp_path / "ca", "bank.example", datetime.now(UTC))
    with pytest.raises(CredentialError, match=r"ca: a root that certifies hosts itself cannot be rolled over"):
        Authorities.load(tmp_path / "ca", None).look_at_next()


def test_a_folder_that_is_not_the_gateways_is_refused_before_anything(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        Places(tmp_path / "nowhere" / "key").require_writable()


def test_a_host_is_ready_once_it_holds_all_that_is_needed() -> None:
    holdings = Holdings()
    holdings.note("a", ["root:1", "crl:2"])
    holdings.note("b", ["root:1"])
    holdings.note("d", [])
    dispatch = Dispatch(lambda: 0.0)
    for host, version in (("a", NEWEST), ("b", NEWEST), ("d", 1)):
        dispatch.note_link(host, version)
    progress = who_holds(["a", "b", "c", "d"], dispatch, holdings, frozenset({"root:1", "crl:2"}))
    assert not progress.is_complete
    assert dict(progress.lacking) == {
        "b": "lacks crl:2",
        "c": "was not heard since this gateway started",
        "d": "has a relay of an earlier version, which follows no rollover: upgrade it",
    }
    assert str(progress).startswith("1 of 4 hosts are ready: b lacks crl:2; c was not heard")
    assert progress.document()["ready"] == 1
    assert Progress(3, {}).is_complete
    assert not Progress(3, {}, ("a migration",)).is_complete
