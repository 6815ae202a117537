"""CEF against liblognorm's parser, which we did not write, and against the examples of ArcSight's guide."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given

from audit.siem.document import LogEntry, document_of
from audit.siem.formats.cef import MAX_RAW_EVENT, cef
from tests.audit.siem.entries import log_entry
from tests.audit.siem.hostile import PIECES, body, hostile_entries


def parsed(line: bytes) -> tuple[list[str], dict[str, str]]:
    """Header fields and extension, by the guide: a value reaches to the space before the next unescaped `key=`."""
    match = re.fullmatch(r"CEF:0((?:\|(?:[^\\|]|\\[\\|])*){6})\|(.*)", line.decode())
    assert match is not None, line
    header = [re.sub(r"\\(.)", r"\1", each) for each in re.findall(r"\|((?:[^\\|]|\\[\\|])*)", match[1])]
    starts = [*re.finditer(r"(?:^| )([A-Za-z0-9]+)=", match[2])]
    extension = {}
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        raw = match[2][start.end() : following.start() if following else None]
        value = re.sub(r"\\(.)", r"\1", raw)
        assert re.fullmatch(r"(?:[^\\=]|\\[\\=])*", raw), raw
        extension[start[1]] = value
    return header, extension


def by_liblognorm(lines: list[bytes], folder: Path) -> list[dict[str, Any]]:
    rules = folder / "cef.rulebase"
    rules.write_text("version=2\nrule=:%f:cef%\n")
    run = subprocess.run(
        ["lognormalizer", "-r", str(rules)],
        input=b"\n".join(lines) + b"\n",
        capture_output=True,
        timeout=30,
        check=True,
    )
    return [msgspec.json.decode(line)["f"] for line in run.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "name", "extension"),
    [
        # "ArcSight Common Event Format" (CEF), revision 25: the examples of "Character Encoding".
        (
            rb"detected a \| in message|10|src=10.0.0.1 act=blocked a | dst=1.1.1.1",
            "detected a | in message",
            {"src": "10.0.0.1", "act": "blocked a |", "dst": "1.1.1.1"},
        ),
        (
            rb"detected a \\ in packet|10|src=10.0.0.1 act=blocked a \\ dst=1.1.1.1",
            "detected a \\ in packet",
            {"src": "10.0.0.1", "act": "blocked a \\", "dst": "1.1.1.1"},
        ),
        (
            rb"detected a = in message|10|src=10.0.0.1 act=blocked a \= dst=1.1.1.1",
            "detected a = in message",
            {"src": "10.0.0.1", "act": "blocked a =", "dst": "1.1.1.1"},
        ),
    ],
)
def test_the_reader_of_these_tests_reads_the_guides_examples(line: bytes, name: str, extension: object) -> None:
    header, found = parsed(b"CEF:0|security|threatmanager|1.0|100|" + line)
    assert header == ["security", "threatmanager", "1.0", "100", name, "10"]
    assert found == extension


def test_a_denied_migration_in_full() -> None:
    document = body(outcome="denied", reason="not in the maintenance window", details={"client_address": "192.0.2.7"})
    header, extension = parsed(cef(document))
    assert header == [
        *("Sealane", "Sealane", "1", "migration.decision"),
        *("migration.decision: denied, VM web-1 by alice", "6"),
    ]
    assert extension.pop("rawEvent") == document["event"]["original"]
    assert extension == {
        "rt": "1795381207000",
        "externalId": document["event"]["id"],
        "cn1": "7",
        "cn1Label": "sequence",
        "cs1": document["event"]["hash"],
        "cs1Label": "leafHash",
        "cs2": "gateway.example/sealane",
        "cs2Label": "log",
        "outcome": "failure",
        "act": "denied",
        "reason": "not in the maintenance window",
        "suid": "okta#alice",
        "suser": "alice",
        "sntdom": "https://issuer.example",
        "src": "192.0.2.7",
        "dhost": "spiffe://bank.example/host/b",
        "cs3": "m-7",
        "cs3Label": "migrationId",
        "cs4": document["sealane"]["vm"]["uuid"],
        "cs4Label": "vmUuid",
        "cs5": "web-1",
        "cs5Label": "vmName",
    }


def test_an_original_that_arcsight_would_cut_is_left_out_and_that_is_said() -> None:
    _, extension = parsed(cef(body(details={"n": "x" * MAX_RAW_EVENT})))
    assert "rawEvent" not in extension
    assert extension["SealaneSealaneOmitted"] == "event.original"


@given(hostile_entries())
def test_no_value_ends_its_field_or_its_line(entry: LogEntry) -> None:
    document = document_of(entry).body
    line = cef(document)
    assert len(line.decode().splitlines()) == 1
    header, extension = parsed(line)
    assert len(header) == 6
    assert header[3] == document["event"]["action"]
    assert extension["externalId"] == entry.id
    assert extension["cn1"] == str(entry.index)
    assert extension.get("act") == document["sealane"].get("outcome")
    assert set(extension) <= KEYS


KEYS = {
    *("rt", "externalId", "outcome", "act", "reason", "suid", "suser", "sntdom", "src", "shost", "dst", "dhost"),
    *("rawEvent", "SealaneSealaneOmitted", "cn1", "cn1Label", "flexString1", "flexString1Label"),
    *(f"cs{number}{suffix}" for number in range(1, 7) for suffix in ("", "Label")),
}


@pytest.mark.real
def test_liblognorm_reads_what_was_written(tmp_path: Path) -> None:
    documents = [body(reason=piece, outcome="denied") for piece in PIECES]
    read = by_liblognorm([cef(each) for each in documents], tmp_path)
    assert len(read) == len(PIECES)
    for document, found in zip(documents, read, strict=True):
        assert found["SignatureID"] == "migration.decision"
        assert found["Severity"] == "6"
        # liblognorm 2.0.6 drops the first character of the first key.
        ours = parsed(cef(document))[1]
        ours["t"] = ours.pop("rt")
        assert found["Extensions"] == ours


def test_an_address_is_one_and_a_name_is_a_name() -> None:
    assert parsed(cef(body(details={"client_address": "2001:db8::1"})))[1]["src"] == "2001:db8::1"
    assert parsed(cef(body(details={"client_address": "proxy"})))[1]["shost"] == "proxy"
    assert "src" not in parsed(cef(document_of(log_entry(1)).body))[1]
