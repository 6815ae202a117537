"""RFC 5424, the syslog message around a line, and RFC 5425's octet counting.

    <pri>1 <time> <hostname> sealane - <kind> [sealane@32473 id="…" sequence="…" hash="…"] <line>

The line is ASCII JSON, or UTF-8 in CEF and LEEF. No byte order mark precedes it: ASCII needs none, and before `CEF:`,
`LEEF:` or `{` it would keep receivers from knowing the format; section 6.4 allows MSG-ANY for that. Enterprise number
32473 is IANA's for examples: we have none of our own.
"""

from __future__ import annotations

import re
from typing import Final

from audit.siem.document import Document
from audit.siem.formats.severity import SYSLOG, severity_of

STRUCTURE_ID: Final = "sealane@32473"
FACILITY: Final = 13  # log audit
MAX_MSGID: Final = 32
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._:-]")


def syslog_name(text: str, limit: int = 255) -> str:
    """A HOSTNAME or MSGID out of `text`: PRINTUSASCII, and less of it than the RFC allows; `-` for nothing."""
    return _NOT_IN_NAMES.sub("-", text)[:limit] or "-"


def header(document: Document, hostname: str) -> bytes:
    """All before the line, the last space included. `hostname` is a `syslog_name`."""
    head = document.head
    priority = FACILITY * 8 + SYSLOG[severity_of(head.kind, head.outcome)]
    structure = f'[{STRUCTURE_ID} id="{document.id}" sequence="{document.index}" hash="{head.leaf_hash}"]'
    kind = syslog_name(head.kind, MAX_MSGID)
    return f"<{priority}>1 {head.time} {hostname} sealane - {kind} {structure} ".encode("ascii")


def framed(message: bytes) -> bytes:
    """RFC 5425, section 4.3: the length in octets, a space, the message."""
    return b"%d %s" % (len(message), message)
