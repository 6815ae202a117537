"""Keys that never leave a PKCS#11 token, used through OpenSC's `pkcs11-tool`: no native module in our processes.

A key is named by a TOML file of mode 0600 in the place of the key's own:

    module = "/usr/lib/softhsm/libsofthsm2.so"
    token = "sealane"                  # label of the token
    id = "01"                          # CKA_ID of the key pair, hex
    pin_file = "/etc/sealane/pin"      # one line, 0600

P-256, for CAs and permits, or Ed25519, for the log (`certs.pkcs11_process`). A signature costs a process and a login,
some tens of milliseconds.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from certs.errors import UNREADABLE, KeyFileError
from certs.files import MAX_KEY_BYTES, read_private, read_private_key

TOOL: Final = "pkcs11-tool"
SECONDS: Final = 20.0
_PIN_VARIABLE: Final = "SEALANE_PKCS11_PIN"
# Of each key of the file: its form, and that in words.
_KEYS: Final = {
    "module": (r"/[!-~]{1,1023}", "the absolute path of a PKCS#11 module"),
    "token": (r"[^\-\x00-\x1f][^\x00-\x1f]{0,31}", "the label of the token, 1 to 32 characters"),
    "id": (r"([0-9a-f]{2}){1,32}", "the CKA_ID of the key pair, 1 to 32 bytes in lower-case hexadecimal"),
    "pin_file": (r"/[^\x00-\x1f]{1,1023}", "the absolute path of a file that holds the PIN"),
}


@dataclass(frozen=True, slots=True)
class TokenTable:
    module: str
    token: str
    id: str
    pin_file: str


@dataclass(frozen=True, slots=True)
class _Token:
    path: Path
    table: TokenTable
    pin: str = field(repr=False)

    def run(self, *arguments: str, output: Path) -> None:
        """Raises `KeyFileError`. The PIN goes by the environment: every user of the machine can read arguments."""
        table = self.table
        command = [TOOL, "--module", table.module, "--token-label", table.token, "--id", table.id]
        command += ["--output-file", str(output), *arguments]
        environment = {**os.environ, _PIN_VARIABLE: self.pin}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS, check=False)
        except FileNotFoundError:
            raise KeyFileError(self.path, f"{TOOL} is not installed", "install OpenSC") from None
        except subprocess.TimeoutExpired:
            raise KeyFileError(self.path, "the token does not answer", "look at the PKCS#11 module") from None
        if done.returncode != 0 or not output.exists() or output.stat().st_size == 0:
            raise KeyFileError(self.path, "the token has not done it", "check module, token label, id and PIN")

    def sign(self, data: bytes, *how: str) -> bytes:
        """Raises `KeyFileError`."""
        with tempfile.TemporaryDirectory(prefix="sealane-sign-") as folder:
            given, made = Path(folder, "given"), Path(folder, "signature")
            given.write_bytes(data)
            pin = f"env:{_PIN_VARIABLE}"
            self.run("--sign", *how, "--login", "--pin", pin, "--input-file", str(given), output=made)
            return made.read_bytes()

    def sign_ed25519(self, data: bytes) -> bytes:
        """By a process of ours; the PIN goes by its standard input. Raises `KeyFileError`."""
        table = self.table
        asked = {"module": table.module, "token": table.token, "id": table.id, "pin": self.pin, "data": data.hex()}
        command = [sys.executable, "-I", str(Path(__file__).with_name("pkcs11_process.py"))]
        try:
            done = subprocess.run(
                command, input=json.dumps(asked).encode(), capture_output=True, timeout=SECONDS, check=False
            )
            return bytes.fromhex(done.stdout.decode()) if done.returncode == 0 else self._refused(done.stderr)
        except (subprocess.TimeoutExpired, ValueError):
            raise KeyFileError(self.path, "the token does not answer", "look at the PKCS#11 module") from None

    def _refused(self, said: bytes) -> NoReturn:
        words = said.decode(errors="replace").strip()[-200:]
        raise KeyFileError(self.path, f"the token has not signed ({words})", "check module, token label, id and PIN")


class TokenKey(ec.EllipticCurvePrivateKey):
    """A private key on P-256 that only its token has."""

    def __init__(self, token: _Token, public: ec.EllipticCurvePublicKey) -> None:
        self._token = token
        self._public = public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """DER, as `cryptography` gives it; verified here, so that a broken token cannot make us publish nonsense."""
        algorithm = signature_algorithm.algorithm
        digest = bytes(data) if isinstance(algorithm, Prehashed) else _digest(bytes(data), algorithm)
        signature = self._token.sign(digest, "--mechanism", "ECDSA", "--signature-format", "openssl")
        try:
            self._public.verify(signature, bytes(data), signature_algorithm)
        except InvalidSignature:
            raise KeyFileError(self._token.path, "the token signs with another key", "look at its objects") from None
        return signature

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def exchange(self, algorithm: Any, peer_public_key: Any) -> NoReturn:  # noqa: ARG002 - the base's
        raise TypeError("this key signs and does nothing else")

    def private_numbers(self) -> NoReturn:
        raise TypeError("this key does not leave its token")

    def private_bytes(self, encoding: Any, format: Any, encryption_algorithm: Any) -> NoReturn:  # noqa: A002, ARG002 - the base's
        raise TypeError("this key does not leave its token")

    def __copy__(self) -> TokenKey:
        return self

    def __deepcopy__(self, memo: Any) -> TokenKey:
        return self


class TokenEd25519Key(ed25519.Ed25519PrivateKey):
    """The same on Ed25519. A token that fails is an OSError, as a disk: what the log does then is the same."""

    def __init__(self, token: _Token, public: ed25519.Ed25519PublicKey) -> None:
        self._token = token
        self._public = public

    def sign(self, data: Any) -> bytes:
        """64 bytes, verified. Raises OSError."""
        try:
            signature = self._token.sign_ed25519(bytes(data))
            self._public.verify(signature, bytes(data))
        except (KeyFileError, InvalidSignature) as error:
            raise OSError(errno.EIO, f"the key in its token does not sign: {error}") from None
        return signature

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._public

    def private_bytes_raw(self) -> NoReturn:
        raise TypeError("this key does not leave its token")

    def private_bytes(self, encoding: Any, format: Any, encryption_algorithm: Any) -> NoReturn:  # noqa: A002, ARG002 - the base's
        raise TypeError("this key does not leave its token")

    def __copy__(self) -> TokenEd25519Key:
        return self

    def __deepcopy__(self, memo: Any) -> TokenEd25519Key:
        return self


def signing_key(path: Path, passphrase: bytes | None = None) -> PrivateKeyTypes:
    """The key of a file, or the one of a token that the file names. Raises `KeyFileError`."""
    data = read_private(path, MAX_KEY_BYTES)
    if data.lstrip().startswith(b"-----BEGIN"):
        return read_private_key(path, passphrase)
    return _in_token(path, data)


def token_key(path: Path, data: bytes) -> TokenKey:
    """The P-256 key that the TOML `data` of `path` names. Raises `KeyFileError`."""
    found = _in_token(path, data)
    if not isinstance(found, TokenKey):
        raise KeyFileError(path, "the token's key is not EC P-256", "make such a pair in the token")
    return found


def _in_token(path: Path, data: bytes) -> TokenKey | TokenEd25519Key:
    table = _table(path, data)
    token = _Token(path, table, _pin(Path(table.pin_file)))
    with tempfile.TemporaryDirectory(prefix="sealane-key-") as folder:
        made = Path(folder, "public")
        token.run("--read-object", "--type", "pubkey", output=made)
        try:
            read = made.read_bytes()
            public = load_pem_public_key(read) if read.startswith(b"-----BEGIN") else load_der_public_key(read)
        except UNREADABLE:
            raise KeyFileError(path, "the token's public key cannot be read", "make an EC P-256 pair") from None
    if isinstance(public, ed25519.Ed25519PublicKey):
        return TokenEd25519Key(token, public)
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise KeyFileError(path, "the token's key is neither EC P-256 nor Ed25519", "make such a pair in the token")
    return TokenKey(token, public)


def _table(path: Path, data: bytes) -> TokenTable:
    """By hand, as this package knows no other's decoder; what stands at a key is not repeated: it may be a PIN."""
    try:
        found = tomllib.loads(data.decode())
    except (ValueError, RecursionError):  # of TOML, of UTF-8, a number of thousands of digits
        what = "is neither a private key in PEM nor TOML that names one in a PKCS#11 token"
        raise KeyFileError(path, what, "give the right file; docs/certificates.md shows one") from None
    for key in found:
        if key not in _KEYS:
            raise KeyFileError(path, f"{key[:64]!a} is no key of a file that names a key in a token", _remove(key))
    for key, (form, words) in _KEYS.items():
        value = found.get(key)
        if not isinstance(value, str) or re.fullmatch(form, value) is None:
            said = "is missing" if value is None else "is not what it must be"
            raise KeyFileError(path, f"{key} {said}", f"write {words} there, as a text in quotes")
    return TokenTable(**found)


def _remove(key: str) -> str:
    near = difflib.get_close_matches(key, list(_KEYS), n=1)
    return f'did you mean "{near[0]}"?' if near else f"those are {', '.join(_KEYS)}: remove it"


def _pin(path: Path) -> str:
    pin = read_private(path, 256).removesuffix(b"\n")
    if not 4 <= len(pin) <= 64 or not pin.isascii() or not pin.decode().isprintable():
        raise KeyFileError(path, "does not hold a PIN on one line", "write it there")
    return pin.decode()


def _digest(data: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    context = hashes.Hash(algorithm)
    context.update(data)
    return context.finalize()
