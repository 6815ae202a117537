"""Receipts as bytes: strict, in one spelling. What they mean is tried in `test_reporting` against a running gateway."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ReceiptRefused
from gateway.receipts import ReceiptBody, SignedReceipt, decode_base64, read_body

BODY = {
    "version": 1,
    "role": "source",
    "jti": "j",
    "migration_id": "m",
    "permit_sha256": "0" * 64,
    "source": "spiffe://x.example/host/a",
    "destination": "spiffe://x.example/host/b",
    "vm": "11111111-2222-4333-8444-555555555555",
    "vm_binding": "none",
    "tls": None,
    "lane_cipher": "AES-256-GCM",
    "source_fingerprint": "0" * 64,
    "destination_fingerprint": None,
    "channels": [],
    "resumptions": 0,
    "outcome": "failed",
    "started": "2026-11-22T21:42:21.123456Z",
    "ended": "2026-11-22T21:42:22.123456Z",
    "downtime_ms": None,
    "checkpoint": "",
    "peer_receipt_sha256": None,
    "content_digests": None,
}
GOOD = msgspec.json.encode(BODY, order="sorted")


def read(body: bytes) -> ReceiptBody:
    return read_body(SignedReceipt(body.decode("utf-8", "surrogateescape"), b"", ()))


def test_a_session_that_never_had_a_peer_still_has_a_receipt() -> None:
    assert read(GOOD).tls is None


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3))
def test_any_alteration_is_another_receipt_or_refused(at: int, piece: bytes) -> None:
    changed = GOOD[:at] + piece + GOOD[at + 1 :]
    try:
        body = read(changed)
    except ReceiptRefused:
        return
    assert msgspec.json.encode(body, order="sorted") == changed


@pytest.mark.parametrize("name", sorted(BODY))
def test_every_member_is_needed(name: str) -> None:
    less = {key: value for key, value in BODY.items() if key != name}
    with pytest.raises(ReceiptRefused):
        read(msgspec.json.encode(less, order="sorted"))


def test_who_lacks_counts_has_none() -> None:
    lacking: dict[str, object] = {**BODY, "lacks_counts": True}
    assert read(msgspec.json.encode(lacking, order="sorted")).lacks_counts is True
    channel = dict.fromkeys(("channel", "sent_bytes", "received_bytes", "sent_frames", "received_frames"), 0)
    channels = [{**channel, "port": "memory"}]
    for name, value in (("channels", channels), ("content_digests", {}), ("lacks_counts", False)):
        with pytest.raises(ReceiptRefused):
            read(msgspec.json.encode({**lacking, name: value}, order="sorted"))


@given(st.text())
def test_any_text_is_base64_or_refused(text: str) -> None:
    with contextlib.suppress(ReceiptRefused):
        decode_base64(text, "signature")
