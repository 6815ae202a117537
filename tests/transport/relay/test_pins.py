"""What a relay pins follows introductions and retirements, survives a restart, and is never empty."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from audit.checkpoint import LogSigner
from certs.errors import CredentialError
from certs.key_introduction import Introduction, introduce
from policy.jws import key_id_of
from policy.permit import PermitKey
from transport.relay.pins import Pins, read_pins

ORIGIN = "bank.example/audit"


class Gateway:
    def __init__(self, origin: str = ORIGIN) -> None:
        self.permit = ec.generate_private_key(ec.SECP256R1())
        self.log = LogSigner(origin, ed25519.Ed25519PrivateKey.generate())

    @property
    def pins(self) -> Pins:
        return Pins((PermitKey.from_public_key(self.permit.public_key()),), (self.log.verifier,))

    @property
    def permit_name(self) -> str:
        return self.pins.names()[0]

    @property
    def log_name(self) -> str:
        return self.pins.names()[1]

    def introduces(self, what: str, key: str) -> Introduction:
        by_permit = (key_id_of(self.permit.public_key()), self.permit)
        return introduce(what, key, by_permit, (self.log.key_id, self.log.sign))  # type: ignore[arg-type]


def pem_of(gateway: Gateway) -> str:
    return gateway.permit.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_a_new_permit_key_is_pinned_beside_the_old_one_until_that_is_retired() -> None:
    old, new = Gateway(), Gateway()
    introduction = old.introduces("permit", pem_of(new))
    both = old.pins.after([introduction], [])
    assert both.names() == [old.permit_name, new.permit_name, old.log_name]
    left = both.after([introduction], [old.permit_name])
    assert left.names() == [new.permit_name, old.log_name]
    # What was retired is not introduced again by what it signed once.
    assert left.after([introduction], []).names() == left.names()


def test_a_new_log_key_is_of_the_log_that_is_known() -> None:
    old, new, other = Gateway(), Gateway(), Gateway("elsewhere.example/audit")
    both = old.pins.after([old.introduces("log", new.log.vkey)], [])
    assert both.names() == [old.permit_name, old.log_name, new.log_name]
    with pytest.raises(CredentialError, match="elsewhere"):
        old.pins.after([old.introduces("log", other.log.vkey)], [])


def test_who_was_away_for_two_rollovers_follows_them_through_a_key_that_is_gone() -> None:
    first, second, third = Gateway(), Gateway(), Gateway()
    second.log = first.log
    chain = [first.introduces("permit", pem_of(second)), second.introduces("permit", pem_of(third))]
    retired = [first.permit_name, second.permit_name]
    assert first.pins.after(chain, retired).names() == [third.permit_name, first.log_name]


def test_a_gateway_cannot_take_the_last_key_nor_bring_one_that_nobody_introduced() -> None:
    ours, thief = Gateway(), Gateway()
    for retired in (ours.permit_name, ours.log_name):
        with pytest.raises(CredentialError, match="0 keys"):
            ours.pins.after([], [retired])
    assert ours.pins.after([thief.introduces("permit", pem_of(thief))], []) == ours.pins
    with pytest.raises(CredentialError, match="permit key"):
        ours.pins.after([ours.introduces("permit", "no key")], [])


def test_pins_are_the_same_after_a_restart_in_however_many_files_they_lie(tmp_path: Path) -> None:
    old, new = Gateway(), Gateway()
    both = old.pins.after([old.introduces("permit", pem_of(new)), old.introduces("log", new.log.vkey)], [])
    permits, logs = [tmp_path / "p0", tmp_path / "p1"], [tmp_path / "l0"]
    both.write(permits, logs)
    assert read_pins(permits, logs) == both
    only = both.after([], [old.permit_name, old.log_name])
    only.write(permits, logs)
    assert read_pins(permits, logs) == only


def test_a_file_with_anything_else_is_refused(tmp_path: Path) -> None:
    ours = Gateway()
    (tmp_path / "log").write_text(ours.log.vkey)
    for text in ("", "no key", f"{pem_of(ours)}and more"):
        (tmp_path / "permit").write_text(text)
        with pytest.raises(ValueError, match="nothing else"):
            read_pins([tmp_path / "permit"], [tmp_path / "log"])
