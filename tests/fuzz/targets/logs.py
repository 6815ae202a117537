"""What the audit log, its readers, witnesses and receivers are shown: by auditors' tools, too."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import Checkpoint, LogVerifier, open_checkpoint, read_note, sign_checkpoint
from audit.cosignature import Cosigner, CosignerKey, cosignatures, read_answer
from audit.errors import (
    UNDECODABLE,
    AuditError,
    CheckpointError,
    ProofError,
    RecordInvalid,
    RecordTooLarge,
    WitnessRefused,
)
from audit.index_digest import digest, document_of
from audit.log_keys import successor_line
from audit.proof import leaf_hash, node_hash, verify_consistency, verify_inclusion
from audit.query.facets import UNREADABLE_KIND
from audit.query.parse import parse as parse_query
from audit.record import decode_entry
from audit.siem.cursor import read_cursor
from audit.siem.document import LogEntry
from audit.siem.document import document_of as siem_document_of
from audit.siem.elastic_counting import buckets_of
from audit.siem.formats import Format, line_of
from audit.siem.formats.parse import LineError, parse_line
from audit.siem.quarantine import Quarantine, Quarantined
from audit.siem.relp_session import RelpError
from audit.siem.selection import selection
from audit.siem.splunk import _Acks, _Said
from audit.siem.verify_document import Verdict, verify_document
from audit.siem.verify_line import verify_stored
from audit.siem.webhook_signature import parse_keys
from audit.tiles import parse_resource, unframe
from audit.verify_bundle import verify_bundle
from audit.verify_cosignature import cosigned_at, read_witness
from audit.verify_entry import Malformed, parse
from audit.verify_keys import joined_keys
from audit.verify_receipt import _chain, is_unsigned, receipt_faults
from audit.verify_tree import PinnedKey, read_frames, read_vkey
from audit.verify_tree import read_note as read_note_again
from audit.witness import read_request, write_request
from policy.bundle_files import bundle_digest
from tests.audit.samples import ORIGIN, OTHER_SIGNER, SIGNER, entry, permit
from tests.audit.siem.entries import log_entry as log_entry_of
from tests.audit.siem.entries import permit_entry
from tests.audit.siem.test_relp_session import opened
from tests.audit.test_verify import host_certificate, receipt_of
from tests.audit.test_verify_bundle import with_policy
from tests.fuzz.targets.peers import HOST, of_no_version
from tests.fuzz.targets.target import Target, scratch, shaped

_FOLDER: Final = scratch()
_BUNDLE: Final = {"bundle.toml": "name = 'a'"}
PROVEN: Final = with_policy(_FOLDER / "log", _BUNDLE, bundle_digest(_BUNDLE))
NOW: Final = datetime(2026, 11, 26, tzinfo=UTC)
CHOICE: Final = selection("outcome:allowed", ["user.name"], NOW)
KEY: Final = read_vkey(SIGNER.vkey)
LEAVES: Final = [leaf_hash(b"%d" % number) for number in range(2)]
ROOT: Final = node_hash(*LEAVES)
NOTE: Final = sign_checkpoint(Checkpoint(ORIGIN, 7, bytes(range(32))), SIGNER)
COSIGNER: Final = Cosigner("w.example/w", Ed25519PrivateKey.from_private_bytes(bytes(32)))
SIGNED: Final = json.loads(entry(3))["record"]
RECEIPT: Final = json.loads(receipt_of(host_certificate()))["record"]
COSIGNED: Final = NOTE + COSIGNER.cosign(read_note(NOTE), 1_764_100_000)


def _numbers(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8) for number in numbers)


def log_entry(data: bytes) -> None:
    """What the writer's reader takes, the auditor's takes, too."""
    decode_entry(data)
    parse(data)


def verifiers_entry(data: bytes) -> None:
    parse(data)


def index_entry(data: bytes) -> bool:
    """Whatever is in the log, an index can be made of it. Whether it can be read."""
    digest(0, [data])
    return bool(document_of(data)["kind"] != UNREADABLE_KIND)


def siem_entry(data: bytes) -> None:
    """Whatever is in the log makes a document and a line in each format, one line long."""
    document = siem_document_of(LogEntry(ORIGIN, 3, data))
    for form in Format:
        assert b"\n" not in line_of(form)(document, 8192)


def siem_choice(data: bytes) -> bool:
    """What a receiver is to have, by a query. Whether it is to have this."""
    return CHOICE(LogEntry(ORIGIN, 3, data)) is not None


def note(data: bytes) -> None:
    """Both readers, which share no code, open the same checkpoints of the log's key."""
    ours = open_checkpoint(data.decode(errors="replace"), [SIGNER.verifier])
    theirs = read_note_again(data, [KEY])
    assert (theirs.size, theirs.root) == (ours.size, ours.root)


def verifiers_note(data: bytes) -> None:
    read_note_again(data, [KEY])


def cosigned_note(data: bytes) -> bool:
    """The witness has stated one thing, about one tree. Whether it is that."""
    text = data.decode()
    if not cosignatures(text, [COSIGNER.key]):
        return False
    assert read_note(text).body == read_note(NOTE).body
    return True


def witness_answer(data: bytes) -> bool:
    """Signature lines alone, to the note that was shown. Whether one is the witness's."""
    return bool(read_answer(read_note(NOTE), data.decode(), [COSIGNER.key]))


def verifiers_cosignature(data: bytes) -> bool:
    note = read_note_again(NOTE.encode(), [KEY])
    return cosigned_at(data, note, read_witness(COSIGNER.key.vkey)) is not None


def text_of(read: Callable[[str], object]) -> Callable[[bytes], None]:
    """Where the caller has decoded UTF-8, and does without what is none."""

    def run(data: bytes) -> None:
        read(data.decode(errors="replace"))

    return run


def proof(data: bytes) -> bool:
    """No proof but the true ones of two leaves passes, however long: sizes, an index, hashes. Whether one did."""
    if len(data) < 24:
        return False
    first, second, index = (int.from_bytes(data[at : at + 8]) for at in (0, 8, 16))
    path = [data[at : at + 32] for at in range(24, len(data), 32)]
    included, consistent = True, True
    try:
        verify_inclusion(LEAVES[0], index, second, path, ROOT)
    except ProofError:
        included = False
    try:
        verify_consistency(first, LEAVES[0], second, ROOT, path)
    except ProofError:
        consistent = False
    assert included == ((index, second, path) == (0, 2, [LEAVES[1]]))
    assert consistent == ((first, second, path) == (1, 2, [LEAVES[1]]))
    return included or consistent


def witness_request(data: bytes) -> None:
    """What passes is written as it came."""
    request = read_request(data)
    assert write_request(request.old_size, request.path, request.checkpoint_text) == data


def tile_path(data: bytes) -> bool:
    return parse_resource(data.decode("latin-1")) is not None


def frames(data: bytes) -> bool:
    """Writer and verifier cut a bundle alike."""
    entries, size = unframe(data)
    again, rest = read_frames(data)
    assert again == entries
    assert rest == len(data) - size
    return bool(entries)


def query(data: bytes) -> None:
    parse_query(data.decode(errors="replace"), NOW)


def stored_line(data: bytes) -> None:
    parse_line(data)


def stored(verify: Callable[[bytes, Sequence[PinnedKey]], Verdict]) -> Callable[[bytes], bool]:
    """Never raises, and what it verifies is the one record that the log's key has signed. Whether it did."""

    def run(data: bytes) -> bool:
        verdict = verify(data, [KEY])
        if verdict.outcome != "verified":
            return False
        assert (verdict.origin, verdict.index, verdict.record) == (ORIGIN, 3, SIGNED)
        return True

    return run


def relp(data: bytes) -> None:
    session = opened()
    for _ in range(3):
        session.message(b"x")
    session.receive(data)


def counted(data: bytes) -> None:
    """What an index says of how many there are, within an answer that was decoded."""
    buckets_of(msgspec.json.decode(data))


def quarantined(data: bytes) -> None:
    (_FOLDER / "quarantine").mkdir(exist_ok=True)
    (_FOLDER / "quarantine" / "3.json").write_bytes(data)
    Quarantine(_FOLDER / "quarantine", lambda *_: None).list()


def webhook_keys(data: bytes) -> None:
    parse_keys(data.decode(errors="replace"))


def cursor(data: bytes) -> None:
    path = _FOLDER / "cursor"
    path.write_bytes(data)
    read_cursor(path, ORIGIN)


def key_lines(data: bytes) -> None:
    (_FOLDER / "keys").write_bytes(data)
    joined_keys(_FOLDER, [SIGNER.vkey])


def proof_bundle(data: bytes) -> bool:
    """The verdict of a file that anybody can have made: never an exception, and verified only as it was exported,
    but for `reference`, which is a finding aid that nobody signs."""
    path = _FOLDER / "proof.bundle"
    path.write_bytes(data)
    is_verified = verify_bundle(path, [SIGNER.vkey]).ok
    assert not is_verified or _proven(data) == _proven(PROVEN)
    return is_verified


def _proven(bundle: bytes) -> tuple[dict[str, Any], list[bytes]]:
    head, *rest = bundle.splitlines()
    return {name: value for name, value in json.loads(head).items() if name != "reference"}, rest


def receipt_in_record(data: bytes) -> bool:
    """Any details, in a record that the log's key has signed: canonical, so that all of its text is text. Whether they
    are without fault. The host's own certificate vouches for the receipt that was signed, and for no other."""
    _chain.cache_clear()
    try:
        details = parse(data)
    except Malformed:
        return False
    faults = list(receipt_faults(RECEIPT | {"details": details}, []))
    if not faults and not is_unsigned(details) and details["chain"] == RECEIPT["details"]["chain"]:
        assert details["body"] == RECEIPT["details"]["body"]
    return not faults


_J: Final = msgspec.json.encode
_canonical: Final = msgspec.json.Encoder(order="sorted").encode
_DOCUMENT: Final = siem_document_of(log_entry_of(3))
_LINES: Final = tuple(line_of(form)(_DOCUMENT, 8192) for form in Format)
TARGETS: Final = (
    Target(
        "log-entry", log_entry, (RecordInvalid, RecordTooLarge), (entry(3), permit(3, entry(3))),
    ),
    Target("verifiers-entry", verifiers_entry, (Malformed,), (entry(3),)),
    Target("index-entry", index_entry, (AuditError,), (entry(3),)),
    Target(
        "siem-entry", siem_entry, (AuditError,), (entry(3), permit_entry(3).entry)
    ),
    Target("siem-choice", siem_choice, (AuditError,), (entry(3),)),
    Target("note", note, (CheckpointError,), (NOTE.encode(),)),
    Target("verifiers-note", verifiers_note, (ValueError, IndexError), (NOTE.encode(),)),
    Target("cosigned-note", cosigned_note, (CheckpointError, UnicodeDecodeError), (COSIGNED.encode(),)),
    Target(
        "witness-answer", witness_answer, (CheckpointError, UnicodeDecodeError),
        (COSIGNED.removeprefix(NOTE).encode(),),
    ),
    Target("verifiers-cosignature", verifiers_cosignature, (ValueError,), (COSIGNED.encode(),)),
    Target("log-key", text_of(LogVerifier.parse), (CheckpointError,), (SIGNER.vkey.encode(),)),
    Target("cosigner-key", text_of(CosignerKey.parse), (CheckpointError,), (COSIGNER.key.vkey.encode(),)),
    Target("verifiers-log-key", text_of(read_vkey), (ValueError,), (SIGNER.vkey.encode(),)),
    Target("verifiers-cosigner-key", text_of(read_witness), (ValueError,), (COSIGNER.key.vkey.encode(),)),
    Target(
        "proof", proof, (),
        (_numbers(1, 2, 0) + LEAVES[1], _numbers(0, 2, 0) + LEAVES[1], _numbers(1, 2, 1) + LEAVES[1]),
    ),
    Target(
        "witness-request", witness_request, (WitnessRefused,), (write_request(3, [bytes(32)] * 2, NOTE),),
    ),
    Target("tile-path", tile_path, (), (b"0/x001/234.p/5", b"entries/000")),
    Target("bundle-frames", frames, (), (b"\0\1a\0\3abc",)),
    Target(
        "query", query, (AuditError,),
        (b'vm.name:"web 1" AND NOT outcome:denied', b"time:[2026-11 TO 2026-12]"),
    ),
    Target("stored-line", stored_line, (LineError,), _LINES),
    Target("stored-document", stored(verify_document), (), (_J(_DOCUMENT.body), _J({"_source": _DOCUMENT.body}))),
    Target("stored-anything", stored(verify_stored), (), (_J(_DOCUMENT.body), *_LINES)),
    Target(
        "counted", counted, (*UNDECODABLE, ValueError),
        (b'{"times":{"buckets":[{"key":1,"outcomes":{"buckets":[{"key":"a","doc_count":1}],"sum_other_doc_count":0}}]}}',),
    ),
    Target("quarantined", quarantined, UNDECODABLE, (_J(Quarantined(3, "too long", "{}")),)),
    Target("relp", relp, (RelpError,), (b"2 rsp 6 200 OK\n3 rsp 12 500 too full\n",)),
    Target("splunk-acks", shaped(_Acks), UNDECODABLE, (b'{"acks":{"1":true}}',)),
    Target(
        "splunk-answer", shaped(_Said), UNDECODABLE,
        (b'{"text":"x","code":0,"ackId":1}',),
    ),
    Target(
        "webhook-keys", webhook_keys, (AuditError, ValueError), (b"whsec_" + base64.b64encode(bytes(24)) + b"\n",),
    ),
    Target(
        "cursor", cursor, (AuditError,), (_J({"origin": ORIGIN, "position": 3, "last": "0" * 64}),),
    ),
    Target(
        "key-lines", key_lines, (ValueError,),
        (successor_line(SIGNER, OTHER_SIGNER).encode(),),
    ),
    Target("proof-bundle", proof_bundle, (), (PROVEN,)),
    Target(
        "receipt-in-record", receipt_in_record, (),
        (
            _canonical(RECEIPT["details"]), _canonical(RECEIPT["details"] | {"chain": [], "signature": ""}),
        ),
        (_canonical(RECEIPT["details"] | {"chain": [base64.b64encode(of_no_version(HOST.certificate)).decode()]}),),
    ),
)  # fmt: skip
