"""Records: one canonical spelling, signed; everything else is refused by reader and writer alike."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import RecordInvalid, RecordTooLarge
from audit.record import (
    MAX_ENTRY_BYTES,
    MAX_RECORD_BYTES,
    Actor,
    PermitEntry,
    SignedRecord,
    Vm,
    canonical_record,
    decode_entry,
    encode_entry,
    format_time,
    parse_time,
)
from tests.audit import samples
from tests.audit.samples import OTHER_SIGNER, SIGNER, entry, permit, record

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def reencode(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_a_record_comes_back_as_it_went_in_and_its_signature_verifies() -> None:
    decoded = decode_entry(entry(7))
    assert isinstance(decoded, SignedRecord)
    assert decoded.record == record(7)
    assert decoded.is_signed_by([SIGNER.verifier])
    assert not decoded.is_signed_by([OTHER_SIGNER.verifier])
    assert not decoded.is_signed_by([])


@given(st.dictionaries(st.text(), json_values, max_size=5), st.text(max_size=50))
def test_any_plain_details_come_back_and_python_s_json_writes_the_same_bytes(
    details: dict[str, Any], reason: str
) -> None:
    encoded = entry(3, details=details, reason=reason)
    decoded = decode_entry(encoded)
    assert isinstance(decoded, SignedRecord)
    assert decoded.record.details == details
    assert decoded.record.reason == reason
    assert reencode(json.loads(encoded)) == encoded


@pytest.mark.parametrize(
    "details",
    [
        {"a": 1.0},
        {"a": [{"b": float("nan")}]},
        {"a": 2**63},
        {"a": -(2**63) - 1},
        {1: "a"},
        {"a": (1, 2)},
        {"a": b"bytes"},
        {"a": "\ud800"},
        {"\udfff": 1},
        {"a": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
)
def test_details_without_one_spelling_are_refused_by_the_writer(details: dict[str, Any]) -> None:
    with pytest.raises(RecordInvalid):
        entry(0, details=details)


def test_bottomless_details_are_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    with pytest.raises(RecordInvalid, match="deeper"):
        entry(0, details=nested)


@pytest.mark.parametrize(
    "changes",
    [
        {"time": "2026-11-22T21:42:21Z"},
        {"time": "2026-11-22T21:42:21.123456+00:00"},
        {"time": "2026-02-30T21:42:21.123456Z"},
        {"time": "2026-11-22T21:42:60.123456Z"},
        {"time": "\u0662026-11-22T21:42:21.123456Z"},
        {"kind": ""},
        {"kind": "With Space"},
        {"kind": "decision\n"},
        {"version": 2},
        {"version": 3, "clock_error_us": None},
        {"version": 1, "clock_error_us": None},
        {"version": 2, "clock_error_us": -1},
        {"version": 2, "clock_error_us": "0"},
        {"sequence": -1},
        {"sequence": 1.0},
        {"monotonic_ns": 2**63},
        {"source": "https://bank.example/host/a"},
        {"vm": Vm("5F0C6D5E-3F0A-4A53-9A55-0A4D8F0F3D10", "web")},
        {"actor": Actor("", "alice", "oidc")},
        {"outcome": "Allowed!"},
    ],
)
def test_a_field_of_the_wrong_form_is_refused_by_the_writer(changes: dict[str, Any]) -> None:
    with pytest.raises(RecordInvalid):
        encode_entry(msgspec.structs.replace(record(0), **changes), SIGNER.sign, SIGNER.key_id)


@pytest.mark.parametrize("error_us", [None, 0, 12_000])
def test_a_record_says_by_how_much_its_time_may_be_wrong(error_us: int | None) -> None:
    decoded = decode_entry(entry(0, version=2, clock_error_us=error_us))
    assert isinstance(decoded, SignedRecord)
    assert decoded.record.clock_error_us == error_us
    assert b'"clock_error_us":' in decoded.record_bytes
    assert b"clock_error_us" not in entry(0)  # of version 1, as older gateways wrote it


def test_the_size_limit_is_exact() -> None:
    base = len(canonical_record(record(0, reason="")))
    entry(0, reason="x" * (MAX_RECORD_BYTES - base))
    with pytest.raises(RecordTooLarge) as caught:
        entry(0, reason="x" * (MAX_RECORD_BYTES - base + 1))
    assert caught.value.size_bytes == MAX_RECORD_BYTES + 1
    with pytest.raises(RecordTooLarge):
        decode_entry(b" " * (MAX_ENTRY_BYTES + 1))


def test_an_enormous_record_is_refused_before_it_is_signed() -> None:
    def never(message: bytes) -> bytes:
        raise AssertionError("signed")

    with pytest.raises(RecordTooLarge):
        encode_entry(record(0, reason="x" * MAX_ENTRY_BYTES), never, "00000000")


def test_every_flipped_bit_is_refused_or_breaks_the_signature() -> None:
    original = entry(1, details={})
    for position in range(len(original)):
        for bit in range(8):
            altered = bytearray(original)
            altered[position] ^= 1 << bit
            try:
                decoded = decode_entry(bytes(altered))
            except RecordInvalid:
                continue
            assert isinstance(decoded, SignedRecord)
            assert not decoded.is_signed_by([SIGNER.verifier])


def altered_entries() -> list[bytes]:
    plain = entry(1)
    value = json.loads(plain)
    body = plain.decode()
    return [
        b"",
        b"{}",
        b"null",
        plain + b"\n",
        b" " + plain,
        body.replace('":', '": ', 1).encode(),
        body.replace('"kind":', '"kind":"x","kind":', 1).encode(),
        body.replace("maintenance", "m\\u0061intenance").encode(),
        body.replace('"n":1', '"n":1.0').encode(),
        body.replace('"n":1', '"n":1e0').encode(),
        body.replace('"n":1', '"n":-0').encode(),
        body.replace('"n":1', '"n":18446744073709551616').encode(),
        body.replace('"outcome":"allowed",', "").encode(),
        reencode(value | {"extra": 1}),
        reencode(value | {"record": value["record"] | {"extra": 1}}),
        reencode(value | {"signature": value["signature"][:-4]}),
        reencode(value | {"signature": "?" * 88}),
        reencode(value | {"signature": value["signature"][:-3] + "B=="}),
        json.dumps(value).encode(),
        plain.replace(b"alice", b"al\xffce"),
        b"[" * 50_000,
    ]


@pytest.mark.parametrize("altered", altered_entries())
def test_an_entry_in_any_other_form_is_refused(altered: bytes) -> None:
    with pytest.raises(RecordInvalid):
        decode_entry(altered)


@given(st.binary(max_size=200))
def test_any_bytes_give_record_invalid_and_nothing_else(data: bytes) -> None:
    with pytest.raises(RecordInvalid):
        decode_entry(data)


def test_a_permit_entry_is_recognised() -> None:
    decision = entry(4)
    decoded = decode_entry(permit(4, decision))
    assert isinstance(decoded, PermitEntry)
    assert decoded.decision_index == 4
    assert decoded.claims["vm"] == samples.VM_ID


def test_a_malformed_permit_entry_is_refused() -> None:
    value = json.loads(permit(4, entry(4)))
    for altered in (
        value | {"kind": "other"},
        value | {"extra": 1},
        value | {"decision": {"index": 4}},
        value | {"decision": {"index": -1, "leaf_hash": value["decision"]["leaf_hash"]}},
        value | {"decision": {"index": 4, "leaf_hash": base64.b64encode(bytes(31)).decode()}},
        value | {"claims": {"a": 1.5}},
        value | {"claims": []},
    ):
        with pytest.raises(RecordInvalid):
            decode_entry(reencode(altered))
    with pytest.raises(RecordInvalid):
        decode_entry(json.dumps(value).encode())


def test_a_signature_of_a_record_never_is_one_of_a_checkpoint() -> None:
    decoded = decode_entry(entry(1))
    assert isinstance(decoded, SignedRecord)
    assert not SIGNER.verifier.verifies(decoded.record_bytes, decoded.signature)


def test_a_record_of_another_origin_is_not_accepted_under_our_key() -> None:
    decoded = decode_entry(entry(1, origin="elsewhere.example/log"))
    assert isinstance(decoded, SignedRecord)
    assert not decoded.is_signed_by([SIGNER.verifier])


def test_times_are_written_in_utc_with_microseconds() -> None:
    east = timezone(timedelta(hours=2))
    assert format_time(datetime(2026, 11, 22, 23, 42, 21, tzinfo=east)) == "2026-11-22T21:42:21.000000Z"
    with pytest.raises(RecordInvalid):
        format_time(datetime(2026, 11, 22))
    now = datetime(2026, 11, 22, 21, 42, 21, 123456, UTC)
    assert parse_time(format_time(now)) == now


def test_the_encoding_is_the_documented_one() -> None:
    encoded = encode_entry(record(0), lambda _message: bytes(64), "c0ffee00")
    assert encoded.startswith(b'{"key":"c0ffee00","record":{"actor":{"authenticated_by":"oidc","groups":[')
    assert encoded.endswith(
        b'"version":1,"vm":{"name":"web-1","uuid":"%s"}},"signature":"%s"}'
        % (
            samples.VM_ID.encode(),
            base64.b64encode(bytes(64)),
        )
    )
    assert msgspec.json.encode(msgspec.json.decode(encoded), order="sorted") == encoded
