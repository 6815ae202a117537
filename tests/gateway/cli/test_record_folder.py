"""Records out of a log's folder: as the index finds them, and what a damaged folder cannot hide."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from audit.checkpoint import LogSigner
from audit.index import Index
from audit.index_questions import Questions
from audit.log import Log
from audit.record import PERMIT_KIND, Actor, Record, Vm, encode_entry, format_time
from audit.tiles import bundle_path
from gateway.cli.errors import BadConfiguration, Refused
from gateway.cli.record_folder import FromFolder, where_of
from gateway.cli.record_question import Question
from gateway.cli.record_source import read_pages

SIZE = 600  # two full bundles and a growing one
START = datetime(2026, 11, 22, tzinfo=UTC)
SIGNER = LogSigner("example/audit", Ed25519PrivateKey.from_private_bytes(bytes(32)))
UUIDS = [f"00000000-0000-4000-8000-00000000000{number}" for number in range(3)]
WHERE: dict[str, list[str]] = {
    "migration": ["m-1", "m-5", "none"],
    "vm": ["web-0", UUIDS[1], "none"],
    "host": ["host-a", "spiffe://example/host/host-b", "none"],
    "actor": ["alice", "id-of-bob"],
    "outcome": ["allowed", "denied"],
    "kind": ["migration.decision", "heartbeat", PERMIT_KIND],
    "since": [format_time(START + timedelta(minutes=100)), format_time(START + timedelta(minutes=590))],
    "until": [format_time(START + timedelta(minutes=101)), format_time(START)],
}


def entry_at(index: int) -> bytes:
    """A permit, a heartbeat or a decision in turn."""
    if index % 10 == 4:
        decision = {"index": index - 1, "leaf_hash": "A" * 43 + "="}
        claims = {"migration_id": f"m-{index % 7}", "vm": UUIDS[0]}
        permit = {"kind": PERMIT_KIND, "decision": decision, "claims": claims}
        return msgspec.json.encode(permit, order="sorted")
    return record_at(index)


def record_at(index: int) -> bytes:
    """A heartbeat or a decision in turn, a minute apart."""
    common: dict[str, Any] = {
        "origin": SIGNER.origin,
        "sequence": index,
        "boot_id": "boot",
        "time": format_time(START + timedelta(minutes=index)),
        "monotonic_ns": index * 60 * 10**9,
    }
    if index % 10 == 0:
        return encode_entry(Record(kind="heartbeat", **common), SIGNER.sign, SIGNER.verifier.key_id.hex())
    name = ("alice", "bob")[index % 2]
    record = Record(
        kind="migration.decision",
        **common,
        migration_id=f"m-{index % 7}",
        outcome=("allowed", "denied")[index % 3 == 0],
        actor=Actor(f"id-of-{name}", name, "local"),
        vm=Vm(UUIDS[index % 3], f"web-{index % 3}"),
        source="spiffe://example/host/host-a",
        destination=f"spiffe://example/host/host-{'bc'[index % 2]}",
    )
    return encode_entry(record, SIGNER.sign, SIGNER.verifier.key_id.hex())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log"
    with Log.open(path, SIGNER) as log:
        while log.size < SIZE:
            log.append([lambda first: [entry_at(index) for index in range(first, first + 100)]])
    return path


@pytest.fixture(scope="module")
def index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    copy = tmp_path_factory.mktemp("copy") / "log"
    shutil.copytree(folder, copy)
    with Log.open(copy, SIGNER) as log, Index(":memory:", log.origin) as built:
        built.catch_up(log)
        yield built


def test_the_size_is_the_checkpoints(folder: Path) -> None:
    assert FromFolder(folder).size() == SIZE


@given(data=st.data())
def test_every_filter_finds_what_the_index_finds(folder: Path, index: Index, data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(WHERE)), max_size=3))
    terms = {name: data.draw(st.sampled_from(WHERE[name])) for name in sorted(names)}
    before = data.draw(st.none() | st.integers(0, SIZE + 10))
    limit = data.draw(st.integers(1, 30))
    question = Question(terms, data.draw(st.sampled_from(["", "who:*", "NOT vm:web-1", "since:2026-11-22T05:00Z"])))
    page = FromFolder(folder).page(question, before, limit)
    asked = Questions(index.database)
    where = where_of(question, START)
    expected = asked.page(where, after=before, limit=limit + 1, newest_first=True)
    assert [one.index for one in page.records] == expected[:limit]
    assert page.next == (expected[limit - 1] if len(expected) > limit else None)
    assert FromFolder(folder).count(question) == asked.count(where)


@given(limit=st.integers(1, 400), floor=st.integers(0, SIZE), before=st.none() | st.integers(0, SIZE))
def test_pages_join_without_gap_or_double(folder: Path, limit: int, floor: int, before: int | None) -> None:
    wanted = [i for i in range(floor, SIZE if before is None else before) if i % 10 == 0]
    found = read_pages(FromFolder(folder), Question({"kind": "heartbeat"}), before=before, floor=floor, limit=limit)
    assert [one.index for one in found.records] == wanted[-limit:]


def test_a_permit_is_found_by_what_its_claims_say(folder: Path) -> None:
    found = (
        FromFolder(folder).page(Question({"kind": PERMIT_KIND, "migration": "m-4", "vm": UUIDS[0]}), None, 100).records
    )
    assert found[-1].index == 4
    assert {one.record["claims"]["migration_id"] for one in found} == {"m-4"}


def test_an_entry_is_shown_as_it_is_in_the_log(folder: Path) -> None:
    source = FromFolder(folder)
    assert source.entry(511)["record"]["sequence"] == 511
    assert source.entry(511)["entry"].encode() == entry_at(511)
    assert source.entry(4)["permit_entry"]["decision"]["index"] == 3
    with pytest.raises(Refused, match="the log has 600"):
        source.entry(SIZE)


@pytest.mark.parametrize("junk", [b"\x00\x02{}", b"\x00\x04\xff\xff\xff\xff", b"\x00\x04true", b"\xff\xff", b""])
def test_what_cannot_be_read_shows_under_every_filter(folder: Path, tmp_path: Path, junk: bytes) -> None:
    copy = tmp_path / "log"
    shutil.copytree(folder, copy)
    (copy / bundle_path(0)).write_bytes(junk)
    found = read_pages(FromFolder(copy), Question({"migration": "none"}), limit=1000).records
    assert len(found) == 256
    assert {one.record["kind"] for one in found} == {"unreadable"}
    assert "sealane audit verify" in found[0].record["reason"]


def test_a_missing_bundle_hides_only_its_own_entries(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "log"
    shutil.copytree(folder, copy)
    sealed, growing = copy / bundle_path(1), copy / "tail" / "1"
    (sealed if sealed.exists() else growing).unlink()
    source = FromFolder(copy)
    assert source.entry(100)
    with pytest.raises(Refused, match="missing"):
        source.entry(300)
    kinds = [one.record["kind"] for one in read_pages(source, Question(), limit=1000).records]
    assert kinds.count("unreadable") == 256


def test_what_is_no_log_is_refused_at_once(tmp_path: Path) -> None:
    for text in (None, "", "origin\n-1\n\n", "origin\nmany\n\n"):
        if text is not None:
            (tmp_path / "checkpoint").write_text(text)
        with pytest.raises(BadConfiguration, match="checkpoint"):
            FromFolder(tmp_path)


def test_reading_changes_nothing_in_the_folder(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    read_pages(FromFolder(folder), Question(), limit=1000)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
