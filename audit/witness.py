"""A witness of logs (c2sp.org/tlog-witness): cosigns a checkpoint only if it extends the last one that it cosigned.

    state_dir/<SHA-256 of the origin, hex>      the latest cosigned checkpoint of that log, with all its signatures
    state_dir/evidence/fork-…, unproven-…       checkpoints under a log's key that do not continue it; the former prove
                                                that the log forked, of the latter only the proof may have been wrong
    state_dir/lock                              flock of the process that runs this witness

The one rule: **durable before it is answered**. What was cosigned is on disk before the cosignature leaves, so that a
witness that dies can never cosign two histories. A state that cannot be read, or is not its own, stops it at the start.

Synchronous; one thread at a time, which also makes check and update atomic. Time is an argument.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from audit.checkpoint import Checkpoint, LogVerifier, Note, open_checkpoint, read_note, signature_line
from audit.cosignature import Cosigner, cosignatures
from audit.disk import Disk, lock
from audit.errors import CheckpointError, LogDamaged, LogLocked, ProofError, WitnessRefused
from audit.proof import EMPTY_ROOT, HASH_BYTES, verify_consistency

MAX_REQUEST_BYTES = 32 * 1024
MAX_PROOF_LINES = 63
MAX_EVIDENCE = 100  # files of each kind: the first ones tell. Wrong proofs must not crowd out forks

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Request:
    """An add-checkpoint request, of which nothing is verified yet."""

    old_size: int
    path: tuple[bytes, ...]
    checkpoint_text: str
    note: Note


def read_request(body: bytes) -> Request:
    """Raises WitnessRefused (400)."""
    if len(body) > MAX_REQUEST_BYTES:
        raise WitnessRefused(400, f"a request has at most {MAX_REQUEST_BYTES} bytes")
    try:
        header, separator, text = body.decode().partition("\n\n")
        old, *proof = header.split("\n")
        match = _OLD.fullmatch(old)
        if not separator or match is None or len(proof) > MAX_PROOF_LINES:
            raise WitnessRefused(400, "not an old size, up to 63 hashes, an empty line and a checkpoint")
        return Request(int(match[1]), tuple(map(_read_hash, proof)), text, read_note(text))
    except (UnicodeDecodeError, binascii.Error, ValueError, CheckpointError) as error:
        raise WitnessRefused(400, f"malformed: {error}") from error


def write_request(old_size: int, path: Sequence[bytes], checkpoint_text: str) -> bytes:
    """The body of an add-checkpoint request."""
    lines = [f"old {old_size}", *(base64.b64encode(node).decode() for node in path)]
    return ("\n".join(lines) + "\n\n" + checkpoint_text).encode()


class Witness:
    """Cosigns for `logs` (origin → pinned keys) as `cosigners` (one identity; a key for each algorithm)."""

    def __init__(
        self,
        directory: Path,
        cosigners: Sequence[Cosigner],
        logs: Mapping[str, Sequence[LogVerifier]],
        disk: Disk | None = None,
    ) -> None:
        """Raises LogLocked, LogDamaged (a state that is not this witness's), OSError."""
        self._store = _Store(directory, disk or Disk())
        self._cosigners = cosigners
        self._logs = logs
        try:
            self._latest = {origin: self._load(origin) for origin in logs}
        except BaseException:
            self._store.close()
            raise

    def close(self) -> None:
        self._store.close()

    def add_checkpoint(self, body: bytes, now: int) -> str:
        """The cosignature lines for the checkpoint in the request `body`, at `now` (unix seconds).

        Raises WitnessRefused, and OSError if it could not be made durable: then nothing was cosigned.
        """
        request = read_request(body)
        checkpoint = self._signed_checkpoint(request)
        latest = self._latest[checkpoint.origin]
        self._require_next(request, checkpoint, latest)
        lines = "".join(cosigner.cosign(request.note, now) for cosigner in self._cosigners)
        own = "".join(signature_line(name, blob[:4], blob[4:]) for name, blob in self._log_signatures(request.note))
        self._store.save(checkpoint.origin, f"{request.note.body}\n{own}{lines}")
        self._latest[checkpoint.origin] = checkpoint
        return lines

    def latest(self, origin_hash: str) -> str | None:
        """The latest cosigned checkpoint of the log whose origin has this SHA-256 (hex), with its cosignatures."""
        known = {_name_of(origin): origin for origin in self._logs}
        return self._store.load(known[origin_hash]) if origin_hash in known else None

    def _signed_checkpoint(self, request: Request) -> Checkpoint:
        origin = request.note.checkpoint.origin
        if origin not in self._logs:
            raise WitnessRefused(404, "not a log of this witness")
        try:
            return open_checkpoint(request.checkpoint_text, self._logs[origin])
        except CheckpointError as error:
            raise WitnessRefused(403, str(error)) from error

    def _require_next(self, request: Request, new: Checkpoint, latest: Checkpoint | None) -> None:
        """That `new` extends what was cosigned before: the promise of every cosignature."""
        size = latest.size if latest else 0
        if request.old_size > new.size:
            raise WitnessRefused(400, "the old size is larger than the checkpoint's")
        if request.old_size != size:
            raise WitnessRefused(409, f"the latest cosigned checkpoint has size {size}", size)
        try:
            if new.size == 0 and new.root != EMPTY_ROOT:
                raise ProofError("the root of an empty tree is the hash of nothing")
            if latest is None or size == 0:
                if request.path:
                    raise ProofError("from an empty tree there is nothing to prove")
                return
            verify_consistency(size, latest.root, new.size, new.root, request.path)
        except ProofError as error:
            # Signed by the log, and not a continuation: two roots of one size are a fork, else the proof may be wrong.
            if new.size != size:
                self._store.keep_evidence("unproven", new, request.checkpoint_text)
            elif new.root != (latest.root if latest else EMPTY_ROOT):
                self._store.keep_evidence("fork", new, request.checkpoint_text)
            raise WitnessRefused(422, str(error)) from error

    def _log_signatures(self, note: Note) -> list[tuple[str, bytes]]:
        origin = note.checkpoint.origin
        known = [(one.origin, one.key_id) for one in self._logs[origin]]
        return [(name, blob) for name, blob in note.signatures if (name, blob[:4]) in known]

    def _load(self, origin: str) -> Checkpoint | None:
        text = self._store.load(origin)
        if text is None:
            return None
        try:
            checkpoint = open_checkpoint(text, self._logs[origin])
            if checkpoint.origin != origin or not cosignatures(text, [one.key for one in self._cosigners]):
                raise CheckpointError("it was not cosigned by this witness")
        except CheckpointError as error:
            raise LogDamaged(
                f"the state of {origin} in {self._store.directory} is not this witness's ({error}); restore it"
            ) from error
        return checkpoint


class _Store:
    """The files of a witness; one process at a time."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory = directory
        self._disk = disk
        disk.make_folder(directory)
        disk.make_folder(directory / "evidence")
        disk.sync_folder(directory)
        try:
            self._lock = lock(directory / "lock")
        except BlockingIOError:
            raise LogLocked(f"the witness of {directory} runs already; stop that one first") from None

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def load(self, origin: str) -> str | None:
        try:
            return (self.directory / _name_of(origin)).read_text("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise LogDamaged(f"the state of {origin} in {self.directory} is not text; restore it") from None

    def save(self, origin: str, text: str) -> None:
        self._write(self.directory / _name_of(origin), text)

    def keep_evidence(self, kind: str, checkpoint: Checkpoint, text: str) -> None:
        """One file for each checkpoint that the log signed, whatever strangers add to the text of it."""
        folder = self.directory / "evidence"
        signed = hashlib.sha256(f"{checkpoint.size} ".encode() + checkpoint.root).hexdigest()
        name = f"{kind}-{_name_of(checkpoint.origin)[:16]}-{signed[:16]}"
        if len(list(folder.glob(f"{kind}-*"))) < MAX_EVIDENCE and not (folder / name).exists():
            self._write(folder / name, text)

    def _write(self, path: Path, text: str) -> None:
        pending = self.directory / "pending"
        descriptor = self._disk.overwrite(pending)
        try:
            self._disk.write(descriptor, text.encode())
            self._disk.sync_data(descriptor)
        finally:
            os.close(descriptor)
        self._disk.rename(pending, path)
        self._disk.sync_folder(path.parent)


def _name_of(origin: str) -> str:
    return hashlib.sha256(origin.encode()).hexdigest()


def _read_hash(line: str) -> bytes:
    node = base64.b64decode(line, validate=True)
    if len(node) != HASH_BYTES or base64.b64encode(node).decode() != line:
        raise ValueError("a line of the proof is not the base64 of a hash")
    return node
