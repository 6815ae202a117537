"""What can go wrong in the policy package, split by who must act.

PolicyError
├── TokenRefused        the requester, or the issuer of their token: `.check` says which rule, `.detail` why
├── IssuerUnavailable   the operator: the issuer's keys cannot be fetched, or are too old to trust
├── DirectoryRefused    the operator: the file of local people (or a secret for Active Directory) cannot be used
├── DirectoryUnavailable the operator: Active Directory gives no answer that can be trusted; `.check` says at which step
├── AccountRefused      the account's administrator: unknown, ambiguous, disabled, locked …; `.check` says which
├── PermitRefused       the peer or its gateway: `.check` is enumerated, `.detail` is for our own log
├── PermitTooLarge      the operator: a permit that no relay would take (too many ports, too long a proof)
├── BundleRefused       the policy author: `.file` says where in the bundle, `.detail` what to correct
├── InventoryRefused    the operator: `.file` and `.detail`; the inventory in force stays
├── InventoryUnavailable the operator: a source of the inventory gives no answer; its facts grow old, then unknown
└── FactRefused         whoever made the fact (us, if it was not checked before): not canonical, or not plain text
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

# What msgspec raises for bytes that are not what was asked for: UnicodeDecodeError within a text, RecursionError for
# nesting within a member that it passes over.
UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

TokenCheck = Literal[
    "size", "form", "header", "algorithm", "key", "signature", "type", "claims",
    "issuer", "audience", "subject", "times", "lifetime", "authorized-party", "authentication", "groups",
    "sender", "actor",
]  # fmt: skip
PermitCheck = Literal[
    "size", "form", "header", "algorithm", "key", "signature", "type", "claims",
    "audience", "times", "source", "destination", "vm", "ports",
]  # fmt: skip
DirectoryCheck = Literal["dns", "connect", "tls", "timeout", "kerberos", "bind", "base", "answer"]
AccountCheck = Literal[
    "unknown", "ambiguous", "disabled", "expired", "locked", "must-change-password", "password-expired",
]  # fmt: skip
TOKEN_CHECKS: frozenset[str] = frozenset(get_args(TokenCheck))
PERMIT_CHECKS: frozenset[str] = frozenset(get_args(PermitCheck))


def one_line(error: object, limit: int = 1000) -> str:
    """What another library says, as a record or a message holds it."""
    return " ".join(str(error).split())[:limit]


class PolicyError(Exception):
    """Root of the errors of this package."""


class TokenRefused(PolicyError):
    """A token is not accepted. Neither field ever holds token text, so both may be logged."""

    def __init__(self, check: TokenCheck, detail: str) -> None:
        super().__init__(f"token refused ({check}): {detail}")
        self.check: TokenCheck = check
        self.detail = detail


class IssuerUnavailable(PolicyError):
    """An issuer's discovery document or keys cannot be had; requests with its tokens are denied meanwhile."""

    def __init__(self, issuer: str, detail: str) -> None:
        super().__init__(f"issuer {issuer}: {detail}")
        self.issuer = issuer
        self.detail = detail


class DirectoryRefused(PolicyError):
    """The file of local people cannot be used; what was loaded before stays in force."""


class DirectoryUnavailable(PolicyError):
    """The groups or the state of an account cannot be had: they are unknown, which denies."""

    def __init__(self, check: DirectoryCheck, detail: str) -> None:
        super().__init__(f"directory unavailable ({check}): {detail}")
        self.check: DirectoryCheck = check
        self.detail = detail


class AccountRefused(PolicyError):
    """The directory answered, and the account may do nothing, or is none."""

    def __init__(self, check: AccountCheck, detail: str) -> None:
        super().__init__(f"account refused ({check}): {detail}")
        self.check: AccountCheck = check
        self.detail = detail


class PermitRefused(PolicyError):
    """A permit is not accepted. `check` may go to the peer, `detail` only to our own log."""

    def __init__(self, check: PermitCheck, detail: str) -> None:
        super().__init__(f"permit refused ({check}): {detail}")
        self.check: PermitCheck = check
        self.detail = detail


class PermitTooLarge(PolicyError):
    """The permit or its entry in the log exceeds what a relay accepts; `what` names it, sizes in bytes."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} of {size} bytes exceeds {limit}: name fewer ports or shorten the names")
        self.what = what
        self.size = size
        self.limit = limit


class BundleRefused(PolicyError):
    """A policy bundle is not loaded. `file` is the path inside the bundle, "" for the bundle as a whole."""

    def __init__(self, file: str, detail: str) -> None:
        super().__init__(f"bundle refused: {file + ': ' if file else ''}{detail}")
        self.file = file
        self.detail = detail


class InventoryRefused(PolicyError):
    """An inventory file is not loaded, not even in part; what was loaded before stays in force."""

    def __init__(self, file: str, detail: str) -> None:
        super().__init__(f"inventory refused: {file}: {detail}")
        self.file = file
        self.detail = detail


class InventoryUnavailable(PolicyError):
    """A source of the inventory cannot be asked; what it said last is used until it is too old."""

    def __init__(self, source: str, detail: str) -> None:
        super().__init__(f"inventory source {source}: {detail}")
        self.source = source
        self.detail = detail


class FactRefused(PolicyError):
    """A fact about a person, VM or host is malformed, so no decision may be built on it."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(f"{what} {detail}")
        self.what = what
        self.detail = detail
