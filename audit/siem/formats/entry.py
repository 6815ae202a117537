"""The log's own entry in one line, beside what a receiver indexes it by:

    {"hash":"<leaf hash, hex>","id":"<event id>","sequence":<index>,"entry":{"key":…,"record":{…},…}}

The entry is canonical JSON, so it is put there as it is; only what is not ASCII is escaped. Whoever reads it decodes
it and encodes it again, canonically, and has the log's bytes: `parse.py`.
"""

from __future__ import annotations

from audit.siem.document import Document
from audit.siem.formats.fit import fit
from audit.siem.formats.text import as_ascii, ascii_json


def entry_line(document: Document, limit_bytes: int) -> bytes:
    """Within `limit_bytes`; the document where it goes without its original, or that does not fit."""
    if document.original is not None:
        head = f'{{"hash":"{document.head.leaf_hash}","id":"{document.id}","sequence":{document.index},"entry":'
        line = b"%s%s}" % (head.encode("ascii"), as_ascii(document.original))
        if len(line) <= limit_bytes:
            return line
    return fit(document.body, ascii_json, limit_bytes)
