"""Checkpoints: one spelling each, and only a pinned log's own key opens them."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from audit.checkpoint import (
    MAX_CHECKPOINT_BYTES,
    Checkpoint,
    LogSigner,
    LogVerifier,
    open_checkpoint,
    sign_checkpoint,
)
from audit.errors import CheckpointError

ORIGIN = "gateway.example/sealane"
SIGNER = LogSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = LogSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))
ELSEWHERE = LogSigner("elsewhere.example/log", Ed25519PrivateKey.from_private_bytes(bytes(32)))
CHECKPOINT = Checkpoint(ORIGIN, 7, bytes(range(32)))
TEXT = sign_checkpoint(CHECKPOINT, SIGNER)

# The example of c2sp.org/signed-note ("Format"), as golang.org/x/mod/sumdb/note writes it.
C2SP_NOTE_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


def test_a_signed_checkpoint_opens_to_itself() -> None:
    assert open_checkpoint(TEXT, [SIGNER.verifier]) == CHECKPOINT
    assert TEXT.startswith(f"{ORIGIN}\n7\n")
    assert TEXT.endswith("\n")


def test_a_verifier_key_reads_back_and_go_s_own_example_parses() -> None:
    assert LogVerifier.parse(SIGNER.vkey + "\n") == SIGNER.verifier
    example = LogVerifier.parse(C2SP_NOTE_KEY)
    assert (example.origin, example.key_id.hex(), example.vkey) == ("PeterNeumann", "c74f20a3", C2SP_NOTE_KEY)


def test_go_s_own_signature_verifies() -> None:
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    verifier = LogVerifier.parse(C2SP_NOTE_KEY)
    assert signature[:4] == verifier.key_id
    assert verifier.verifies(text.encode(), signature[4:])


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "a+b",
        "with space+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+AhpC",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10T",
        "PeterNeumann+c74f20a3+BBpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ],
)
def test_a_malformed_or_mismatched_verifier_key_is_refused(vkey: str) -> None:
    with pytest.raises(CheckpointError):
        LogVerifier.parse(vkey)


def test_another_key_another_origin_and_no_key_do_not_open_it() -> None:
    for verifiers in ([], [OTHER.verifier], [ELSEWHERE.verifier]):
        with pytest.raises(CheckpointError):
            open_checkpoint(TEXT, verifiers)


def test_a_pinned_log_cannot_vouch_for_another_origin() -> None:
    body = TEXT.partition("\n\n")[0] + "\n"
    forged = base64.b64encode(ELSEWHERE.verifier.key_id + ELSEWHERE.sign(body.encode())).decode()
    text = f"{body}\n— {ELSEWHERE.origin} {forged}\n"
    with pytest.raises(CheckpointError, match="not signed by a pinned key of it"):
        open_checkpoint(text, [SIGNER.verifier, ELSEWHERE.verifier])
    with pytest.raises(CheckpointError):
        sign_checkpoint(CHECKPOINT, ELSEWHERE)


def test_signatures_of_unknown_keys_are_ignored_and_wrong_ones_of_known_keys_are_not() -> None:
    witness = "— witness.example " + base64.b64encode(b"wxyz" + bytes(72)).decode() + "\n"
    assert open_checkpoint(TEXT + witness, [SIGNER.verifier]) == CHECKPOINT
    wrong = f"— {ORIGIN} " + base64.b64encode(SIGNER.verifier.key_id + bytes(64)).decode() + "\n"
    with pytest.raises(CheckpointError, match="wrong signature"):
        open_checkpoint(TEXT + wrong, [SIGNER.verifier])


def test_every_flipped_bit_of_a_checkpoint_is_refused() -> None:
    data = TEXT.encode()
    for position in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[position] ^= 1 << bit
            try:
                text = altered.decode()
            except UnicodeDecodeError:
                continue
            with pytest.raises(CheckpointError):
                open_checkpoint(text, [SIGNER.verifier])


def test_every_truncation_and_extension_of_a_checkpoint_is_refused() -> None:
    for text in [TEXT[:cut] for cut in range(len(TEXT))] + [TEXT + "\n", TEXT + "x", "\n" + TEXT, TEXT * 2]:
        with pytest.raises(CheckpointError):
            open_checkpoint(text, [SIGNER.verifier])


@pytest.mark.parametrize(
    "body",
    [
        f"{ORIGIN}\n07\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}\n-7\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}\n\u0667\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}\n9223372036854775808\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}\n7\n{base64.b64encode(bytes(31)).decode()}\n",
        f"{ORIGIN}\n7\n\n",
        f"{ORIGIN}\n7\n{base64.b64encode(bytes(32)).decode()}\nextension\n",
        f"{ORIGIN}\n7\n",
        "\n7\nAAAA\n",
    ],
)
def test_even_a_validly_signed_body_is_refused_when_it_is_not_strictly_a_checkpoint(body: str) -> None:
    signature = base64.b64encode(SIGNER.verifier.key_id + SIGNER.sign(body.encode())).decode()
    with pytest.raises(CheckpointError):
        open_checkpoint(f"{body}\n— {ORIGIN} {signature}\n", [SIGNER.verifier])


def test_an_oversized_checkpoint_and_too_many_signatures_are_refused() -> None:
    line = "— witness.example " + base64.b64encode(b"wxyz" + bytes(64)).decode() + "\n"
    with pytest.raises(CheckpointError, match="signatures"):
        open_checkpoint(TEXT + line * 32, [SIGNER.verifier])
    with pytest.raises(CheckpointError, match="bytes"):
        open_checkpoint(TEXT + line * 1 + "x" * MAX_CHECKPOINT_BYTES, [SIGNER.verifier])


@given(st.text(max_size=400))
def test_any_text_gives_a_checkpoint_error_and_nothing_else(text: str) -> None:
    with pytest.raises(CheckpointError):
        open_checkpoint(text, [SIGNER.verifier])
    with pytest.raises(CheckpointError):
        LogVerifier.parse(text)


def test_a_private_key_does_not_show_in_a_repr() -> None:
    assert "rivate" not in repr(SIGNER)
