"""The log's own entry in one line, beside what a receiver indexes it by:

    {"hash":"<leaf hash, hex>","id":"<event id>","sequence":<index>,"entry":{"key":…,"record":{…},"signature":…}}

The entry is canonical JSON, so it is put there as it is; only what is not ASCII is escaped. Whoever reads it decodes
it and encodes it again, canonically, and has the log's bytes: `parse.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from audit.siem.formats.text import as_ascii, ascii_json


def entry_line(body: Mapping[str, Any]) -> bytes:
    """Of a document's body; the document itself where it goes without its original."""
    event = body["event"]
    original = event.get("original")
    if original is None:
        return ascii_json(body)
    head = f'{{"hash":"{event["hash"]}","id":"{event["id"]}","sequence":{event["sequence"]},"entry":'
    return b"%s%s}" % (head.encode("ascii"), as_ascii(original.encode()))
