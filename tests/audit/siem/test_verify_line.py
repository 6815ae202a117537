from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.siem.document import LogEntry, document_of
from audit.siem.formats import Format, line_of
from audit.siem.formats.syslog import header
from audit.siem.verify_line import verify_stored
from audit.verify_tree import read_vkey
from tests.audit.samples import OTHER_SIGNER, SIGNER
from tests.audit.siem.entries import entry_of_group, log_entry, permit_entry
from tests.audit.siem.hostile import hostile_entries

KEYS = [read_vkey(SIGNER.vkey)]
WIDE = 500_000


def line(form: Format, entry: LogEntry, limit: int = WIDE) -> bytes:
    return line_of(form)(document_of(entry), limit)


@given(hostile_entries(), st.sampled_from(Format))
def test_each_line_verifies_alone_unless_it_lacks_its_original(entry: LogEntry, form: Format) -> None:
    verdict = verify_stored(line(form, entry), KEYS)
    assert not verdict.faults
    assert verdict.index == entry.index
    assert verdict.outcome == ("unproven" if b"SealaneOmitted" in line(form, entry) else "verified")


@pytest.mark.parametrize("form", Format)
def test_a_line_of_a_record_that_was_signed_with_others_verifies_alone(form: Format) -> None:
    assert verify_stored(line(form, entry_of_group(7)), KEYS).outcome == "verified"


def test_a_syslog_header_before_it_and_json_written_anew_do_not_matter() -> None:
    entry = log_entry(7)
    assert verify_stored(header(document_of(entry), "gw") + line(Format.CEF, entry) + b"\n", KEYS).outcome == "verified"
    for form in (Format.ENTRY, Format.OCSF):
        pretty = json.dumps(json.loads(line(form, entry)), indent=2, sort_keys=True).encode()
        assert verify_stored(pretty, KEYS).outcome == "verified"


@given(st.sampled_from(Format), st.data())
def test_one_byte_changed_anywhere_is_no_longer_verified(form: Format, data: st.DataObject) -> None:
    changed = bytearray(line(form, data.draw(st.sampled_from([log_entry(7), entry_of_group(7)]))))
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] = data.draw(st.integers(0x20, 0x7E).filter(lambda byte: byte != changed[at]))
    assert verify_stored(bytes(changed), KEYS).outcome != "verified"


@pytest.mark.parametrize("form", Format)
def test_another_logs_key_a_cut_line_and_a_permit_prove_nothing(form: Format) -> None:
    assert verify_stored(line(form, log_entry(7)), [read_vkey(OTHER_SIGNER.vkey)]).outcome == "refused"
    assert verify_stored(line(form, log_entry(7, details={"n": "x" * 9000}), 4096), KEYS).outcome != "verified"
    permit = permit_entry(3)
    assert verify_stored(line(form, permit), KEYS).outcome == "unproven"
    assert verify_stored(line(form, permit), KEYS, lambda _index: permit.entry).outcome == "verified"


@given(
    st.binary(max_size=300) | st.dictionaries(st.text(max_size=9), st.integers()).map(lambda d: json.dumps(d).encode())
)
def test_whatever_it_is_it_is_refused_and_never_raises(data: bytes) -> None:
    assert verify_stored(data, KEYS).outcome == "refused"
