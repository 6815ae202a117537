"""Of the offline verifier: a proof bundle, years later, without the log and without us. Trusts pinned keys alone.

Shares no code with the writer, on purpose. The format is in docs/audit-proofs.md. It says exactly what a bundle proves:
of single entries that they are in the log; of a range that nothing in it was left out, altered or added.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cryptography import x509

from audit import verify_entry, verify_receipt
from audit.verify_cosignature import cosigned_at, read_witness
from audit.verify_group import Signatures
from audit.verify_range import MAX_PROBLEMS, Problem, add
from audit.verify_tree import Accumulator, Note, exact_base64, hash_children, hash_leaf, read_note, read_vkey

FORMAT = "sealane-proof/1"
LINE_LIMIT = 16 * 1024 * 1024  # a header may hold a policy bundle; an entry's line is far shorter
ENTRIES_LIMIT = 1_000_000
PATH_LIMIT = 64
_HEADER = {"format", "origin", "checkpoint", "entries", "range", "query", "reference"}
_RANGE = {"from", "to", "left", "right"}


@dataclass(frozen=True, slots=True)
class ProvenEntry:
    """An entry of the bundle that is proven to be in the log. `document`: the record, or the whole permit entry."""

    index: int
    document: Mapping[str, Any]


@dataclass(slots=True)
class BundleVerdict:
    """`ok` is True only if there is no problem at all."""

    origin: str = ""
    size: int = 0
    entries: int = 0
    hidden: int = 0
    """Of `entries`, those given as a hash only: they are in the log, and nothing is shown of them."""
    range: tuple[int, int] | None = None
    """[from, to): nothing was left out of it. None: single entries, and others may be missing."""
    query: Mapping[str, Any] | None = None
    cosignatures: list[tuple[str, int]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    policy_digest: str | None = None
    """Of the policy bundle that came along, computed here. None: none did."""
    decided_by_it: list[int] = field(default_factory=list)
    """Decisions, of those shown, that name this digest; `decided_by_others`: those that name another one."""
    decided_by_others: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


class BundleCheck:
    """One run over the bundle in `file`: `entries` gives what is in it as it goes; after it, `verdict` says all.

    What `entries` has given is proven only if the verdict is ok.
    """

    def __init__(
        self, file: IO[bytes], vkeys: Sequence[str], *, witnesses: Sequence[str] = (), authorities: bytes = b""
    ) -> None:
        """Raises ValueError for a key, witness or authority that is unusable."""
        self.verdict = BundleVerdict()
        self._file = file
        self._keys = [read_vkey(vkey) for vkey in vkeys]
        self._signatures = Signatures(self._keys)
        self._witnesses = [read_witness(vkey) for vkey in witnesses]
        self._authorities: Sequence[x509.Certificate] = (
            verify_receipt.read_authorities(authorities) if authorities else ()
        )
        self._previous: tuple[int, Mapping[str, Any] | None, bytes] | None = None

    def entries(self) -> Iterator[ProvenEntry]:
        """Check everything, line by line. Raises OSError only."""
        try:
            header = _object(self._line(), _HEADER)
            note = self._checkpoint(header)
            expected = _count(header["entries"], ENTRIES_LIMIT)
            if header["range"] is None:
                yield from self._single(note, expected)
            else:
                yield from self._range(note, expected, _object(header["range"], _RANGE))
            if self._file.read(1):
                raise ValueError("something follows the last entry")
            verdict = self.verdict
            if verdict.policy_digest is not None and verdict.decided_by_others and not verdict.decided_by_it:
                self._report(None, "the policy bundle that came along is not the one that any decision in it names")
        except ValueError as error:
            self._report(None, str(error) or "it is malformed")
        except RecursionError:
            self._report(None, "a line of it is nested too deeply")

    def _checkpoint(self, header: Mapping[str, Any]) -> Note:
        if header["format"] != FORMAT:
            raise ValueError(f"its format {str(header['format'])[:64]!r} is unknown")
        text = header["checkpoint"]
        if not isinstance(text, str):
            raise ValueError("its checkpoint is not a text")  # noqa: TRY004
        data = text.encode("utf-8")
        note = read_note(data, self._keys)
        if note.origin != header["origin"]:
            raise ValueError("its origin is not that of its checkpoint")
        for witness in self._witnesses:
            time = cosigned_at(data, note, witness)
            if time is None:
                self._report(None, f"the checkpoint carries no cosignature of {witness.name}")
            else:
                self.verdict.cosignatures.append((witness.name, time))
        query = header["query"]
        if query is not None and not (isinstance(query, dict) and set(query) == {"text", "asked_at", "timezone"}):
            raise ValueError("its query is malformed")
        self.verdict.origin, self.verdict.size, self.verdict.query = note.origin, note.size, query
        self.verdict.policy_digest = _policy_digest(header["reference"])
        return note

    def _single(self, note: Note, expected: int) -> Iterator[ProvenEntry]:
        last = -1
        for _ in range(expected):
            line = _object(self._line(), {"index", "entry", "path"})
            index = _count(line["index"], note.size - 1)
            if index <= last:
                raise ValueError(f"entry {index} does not follow entry {last}")
            last = index
            entry, path = _text(line["entry"]), _hashes(line["path"], PATH_LIMIT)
            if _root_of(hash_leaf(entry), index, note.size, path) != note.root:
                self._report(index, "it is not in the log: its proof does not lead to the checkpoint")
            self.verdict.entries += 1
            yield from self._entry(index, entry, note)

    def _range(self, note: Note, expected: int, of_range: Mapping[str, Any]) -> Iterator[ProvenEntry]:
        start, end = _count(of_range["from"], note.size), _count(of_range["to"], note.size)
        if end - start != expected or not expected:
            raise ValueError("its range is not as long as it says")
        tree = Accumulator()
        _add_left(tree, start, _hashes(of_range["left"], PATH_LIMIT))
        for index in range(start, end):
            line = _object(self._line(), None)
            if line.get("index") != index or type(line["index"]) is not int:
                raise ValueError(f"entry {index} was left out, or stands in another place")
            self.verdict.entries += 1
            if set(line) == {"index", "leaf"}:
                (leaf,) = _hashes([line["leaf"]], 1)
                self.verdict.hidden += 1
                tree.add(leaf)
                self._previous = None
                continue
            _object(line, {"index", "entry"})
            entry = _text(line["entry"])
            tree.add(hash_leaf(entry))
            yield from self._entry(index, entry, note)
        _add_right(tree, note.size, _hashes(of_range["right"], 2 * PATH_LIMIT))
        if tree.root() != note.root:
            raise ValueError("the entries do not lead to the checkpoint: some were altered, left out or added")
        self.verdict.range = (start, end)

    def _entry(self, index: int, entry: bytes, note: Note) -> Iterator[ProvenEntry]:
        try:
            value = verify_entry.parse(entry)
        except verify_entry.Malformed as error:
            self._report(index, str(error))
            self._previous = None
            return
        if "kind" in value:
            self._permit(index, value)
            yield ProvenEntry(index, value)
            self._previous = None
            return
        sound = True
        for fault in verify_entry.record_faults(value, entry, index, note.origin, self._signatures):
            self._report(index, fault)
            sound = False
        record = value.get("record")
        self._previous = (index, record, hash_leaf(entry)) if isinstance(record, dict) else None
        if not sound or not isinstance(record, dict):
            return
        self._note_policy(index, record)
        if record["kind"] == "migration.receipt":
            for fault in verify_receipt.receipt_faults(record, self._authorities):
                self._report(index, fault)
        yield ProvenEntry(index, record)

    def _note_policy(self, index: int, record: Mapping[str, Any]) -> None:
        decision = record["details"].get("decision")
        named = decision.get("bundle_digest") if isinstance(decision, dict) else None
        if self.verdict.policy_digest is None or not isinstance(named, str):
            return
        is_it = named == self.verdict.policy_digest
        (self.verdict.decided_by_it if is_it else self.verdict.decided_by_others).append(index)

    def _permit(self, index: int, value: Mapping[str, Any]) -> None:
        """A permit is checked against its decision where that stands before it in the bundle."""
        if self._previous is None or self._previous[0] != index - 1:
            if set(value) != {"claims", "decision", "kind"} or value["kind"] != "sealane-permit":
                self._report(index, "it is neither a record nor a permit entry")
            return
        _, decision, decision_hash = self._previous
        for fault in verify_entry.permit_faults(value, index, decision, decision_hash):
            self._report(index, fault)

    def _line(self) -> Any:
        line = self._file.readline(LINE_LIMIT)
        if not line.endswith(b"\n"):
            raise ValueError("it ends before its last entry, or a line is too long")
        value = json.loads(line)
        # One spelling: a key that stands twice, say, would be another to the next reader.
        if json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n" != line:
            raise ValueError("a line of it is not in canonical form")
        return value

    def _report(self, index: int | None, what: str) -> None:
        if len(self.verdict.problems) <= MAX_PROBLEMS:
            add(self.verdict.problems, index, what)


def verify_bundle(path: Path, vkeys: Sequence[str], **options: Any) -> BundleVerdict:
    """Check a whole bundle. Raises ValueError for an unusable key, OSError if it cannot be read."""
    with path.open("rb") as file:
        check = BundleCheck(file, vkeys, **options)
        for _ in check.entries():
            pass
    return check.verdict


def _policy_digest(reference: Any) -> str | None:
    """Of the files of the policy bundle in `reference`, if it has one (docs/identity.md). Raises ValueError."""
    files = reference.get("policy_bundle") if isinstance(reference, dict) else None
    if files is None:
        return None
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise ValueError("the policy bundle in it is malformed")
    digest = hashlib.sha256(b"sealane bundle v1\n")
    for path in sorted(files):
        name, content = path.encode(), files[path].encode()
        digest.update(len(name).to_bytes(4, "big") + name + len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _root_of(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """RFC 9162, 2.1.3.2: the root that the path leads to; None if it has a node too few or too many."""
    node, last = index, size - 1
    for sibling in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            leaf = hash_children(sibling, leaf)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            leaf = hash_children(leaf, sibling)
        node, last = node >> 1, last >> 1
    return leaf if last == 0 else None


def _add_left(tree: Accumulator, start: int, nodes: Sequence[bytes]) -> None:
    heights = [height for height in reversed(range(start.bit_length())) if start >> height & 1]
    if len(heights) != len(nodes):
        raise ValueError("it does not have the hashes left of its range")
    for height, node in zip(heights, nodes, strict=True):
        tree.add(node, height)


def _add_right(tree: Accumulator, size: int, nodes: Sequence[bytes]) -> None:
    for node in nodes:
        height = (tree.count & -tree.count).bit_length() - 1
        while tree.count + (1 << height) > size:
            height -= 1
            if height < 0:
                raise ValueError("it has hashes beyond its checkpoint")
        tree.add(node, height)
    if tree.count != size:
        raise ValueError("it does not have the hashes right of its range")


def _object(value: Any, keys: set[str] | None) -> Mapping[str, Any]:
    if not isinstance(value, dict) or (keys is not None and set(value) != keys):
        raise ValueError("a line of it is malformed")
    return value


def _count(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError("a number in it is out of range")
    return value


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("an entry of it is not a text")  # noqa: TRY004 - one answer for a malformed bundle
    return value.encode("utf-8")


def _hashes(values: Any, limit: int) -> list[bytes]:
    if not isinstance(values, list) or len(values) > limit or not all(isinstance(one, str) for one in values):
        raise ValueError("its hashes are malformed")
    found = [exact_base64(one) for one in values]
    if any(len(one) != 32 for one in found):
        raise ValueError("a hash in it is not 32 bytes")
    return found
