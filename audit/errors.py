"""Errors of the audit log, split by who must act.

AuditError
├── EvidenceRefused      whoever presented it: it proves nothing
│   ├── ProofError           a Merkle proof that does not prove what it claims
│   └── CheckpointError      a checkpoint (or verifier key) that is malformed or not signed by a pinned key
├── RecordError          us: the caller built an entry that must not be logged
│   ├── RecordInvalid        not canonical, a float, a bad time, an unknown shape
│   └── RecordTooLarge       over the limit of one entry
├── LogError             the operator: no append is acknowledged until it is resolved
│   ├── LogLocked            another process has this log open
│   ├── LogFailed            an I/O error; reopen (recover) the log
│   ├── LogTruncated         the store holds less than a signed checkpoint says
│   └── LogDamaged           the store contradicts its checkpoint, or files changed under us
├── EntryPruned          whoever asks: the entry is in an archive, which cannot be read from here
├── WitnessRefused       the log that asked for a cosignature (`status` says why, in HTTP's words)
├── IndexLocked          the operator: another process has the query index open
└── QueryRefused         the requester: a filter that cannot be answered
    └── QueryMalformed       a query text that is not of our language: where, why, and what was perhaps meant
"""

from __future__ import annotations

from typing import Final

import msgspec

# What msgspec raises for bytes that are not what was asked for: UnicodeDecodeError within a text, RecursionError for
# nesting within a member that it passes over.
UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class AuditError(Exception):
    """Root of this package's errors."""


class EvidenceRefused(AuditError):
    """Evidence presented to us does not prove what it should."""


class ProofError(EvidenceRefused):
    """A Merkle inclusion or consistency proof was refused."""


class CheckpointError(EvidenceRefused):
    """A checkpoint, signed note or verifier key was refused."""


class RecordError(AuditError):
    """An entry must not go into the log, or what was read is not one."""


class RecordInvalid(RecordError):
    """An entry that is not in the canonical form of a record or permit entry."""


class RecordTooLarge(RecordError):
    """An entry over the size limit."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"entry of {size_bytes} bytes is over the limit of {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class LogError(AuditError):
    """The log cannot acknowledge anything until the operator has acted."""


class LogLocked(LogError):
    """Another process (or another `Log` of this one) has the log open."""


class LogFailed(LogError):
    """An I/O error left the log in an unknown state; reopen it, which recovers."""


class LogTruncated(LogError):
    """The store holds less than its checkpoint, or than a checkpoint known from elsewhere."""


class LogDamaged(LogError):
    """The store contradicts its checkpoint, or its files were changed under a running log."""


class EntryPruned(AuditError, IndexError):
    """The entry was pruned, and its archive cannot be read. The log itself is well."""


class WitnessRefused(AuditError):
    """A witness does not cosign. `size` is that of the latest checkpoint that it cosigned, where that is the reason."""

    def __init__(self, status: int, detail: str, size: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.size = size


class IndexLocked(AuditError):
    """Another process (a running gateway) has the query index open for writing."""


class QueryRefused(AuditError):
    """A query whose filter or cursor is malformed."""


class QueryMalformed(QueryRefused):
    """A query text that is not of our language. `position` counts characters from 0; `hint` may be empty."""

    def __init__(self, what: str, position: int, hint: str = "") -> None:
        super().__init__(f"{what} (at character {position + 1})" + (f": {hint}" if hint else ""))
        self.what = what
        self.position = position
        self.hint = hint
