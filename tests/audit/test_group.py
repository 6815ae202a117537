"""Records that were committed together: each verifies alone, and nothing of a group passes for anything else."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import RecordError, RecordInvalid, RecordTooLarge
from audit.group import WRITTEN_SIZE, After, Draft, Unsigned, require_draft, sign_drafts, sign_records
from audit.proof import leaf_hash, node_hash
from audit.record import MAX_ENTRY_BYTES, MAX_RECORD_BYTES, SignedRecord, canonical_record, decode_entry
from audit.verify_entry import Malformed, parse, record_faults
from audit.verify_group import Signatures
from audit.verify_tree import read_vkey
from tests.audit.samples import ORIGIN, OTHER_SIGNER, SIGNER, entry, record
from tests.audit.test_record import reencode

KEY = read_vkey(SIGNER.vkey)


def salts() -> Callable[[int], bytes]:
    """The same in every run, and each another one."""
    numbers = iter(range(10_000))
    return lambda size: hashlib.sha256(next(numbers).to_bytes(4)).digest()[:size]


def grouped(count: int, start: int = 0, **changes: Any) -> list[bytes]:
    return sign_records([canonical_record(record(start + n, **changes)) for n in range(count)], SIGNER, salts())


def is_believed(data: bytes, *, signatures: Signatures | None = None) -> bool:
    """By both readers, which must agree."""
    try:
        read = decode_entry(data)
        by_us = isinstance(read, SignedRecord) and read.is_signed_by([SIGNER.verifier])
    except RecordError:
        by_us = False
    try:
        value = parse(data)
        index = value["record"]["sequence"] if isinstance(value.get("record"), dict) else 0
        faults = list(record_faults(value, data, index, ORIGIN, signatures or Signatures([KEY])))
    except (Malformed, KeyError):
        faults = ["malformed"]
    assert by_us == (not faults), (by_us, faults)
    return by_us


@given(st.integers(2, WRITTEN_SIZE), st.data())
def test_each_record_of_a_group_verifies_alone(count: int, data: st.DataObject) -> None:
    entries = grouped(count)
    one = entries[data.draw(st.integers(0, count - 1))]
    assert is_believed(one)
    read = decode_entry(one)
    assert isinstance(read, SignedRecord)
    assert not read.is_signed_by([OTHER_SIGNER.verifier])
    assert len({decode_entry(each).signature for each in entries}) == 1  # type: ignore[union-attr]


def test_a_record_that_is_alone_is_signed_as_itself() -> None:
    assert grouped(1) == [entry(0)]


def test_what_is_signed_is_what_the_document_says() -> None:
    """Computed here as docs/audit-log.md writes it, for three records."""
    records = [canonical_record(record(n)) for n in range(3)]
    salt = [salts_of(n) for n in range(3)]
    leaves = [hashlib.sha256(b"\x00" + salt[n] + records[n]).digest() for n in range(3)]
    left = hashlib.sha256(b"\x01" + leaves[0] + leaves[1]).digest()
    root = hashlib.sha256(b"\x01" + left + leaves[2]).digest()
    signature = SIGNER.sign(b"sealane audit group v1\n" + b"\x00\x03" + root)
    paths = [leaves[1] + leaves[2], leaves[0] + leaves[2], left]
    assert grouped(3) == [
        reencode(
            {
                "group": {"index": n, "path": b64(paths[n]), "salt": b64(salt[n]), "size": 3},
                "key": SIGNER.key_id,
                "record": json.loads(records[n]),
                "signature": b64(signature),
            }
        )
        for n in range(3)
    ]


def test_the_form_does_not_change() -> None:
    """The vector: what is in logs must be read for ever."""
    entries = grouped(5)
    assert hashlib.sha256(b"".join(entries)).hexdigest() == VECTOR


VECTOR = "ba22f5f77f4436a741fabf97f74031f91c2d84a723d04e8158cdc2fdcc150b57"


def salts_of(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4)).digest()[:16]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_every_flipped_bit_of_an_entry_is_refused() -> None:
    small = grouped(3, details={}, actor=None, vm=None, reason=None)[1]
    for position in range(len(small)):
        for bit in range(8):
            altered = bytearray(small)
            altered[position] ^= 1 << bit
            assert not is_believed(bytes(altered)), (position, bit)


def forgeries() -> Iterator[tuple[str, bytes]]:
    """What an insider without the key could make of entries that they have."""
    five, other = grouped(5), grouped(5, start=5)
    value, beside = json.loads(five[2]), json.loads(five[3])
    own, path = value["group"], base64.b64decode(value["group"]["path"])
    alone = json.loads(entry(2))

    def changed(**members: Any) -> bytes:
        return reencode(value | {"group": own | members})

    yield "another index", changed(index=3)
    yield "the last index", changed(index=4)
    for size in (3, 4, 6, 7, 8, 64, 256):
        yield f"size {size}", changed(size=size)
    yield "another's path", changed(path=beside["group"]["path"])
    yield "another's place", reencode(value | {"group": beside["group"]})
    yield "another's salt", changed(salt=beside["group"]["salt"])
    yield "another's record", reencode(value | {"record": beside["record"]})
    yield "another group's signature", reencode(value | {"signature": json.loads(other[2])["signature"]})
    yield "a hash too few", changed(path=b64(path[:-32]))
    yield "a hash too many", changed(path=b64(path + bytes(32)))
    yield "the path turned round", changed(path=b64(path[32:64] + path[:32] + path[64:]))
    yield "half a hash", changed(path=b64(path[:-16]))
    yield "no path", changed(path="")
    yield "the group left out", reencode({name: value[name] for name in ("key", "record", "signature")})
    yield "a group for a record signed alone", reencode(alone | {"group": own})
    yield "the group's node as its leaf", changed(index=1, size=3, path=b64(path[32:]))


def misspelt() -> Iterator[tuple[str, bytes]]:
    """What only who has the key could sign, and must not pass: one spelling for each entry."""
    body = canonical_record(record(0))
    salt = bytes(16)
    leaf = leaf_hash(salt + body)

    def signed(message: bytes, **group: Any) -> bytes:
        members = {"index": 0, "path": "", "salt": b64(salt), "size": 1} | group
        members = {name: member for name, member in members.items() if member is not ...}
        return reencode(
            {"group": members, "key": SIGNER.key_id, "record": json.loads(body), "signature": b64(SIGNER.sign(message))}
        )

    def of(size: int, root: bytes) -> bytes:
        return b"sealane audit group v1\n" + (size % 65536).to_bytes(2) + root

    two = node_hash(leaf, bytes(32))
    good: dict[str, Any] = {"size": 2, "path": b64(bytes(32))}
    assert is_believed(signed(of(2, two), **good))
    yield "a group of one", signed(of(1, leaf))
    yield "a group of none", signed(of(0, leaf), size=0)
    yield "a group over the limit", signed(of(257, nodes(leaf, 9)), size=257, path=b64(bytes(32 * 9)))
    yield "a negative index", signed(of(2, two), **good, index=-1)
    yield "an index that is true", signed(of(2, node_hash(bytes(32), leaf)), **good, index=True)
    yield "a size that is a text", signed(of(2, two), path=good["path"], size="2")
    yield "a path that is a list", signed(of(2, two), size=2, path=[good["path"]])
    yield "no salt", signed(of(2, two), **good, salt=...)
    yield "a short salt", signed(of(2, node_hash(leaf_hash(bytes(15) + body), bytes(32))), **good, salt=b64(bytes(15)))
    yield "an empty salt", signed(of(2, node_hash(leaf_hash(body), bytes(32))), **good, salt="")
    yield "one member more", signed(of(2, two), **good, note="")
    yield "the path in another spelling", signed(of(2, two), size=2, path=good["path"][:-2] + "B=")
    yield "the path with a line end", signed(of(2, two), size=2, path=good["path"] + "\n")
    yield "a record's signature", signed(b"sealane audit record v1\n" + body, **good)
    yield "a record's prefix", signed(b"sealane audit record v1\n" + of(2, two)[23:], **good)
    yield "no prefix", signed(two, **good)
    yield "a checkpoint's signature", signed(f"{ORIGIN}\n2\n{b64(two)}\n".encode(), **good)
    yield "the size not signed", signed(b"sealane audit group v1\n" + two, **good)
    yield "null as group", reencode(json.loads(entry(0)) | {"group": None})
    yield "a list as group", reencode(json.loads(entry(0)) | {"group": []})


def nodes(leaf: bytes, count: int) -> bytes:
    for _ in range(count):
        leaf = node_hash(leaf, bytes(32))
    return leaf


@pytest.mark.parametrize(("what", "data"), [*forgeries(), *misspelt()])
def test_a_forgery_is_refused_by_both_readers(what: str, data: bytes) -> None:
    assert not is_believed(data), what


@pytest.mark.parametrize(("what", "data"), list(forgeries()))
def test_a_forgery_is_refused_after_its_group_was_believed(what: str, data: bytes) -> None:
    signatures = Signatures([KEY])
    for one in [*grouped(5), *grouped(5, start=5)]:
        assert is_believed(one, signatures=signatures)
    assert not is_believed(data, signatures=signatures), what


def test_a_path_that_leaves_a_known_one_anywhere_is_refused() -> None:
    signatures = Signatures([KEY])
    entries = grouped(64)
    assert all(is_believed(one, signatures=signatures) for one in entries)
    value = json.loads(entries[9])
    path = base64.b64decode(value["group"]["path"])
    for position in range(len(path)):
        altered = path[:position] + bytes([path[position] ^ 1]) + path[position + 1 :]
        assert not is_believed(
            reencode(value | {"group": value["group"] | {"path": b64(altered)}}), signatures=signatures
        )


@pytest.mark.parametrize("size", [2, 3, 5, 64])
def test_whatever_differs_from_what_the_record_before_it_said_is_refused(size: int) -> None:
    """Of the record beside it a good one says all but the salt: what is taken for it must be it, in every bit."""
    entries, other = grouped(size), grouped(size, start=size)
    for index in range(1, size, 2):
        value, beside = json.loads(entries[index]), json.loads(other[index])
        own = value["group"]
        path = base64.b64decode(own["path"])
        forged = [
            value | {"record": value["record"] | {"reason": "another"}},
            value | {"record": beside["record"]},
            value | {"signature": beside["signature"]},
            value | {"key": OTHER_SIGNER.key_id},
            *(
                value | {"group": own | change}
                for change in (
                    {"index": True},
                    {"index": index - 1},
                    {"size": size + 1},
                    {"salt": b64(bytes(16))},
                    {"salt": ""},
                    {"path": own["path"] + "\n"},
                    {"path": b64(path + bytes(32))},
                    {"path": b64(path[:-1] + bytes([path[-1] ^ 1]))},
                )
            ),
        ]
        for one in map(reencode, forged):
            signatures = Signatures([KEY, read_vkey(OTHER_SIGNER.vkey)])
            assert is_believed(entries[index - 1], signatures=signatures)
            assert not is_believed(one, signatures=signatures), one
            assert is_believed(entries[index], signatures=signatures)


def test_a_group_known_under_one_key_is_not_known_under_another() -> None:
    both = Signatures([KEY, read_vkey(OTHER_SIGNER.vkey)])
    data = grouped(2)[0]
    assert is_believed(data, signatures=both)
    claimed = reencode(json.loads(data) | {"key": OTHER_SIGNER.key_id})
    assert list(record_faults(parse(claimed), claimed, 0, ORIGIN, both)) == ["its signature is wrong"]


def test_few_groups_are_remembered() -> None:
    signatures = Signatures([KEY])
    for start in range(0, 200, 2):
        assert is_believed(grouped(2, start)[0], signatures=signatures)
    assert len(signatures._good) == 16


def test_one_ed25519_check_is_enough_for_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []
    real = type(KEY).verifies

    def counting(key: Any, message: bytes, signature: bytes) -> bool:
        checked.append(message)
        return real(key, message, signature)

    monkeypatch.setattr(type(KEY), "verifies", counting)
    signatures = Signatures([KEY])
    assert all(is_believed(one, signatures=signatures) for one in grouped(64))
    assert len(checked) == 1


def test_a_neighbour_s_hash_tells_nothing_to_who_guesses_its_record() -> None:
    records = [canonical_record(record(n)) for n in range(2)]
    path = base64.b64decode(json.loads(grouped(2)[0])["group"]["path"])
    assert path == leaf_hash(salts_of(1) + records[1])  # what is in the way is the salt
    assert path != leaf_hash(records[1])
    first, again = (sign_records(records, SIGNER) for _ in range(2))
    assert {json.loads(one)["group"]["salt"] for one in first}.isdisjoint(
        json.loads(one)["group"]["salt"] for one in again
    )


def test_the_limit_of_a_record_leaves_room_for_the_longest_path() -> None:
    base = len(canonical_record(record(0, reason="")))
    longest_record = canonical_record(record(0, reason="x" * (MAX_RECORD_BYTES - base)))
    assert len(longest_record) == MAX_RECORD_BYTES
    longest = sign_records([longest_record] * 256, SIGNER, salts())
    assert max(map(len, longest)) <= MAX_ENTRY_BYTES
    with pytest.raises(RecordTooLarge):
        canonical_record(record(0, reason="x" * (MAX_RECORD_BYTES - base + 1)))


# --- Drafts ---------------------------------------------------------------------------------------------------------


def drafts(count: int) -> list[Draft]:
    return [Unsigned.of(record(n)) for n in range(count)]


def test_entries_stand_in_the_order_of_their_drafts() -> None:
    told: list[bytes] = []

    def after(leaf: bytes) -> bytes:
        told.append(leaf)
        return b"after " + leaf

    one, two, three = drafts(3)
    entries = sign_drafts([one, After(after), b"as it is", two, three], SIGNER)
    assert told == [leaf_hash(entries[0])]
    assert entries[1:3] == [b"after " + told[0], b"as it is"]
    assert [decode_entry(entries[n]).record.sequence for n in (0, 3, 4)] == [0, 1, 2]  # type: ignore[union-attr]
    assert all(is_believed(entries[n]) for n in (0, 3, 4))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 66, 128, 129, 200])
def test_very_many_are_signed_in_several_groups(count: int) -> None:
    entries = sign_drafts(drafts(count), SIGNER)
    assert all(map(is_believed, entries))
    sizes = [json.loads(one).get("group", {"size": 1})["size"] for one in entries]
    assert sizes == [WRITTEN_SIZE] * (count // WRITTEN_SIZE * WRITTEN_SIZE) + [count % WRITTEN_SIZE] * (
        count % WRITTEN_SIZE
    )


def test_an_entry_after_nothing_is_refused() -> None:
    with pytest.raises(RecordInvalid):
        sign_drafts([After(lambda leaf: leaf)], SIGNER)


@pytest.mark.parametrize("draft", [b"", After(lambda _: b""), b"x" * 70_000, After(lambda _: b"x" * 70_000)])
def test_what_cannot_be_written_is_refused_before_anything_is_signed(draft: Draft) -> None:
    with pytest.raises(RecordError):
        require_draft(draft)


def test_nothing_makes_nothing() -> None:
    empty: Sequence[Draft] = []
    assert sign_drafts(empty, SIGNER) == []
