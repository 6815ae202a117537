"""What the audit log, its readers, witnesses and receivers are shown: by auditors' tools, too."""

from __future__ import annotations

import base64
import contextlib
import json
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
from audit.proof import leaf_hash, verify_consistency, verify_inclusion
from audit.query.parse import parse as parse_query
from audit.record import decode_entry
from audit.siem.cursor import read_cursor
from audit.siem.document import LogEntry
from audit.siem.document import document_of as siem_document_of
from audit.siem.formats import Format, line_of
from audit.siem.formats.parse import LineError, parse_line
from audit.siem.relp_session import RelpError
from audit.siem.splunk import _Acks, _Said
from audit.siem.verify_document import verify_document
from audit.siem.verify_line import verify_stored
from audit.siem.webhook_signature import parse_keys
from audit.tiles import parse_resource, unframe
from audit.verify_bundle import verify_bundle
from audit.verify_cosignature import cosigned_at, read_witness
from audit.verify_entry import Malformed, parse
from audit.verify_keys import known_keys
from audit.verify_receipt import receipt_faults
from audit.verify_tree import read_frames, read_vkey
from audit.verify_tree import read_note as read_note_again
from audit.witness import read_request, write_request
from policy.bundle_files import bundle_digest
from tests.audit.samples import ORIGIN, OTHER_SIGNER, SIGNER, entry, permit
from tests.audit.siem.entries import log_entry as log_entry_of
from tests.audit.siem.entries import permit_entry
from tests.audit.siem.test_relp_session import opened
from tests.audit.test_verify_bundle import with_policy
from tests.fuzz.targets.target import Target, scratch

_FOLDER: Final = scratch()
_BUNDLE: Final = {"bundle.toml": "name = 'a'"}
PROVEN: Final = with_policy(_FOLDER / "log", _BUNDLE, bundle_digest(_BUNDLE))
NOW: Final = datetime(2026, 11, 26, tzinfo=UTC)
KEY: Final = read_vkey(SIGNER.vkey)
LEAVES: Final = [leaf_hash(b"%d" % number) for number in range(2)]
NOTE: Final = sign_checkpoint(Checkpoint(ORIGIN, 7, bytes(range(32))), SIGNER)
COSIGNER: Final = Cosigner("w.example/w", Ed25519PrivateKey.from_private_bytes(bytes(32)))
COSIGNED: Final = NOTE + COSIGNER.cosign(read_note(NOTE), 1_764_100_000)


def log_entry(data: bytes) -> None:
    """What the writer's reader takes, the auditor's takes, too."""
    decode_entry(data)
    parse(data)


def verifiers_entry(data: bytes) -> None:
    parse(data)


def index_entry(data: bytes) -> None:
    """Whatever is in the log, an index can be made of it."""
    document_of(data)
    digest(0, [data])


def siem_entry(data: bytes) -> None:
    """Whatever is in the log makes a document and a line in each format, one line long."""
    document = siem_document_of(LogEntry(ORIGIN, 3, data))
    for form in Format:
        assert b"\n" not in line_of(form)(document, 8192)


def note(data: bytes) -> None:
    """Both readers, which share no code, open the same checkpoints of the log's key."""
    text = data.decode(errors="replace")
    try:
        theirs = read_note_again(data, [KEY])
    except (ValueError, IndexError):
        theirs = None
    try:
        ours = open_checkpoint(text, [SIGNER.verifier])
    except CheckpointError:
        ours = None
    if ours is not None:
        assert theirs is not None
        assert (theirs.size, theirs.root) == (ours.size, ours.root)


def cosigned_note(data: bytes) -> None:
    text = data.decode(errors="replace")
    with contextlib.suppress(CheckpointError):
        cosignatures(text, [COSIGNER.key])
    with contextlib.suppress(CheckpointError):
        read_answer(read_note(NOTE), text, [COSIGNER.key])
    with contextlib.suppress(ValueError):
        cosigned_at(data, read_note_again(NOTE.encode(), [KEY]), read_witness(COSIGNER.key.vkey))


def verifier_keys(data: bytes) -> None:
    text = data.decode(errors="replace")
    with contextlib.suppress(CheckpointError):
        LogVerifier.parse(text)
    with contextlib.suppress(CheckpointError):
        CosignerKey.parse(text)
    for read in (read_vkey, read_witness):
        with contextlib.suppress(ValueError):
            read(text)


def proof(data: bytes) -> None:
    """No proof but the true one of two leaves passes, however long: sizes, an index, hashes."""
    if len(data) < 24:
        return
    first, second, index = (int.from_bytes(data[at : at + 8]) for at in (0, 8, 16))
    path = [data[at : at + 32] for at in range(24, len(data), 32)]
    with contextlib.suppress(ProofError):
        verify_inclusion(LEAVES[0], index, second, path, LEAVES[1])
        raise AssertionError("a proof that is none")
    with contextlib.suppress(ProofError):
        verify_consistency(first, LEAVES[0], second, LEAVES[1], path)
        raise AssertionError("a history that is none")


def witness_request(data: bytes) -> None:
    """What passes is written as it came."""
    request = read_request(data)
    assert write_request(request.old_size, request.path, request.checkpoint_text) == data


def tile_path(data: bytes) -> None:
    parse_resource(data.decode("latin-1"))


def frames(data: bytes) -> None:
    """Writer and verifier cut a bundle alike."""
    entries, size = unframe(data)
    again, rest = read_frames(data)
    assert again == entries
    assert rest == len(data) - size


def query(data: bytes) -> None:
    parse_query(data.decode(errors="replace"), NOW)


def stored_line(data: bytes) -> None:
    parse_line(data)


def stored_document(data: bytes) -> None:
    """Never raises, and verifies nothing but what the log's key has signed."""
    for verdict in (verify_document(data, [KEY]), verify_stored(data, [KEY])):
        assert verdict.outcome != "verified" or verdict.record is not None


def relp(data: bytes) -> None:
    session = opened()
    for _ in range(3):
        session.message(b"x")
    session.receive(data)


def splunk(data: bytes) -> None:
    for shape in (_Acks, _Said):
        with contextlib.suppress(*UNDECODABLE):
            msgspec.json.decode(data, type=shape)


def webhook_keys(data: bytes) -> None:
    parse_keys(data.decode(errors="replace"))


def cursor(data: bytes) -> None:
    path = _FOLDER / "cursor"
    path.write_bytes(data)
    read_cursor(path, ORIGIN)


def key_lines(data: bytes) -> None:
    (_FOLDER / "keys").write_bytes(data)
    known_keys(_FOLDER, [SIGNER.vkey])


def proof_bundle(data: bytes) -> None:
    """The verdict of a file that anybody can have made: never an exception, and verified only as it was exported,
    but for `reference`, which is a finding aid that nobody signs."""
    path = _FOLDER / "proof.bundle"
    path.write_bytes(data)
    assert not verify_bundle(path, [SIGNER.vkey]).ok or _proven(data) == _proven(PROVEN)


def _proven(bundle: bytes) -> tuple[dict[str, Any], list[bytes]]:
    head, *rest = bundle.splitlines()
    return {name: value for name, value in json.loads(head).items() if name != "reference"}, rest


def receipt_in_record(data: bytes) -> None:
    details = {"body": data.decode("utf-8", "replace"), "chain": [], "signature": "", "body_sha256": ""}
    list(receipt_faults({"details": details, "migration_id": "m"}, []))


_J: Final = msgspec.json.encode
_S: Final = "audit.siem."
_V: Final = "audit.verify_"
TARGETS: Final = (
    Target(
        "log-entry", log_entry, (RecordInvalid, RecordTooLarge), (entry(3), permit(3, entry(3))),
        ("audit.record", _V + "entry"),
    ),
    Target("verifiers-entry", verifiers_entry, (Malformed,), (entry(3),), (_V + "entry",)),
    Target("index-entry", index_entry, (AuditError,), (entry(3),), ("audit.index_digest", "gateway.reading")),
    Target(
        "siem-entry", siem_entry, (AuditError,), (entry(3), permit_entry(3).entry), (_S + "document", _S + "selection")
    ),
    Target("note", note, (CheckpointError,), (NOTE.encode(),), ("audit.checkpoint", _V + "tree")),
    Target("cosigned-note", cosigned_note, (), (COSIGNED.encode(),), ("audit.cosignature", _V + "cosignature")),
    Target(
        "verifier-keys", verifier_keys, (), (SIGNER.vkey.encode(), COSIGNER.key.vkey.encode()),
        ("audit.checkpoint", "audit.cosignature", _V + "tree", _V + "cosignature"),
    ),
    Target("proof", proof, (), (bytes(24 + 64), b"\0" * 7 + b"\1" + b"\0" * 7 + b"\2" + bytes(40)), ("audit.proof",)),
    Target(
        "witness-request", witness_request, (WitnessRefused,), (write_request(3, [bytes(32)] * 2, NOTE),),
        ("audit.witness",),
    ),
    Target("tile-path", tile_path, (), (b"0/x001/234.p/5", b"entries/000"), ("audit.tiles",)),
    Target("bundle-frames", frames, (), (b"\0\1a\0\3abc",), ("audit.tiles", _V + "tree")),
    Target(
        "query", query, (AuditError,),
        (b'vm.name:"web 1" AND NOT outcome:denied', b"time:[2026-11 TO 2026-12]"), ("audit.query.parse",),
    ),
    Target(
        "stored-line", stored_line, (LineError,),
        tuple(line_of(f)(siem_document_of(log_entry_of(3)), 8192) for f in Format),
        (_S + "formats.parse",),
    ),
    Target("stored-document", stored_document, (), (entry(3),), (_S + "verify_document", _S + "verify_line")),
    Target("relp", relp, (RelpError,), (b"2 rsp 6 200 OK\n3 rsp 12 500 too full\n",), (_S + "relp_session",)),
    Target("splunk", splunk, (), (b'{"acks":{"1":true}}', b'{"text":"x","code":0,"ackId":1}'), (_S + "splunk",)),
    Target(
        "webhook-keys", webhook_keys, (AuditError, ValueError), (b"whsec_" + base64.b64encode(bytes(24)) + b"\n",),
        (_S + "webhook_signature",),
    ),
    Target(
        "cursor", cursor, (AuditError,), (_J({"origin": ORIGIN, "position": 3, "last": "0" * 64}),),
        (_S + "cursor", _S + "quarantine"),
    ),
    Target(
        "key-lines", key_lines, (ValueError,),
        (successor_line(SIGNER, OTHER_SIGNER).encode(),), (_V + "keys",),
    ),
    Target("proof-bundle", proof_bundle, (), (PROVEN,), (_V + "bundle",)),
    Target("receipt-in-record", receipt_in_record, (), (b"{}",), (_V + "receipt",)),
)  # fmt: skip
