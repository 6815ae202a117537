"""One document as one line of what a receiver understands: pure, and made of the document alone.

    severity.py  how much a record should worry somebody, on each format's own scale
    text.py      ASCII JSON, and what keeps a value from ending the line or field that it stands in
    fit.py       a document that is too large for a receiver: what is left out, in which order, and that it says so
    entry.py     the log's own entry, with id, sequence and leaf hash beside it: the default, and the cheapest
    cef.py · leef.py · ocsf.py   ArcSight, QRadar, OCSF 1.9
    syslog.py    the RFC 5424 message around any of them, and RFC 5425's frame
    parse.py     lines as a receiver stored them, back to what they claim to be

The rule that this package owns: nothing that a requester can choose (a VM's name, a reason) ends a line, a field or an
escape. No line holds a control character, and each carries the event's id, its sequence and its leaf hash.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from audit.siem.document import Document
from audit.siem.formats.cef import cef
from audit.siem.formats.entry import entry_line
from audit.siem.formats.fit import fit
from audit.siem.formats.leef import leef
from audit.siem.formats.ocsf import ocsf
from audit.siem.formats.text import ascii_json

Line = Callable[[Document, int], bytes]
"""A document and a limit in bytes → one line without its end, within that limit."""


class Format(Enum):
    """The names that a configuration gives them."""

    ENTRY = "entry"
    ECS = "ecs"
    OCSF = "ocsf"
    CEF = "cef"
    LEEF = "leef"


def line_of(form: Format) -> Line:
    """How to make a line of this format."""
    if form is Format.ENTRY:
        return entry_line
    render = {Format.ECS: ascii_json, Format.OCSF: ocsf, Format.CEF: cef, Format.LEEF: leef}[form]
    return lambda document, limit_bytes: fit(document.body, render, limit_bytes)
