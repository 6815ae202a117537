"""The keys that sign permits and the log, while they are rolled over: files side by side, and what introduces them.

`NAME.introductions` holds what the keys of their time signed about each new one; relays are told all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from audit.checkpoint import LogSigner
from certs.errors import KeyFileError
from certs.files import sync_directory, write_atomically, write_private_key
from certs.key_introduction import (
    MAX_KEY_INTRODUCTIONS,
    Introduction,
    What,
    decode_introductions,
    encode_introductions,
    introduce,
)
from certs.pkcs11 import signing_key
from gateway.rollover.places import Places, Stage
from policy.permit import PermitKey

_P256: Final = "secp256r1"


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """Of one kind. `passphrase`: of every key of this kind that lies in a file of its own."""

    what: What
    places: Places
    origin: str  # of the log; a permit key has none
    passphrase: bytes | None = field(repr=False)

    def read(self, path: Path) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
        """Raises `KeyFileError`."""
        key = signing_key(path, self.passphrase)
        wanted = ec.EllipticCurvePrivateKey if self.what == "permit" else ed25519.Ed25519PrivateKey
        if not isinstance(key, wanted) or (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name != _P256):
            kind = "EC P-256" if self.what == "permit" else "Ed25519"
            raise KeyFileError(path, f"is not an {kind} key", "give the right file")
        return key

    def prepare(self) -> None:
        """Make the next one, unless the operator laid one there (one in a token, say)."""
        if not self.places.next.exists():
            fresh = (
                ec.generate_private_key(ec.SECP256R1())
                if self.what == "permit"
                else ed25519.Ed25519PrivateKey.generate()
            )
            write_private_key(self.places.next, fresh, self.passphrase)
        if self.name(self.places.next) == self.name(self.places.current):
            raise KeyFileError(self.places.next, "is the key that is to be replaced", "give another one")

    def name(self, path: Path) -> str:
        """As relays say which they hold."""
        text = self.text_of(path)
        return f"log:{text.split('+')[1]}" if self.what == "log" else permit_name(PermitKey.from_pem(text.encode()))

    def text_of(self, path: Path) -> str:
        """The public key, as it is pinned."""
        key = self.read(path)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return LogSigner(self.origin, key).vkey
        return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @property
    def introductions_file(self) -> Path:
        return self.places.current.with_name(f"{self.places.current.name}.introductions")

    def introductions(self) -> tuple[Introduction, ...]:
        """Raises `CredentialError`."""
        file = self.introductions_file
        return decode_introductions(file.read_bytes()) if file.exists() else ()

    def introduce_next(
        self, permit: tuple[str, ec.EllipticCurvePrivateKey], log: tuple[str, Callable[[bytes], bytes]]
    ) -> None:
        """By the two keys in force. Durable before anybody is told."""
        made = introduce(self.what, self.text_of(self.places.next), permit, log)
        # A step that was cut off is taken again: two that say the same would at last push out what others need.
        before = [each for each in self.introductions() if each.text != made.text]
        kept = (*before, made)[-MAX_KEY_INTRODUCTIONS // 2 :]
        write_atomically(self.introductions_file, encode_introductions(kept))

    def public_texts(self) -> list[str]:
        """Of the keys that count: the one in force first."""
        return [self.text_of(path) for path in (self.places.current, *self.places.beside())]

    def write_public(self) -> None:
        """For who pins by hand: the file that `sealane certs init` made beside the key, and that of the next key."""
        places = self.places
        file = places.current.with_suffix(".pub" if self.what == "permit" else ".vkey")
        if file.exists():
            write_atomically(file, f"{self.text_of(places.current).strip()}\n".encode())
        if places.stage is Stage.BEGUN:
            write_atomically(self.next_public, f"{self.text_of(places.next).strip()}\n".encode())
        else:
            self.next_public.unlink(missing_ok=True)

    @property
    def next_public(self) -> Path:
        return self.places.current.with_name(f"{self.places.current.name}.next.pub")

    def retire(self) -> None:
        """Of the former one only the name is left. Cut off in between, the step can be taken again."""
        name = self.name(self.places.former)
        write_atomically(self.places.retired_as(name.partition(":")[2]), b"")
        self.places.former.unlink()  # the private key, or the name of the one in a token
        sync_directory(self.places.former.parent)

    def retired_names(self) -> list[str]:
        return [f"{self.what}:{path.name.rpartition('retired-')[2]}" for path in self.places.retired()]


def permit_name(key: PermitKey) -> str:
    return f"permit:{key.key_id}"


@dataclass(frozen=True, slots=True)
class ToldKeys:
    """What relays are told of the keys of permits and of the log."""

    introductions: tuple[Introduction, ...]
    retired: tuple[str, ...]


def told_keys(kinds: Sequence[SigningKeys]) -> ToldKeys:
    """Raises `CredentialError`."""
    return ToldKeys(
        tuple(each for kind in kinds for each in kind.introductions()),
        tuple(name for kind in kinds for name in kind.retired_names()),
    )


def pinned(permit_keys: SigningKeys, log_keys: SigningKeys) -> dict[str, list[str]]:
    """What a host that enrols is to pin. Raises `KeyFileError`."""
    return {"permit_keys": permit_keys.public_texts(), "log_keys": log_keys.public_texts()}
