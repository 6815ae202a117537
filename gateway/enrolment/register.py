"""What the gateway knows of tokens and of certificates that it issued: one SQLite file, each step durable on return.

A token is spent by the same transaction that notes the certificate. The file holds hashes of tokens, not tokens.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from certs.enrolment import public_key_sha256

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    sha256 BLOB PRIMARY KEY, host TEXT NOT NULL, expires INTEGER NOT NULL, issued_by TEXT NOT NULL,
    key_sha256 BLOB, used INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS certificates (
    serial TEXT PRIMARY KEY, host TEXT NOT NULL, not_after INTEGER NOT NULL, revoked INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS certificates_by_host ON certificates (host, not_after);
CREATE TABLE IF NOT EXISTS keys (serial TEXT PRIMARY KEY, sha256 BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS keys_by_sha256 ON keys (sha256);
"""
_KEEP_SECONDS = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Token:
    """`key_sha256`: of the key that it was used for; None while it waits."""

    host: str
    expires: int
    issued_by: str
    key_sha256: bytes | None


@dataclass(frozen=True, slots=True)
class Issued:
    """`serial` in lower hex; `not_after` in Unix seconds; `key_sha256`: see `public_key_sha256`."""

    serial: str
    host: str
    not_after: int
    key_sha256: bytes


def issued(host: str, leaf: x509.Certificate) -> Issued:
    """As the register knows it."""
    ends = int(leaf.not_valid_after_utc.timestamp())
    return Issued(f"{leaf.serial_number:x}", host, ends, public_key_sha256(leaf.public_key()))


@dataclass(frozen=True, slots=True)
class Spend:
    """Use the token for this key and note the certificate.

    For the same key again it succeeds: the answer may have been lost on the way.
    """

    sha256: bytes
    key_sha256: bytes
    issued: Issued
    now: int


@dataclass(frozen=True, slots=True)
class Note:
    """A renewal."""

    issued: Issued
    now: int


class Register:
    """Not for two threads at once. Times are Unix seconds."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        path.chmod(0o600)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        self._database.close()

    def add_token(self, sha256: bytes, token: Token, now: int) -> None:
        """One waits for each host: what waited before is worth nothing from now on."""
        with self._transaction() as database:
            database.execute("DELETE FROM tokens WHERE expires < ?", (now - _KEEP_SECONDS,))
            database.execute("DELETE FROM tokens WHERE host = ? AND used IS NULL", (token.host,))
            database.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, NULL, NULL)",
                (sha256, token.host, token.expires, token.issued_by),
            )

    def token(self, sha256: bytes) -> Token | None:
        row = self._database.execute(
            "SELECT host, expires, issued_by, key_sha256 FROM tokens WHERE sha256 = ?", (sha256,)
        ).fetchone()
        return None if row is None else Token(*row)

    def apply(self, steps: Sequence[Spend | Note]) -> list[bool]:
        """All in one transaction. Of a `Spend` False if the token is used for another key, expired or gone."""
        with self._transaction() as database:
            return [
                _spend(database, step) if isinstance(step, Spend) else _insert(database, step.issued, step.now)
                for step in steps
            ]

    def know(self, issued: Issued) -> None:
        """Of a certificate that was issued by hand; nothing changes if it is known."""
        row = (issued.serial, issued.host, issued.not_after)
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO certificates VALUES (?, ?, ?, NULL)", row)
            database.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (issued.serial, issued.key_sha256))

    def valid_serials(self, host: str, now: int) -> list[str]:
        """Of certificates that are neither expired nor revoked."""
        rows = self._database.execute(
            "SELECT serial FROM certificates WHERE host = ? AND not_after > ? AND revoked IS NULL", (host, now)
        )
        return [serial for (serial,) in rows]

    def revoke(self, host: str, serials: Sequence[str], now: int) -> bool:
        """Note what was revoked, and withdraw every token of the host: a used one could fetch a certificate again. Its
        certificates that have ended are revoked with them, for their keys. Whether there was any."""
        with self._transaction() as database:
            database.execute("DELETE FROM tokens WHERE host = ?", (host,))
            ended = "UPDATE certificates SET revoked = ? WHERE host = ? AND revoked IS NULL AND not_after <= ?"
            marked = database.execute(ended, (now, host, now)).rowcount
            marked += database.executemany(
                "UPDATE certificates SET revoked = ? WHERE serial = ?", [(now, serial) for serial in serials]
            ).rowcount
        return marked > 0

    def revoked(self) -> dict[str, int]:
        """Of all that was revoked before it ended: when it ends, by serial. A CRL that lost one gets it back from
        here."""
        return dict(self._database.execute("SELECT serial, not_after FROM certificates WHERE not_after > revoked"))

    def hosts_out(self) -> list[str]:
        """Those that were revoked and have got no certificate since: what ends later than its revocation came after."""
        rows = self._database.execute(
            "SELECT host FROM certificates GROUP BY host"
            " HAVING max(revoked) >= max(CASE WHEN revoked IS NULL THEN not_after ELSE 0 END)"
        )
        return [host for (host,) in rows]

    def has_revoked(self, key_sha256: bytes) -> bool:
        """If a certificate of this key was revoked: then somebody else may have it."""
        question = (
            "SELECT 1 FROM keys JOIN certificates USING (serial) WHERE sha256 = ? AND revoked IS NOT NULL LIMIT 1"
        )
        return self._database.execute(question, (key_sha256,)).fetchone() is not None

    def forgotten(self, serials: Sequence[str]) -> list[str]:
        """Of revoked ones those of which it is not known here what key was revoked, nor that nobody knows."""
        question = (
            "SELECT 1 FROM keys LEFT JOIN certificates USING (serial)"
            " WHERE serial = ? AND (sha256 = x'' OR revoked IS NOT NULL)"
        )
        return [serial for serial in serials if self._database.execute(question, (serial,)).fetchone() is None]

    def recall(self, issued: Issued, revoked: int) -> None:
        """Of a revoked certificate; without a key, that nobody knows it."""
        with self._transaction() as database:
            if issued.key_sha256:
                row = (issued.serial, issued.host, issued.not_after, revoked)
                database.execute(
                    "INSERT INTO certificates VALUES (?, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET revoked = coalesce(revoked, excluded.revoked)",
                    row,
                )
            database.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (issued.serial, issued.key_sha256))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _spend(database: sqlite3.Connection, step: Spend) -> bool:
    changed = database.execute(
        "UPDATE tokens SET used = ?, key_sha256 = ? WHERE sha256 = ? AND host = ? AND expires > ?"
        " AND (key_sha256 IS NULL OR key_sha256 = ?)",
        (step.now, step.key_sha256, step.sha256, step.issued.host, step.now, step.key_sha256),
    ).rowcount
    return bool(changed) and _insert(database, step.issued, step.now)


def _insert(database: sqlite3.Connection, issued: Issued, now: int) -> bool:
    """What a host had long ago goes when it gets another: hosts renew several times a day, for years. What was revoked
    stays."""
    long_ago = (issued.host, now - _KEEP_SECONDS)
    gone = "FROM certificates WHERE host = ? AND not_after < ? AND revoked IS NULL"
    database.execute(f"DELETE FROM keys WHERE serial IN (SELECT serial {gone})", long_ago)  # noqa: S608 - our own words
    database.execute(f"DELETE {gone}", long_ago)
    row = (issued.serial, issued.host, issued.not_after)
    database.execute("INSERT INTO certificates VALUES (?, ?, ?, NULL)", row)
    database.execute("INSERT INTO keys VALUES (?, ?)", (issued.serial, issued.key_sha256))
    return True
