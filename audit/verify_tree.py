"""Of the offline verifier: hashing, signed notes and file names. Shares no code with the writer, on purpose.

Written from RFC 6962 and the C2SP specifications alone (signed-note, tlog-checkpoint, tlog-tiles), with
nothing but the standard library and Ed25519: a mistake in the writer must not be repeated here.
"""

import binascii
import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class PinnedKey:
    """A log key that the auditor trusts."""

    name: str
    key_id: bytes
    public_key: Ed25519PublicKey

    def verifies(self, message: bytes, signature: bytes) -> bool:
        try:
            self.public_key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint whose signature was verified."""

    origin: str
    size: int
    root: bytes


def read_vkey(text: str) -> PinnedKey:
    """Parse `<name>+<key id>+<base64(0x01 ‖ key)>`. Raises ValueError, which does not repeat what may be a secret."""
    try:
        name, key_id, encoded = text.strip().split("+", 2)
        blob = exact_base64(encoded)
        if blob[0] != 1:
            raise ValueError("only Ed25519 log keys can be used")
        public_key = Ed25519PublicKey.from_public_bytes(blob[1:])
    except (ValueError, IndexError) as error:
        raise ValueError("what is given is not a log key (<origin>+<key id>+<key>)") from error
    computed = hashlib.sha256(name.encode("utf-8") + b"\x0a" + blob).digest()[:4]
    if not name or computed.hex() != key_id:
        raise ValueError("the key id of a log key is wrong: a typing error?")
    return PinnedKey(name, computed, public_key)


def read_note(data: bytes, keys: Sequence[PinnedKey]) -> Note:
    """The checkpoint in `data`, signed by one of `keys` under its origin. Raises ValueError (what is wrong)."""
    text = data.decode("utf-8")
    end_of_body = text.rfind("\n\n")
    if end_of_body < 0 or not text.endswith("\n"):
        raise ValueError("it is not a signed note")
    body, signature_lines = text[: end_of_body + 1], text[end_of_body + 2 : -1].split("\n")
    origin, size, root = _body_lines(body)
    good = 0
    for line in signature_lines:
        dash, name, blob = _signature(line)
        if dash != "—":
            raise ValueError("a signature line is malformed")
        for key in keys:
            if key.name == name and blob[:4] == key.key_id:
                if not key.verifies(body.encode("utf-8"), blob[4:]):
                    raise ValueError(f"its signature by {name} is wrong")
                good += name == origin
    if not good:
        raise ValueError(f"it is not signed by a given key of {origin}")
    return Note(origin, size, root)


def _body_lines(body: str) -> tuple[str, int, bytes]:
    lines = body.split("\n")
    if len(lines) != 4:
        raise ValueError("it does not consist of origin, size and root")
    size_text = lines[1]
    if not size_text or set(size_text) - set(string.digits) or len(size_text) > 19:
        raise ValueError("its size is malformed")
    if str(int(size_text)) != size_text:
        raise ValueError("its size has leading zeros")
    root = exact_base64(lines[2])
    if len(root) != 32:
        raise ValueError("its root is not 32 bytes")
    return lines[0], int(size_text), root


def _signature(line: str) -> tuple[str, str, bytes]:
    fields = line.split(" ")
    if len(fields) != 3:
        raise ValueError("a signature line is malformed")
    return fields[0], fields[1], exact_base64(fields[2])


def exact_base64(text: str) -> bytes:
    """Decode base64 that has exactly this spelling. Raises ValueError."""
    blob = binascii.a2b_base64(text)  # lenient, but what it skipped does not come back:
    if binascii.b2a_base64(blob, newline=False) != text.encode("ascii"):
        raise ValueError("base64 is not canonical")
    return blob


def canonical_base64(data: bytes) -> str:
    """The one spelling that `exact_base64` takes."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def hash_leaf(entry: bytes) -> bytes:
    """RFC 6962 leaf hash."""
    return hashlib.sha256(b"\x00" + entry).digest()


def hash_children(left: bytes, right: bytes) -> bytes:
    """RFC 6962 node hash."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Accumulator:
    """Tree hash of a growing sequence of leaves: keeps (height, hash) of the perfect trees on its left."""

    def __init__(self) -> None:
        self.count = 0
        self._peaks: list[tuple[int, bytes]] = []

    def add(self, leaf: bytes, height: int = 0) -> None:
        """Append a leaf, or the hash of a whole subtree of 2**height leaves, which must begin at a multiple of that."""
        if self.count & ((1 << height) - 1):
            raise ValueError("a subtree does not begin where one can")
        self.count += 1 << height
        while self._peaks and self._peaks[-1][0] == height:
            leaf = hash_children(self._peaks.pop()[1], leaf)
            height += 1
        self._peaks.append((height, leaf))

    def root(self) -> bytes:
        if not self._peaks:
            return hashlib.sha256().digest()
        result = self._peaks[-1][1]
        for _, peak in self._peaks[-2::-1]:
            result = hash_children(peak, result)
        return result


def file_of(directory: Path, kind: str, number: int) -> Path:
    """Path of the full tile or bundle `number`; `kind` is a tile level or "entries"."""
    digits = str(number)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    return directory.joinpath("tile", kind, *("x" + group for group in groups[:-1]), groups[-1])


def read_frames(data: bytes) -> tuple[list[bytes], int]:
    """The entries of u16-length-prefixed `data`, and how many bytes at its end are no whole entry."""
    entries, position, end = [], 0, len(data)
    while position + 2 <= end:
        following = position + 2 + (data[position] << 8 | data[position + 1])
        if following > end:
            break
        entries.append(data[position + 2 : following])
        position = following
    return entries, end - position
