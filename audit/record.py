"""Entries of the log: signed records and permit entries, in one canonical form.

    record entry  {"group": GROUP, "key": <key id hex>, "record": {…}, "signature": <base64 Ed25519>}
                  GROUP: {"index": i, "path": <base64>, "salt": <base64>, "size": n}; absent where it is signed alone
    permit entry  {"claims": {…}, "decision": {"index": i, "leaf_hash": <base64>}, "kind": "sealane-permit"}

Canonical JSON: UTF-8, keys sorted by code point, no spaces, no floats, nothing escaped that need not be. What
is signed is RECORD_CONTEXT ‖ canonical record, or, of records that were committed together, GROUP_CONTEXT ‖ size ‖
root of the tree that `path` leads to (`group.py` makes it): the contexts keep these signatures from ever passing for
each other or for that of a checkpoint, which the same key signs. A permit entry is not signed by itself: the log's
checkpoint covers it, and relays check its inclusion. Reading is strict: an entry that does not encode back to exactly
the same bytes is refused, so there is one spelling of each entry.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from audit.checkpoint import LogVerifier
from audit.errors import UNDECODABLE, ProofError, RecordInvalid, RecordTooLarge
from audit.proof import HASH_BYTES, leaf_hash, path_length, root_of_path

MAX_ENTRY_BYTES = 60 * 1024  # under the u16 length prefix of C2SP entry bundles, with room for SIEM envelopes
MAX_RECORD_BYTES = MAX_ENTRY_BYTES - 1024  # of a record: with the longest path, its entry still fits
RECORD_CONTEXT = b"sealane audit record v1\n"
GROUP_CONTEXT = b"sealane audit group v1\n"
MAX_GROUP = 256  # records of one group; a path of it is eight hashes at most
SALT_BYTES = 16
PERMIT_KIND = "sealane-permit"
CLOCK_STEP_KIND = "clock-step"  # a record of this kind says that the wall clock was stepped before it

_MAX_DEPTH = 32
_PLAIN_TYPES = frozenset({str, bool, type(None)})
_INT64 = range(-(2**63), 2**63)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")

# \Z and not $: that would let a line end pass, and with it a second line into text-based SIEMs.
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9._-]{0,63}\Z")]
HostId = Annotated[str, msgspec.Meta(pattern=r"^spiffe://", max_length=255)]
Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Actor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who acted, as known at that time. `groups` is None where they were unknown, which is not 'none'."""

    id: Name
    name: Name
    authenticated_by: Name
    issuer: Name | None = None
    groups: tuple[str, ...] | None = None


class Vm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which virtual machine; without `uuid` when the request named one that nobody knows."""

    uuid: Uuid | None = None
    name: Name | None = None


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One event, complete in itself. `sequence` is its index in the log, `time` UTC (`format_time`).

    `details` holds JSON of any shape but no floats; integers fit in 64 bits, signed. Version 2 has `clock_error_us`,
    the most that `time` may be wrong by (None: unknown); records of version 1, of older logs, lack the field.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    clock_error_us: Count | msgspec.UnsetType | None = msgspec.UNSET
    kind: Word
    origin: Name
    sequence: Count
    boot_id: Name
    time: str
    monotonic_ns: Count
    migration_id: Name | None = None
    outcome: Word | None = None
    actor: Actor | None = None
    vm: Vm | None = None
    source: HostId | None = None
    destination: HostId | None = None
    reason: str | None = None
    details: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Group:
    """Where a record stands among the `size` that were signed together. `path`: hashes from its leaf up, joined.

    Made from what was read, its form was checked.
    """

    index: int
    size: int
    salt: bytes
    path: bytes

    @staticmethod
    def message(size: int, root: bytes) -> bytes:
        """What is signed of a group."""
        return GROUP_CONTEXT + size.to_bytes(2, "big") + root

    def message_of(self, record_bytes: bytes) -> bytes:
        """What must have been signed, if the record is where it says."""
        path = [self.path[start : start + HASH_BYTES] for start in range(0, len(self.path), HASH_BYTES)]
        return self.message(self.size, root_of_path(leaf_hash(self.salt + record_bytes), self.index, self.size, path))


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record entry as read. Its signature is not verified yet: `is_signed_by`. `group`: None if signed alone."""

    record: Record
    record_bytes: bytes
    signature: bytes
    key_id: str
    group: Group | None = None

    @property
    def message(self) -> bytes:
        """What its signature must be over."""
        return RECORD_CONTEXT + self.record_bytes if self.group is None else self.group.message_of(self.record_bytes)

    def is_signed_by(self, verifiers: Sequence[LogVerifier]) -> bool:
        """Whether one of `verifiers` signed it, for its own origin."""
        message = self.message
        return any(
            one.key_id.hex() == self.key_id
            and one.origin == self.record.origin
            and one.verifies(message, self.signature)
            for one in verifiers
        )


@dataclass(frozen=True, slots=True)
class PermitEntry:
    """A permit entry as read: the decision record that it belongs to, and the permit's claims."""

    decision_index: int
    decision_leaf_hash: bytes
    claims: dict[str, Any]


Entry = SignedRecord | PermitEntry


class _Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_GROUP)]
    path: str
    salt: str
    size: Annotated[int, msgspec.Meta(ge=2, le=MAX_GROUP)]  # alone, a record is signed as itself: one spelling


class _RecordEnvelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    record: msgspec.Raw
    signature: str
    group: _Group | msgspec.UnsetType = msgspec.UNSET


class _Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: Count
    leaf_hash: str


class _PermitEnvelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    claims: dict[str, Any]
    decision: _Decision
    kind: str


_record_decoder = msgspec.json.Decoder(Record)
_record_envelope_decoder = msgspec.json.Decoder(_RecordEnvelope)
_permit_envelope_decoder = msgspec.json.Decoder(_PermitEnvelope)


def encode_entry(record: Record, sign: Callable[[bytes], bytes], key_id: str) -> bytes:
    """The canonical entry of `record`, signed alone. Raises RecordInvalid, or RecordTooLarge.

    `sign` gives the Ed25519 signature (64 bytes) of the key that `key_id` names (`LogSigner.sign`, `.key_id`).
    """
    return signed_entry(canonical_record(record), sign, key_id)


def canonical_record(record: Record) -> bytes:
    """What is signed of `record`. Raises RecordInvalid, or RecordTooLarge over MAX_RECORD_BYTES."""
    _require_plain(record.details)
    parse_time(record.time)
    record_bytes = _canonical(record)
    if len(record_bytes) > MAX_RECORD_BYTES:
        raise RecordTooLarge(len(record_bytes), MAX_RECORD_BYTES)
    _decode_struct(record_bytes)  # constructing a Struct checks no types: never write what we would not read
    return record_bytes


def signed_entry(record_bytes: bytes, sign: Callable[[bytes], bytes], key_id: str) -> bytes:
    """The entry of a canonical record that is signed alone."""
    return _envelope(record_bytes, sign(RECORD_CONTEXT + record_bytes), key_id)


def grouped_entry(record_bytes: bytes, group: Group, signature: bytes, key_id: str) -> bytes:
    """The entry of a canonical record whose group has `signature`."""
    place = _Group(
        index=group.index,
        path=base64.b64encode(group.path).decode(),
        salt=base64.b64encode(group.salt).decode(),
        size=group.size,
    )
    return _envelope(record_bytes, signature, key_id, place)


def decode_entry(entry: bytes) -> Entry:
    """The record or permit entry in `entry`. Raises RecordInvalid (or RecordTooLarge) for anything else."""
    if len(entry) > MAX_ENTRY_BYTES:
        raise RecordTooLarge(len(entry), MAX_ENTRY_BYTES)
    # Sorted keys make the first one tell the two kinds apart without decoding twice.
    return _decode_permit(entry) if entry.startswith(b'{"claims":') else _decode_signed(entry)


def record_within(entry: bytes) -> tuple[Record, bytes]:
    """The record of a record entry that `decode_entry` took before, and its bytes: without its checks, for a third."""
    record_bytes = bytes(_record_envelope_decoder.decode(entry).record)
    return _record_decoder.decode(record_bytes), record_bytes


def format_time(now: datetime) -> str:
    """`now` (timezone-aware) as records hold it: RFC 3339 UTC with microseconds."""
    if now.tzinfo is None:
        raise RecordInvalid("a time without timezone cannot be recorded")
    return now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """The time in a record's form. Raises RecordInvalid."""
    if not _TIME.fullmatch(text):
        raise RecordInvalid("a record's time is not RFC 3339 UTC with microseconds")
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise RecordInvalid(f"a record's time {text} does not exist") from error


def _envelope(
    record_bytes: bytes, signature: bytes, key_id: str, group: _Group | msgspec.UnsetType = msgspec.UNSET
) -> bytes:
    envelope = _RecordEnvelope(key_id, msgspec.Raw(record_bytes), base64.b64encode(signature).decode(), group)
    return msgspec.json.encode(envelope, order="sorted")


def _decode_signed(entry: bytes) -> SignedRecord:
    try:
        envelope = _record_envelope_decoder.decode(entry)
    except UNDECODABLE as error:
        raise RecordInvalid(f"entry is neither a record nor a permit entry: {error}") from error
    record_bytes = bytes(envelope.record)
    record = _decode_record(record_bytes)
    signature = _decode_base64(envelope.signature)
    if len(signature) != 64:
        raise RecordInvalid("a record's signature is not 64 bytes")
    group = None if envelope.group is msgspec.UNSET else _decode_group(envelope.group)
    if msgspec.json.encode(envelope, order="sorted") != entry:
        raise RecordInvalid("a record entry is not in canonical form")
    return SignedRecord(record, record_bytes, signature, envelope.key, group)


def _decode_group(place: _Group) -> Group:
    group = Group(place.index, place.size, _decode_base64(place.salt), _decode_base64(place.path))
    try:
        hashes = path_length(group.index, group.size)
    except ProofError as error:
        raise RecordInvalid(f"a record has no such place in its group: {error}") from error
    if len(group.salt) != SALT_BYTES or len(group.path) != HASH_BYTES * hashes:
        raise RecordInvalid("a record's place in its group is malformed")
    return group


def _decode_record(record_bytes: bytes) -> Record:
    record = _decode_struct(record_bytes)
    parse_time(record.time)
    _require_plain(record.details)
    # Also catches doubled keys, of which two readers may each believe another one.
    if _canonical(record) != record_bytes:
        raise RecordInvalid("a record is not in canonical form")
    return record


def _decode_struct(record_bytes: bytes) -> Record:
    try:
        record = _record_decoder.decode(record_bytes)
    except UNDECODABLE as error:
        raise RecordInvalid(f"not a record: {error}") from error
    if (record.version == 1) != (record.clock_error_us is msgspec.UNSET):
        raise RecordInvalid(f"a record of version {record.version} does not have that version's fields")
    return record


def _decode_permit(entry: bytes) -> PermitEntry:
    try:
        envelope = _permit_envelope_decoder.decode(entry)
    except UNDECODABLE as error:
        raise RecordInvalid(f"not a permit entry: {error}") from error
    if envelope.kind != PERMIT_KIND:
        raise RecordInvalid(f"entry of unknown kind {envelope.kind[:64]!r}")
    _require_plain(envelope.claims)
    if _canonical(envelope) != entry:
        raise RecordInvalid("a permit entry is not in canonical form")
    leaf_hash = _decode_base64(envelope.decision.leaf_hash)
    if len(leaf_hash) != 32:
        raise RecordInvalid("a permit entry's leaf hash is not 32 bytes")
    return PermitEntry(envelope.decision.index, leaf_hash, envelope.claims)


def _canonical(value: object) -> bytes:
    try:
        return msgspec.json.encode(value, order="sorted")
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise RecordInvalid(f"a record cannot be encoded: {error}") from error


def _require_plain(value: object, depth: int = 0) -> None:
    """Only what has one JSON spelling everywhere: no floats, no integers that others read as floats."""
    if depth > _MAX_DEPTH:
        raise RecordInvalid(f"a record is nested deeper than {_MAX_DEPTH}")
    if type(value) in _PLAIN_TYPES:
        return
    if type(value) is int:
        if value not in _INT64:
            raise RecordInvalid("a record holds an integer of more than 64 bits")
    elif type(value) is list:
        for item in value:
            if type(item) is not str:  # saves most calls: this runs for every record
                _require_plain(item, depth + 1)
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise RecordInvalid("a record holds a key that is not text")
            if type(item) is not str:
                _require_plain(item, depth + 1)
    else:
        raise RecordInvalid(f"a record holds a {type(value).__name__}, which has no canonical form")


def _decode_base64(text: str) -> bytes:
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordInvalid("an entry holds malformed base64") from error
    if base64.b64encode(blob).decode() != text:
        raise RecordInvalid("an entry holds base64 that is not canonical")
    return blob
