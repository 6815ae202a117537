"""What fuzzing reached is there again on another machine, and nothing that is there already is replaced."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.hours import Hours, Spent
from tests.fuzz.keeping import keep, take_up


def test_a_new_machine_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    old, kept, new = tmp_path / "old", tmp_path / "kept", tmp_path / "new"
    (old / "permit").mkdir(parents=True)
    (old / "permit" / "seed-0").write_bytes(b"of the target")
    (old / "permit" / "0a1b").write_bytes(b"\x00\xff")
    (old / "crl").mkdir()
    (old / "crl" / "seed-0").write_bytes(b"nothing else")
    Hours(old / "hours.json").add("permit", "aaaa", Spent(3, 4))
    assert keep(old, kept) == ["permit"]
    take_up(new, kept)
    assert {path.relative_to(new).as_posix(): path.read_bytes() for path in new.rglob("*") if path.is_file()} == {
        "hours.json": (old / "hours.json").read_bytes(),
        "permit/0a1b": b"\x00\xff",
    }


def test_the_same_inputs_make_the_same_file_and_what_is_there_stays(tmp_path: Path) -> None:
    working, kept = tmp_path / "working", tmp_path / "kept"
    (working / "permit").mkdir(parents=True)
    for name in ("b", "a"):
        (working / "permit" / name).write_bytes(name.encode())
    keep(working, kept)
    packed = (kept / "permit.zip").read_bytes()
    (working / "permit" / "a").touch()
    keep(working, kept)
    assert (kept / "permit.zip").read_bytes() == packed
    (working / "permit" / "a").unlink()
    take_up(working, kept)
    assert [path.name for path in (working / "permit").iterdir()] == ["b"]
