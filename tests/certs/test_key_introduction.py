"""A key of permits or of the log is believed where a permit key and a log key that are believed both signed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import CredentialError
from certs.key_introduction import (
    MAX_KEY_INTRODUCTIONS,
    Introduction,
    Statement,
    decode_introductions,
    encode_introductions,
    introduce,
    introduced_keys,
    is_signed,
)

PERMIT_ID, LOG_ID = "0123456789abcdef", "89abcdef"


@dataclass
class Keys:
    permit: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    log: ed25519.Ed25519PrivateKey = field(default_factory=ed25519.Ed25519PrivateKey.generate)

    def introduces(self, key: str = "the new one", **changes: object) -> Introduction:
        made = introduce("permit", key, (PERMIT_ID, self.permit), (LOG_ID, self.log.sign))
        return msgspec.structs.replace(made, **changes)

    def verifies(self, message: bytes, signature: bytes) -> bool:
        try:
            self.log.public_key().verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def believed(self, introduction: Introduction) -> bool:
        known: dict[str, Callable[[bytes, bytes], bool]] = {LOG_ID: self.verifies}
        return is_signed(introduction, {PERMIT_ID: self.permit.public_key()}, known)


OURS, THIEF = Keys(), Keys()


def test_both_signatures_are_needed() -> None:
    good, bad = OURS.introduces(), THIEF.introduces()
    assert OURS.believed(good)
    assert not OURS.believed(bad)
    only_permit = Keys(OURS.permit, THIEF.log).introduces()
    only_log = Keys(THIEF.permit, OURS.log).introduces()
    assert not OURS.believed(only_permit)
    assert not OURS.believed(only_log)


def test_no_other_signature_of_these_keys_passes_for_one() -> None:
    """What either key signs elsewhere is not signed under this context."""
    text = OURS.introduces().text.encode()
    other = OURS.introduces(permit_signature=OURS.permit.sign(text, ec.ECDSA(hashes.SHA256())))
    assert not OURS.believed(other)
    assert not OURS.believed(OURS.introduces(log_signature=OURS.log.sign(text)))


@given(st.integers(0, 2**16), st.integers(0, 7))
def test_a_flipped_bit_is_refused(position: int, bit: int) -> None:
    good = OURS.introduces()
    data = bytearray(msgspec.json.encode(good))
    data[position % len(data)] ^= 1 << bit
    try:
        changed = msgspec.json.decode(bytes(data), type=Introduction)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    assert changed == good or not OURS.believed(changed)


def learned(introductions: list[Introduction]) -> list[str]:
    found: list[str] = []

    def learn(statement: Statement) -> None:
        found.append(statement.key)
        if statement.key == "second":
            permits["2" * 16] = SECOND.permit.public_key()

    permits = {PERMIT_ID: OURS.permit.public_key()}
    introduced_keys(introductions, permits, {LOG_ID: OURS.verifies}, learn)
    return found


SECOND = Keys(log=OURS.log)


def test_a_chain_is_followed_in_any_order_and_only_from_what_is_known() -> None:
    first = OURS.introduces("second")
    then = introduce("permit", "third", ("2" * 16, SECOND.permit), (LOG_ID, OURS.log.sign))
    assert learned([first, then]) == ["second", "third"]
    assert learned([then, first]) == ["second", "third"]
    assert learned([then]) == []


def test_their_number_and_their_form_are_bounded() -> None:
    with pytest.raises(CredentialError, match="too many"):
        learned([OURS.introduces()] * (MAX_KEY_INTRODUCTIONS + 1))
    nonsense = OURS.introduces()
    message = b"sealane-key-introduction/v1\n{}"
    signed = msgspec.structs.replace(
        nonsense,
        text="{}",
        permit_signature=OURS.permit.sign(message, ec.ECDSA(hashes.SHA256())),
        log_signature=OURS.log.sign(message),
    )
    with pytest.raises(CredentialError, match="malformed"):
        learned([signed])


def test_they_are_kept_in_a_file() -> None:
    made = (OURS.introduces("a"), OURS.introduces("b"))
    assert decode_introductions(encode_introductions(made)) == made
    with pytest.raises(CredentialError):
        decode_introductions(b"{}")
