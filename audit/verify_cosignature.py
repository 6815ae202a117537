"""Of the offline verifier: what witnesses certify of a checkpoint. Shares no code with the writer, on purpose.

Written from c2sp.org/tlog-cosignature: type 0x04 is Ed25519 over "cosignature/v1" LF "time " <time> LF <note body>;
type 0x06 is ML-DSA-44 over "subtree/v1" LF 0x00, cosigner, time, origin, 0, size and root, names after their length.
"""

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from audit.verify_tree import Note, exact_base64


@dataclass(frozen=True, slots=True)
class Witness:
    """A pinned witness."""

    name: str
    key_id: bytes
    public_key: Ed25519PublicKey | MLDSA44PublicKey


def read_witness(text: str) -> Witness:
    """Parse `<name>+<key id>+<base64(type ‖ key)>`. Raises ValueError."""
    try:
        name, key_id, encoded = text.strip().split("+", 2)
        blob = exact_base64(encoded)
        public_key: Ed25519PublicKey | MLDSA44PublicKey
        if blob[0] == 4:
            public_key = Ed25519PublicKey.from_public_bytes(blob[1:])
        elif blob[0] == 6:
            public_key = MLDSA44PublicKey.from_public_bytes(blob[1:])
        else:
            raise ValueError("a witness's key is of type 4 or 6")
    except (ValueError, IndexError, UnsupportedAlgorithm) as error:
        raise ValueError(f"not the key of a witness (<name>+<key id>+<key>): {text.strip()[:80]!r}") from error
    computed = hashlib.sha256(name.encode("utf-8") + b"\x0a" + blob).digest()[:4]
    if not name or computed.hex() != key_id:
        raise ValueError(f"the key id of witness {text.strip()[:80]!r} is wrong: a typing error?")
    return Witness(name, computed, public_key)


def cosigned_at(data: bytes, note: Note, witness: Witness) -> int | None:
    """When (unix seconds) `witness` certified the note in `data`; None if it did not. Raises ValueError if wrongly."""
    text = data.decode("utf-8")
    end_of_body = text.rfind("\n\n")
    body = text[: end_of_body + 1]
    for line in text[end_of_body + 2 : -1].split("\n"):
        _, name, encoded = line.split(" ")
        blob = exact_base64(encoded)
        if name != witness.name or blob[:4] != witness.key_id or len(blob) < 13:
            continue
        time = int.from_bytes(blob[4:12], "big")
        if isinstance(witness.public_key, MLDSA44PublicKey):
            message = _subtree_message(witness.name, note, blob[4:12])
        else:
            message = f"cosignature/v1\ntime {time}\n{body}".encode()
        try:
            witness.public_key.verify(blob[12:], message)
        except InvalidSignature:
            raise ValueError(f"the cosignature of {name} is wrong") from None
        return time
    return None


def _subtree_message(name: str, note: Note, time: bytes) -> bytes:
    names = [bytes([len(one.encode())]) + one.encode() for one in (name, note.origin)]
    size = note.size.to_bytes(8, "big")
    return b"subtree/v1\n\x00" + names[0] + time + names[1] + bytes(8) + size + note.root
