"""Durable state of this relay: one journal per session, and receipts until the gateway has them.

A journal is a file of JSON lines, appended and fsynced line by line; the last line's state is the session's. A torn
last line was never acted upon and does not count; one with the state of the line before it adds facts. The states, and
what may follow which (docs/failures.md):

    source       begun → handed-over → outcome-running | outcome-discarded → ended
                 begun → abandoned → resumed → ended
    destination  admitted → prepared → running → started → ended
                 admitted → ended;  prepared → discarded → ended
    both, where nothing is handed over (bare sockets): begun → ended, prepared → ended
    with libvirt: begun → accepted → handed-over | abandoned;  prepared → loaded → running | discarded
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from certs.files import write_atomically
from transport.errors import ConfigurationError, LocalBroken, Misuse, SpoolFailed
from transport.wire.control import Role

FOLLOWING: dict[str, frozenset[str]] = {
    "begun": frozenset({"accepted", "handed-over", "abandoned", "ended"}),
    "accepted": frozenset({"handed-over", "abandoned"}),
    "abandoned": frozenset({"resumed"}),
    "resumed": frozenset({"ended"}),
    "handed-over": frozenset({"outcome-running", "outcome-discarded"}),
    "outcome-running": frozenset({"ended"}),
    "outcome-discarded": frozenset({"ended"}),
    "admitted": frozenset({"prepared", "ended"}),
    "prepared": frozenset({"loaded", "running", "discarded", "ended"}),
    "loaded": frozenset({"running", "discarded"}),
    "running": frozenset({"started"}),
    "started": frozenset({"ended"}),
    "discarded": frozenset({"ended"}),
    "ended": frozenset(),
}
FIRST_STATE = {Role.SOURCE: "begun", Role.DESTINATION: "admitted"}
_OVER_AT_SOURCE = frozenset({"resumed", "ended"})  # the guest is touched no more
_MAX_JOURNAL_BYTES = 256 * 1024


class SessionJournal:
    """One session's durable states. `facts` holds every member of every line, the latest of each name.

    `ownership`: a locked descriptor of the file, held until the session ends or the process does. Another relay
    process of this host that starts meanwhile must not recover a session that lives.
    """

    def __init__(self, path: Path, state: str, facts: dict[str, Any], ownership: int) -> None:
        self.path = path
        self.state = state
        self.facts = facts
        self._ownership = ownership
        self._writing = threading.Lock()  # a line of a state that was left may not come after the next one

    @classmethod
    def load(cls, path: Path, ownership: int) -> Self | None:
        """What the file says; None if not even its first line was finished."""
        state, facts = _read(path, cut_torn_line=True)
        return cls(path, state, facts, ownership) if state else None

    def append(self, state: str, **facts: object) -> None:
        """Durably enter `state`. Blocking (one fsync); call it from a worker thread. Raises `SpoolFailed`."""
        with self._writing:
            if state not in FOLLOWING[self.state]:
                raise Misuse(f"{state} cannot follow {self.state}")
            self._write(state, facts)
        if state == "ended" and self._ownership >= 0:
            with suppress(OSError):
                self.path.unlink()  # owed to nobody; were this lost, a restart would forget it
            os.close(self._ownership)
            self._ownership = -1

    def note(self, **facts: object) -> None:
        """As `append`, in whatever state it is; of a session that has ended nothing is noted."""
        with self._writing:
            if not self.is_ended:
                self._write(self.state, facts)

    def _write(self, state: str, facts: dict[str, object]) -> None:
        _append_line(self.path, {"state": state, **facts})
        self.state = state
        self.facts |= facts

    @property
    def is_ended(self) -> bool:
        return self.state == "ended"


class Spool:
    """The folder of a relay's durable state. Raises `SpoolFailed` for whatever the disk does not do."""

    def __init__(self, state_dir: Path, run_dir: Path | None = None) -> None:
        """`run_dir`: where session folders are, if hypervisors of other users must reach into them."""
        self._state_dir = state_dir
        self._keeping = threading.Lock()  # receipts: one that is forgotten is not the one that comes in its place
        self._journals = state_dir / "journals"
        self._receipts = state_dir / "receipts"
        self.run_dir = run_dir or state_dir / "run"
        try:
            for folder in (state_dir, self._journals, self._receipts):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if run_dir:
                self.run_dir.chmod(0o711)  # whatever the umask: QEMU's user must reach its own session's folder
            found = state_dir.stat()
        except OSError as error:
            what = (
                "is a file, not a folder" if isinstance(error, FileExistsError) else f"cannot be made: {error.strerror}"
            )
            raise SpoolFailed(f"a folder of relay.state_dir: {error.filename} {what}") from None
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            # Whoever can write here can say where a guest runs.
            raise SpoolFailed(f"{state_dir}: must belong to the relay's user and have mode 0700: chown or chmod it")

    @contextmanager
    def served(self) -> Iterator[None]:
        """By this process alone: another relay would take its control socket away. `ConfigurationError` otherwise.

        Sessions of other processes (`sealane relay open`) are beside it: each owns its journal.
        """
        ownership = _own(self._state_dir / "serving.lock")
        if ownership is None:
            raise ConfigurationError(
                f"relay.state_dir: {self._state_dir}: another relay serves from it; stop that one, or give each its own"
            )
        try:
            yield
        finally:
            os.close(ownership)

    def begin(self, role: Role, name: str, **facts: object) -> SessionJournal:
        """A new session's journal in its first state, durable when this returns. `name`: 32 hexadecimal digits."""
        path = self._journals / f"{role.value}-{name}.jsonl"
        if path.exists():
            raise SpoolFailed(f"{path}: this session exists")
        state = FIRST_STATE[role]
        ownership = _own(path)
        if ownership is None:
            raise SpoolFailed(f"{path}: this session exists")
        try:
            _append_line(path, {"state": state, **facts})
            _sync_folder(self._journals)
        except (SpoolFailed, OSError) as error:
            with suppress(OSError):
                path.unlink()  # of a session that nobody has begun nobody would find the end
            os.close(ownership)
            raise error if isinstance(error, SpoolFailed) else SpoolFailed(f"{path}: {error.strerror}") from None
        return SessionJournal(path, state, dict(facts), ownership)

    def require_free_source(self, vm: str) -> None:
        """`LocalBroken` if a session of this VM at this source is not over: ended twice, it could run the guest twice.

        One that waits to resume its guest would do so after another has handed it over.
        """
        for path in self._journals.glob(f"{Role.SOURCE.value}-*.jsonl"):
            state, facts = _read(path)
            if facts.get("vm") == vm and state not in _OVER_AT_SOURCE:
                raise LocalBroken(f"an earlier migration of this VM is not over here yet ({path.name})")

    def unfinished(self, role: Role) -> Iterator[SessionJournal]:
        """Sessions that no living process owns and that are owed an end. Ended ones are forgotten here."""
        for path in sorted(self._journals.glob(f"{role.value}-*.jsonl")):
            ownership = _own(path)
            if ownership is None:
                continue
            journal = SessionJournal.load(path, ownership)
            if journal is None or journal.is_ended:
                path.unlink(missing_ok=True)
                os.close(ownership)
            else:
                yield journal

    def keep_receipt(self, name: str, receipt: bytes) -> None:
        """Durable when this returns; delivered until the gateway acknowledges it."""
        try:
            with self._keeping:
                write_atomically(self._receipts / f"{name}.json", receipt, 0o600)
        except OSError as error:
            raise SpoolFailed(f"{self._receipts}: {error.strerror}") from None

    def receipts(self) -> list[Path]:
        return sorted(self._receipts.glob("*.json"))

    def set_receipt_aside(self, path: Path, mtime_ns: int) -> None:
        """Keep what the gateway refuses for good where an operator finds it, out of the others' way.

        A newer one of that name, of a session that was taken up again, stays; so it does with `forget_receipt`.
        """
        with self._keeping:
            if path.stat().st_mtime_ns == mtime_ns:
                path.rename(path.with_suffix(".refused"))

    def forget_receipt(self, path: Path, mtime_ns: int) -> None:
        with self._keeping:
            if path.stat().st_mtime_ns == mtime_ns:
                path.unlink()


def _read(path: Path, *, cut_torn_line: bool = False) -> tuple[str, dict[str, Any]]:
    """A journal's state and facts; "" if there is none, or not even its first line was finished. Raises `SpoolFailed`.

    Another process may be writing: only who owns the journal may cut what is torn.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return "", {}  # ended and forgotten meanwhile
    except OSError as error:
        raise SpoolFailed(f"{path}: {error.strerror}") from None
    if len(data) > _MAX_JOURNAL_BYTES:
        raise SpoolFailed(f"{path}: larger than a journal can be")
    state = ""
    facts: dict[str, Any] = {}
    finished = data[: data.rfind(b"\n") + 1]
    for line in finished.splitlines():
        try:
            entry = json.loads(line)
            following = entry.pop("state")
            known = following in FOLLOWING
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            known = False
        if not known:
            raise SpoolFailed(f"{path}: damaged; an operator must decide where this guest runs")
        if state and following != state and following not in FOLLOWING.get(state, ()):
            raise SpoolFailed(f"{path}: {following} after {state}; an operator must decide where this guest runs")
        state = following
        facts |= entry
    if cut_torn_line and len(finished) != len(data):
        os.truncate(path, len(finished))
    return state, facts


def _own(path: Path) -> int | None:
    """A locked descriptor of the file at `path`, which is made if it is not there; None if it is another's.

    The kernel lets go of it with the process, however that ends.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolFailed(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except OSError as error:  # a file system without locks
            os.close(descriptor)
            raise SpoolFailed(f"{path}: cannot be locked: {error.strerror}") from None
        os.close(descriptor)  # whoever forgot this journal was quicker than our lock


def _append_line(path: Path, entry: dict[str, Any]) -> None:
    line = json.dumps(entry, sort_keys=True).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, "short write: the disk is full", str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)  # half a line must not stand before a whole one
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SpoolFailed(f"{path}: {error.strerror}; nothing is promised on top of it") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
