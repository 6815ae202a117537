"""Relays of another version than this gateway: noted as they are heard, and asked for nothing that they do not know.

What one of them would not understand is refused here, before anything is decided for it: the answer to a poll that it
cannot decode would keep all its other work from it (`transport.link_version`).
"""

from __future__ import annotations

import structlog

from gateway.dispatch import Dispatch
from gateway.errors import UpgradeNeeded
from policy.facts import HostFacts
from transport.link_version import NEWEST, LinkRefused, agreed

log = structlog.get_logger("gateway.relays")


def note_version(dispatch: Dispatch, host: str, header: str | None) -> None:
    """Of a call of that host's relay. Errors: UpgradeNeeded, if no version is common to both."""
    try:
        version = agreed(header)
    except LinkRefused as refused:
        if dispatch.note_link(host, 0):
            log.error("a relay of another version is refused", host=host, cause=str(refused))
        who = "gateway" if refused.ours_is_older else "relay"
        raise UpgradeNeeded(f"upgrade the {who}: {refused}", next_step=f"upgrade the {who}") from refused
    if dispatch.note_link(host, version) and version < NEWEST:
        log.warning("a relay of an earlier version: upgrade it", host=host, speaks=version, newest=NEWEST)


def too_early(dispatch: Dispatch, host: HostFacts | None, needs: int, what: str) -> UpgradeNeeded | None:
    """Why this host's relay cannot be asked for `what`; None if it can, or was not heard since this gateway started."""
    speaks = dispatch.link(host.spiffe_id) if host is not None else None
    if host is None or speaks is None or speaks >= needs:
        return None
    return UpgradeNeeded(f"the relay on {host.name} is of an earlier version, which knows nothing of {what}")
