"""What ended a session, out of the errors of all its tasks: when one part breaks, the others break with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

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

_MAX_DETAIL: Final = 350  # of the 500 characters that are told
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


def cause_of(error: BaseException) -> SessionError:
    """The named error behind `error`. If there is anything in it that is not one of ours, that is raised, without ours.

    Not ours is a bug, or a cancellation that met a failure: left together, the failure would outlive the cancelled
    scope and end the relay.
    """
    others = _without_ours(error)
    if others is not None:
        raise others
    leaves = list(_leaves(error))
    return next(leaf for kind in _CAUSES for leaf in leaves if isinstance(leaf, kind))


def words_for_gateway(error: SessionError) -> str:
    """What a gateway is told of what could not even be begun: with what to do about it, where the error knows that."""
    return f"{error.detail[:_MAX_DETAIL]}. {error.next_step}" if isinstance(error, HypervisorError) else str(error)


def _without_ours(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return error.split((TransportError, HypervisorError))[1]
    return None if isinstance(error, (TransportError, HypervisorError)) else error


def _leaves(error: BaseException) -> Iterator[SessionError]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif isinstance(error, (TransportError, HypervisorError)):
        yield error
