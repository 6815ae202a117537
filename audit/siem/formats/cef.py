"""CEF, ArcSight's Common Event Format, version 0 of its header (Micro Focus, "ArcSight Common Event Format", 25).

    CEF:0|Sealane|Sealane|<version>|<kind>|<what happened>|<severity>|<key>=<value> <key>=<value> …

In the header `\\` and `|` are escaped, in a value `\\` and `=`; a line end is never sent, though CEF could escape one.
A key without an entry in CEF's dictionary is named as the guide wants it: vendor, product, meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final

from audit.siem.formats.severity import TEN, severity_of
from audit.siem.formats.text import as_ascii, joined, member, milliseconds, printable

VENDOR: Final = "Sealane"
PRODUCT: Final = "Sealane"
VERSION: Final = "1"
"""Of what the fields mean; a receiver's parser is written for it."""

MAX_RAW_EVENT: Final = 4000  # ArcSight's own limit of rawEvent: it would cut a longer one, which proves nothing


def cef(body: Mapping[str, Any]) -> bytes:
    """Of a document's body."""
    kind, said = body["event"]["action"], body.get("message", "")
    severity = TEN[severity_of(body["event"]["action"], body["event"].get("outcome"))]
    head = f"CEF:0|{VENDOR}|{PRODUCT}|{VERSION}|{_header(kind)}|{_header(printable(said, 512))}|{severity}|"
    return (head + " ".join(f"{key}={_value(value)}" for key, value in _extension(body))).encode()


def _extension(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    event, own = body["event"], body["sealane"]
    yield "rt", str(milliseconds(body["@timestamp"]))
    yield "externalId", event["id"]
    yield from _labelled("cn1", "sequence", str(event["sequence"]))
    yield from _labelled("cs1", "leafHash", event["hash"])
    yield from _labelled("cs2", "log", printable(own["origin"]))
    simple = {
        "outcome": event.get("outcome"),
        "act": own.get("outcome"),
        "reason": event.get("reason"),
        "suid": member(body, "user", "id"),
        "suser": member(body, "user", "name"),
        "sntdom": member(body, "user", "domain"),
        **address("src", "shost", member(body, "source", "address")),
        **address("dst", "dhost", member(body, "destination", "address")),
    }
    for key, value in simple.items():
        if value is not None:
            yield key, printable(value)
    labelled = {
        ("cs3", "migrationId"): own.get("migration_id"),
        ("cs4", "vmUuid"): member(own, "vm", "uuid"),
        ("cs5", "vmName"): member(own, "vm", "name"),
        ("cs6", "policies"): joined(member(body, "rule", "name")),
        ("flexString1", "policyBundle"): member(body, "rule", "version"),
    }
    for (key, label), value in labelled.items():
        if value is not None:
            yield from _labelled(key, label, printable(value))
    yield from _original(event.get("original"), own)


def _original(original: str | None, own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    omitted = list(own.get("omitted", ()))
    if original is not None:
        raw = as_ascii(original.encode()).decode("ascii")
        if len(raw) <= MAX_RAW_EVENT:
            yield "rawEvent", raw
        else:
            omitted.append("event.original")
    if omitted:
        yield "SealaneSealaneOmitted", ",".join(omitted)


def address(ip: str, host: str, value: str | None) -> dict[str, str]:
    """Under `ip` what is an IP address, under `host` what is a name: parsers refuse the other one."""
    if value is None:
        return {}
    if "/" in value:  # a SPIFFE id: the common case
        return {host: value}
    try:
        return {ip: str(ip_address(value))}
    except ValueError:
        return {host: value}


def _labelled(key: str, label: str, value: str) -> Iterator[tuple[str, str]]:
    yield key, value
    yield f"{key}Label", label


def _header(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _value(text: str) -> str:
    return text.replace("\\", "\\\\").replace("=", "\\=")
