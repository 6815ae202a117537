"""Cosignatures in the two C2SP types: what they cover, what is refused, what is ignored."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from audit.checkpoint import Checkpoint, open_checkpoint, read_note, sign_checkpoint
from audit.cosignature import Algorithm, Cosigner, CosignerKey, cosignatures, cosigners_of, read_answer
from audit.errors import CheckpointError
from tests.audit.samples import ORIGIN, SIGNER

NAME, TIME = "witness.example/w1", 1_764_100_000
ED25519 = Cosigner(NAME, Ed25519PrivateKey.from_private_bytes(bytes(32)))
ML_DSA = Cosigner(NAME, MLDSA44PrivateKey.from_seed_bytes(bytes(32)))
BOTH = pytest.mark.parametrize("cosigner", [ED25519, ML_DSA], ids=["ed25519", "ml-dsa-44"])
TEXT = sign_checkpoint(Checkpoint(ORIGIN, 7, bytes(range(32))), SIGNER)
NOTE = read_note(TEXT)


@BOTH
def test_a_cosignature_verifies_beside_the_logs_own_signature(cosigner: Cosigner) -> None:
    text = TEXT + cosigner.cosign(NOTE, TIME)
    (found,) = cosignatures(text, [cosigner.key])
    assert (found.name, found.algorithm, found.time) == (NAME, cosigner.key.algorithm, TIME)
    assert text == TEXT + found.line
    assert open_checkpoint(text, [SIGNER.verifier]) == NOTE.checkpoint


def test_the_signed_messages_are_those_of_the_specification() -> None:
    """Written down a second time from c2sp.org/tlog-cosignature, byte by byte."""
    root = bytes(range(32))
    lines = [f"{ORIGIN}\n", "7\n", base64.b64encode(root).decode() + "\n"]
    blob = base64.b64decode(ED25519.cosign(NOTE, TIME).split(" ")[2])
    key = ED25519.private_key.public_key()
    assert isinstance(key, Ed25519PublicKey)
    assert blob[:4] == hashlib.sha256(NAME.encode() + b"\n\x04" + key.public_bytes_raw()).digest()[:4]
    assert blob[4:12] == TIME.to_bytes(8)
    key.verify(blob[12:], "".join(["cosignature/v1\n", f"time {TIME}\n", *lines]).encode())

    blob = base64.b64decode(ML_DSA.cosign(NOTE, TIME).split(" ")[2])
    ml_dsa_key = ML_DSA.private_key.public_key()
    assert blob[:4] == hashlib.sha256(NAME.encode() + b"\n\x06" + ml_dsa_key.public_bytes_raw()).digest()[:4]
    assert (len(blob), blob[4:12]) == (4 + 8 + 2420, TIME.to_bytes(8))
    message = b"subtree/v1\n\0" + bytes([len(NAME)]) + NAME.encode() + TIME.to_bytes(8)
    message += bytes([len(ORIGIN)]) + ORIGIN.encode() + bytes(8) + (7).to_bytes(8) + root
    ml_dsa_key.verify(blob[12:], message)


@BOTH
def test_a_key_has_one_text_and_survives_it(cosigner: Cosigner) -> None:
    vkey = cosigner.key.vkey
    assert CosignerKey.parse(f" {vkey}\n") == cosigner.key
    name, key_id, blob = vkey.split("+", 2)
    for bad in (f"{name}2+{key_id}+{blob}", f"{name}+00000000+{blob}", f"{name}+{key_id}", f"{name}+{key_id}+AQAA"):
        with pytest.raises(CheckpointError):
            CosignerKey.parse(bad)


def test_a_logs_own_key_is_no_cosigners_key() -> None:
    with pytest.raises(CheckpointError):
        CosignerKey.parse(SIGNER.vkey)


@BOTH
@given(data=st.data())
def test_one_flipped_bit_is_refused(cosigner: Cosigner, data: st.DataObject) -> None:
    line = cosigner.cosign(NOTE, TIME)
    blob = bytearray(base64.b64decode(line.split(" ")[2]))
    bit = data.draw(st.integers(32, 8 * len(blob) - 1))  # the first 32 are the key id: another one is ignored
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CheckpointError):
        cosignatures(f"{TEXT}— {NAME} {base64.b64encode(blob).decode()}\n", [cosigner.key])


@BOTH
def test_it_covers_origin_size_root_and_time(cosigner: Cosigner) -> None:
    line = cosigner.cosign(NOTE, TIME)
    for other in (
        Checkpoint(ORIGIN + "x", 7, bytes(range(32))),
        Checkpoint(ORIGIN, 8, bytes(range(32))),
        Checkpoint(ORIGIN, 7, bytes(32)),
    ):
        body = f"{other.origin}\n{other.size}\n{base64.b64encode(other.root).decode()}\n"
        with pytest.raises(CheckpointError, match="wrong"):
            cosignatures(f"{body}\n{line}", [cosigner.key])
    timeless = base64.b64decode(line.split(" ")[2])
    timeless = timeless[:4] + bytes(8) + timeless[12:]
    with pytest.raises(CheckpointError, match="no time"):
        cosignatures(f"{TEXT}— {NAME} {base64.b64encode(timeless).decode()}\n", [cosigner.key])


def test_what_unknown_cosigners_say_is_ignored_and_one_witness_counts_once() -> None:
    other = Cosigner("witness.example/w2", Ed25519PrivateKey.from_private_bytes(bytes(31) + b"1"))
    text = TEXT + ED25519.cosign(NOTE, TIME) + ML_DSA.cosign(NOTE, TIME) + other.cosign(NOTE, TIME)
    assert cosigners_of(cosignatures(text, [other.key])) == {"witness.example/w2"}
    assert cosigners_of(cosignatures(text, [ED25519.key, ML_DSA.key])) == {NAME}
    assert [one.algorithm for one in cosignatures(text, [ED25519.key, ML_DSA.key])] == list(Algorithm)
    assert cosignatures(TEXT, [ED25519.key]) == []


def test_an_answer_of_a_witness_is_signature_lines_and_nothing_else() -> None:
    line = ED25519.cosign(NOTE, TIME)
    assert [one.line for one in read_answer(NOTE, line, [ED25519.key])] == [line]
    for bad in ("", "\n", line[:-1], line + "\n", "hello\n", f"{line}{TEXT}"):
        with pytest.raises(CheckpointError):
            read_answer(NOTE, bad, [ED25519.key])
