"""Proof bundles: what the writer exports the independent verifier accepts, and nothing that was touched."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import LogTruncated, QueryRefused
from audit.export import AskedQuery, Reference, Sealed, export_entries, export_range
from audit.log import Log
from audit.proof import leaf_hash, verify_inclusion
from audit.tile_tree import FolderTiles, TileTree
from audit.verify_bundle import BundleCheck, BundleVerdict
from policy.bundle_files import bundle_digest
from tests.audit.disks import FastDisk
from tests.audit.samples import OTHER_SIGNER, SIGNER, entry, one, with_permit

SIZE = 256 * 3 + 41


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("log") / "log"
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        while log.size < SIZE:
            log.append([with_permit] if log.size + 2 <= SIZE else [one])
    return directory


@pytest.fixture(scope="module")
def sealed(folder: Path) -> Sealed:
    text = (folder / "checkpoint").read_text()
    return Sealed(TileTree(FolderTiles(folder), SIZE), SIGNER.origin, text, Reference([SIGNER.vkey], "", {"a": "b"}))


def checked(data: bytes, vkeys: Sequence[str] = (SIGNER.vkey,)) -> tuple[BundleVerdict, list[int]]:
    check = BundleCheck(io.BytesIO(data), vkeys)
    found = [one.index for one in check.entries()]
    return check.verdict, found


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def joined(documents: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one, sort_keys=True, separators=(",", ":")).encode() + b"\n" for one in documents)


@pytest.fixture(scope="module")
def some(sealed: Sealed) -> bytes:
    return "".join(export_entries(sealed, [700, 0, 255, 256, SIZE - 1, 255])).encode()


@pytest.fixture(scope="module")
def whole_range(sealed: Sealed) -> bytes:
    query = AskedQuery("vm:web-1", "2026-11-25T00:00:00+00:00")
    return "".join(export_range(sealed, 250, 270, query=query, shown=lambda index, _: index % 5 != 0)).encode()


def test_the_tree_of_tiles_gives_the_logs_own_proofs(folder: Path, sealed: Sealed) -> None:
    with Log.open(folder, SIGNER, disk=FastDisk()) as log:
        for index in (0, 1, 255, 256, 511, 767, 768, SIZE - 1):
            path = sealed.tree.inclusion_path(index)
            assert path == log.inclusion_path(index, SIZE)
            assert sealed.tree.entry(index) == log.entry(index)
            verify_inclusion(leaf_hash(log.entry(index)), index, SIZE, path, log.root_at(SIZE))


def test_single_entries_are_proven_in_their_order_once_each(some: bytes) -> None:
    verdict, found = checked(some)
    assert (verdict.problems, verdict.range, verdict.hidden) == ([], None, 0)
    assert found == [0, 255, 256, 700, SIZE - 1]


@settings(max_examples=60)
@given(st.data())
def test_any_range_is_proven_whole(sealed: Sealed, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, SIZE - 1))
    end = data.draw(st.integers(start + 1, min(SIZE, start + 40)))
    hidden = data.draw(st.sets(st.integers(start, end - 1), max_size=5))
    text = "".join(export_range(sealed, start, end, shown=lambda index, _: index not in hidden))
    verdict, found = checked(text.encode())
    assert verdict.problems == []
    assert (verdict.range, verdict.hidden) == ((start, end), len(hidden))
    assert found == [index for index in range(start, end) if index not in hidden]


def test_the_whole_log_is_a_range(sealed: Sealed) -> None:
    verdict, found = checked("".join(export_range(sealed, 0, SIZE)).encode())
    assert (verdict.ok, found) == (True, list(range(SIZE)))


def test_no_entry_can_be_taken_out_doubled_swapped_or_hidden_elsewhere(whole_range: bytes) -> None:
    documents = lines(whole_range)
    for position in range(1, len(documents)):
        without = documents[:position] + documents[position + 1 :]
        assert not checked(joined(without))[0].ok
        shorter = [documents[0] | {"entries": len(without) - 1}, *without[1:]]
        assert not checked(joined(shorter))[0].ok
        assert not checked(joined([*documents[:position], documents[position], *documents[position:]]))[0].ok
    swapped = [*documents[:2], documents[3], documents[2], *documents[4:]]
    assert not checked(joined(swapped))[0].ok
    renumbered = [*documents[:2], documents[3] | {"index": 251}, documents[2] | {"index": 252}, *documents[4:]]
    assert not checked(joined(renumbered))[0].ok


def test_a_range_cannot_be_made_smaller(whole_range: bytes) -> None:
    documents = lines(whole_range)
    of_range = documents[0]["range"]
    smaller = documents[0] | {"entries": 19, "range": of_range | {"to": 269}}
    assert not checked(joined([smaller, *documents[1:-1]]))[0].ok
    later = documents[0] | {"entries": 19, "range": of_range | {"from": 251}}
    assert not checked(joined([later, *documents[2:]]))[0].ok


def test_every_cut_and_every_addition_is_found(some: bytes) -> None:
    for end in [*range(0, len(some), 97), len(some) - 1]:
        assert not checked(some[:end])[0].ok
    for more in (b"\n", b"x", some.splitlines(keepends=True)[1]):
        assert not checked(some + more)[0].ok


@pytest.mark.whole
@pytest.mark.parametrize("which", ["some", "whole_range"])
def test_one_flipped_bit_is_refused(which: str, request: pytest.FixtureRequest) -> None:
    """Anywhere but in what is for people only: the reference, and the question that a reader compares himself."""
    data: bytes = request.getfixturevalue(which)
    header = lines(data)[0]
    free: set[int] = set()
    for part in ("query", "reference"):
        text = json.dumps(header[part], sort_keys=True, separators=(",", ":")).encode()
        start = data.index(b'"%s":' % part.encode()) + len(part) + 3
        free |= set(range(start, start + len(text)))
    for position in range(0, len(data), 31):
        if position in free:
            continue
        for bit in (0, 5):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            assert not checked(bytes(damaged))[0].ok, (position, data[max(0, position - 30) : position + 30])


@given(st.binary(max_size=300))
def test_junk_is_refused_in_words(junk: bytes) -> None:
    assert not checked(junk)[0].ok


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.data())
def test_members_of_any_other_value_are_refused_in_words(some: bytes, whole_range: bytes, data: st.DataObject) -> None:
    documents = lines(data.draw(st.sampled_from([some, whole_range])))
    position = data.draw(st.integers(0, 2))
    name = data.draw(st.sampled_from(sorted(set(documents[position]) - {"query", "reference"})))
    value = data.draw(_JSON)
    if documents[position][name] == value and type(documents[position][name]) is type(value):
        return
    documents[position] = documents[position] | {name: value}
    assert not checked(joined(documents))[0].ok


def test_another_logs_key_or_checkpoint_proves_nothing(some: bytes) -> None:
    assert not checked(some, [OTHER_SIGNER.vkey])[0].ok
    documents = lines(some)
    other = documents[0] | {"origin": "gateway.example/other"}
    assert not checked(joined([other, *documents[1:]]))[0].ok
    with pytest.raises(ValueError, match="log key"):
        BundleCheck(io.BytesIO(some), ["none"])


def test_a_proof_of_another_entry_does_not_pass(some: bytes) -> None:
    documents = lines(some)
    documents[1]["path"], documents[2]["path"] = documents[2]["path"], documents[1]["path"]
    assert not checked(joined(documents))[0].ok
    path = lines(some)[1]["path"]
    for other in (path[:-1], [*path, base64.b64encode(bytes(32)).decode()], []):
        documents = lines(some)
        documents[1]["path"] = other
        assert not checked(joined(documents))[0].ok


def test_what_cannot_be_exported_is_said(sealed: Sealed, tmp_path: Path) -> None:
    for start, end in ((0, 0), (5, 5), (-1, 3), (0, SIZE + 1)):
        with pytest.raises(QueryRefused):
            list(export_range(sealed, start, end))
    with pytest.raises(IndexError):
        list(export_entries(sealed, [SIZE]))
    with pytest.raises(QueryRefused):
        list(export_entries(sealed, []))
    with pytest.raises(LogTruncated, match="not in"):
        TileTree(FolderTiles(tmp_path), 5).entry(0)


def with_policy(folder: Path, files: dict[str, str], digest: str) -> bytes:
    def decision(index: int) -> list[bytes]:
        return [entry(index, details={"decision": {"bundle_digest": digest}})]

    with Log.open(folder, SIGNER, disk=FastDisk()) as log:
        text = log.append([one, decision]).checkpoint_text
    sealed = Sealed(TileTree(FolderTiles(folder), 2), SIGNER.origin, text, Reference([SIGNER.vkey], "", files))
    return "".join(export_entries(sealed, [0, 1])).encode()


def test_the_policy_bundle_that_comes_along_is_the_one_that_the_decision_names(tmp_path: Path) -> None:
    files = {"bundle.toml": "name = 'a'", "policies/a.cedar": "permit(principal, action, resource);"}
    verdict, _ = checked(with_policy(tmp_path / "log", files, bundle_digest(files)))
    assert (verdict.ok, verdict.decided_by_it, verdict.decided_by_others) == (True, [1], [])
    verdict, _ = checked(with_policy(tmp_path / "other", files, bundle_digest({**files, "bundle.toml": "name = 'b'"})))
    assert [one.what for one in verdict.problems] == [
        "the policy bundle that came along is not the one that any decision in it names"
    ]
