"""Of the offline verifier: the signature of a record, alone or of the group that it was committed with.

Shares no code with the writer, on purpose. The format is in docs/audit-log.md. What was found to lead to a signed root
is remembered for some groups: a log costs one Ed25519 check for each group, and each record its own way up to where an
earlier one has been. A way that differs from theirs in one bit is walked to its end.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from audit.verify_tree import PinnedKey, exact_base64, hash_children, hash_leaf

RECORD_PREFIX: Final = b"sealane audit record v1\n"
GROUP_PREFIX: Final = b"sealane audit group v1\n"
GROUP_LIMIT: Final = 256
_SALT_BYTES = 16
_REMEMBERED: Final = 16

State = tuple[int, int, bytes, bytes]
"""On the way up: number of the node and of the last one on its level, its hash, and the rest of the path. What follows
depends on nothing else."""


class Signatures:
    """Checks records' signatures by `keys`."""

    def __init__(self, keys: Sequence[PinnedKey]) -> None:
        self._keys = keys
        self._named: dict[tuple[str, object], list[PinnedKey]] = {}
        self._good: dict[tuple[int, int, bytes], set[State]] = {}  # by key, size and signature

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
            signature = exact_base64(value["signature"]) if isinstance(value["signature"], str) else b""
            place = _Place(value["group"]) if "group" in value else None
        except ValueError:
            return "its signature is malformed"
        if len(signature) != 64:
            return "its signature is malformed"
        if not check:
            return ""
        record = _record_in(entry)
        if place is None:
            good = any(key.verifies(RECORD_PREFIX + record, signature) for key in candidates)
        else:
            good = any(self._is_of_group(key, place, record, signature) for key in candidates)
        return "" if good else "its signature is wrong"

    def _is_of_group(self, key: PinnedKey, place: "_Place", record: bytes, signature: bytes) -> bool:
        group = (id(key), place.size, signature)  # the keys live as long as this does
        known = self._good.get(group, set())
        passed: list[State] = []
        state: State | None = (place.index, place.size - 1, hash_leaf(place.salt + record), place.path)
        while state not in known:
            if state is None:
                return False
            passed.append(state)
            _, last, root, rest = state
            if not rest:
                message = GROUP_PREFIX + place.size.to_bytes(2, "big") + root
                if last or not key.verifies(message, signature):
                    return False
                break
            state = _parent(state)
        known.update(passed)
        if group not in self._good:
            if len(self._good) >= _REMEMBERED:
                del self._good[next(iter(self._good))]  # the oldest
            self._good[group] = known
        return True


class _Place:
    """Where the record stands in its group. Raises ValueError where it can stand nowhere."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict) or value.keys() != {"index", "path", "salt", "size"}:
            raise ValueError("other members than those of a group")
        self.index, self.size, salt, path = value["index"], value["size"], value["salt"], value["path"]
        if not (type(self.index) is type(self.size) is int and isinstance(salt, str) and isinstance(path, str)):
            raise ValueError("members of other types than those of a group")
        if not 2 <= self.size <= GROUP_LIMIT or not 0 <= self.index < self.size:
            raise ValueError("there is no such group, or no such place in it")
        self.salt, self.path = exact_base64(salt), exact_base64(path)
        if len(self.salt) != _SALT_BYTES or len(self.path) % 32:
            raise ValueError("its salt or its path is no such thing")


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
    start = entry.index(b',"record":') + len(b',"record":')
    return entry[start : entry.rindex(b',"signature":')]
