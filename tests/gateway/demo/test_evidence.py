"""What the demo reads out of a log, and what it must not take for evidence."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.errors import Unexpected
from gateway.demo.evidence import flip_a_byte, is_denial_recorded, read_evidence

TLS = {"version": "TLSv1.3", "group": "X25519MLKEM768", "cipher": "TLS_AES_256_GCM_SHA384"}


def receipt(role: str, sent: int, received: int, **changed: Any) -> dict[str, Any]:
    body = {
        "role": role,
        "outcome": "completed",
        "tls": TLS,
        "lane_cipher": "AES-256-GCM",
        "channels": [{"channel": 0, "port": "memory", "sent_bytes": sent, "received_bytes": received}],
        "downtime_ms": 7 if role == "source" else None,
    }
    return {"kind": "migration.receipt", "details": {"body": json.dumps(body | changed)}}


def decision(outcome: str, name: str = "mallory") -> dict[str, Any]:
    return {"kind": "migration.decision", "outcome": outcome, "actor": {"name": name}, "details": {}}


def test_receipts_that_agree_are_evidence() -> None:
    found = read_evidence([decision("allowed"), receipt("source", 100, 5), receipt("destination", 5, 100)])
    assert (found.bytes_carried, found.downtime_ms) == (105, 7)
    assert (found.tls_version, found.key_exchange, found.tls_cipher) == tuple(TLS.values())
    assert found.lane_cipher == "AES-256-GCM"


@pytest.mark.parametrize(
    "records",
    [
        [],
        [receipt("source", 100, 5)],
        [receipt("source", 100, 5), receipt("source", 100, 5)],
        [receipt("source", 100, 5), receipt("destination", 5, 99)],
        [receipt("source", 100, 5), receipt("destination", 6, 100)],
        [receipt("source", 100, 5), receipt("destination", 5, 100, tls=TLS | {"version": "TLSv1.2"})],
        [receipt("source", 100, 5), receipt("destination", 5, 100, lane_cipher="none")],
        [receipt("source", 100, 5, downtime_ms=None), receipt("destination", 5, 100)],
    ],
)
def test_receipts_that_are_missing_or_disagree_are_none(records: list[dict[str, Any]]) -> None:
    with pytest.raises(Unexpected):
        read_evidence(records)


def test_a_denial_counts_only_alone_and_for_the_very_person() -> None:
    assert is_denial_recorded([decision("denied")], "mallory")
    assert not is_denial_recorded([], "mallory")
    assert not is_denial_recorded([decision("allowed")], "mallory")
    assert not is_denial_recorded([decision("denied", name="alice")], "mallory")
    assert not is_denial_recorded([decision("denied"), receipt("source", 1, 1)], "mallory")


def test_one_bit_of_a_copy_is_flipped_and_the_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log" / "tile"
    log.mkdir(parents=True)
    (log / "000").write_bytes(b'..{"name":"mallory"}..')
    changed = flip_a_byte(tmp_path / "log", tmp_path / "copy", b'"name":"mallory"')
    assert (log / "000").read_bytes() == b'..{"name":"mallory"}..'
    assert (tmp_path / "copy" / changed).read_bytes() == b'..{#name":"mallory"}..'


def test_nothing_to_flip_is_said(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(Unexpected, match="no file of the log"):
        flip_a_byte(tmp_path / "log", tmp_path / "copy", b"x")
