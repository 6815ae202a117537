"""Single use of permits: one durable store for all relay processes of this host.

A permit is known by (key id, `jti`), never by the hash of its token: an ECDSA signature can be written in two ways.
Entries go once they could not be used any more; the latest expiry among those that went is durable, so that a clock
set back brings no used permit to life again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transport.errors import OfferRefused, RefusalCode, SpoolFailed

SKEW_SECONDS = 30
_BUSY_SECONDS = 5.0


class UsedPermits:
    """Blocking; call it from a worker thread. Every call opens the file anew, so threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._transaction() as store:
            store.execute(
                "CREATE TABLE IF NOT EXISTS used (key_id TEXT, jti TEXT, exp INTEGER, PRIMARY KEY (key_id, jti))"
                " WITHOUT ROWID"
            )
            store.execute("CREATE TABLE IF NOT EXISTS purged (one INTEGER PRIMARY KEY CHECK (one = 1), until INTEGER)")
            store.execute("INSERT OR IGNORE INTO purged VALUES (1, 0)")

    def use(self, key_id: str, jti: str, exp: int, now: int) -> None:
        """`use_all` of one permit."""
        self.use_all([(key_id, jti, exp)], now)

    def use_all(self, permits: Sequence[tuple[str, str, int]], now: int) -> None:
        """Durably note the use of permits (key id, jti, exp), of all or of none.

        `OfferRefused` if one was used before, or is older than what is still remembered.
        """
        with self._transaction() as store:
            (until,) = store.execute("SELECT until FROM purged").fetchone()
            for key_id, jti, exp in permits:
                if exp <= until:
                    raise OfferRefused(RefusalCode.PERMIT_REPLAYED, "the permit is older than what this host remembers")
                if store.execute("SELECT 1 FROM used WHERE key_id = ? AND jti = ?", (key_id, jti)).fetchone():
                    raise OfferRefused(RefusalCode.PERMIT_REPLAYED, "the permit was used before")
                store.execute("INSERT INTO used VALUES (?, ?, ?)", (key_id, jti, exp))
            forget = now - SKEW_SECONDS
            (latest,) = store.execute("SELECT max(exp) FROM used WHERE exp < ?", (forget,)).fetchone()
            if latest is not None:
                # By what goes and not by the clock: one that was years ahead would keep all permits out until then.
                store.execute("UPDATE purged SET until = max(until, ?)", (latest,))
                store.execute("DELETE FROM used WHERE exp <= ?", (latest,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction, on the disk when this returns.

        With FULL, a power loss right after the commit can bring SQLite's rollback journal back and undo it: a used
        permit would be fresh again. EXTRA syncs the folder too.
        """
        try:
            store = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                store.execute("PRAGMA synchronous=EXTRA")
                store.execute("BEGIN IMMEDIATE")
                yield store
                store.execute("COMMIT")
            finally:
                store.close()  # rolls back what was not committed
        except sqlite3.Error as error:
            raise SpoolFailed(f"{self._path}: {error}; no permit is taken until this is mended") from None
