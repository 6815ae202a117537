"""LEEF 2.0, QRadar's Log Event Extended Format (IBM, "QRadar LEEF").

    LEEF:2.0|Sealane|Sealane|<version>|<kind>|^|<key>=<value>^<key>=<value>…

LEEF has no escapes: what separates must not occur in a value, and is a space there (in the original, which is JSON, an
escape). The separator is `^` and not the tab, which syslog servers on the way replace. A key ends at the first `=`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from audit.siem.formats.cef import PRODUCT, VENDOR, VERSION, address
from audit.siem.formats.severity import TEN, severity_of
from audit.siem.formats.text import as_ascii, joined, member, milliseconds, printable

SEPARATOR: Final = "^"


def leef(body: Mapping[str, Any]) -> bytes:
    """Of a document's body."""
    kind = printable(body["event"]["action"]).replace("|", " ")
    head = f"LEEF:2.0|{VENDOR}|{PRODUCT}|{VERSION}|{kind}|{SEPARATOR}|"
    return (head + SEPARATOR.join(f"{key}={value}" for key, value in _attributes(body))).encode()


def _attributes(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    event, own = body["event"], body["sealane"]
    # Milliseconds since the epoch need no devTimeFormat.
    yield "devTime", str(milliseconds(body["@timestamp"]))
    yield "cat", _value(joined(event.get("category")) or "api")
    yield "sev", str(TEN[severity_of(body["event"]["action"], body["event"].get("outcome"))])
    yield "eventId", event["id"]
    yield "sequence", str(event["sequence"])
    yield "leafHash", event["hash"]
    yield "log", _value(own["origin"])
    named = {
        "msg": body.get("message"),
        "outcome": event.get("outcome"),
        "action": own.get("outcome"),
        "reason": event.get("reason"),
        "usrName": member(body, "user", "name"),
        "userId": member(body, "user", "id"),
        "realm": member(body, "user", "domain"),
        **address("src", "srcHost", member(body, "source", "address")),
        **address("dst", "dstHost", member(body, "destination", "address")),
        "migrationId": own.get("migration_id"),
        "resource": member(own, "vm", "name"),
        "vmUuid": member(own, "vm", "uuid"),
        "policy": joined(member(body, "rule", "name")),
        "policyBundle": member(body, "rule", "version"),
        "omitted": joined(own.get("omitted")),
    }
    for key, value in named.items():
        if value is not None:
            yield key, _value(value)
    if (original := event.get("original")) is not None:
        yield "original", as_ascii(original.encode()).decode("ascii").replace(SEPARATOR, "\\u005e")


def _value(text: str) -> str:
    return printable(text).replace(SEPARATOR, " ")
