"""What ended a session, out of the errors of all its tasks: when one part breaks, the others break with it."""

from __future__ import annotations

from collections.abc import Iterator

from transport.errors import (
    ConnectionBroken,
    LocalBroken,
    Misuse,
    OfferRefused,
    PeerCancelled,
    ProtocolViolation,
    SpoolFailed,
    TransportError,
)
from transport.hypervisors.errors import HypervisorError

SessionError = TransportError | HypervisorError

# The first of these kinds that occurred is the cause; what stands below it is a consequence.
_CAUSES: tuple[type[SessionError], ...] = (
    Misuse,
    SpoolFailed,
    ProtocolViolation,
    OfferRefused,
    PeerCancelled,
    HypervisorError,
    LocalBroken,
    ConnectionBroken,
    TransportError,
)


def cause_of(error: BaseException) -> SessionError | None:
    """The named error behind `error`; None if there is anything in it that is not one of ours: a bug propagates."""
    leaves = list(_leaves(error))
    if not all(isinstance(leaf, (TransportError, HypervisorError)) for leaf in leaves):
        return None
    for kind in _CAUSES:
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
