"""Of the offline verifier: the signature of a record, alone or of the group that it was committed with.

Shares no code with the writer, on purpose. The format is in docs/audit-log.md. What was found to lead to a signed root
is remembered for some groups: a log costs one Ed25519 check for each group, and each record its own way up to where an
earlier one has been, or beside it. A way that differs from theirs in one bit is walked to its end.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

from audit.verify_tree import PinnedKey, canonical_base64, exact_base64, hash_children, hash_leaf

RECORD_PREFIX: Final = b"sealane audit record v1\n"
GROUP_PREFIX: Final = b"sealane audit group v1\n"
GROUP_LIMIT: Final = 256
_SALT_BYTES = 16
_REMEMBERED: Final = 16
_PLACE_KEYS: Final = ["index", "path", "salt", "size"]  # in the order of canonical form
_BEFORE_RECORD: Final = b',"record":'
_AFTER_RECORD: Final = b',"signature":'

State = tuple[int, int, bytes, bytes]
"""On the way up: number of the node and of the last one on its level, its hash, and the rest of the path. What follows
depends on nothing else."""

_Place = tuple[int, int, bytes, str]
"""Of a record in its group: its number, how many they are, salt, and the path as it is written. One is made for each
record of a log: no class, which would take a twentieth of this module's time."""

_NOTHING: Final[frozenset[State]] = frozenset()


@dataclass(frozen=True, slots=True)
class _Expected:
    """What follows from a record that was found good, of the one beside it: all but its salt, and its leaf's hash."""

    key: PinnedKey
    signature: bytes
    place: tuple[int, int, str]
    leaf: bytes


class Signatures:
    """Checks records' signatures by `keys`."""

    def __init__(self, keys: Sequence[PinnedKey]) -> None:
        self._keys = keys
        self._named: dict[tuple[str, object], list[PinnedKey]] = {}
        self._good: dict[tuple[int, int, bytes], set[State]] = {}  # by key, size and signature
        self._expected: _Expected | None = None
        self._decoded: tuple[str, bytes] = "", b""  # the last signature: all records of a group have the same one

    def candidates(self, origin: str, key_id: object) -> list[PinnedKey]:
        """The given keys that a record of this log may name."""
        if not isinstance(key_id, str):
            return []
        found = self._named.get((origin, key_id))
        if found is None:
            found = [key for key in self._keys if key.name == origin and key.key_id.hex() == key_id]
            if found:  # what names no key is not remembered: there may be any number of it
                self._named[origin, key_id] = found
        return found

    def fault(self, value: Mapping[str, Any], entry: bytes, candidates: Sequence[PinnedKey], *, check: bool) -> str:
        """What is wrong with the signature of the record entry; empty: nothing. Without `check`, its form alone."""
        try:
            signature = self._decode(value["signature"])
            place = _place(value["group"]) if "group" in value else None
            if check and place is not None and self._is_expected(place, entry, signature, candidates):
                return ""
            path = _path(place) if place is not None else b""
        except ValueError:
            return "its signature is malformed"
        if not check:
            return ""
        record = _record_in(entry)
        for key in candidates:
            if place is None:
                if key.verifies(RECORD_PREFIX + record, signature):
                    return ""
            elif self._is_of_group(key, place, path, record, signature):
                return ""
        return "its signature is wrong"

    def _decode(self, text: Any) -> bytes:
        """A signature's 64 bytes. Raises ValueError."""
        known, signature = self._decoded
        if text != known or not known:
            signature = exact_base64(text) if isinstance(text, str) else b""
            if len(signature) != 64:
                raise ValueError("a signature has 64 bytes")
            self._decoded = text, signature
        return signature

    def _is_expected(self, place: _Place, entry: bytes, signature: bytes, candidates: Sequence[PinnedKey]) -> bool:
        """Whether it is, in every bit, what the record before it said of the one beside it."""
        number, size, salt, path = place
        expected = self._expected
        return (
            expected is not None
            and (number, size, path) == expected.place
            and signature == expected.signature
            and expected.key in candidates
            and hash_leaf(salt + _record_in(entry)) == expected.leaf
        )

    def _is_of_group(self, key: PinnedKey, place: _Place, path: bytes, record: bytes, signature: bytes) -> bool:
        number, size, salt, _ = place
        group = (id(key), size, signature)  # the keys live as long as this does
        leaf = hash_leaf(salt + record)
        known = self._good.get(group, _NOTHING)
        passed = _way_up((number, size - 1, leaf, path), known, key, size, signature)
        if passed is None:
            return False
        if passed and not number & 1 and number + 1 < size:
            beside = number + 1, size, canonical_base64(leaf + path[32:])
            self._expected = _Expected(key, signature, beside, path[:32])
        self._remember(group, passed)
        return True

    def _remember(self, group: tuple[int, int, bytes], passed: Sequence[State]) -> None:
        if group not in self._good:
            if len(self._good) >= _REMEMBERED:
                del self._good[next(iter(self._good))]  # the oldest
            self._good[group] = set()
        self._good[group].update(passed)


def _way_up(state: State, known: Set[State], key: PinnedKey, size: int, signature: bytes) -> list[State] | None:
    """What was passed on the way up to a root that the key has signed, or to a state known to lead there; else None."""
    passed: list[State] = []
    while state not in known:
        node, last, found, rest = state
        passed.append(state)
        if not rest:
            is_signed = not last and key.verifies(GROUP_PREFIX + size.to_bytes(2, "big") + found, signature)
            return passed if is_signed else None
        parent = _parent(state)
        if parent is None:
            return None
        if node & 1 or node != last:  # the other child leads there, too, and its hash is in the path
            passed.append((node ^ 1, last, rest[:32], found + rest[32:]))
        state = parent
    return passed


def _place(value: Any) -> _Place:
    """Where the record says that it stands in its group. Raises ValueError where it can stand nowhere."""
    if not isinstance(value, dict) or [*value] != _PLACE_KEYS:
        raise ValueError("other members than those of a group")
    index, path, salt, size = value.values()
    if not (type(index) is type(size) is int and isinstance(salt, str) and isinstance(path, str)):
        raise ValueError("members of other types than those of a group")
    if not 2 <= size <= GROUP_LIMIT or not 0 <= index < size:
        raise ValueError("there is no such group, or no such place in it")
    decoded_salt = exact_base64(salt)
    if len(decoded_salt) != _SALT_BYTES:
        raise ValueError("its salt is no such thing")
    return index, size, decoded_salt, path


def _path(place: _Place) -> bytes:
    """The hashes on its way up, joined. Raises ValueError."""
    decoded = exact_base64(place[3])
    if len(decoded) % 32:
        raise ValueError("its path is no such thing")
    return decoded


def _parent(state: State) -> State | None:
    """One step of RFC 9162, 2.1.3.2; None where the path goes on above the root."""
    node, last, found, rest = state
    if last == 0:
        return None
    if node & 1 or node == last:
        found = hash_children(rest[:32], found)
        while node and not node & 1:
            node, last = node >> 1, last >> 1
    else:
        found = hash_children(found, rest[:32])
    return node >> 1, last >> 1, found, rest[32:]


def _record_in(entry: bytes) -> bytes:
    """The canonical record within a canonical entry: {…"key":"…","record":…,"signature":"…"}, in this order."""
    # Before it stand a known key id and, of a group, what was found to be numbers and base64: no quote is in them.
    return entry[entry.index(_BEFORE_RECORD) + len(_BEFORE_RECORD) : entry.rindex(_AFTER_RECORD)]
