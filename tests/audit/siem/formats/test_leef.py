"""LEEF 2.0 against the examples of IBM's guide, by a reader that is written from it. No parser of others was found."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given

from audit.siem.document import LogEntry, document_of
from audit.siem.formats.leef import leef
from tests.audit.siem.hostile import body, hostile_entries


def parsed(line: bytes) -> tuple[list[str], dict[str, str]]:
    """Header and attributes, by the guide: the sixth header field is the separator, as a character or `x` and hex."""
    version, vendor, product, product_version, event_id, separator, attributes = line.decode().split("|", 6)
    assert version == "LEEF:2.0"
    if match := re.fullmatch(r"0?x([0-9A-Fa-f]{2,4})", separator):
        separator = chr(int(match[1], 16))
    pairs = [each.split("=", 1) for each in attributes.split(separator)]
    assert all(len(pair) == 2 for pair in pairs), pairs
    assert len({key for key, _ in pairs}) == len(pairs)
    return [vendor, product, product_version, event_id], dict(pairs)


@pytest.mark.parametrize("separator", ["^", "x5E", "0x5e"])
def test_the_reader_of_these_tests_reads_the_guides_example(separator: str) -> None:
    # IBM QRadar, "LEEF event components", the example of a LEEF:2.0 header with a custom separator.
    line = f"LEEF:2.0|Lancope|StealthWatch|1.0|41|{separator}|src=10.0.1.8^dst=10.0.0.5^sev=5^srcPort=81^dstPort=21"
    assert parsed(line.encode()) == (
        ["Lancope", "StealthWatch", "1.0", "41"],
        {"src": "10.0.1.8", "dst": "10.0.0.5", "sev": "5", "srcPort": "81", "dstPort": "21"},
    )


def test_a_denied_migration_in_full() -> None:
    document = body(outcome="denied", reason="no |=^ here", details={"client_address": "192.0.2.7"})
    header, attributes = parsed(leef(document))
    assert header == ["Sealane", "Sealane", "1", "migration.decision"]
    assert msgspec.json.decode(attributes.pop("original")) == msgspec.json.decode(document["event"]["original"])
    assert attributes == {
        "devTime": "1795381207000",
        "cat": "api",
        "sev": "6",
        "eventId": document["event"]["id"],
        "sequence": "7",
        "leafHash": document["event"]["hash"],
        "log": "gateway.example/sealane",
        "outcome": "failure",
        "msg": "migration.decision: denied, VM web-1 by alice",
        "action": "denied",
        "reason": "no |=  here",
        "usrName": "alice",
        "userId": "okta#alice",
        "realm": "https://issuer.example",
        "src": "192.0.2.7",
        "dstHost": "spiffe://bank.example/host/b",
        "migrationId": "m-7",
        "resource": "web-1",
        "vmUuid": document["sealane"]["vm"]["uuid"],
    }


@given(hostile_entries())
def test_no_value_ends_its_field_or_its_line(entry: LogEntry) -> None:
    document = document_of(entry).body
    line = leef(document)
    assert len(line.decode().splitlines()) == 1
    header, attributes = parsed(line)
    assert header[3] == document["event"]["action"]
    assert attributes["eventId"] == entry.id
    assert attributes["leafHash"] == document["event"]["hash"]
    assert attributes.get("action") == document["sealane"].get("outcome")
    assert msgspec.json.encode(msgspec.json.decode(attributes["original"]), order="sorted") == entry.entry
