"""Sessions that a former process of this relay left unfinished: each is taken up, and brought to its end."""

from __future__ import annotations

import time
from datetime import datetime

import structlog
import trio

from certs.tls import local_leaf_sha256
from policy.errors import PermitRefused
from policy.permit import VerifiedPermit
from transport.errors import SpoolFailed, TransportError
from transport.relay.board import Entry
from transport.relay.destination import Destination
from transport.relay.gateway_links import GatewayLinks
from transport.relay.handover import close_source, settle_source
from transport.relay.host import RelayHost
from transport.relay.news import NewsDesk
from transport.relay.receipts import ReceiptFacts
from transport.relay.source_session import SourceSession
from transport.relay.spool import SessionJournal
from transport.wire.control import Role

log = structlog.get_logger("sealane.relay")


def take_up_former(host: RelayHost, destination: Destination, link: GatewayLinks, nursery: trio.Nursery) -> None:
    """In the background. SpoolFailed for a journal whose permit is not accepted any more."""
    for journal in host.spool.unfinished(Role.DESTINATION):
        permit = _permit_of(host, journal)
        too_old = permit.claims.session_until + host.config.limits.remember_outcome_seconds < time.time()
        if too_old and journal.state in ("started", "discarded"):
            journal.append("ended")
        else:
            destination.recover(journal, permit)
    for journal in host.spool.unfinished(Role.SOURCE):
        nursery.start_soon(_settle, host, journal, link, nursery)


async def _settle(host: RelayHost, journal: SessionJournal, link: GatewayLinks, nursery: trio.Nursery) -> None:
    permit = _permit_of(host, journal)
    # A relay that drains does not wait for it: the next process goes on where this one leaves it.
    with host.board.session("source", permit.claims, is_awaited=False) as entry:
        await _settle_shown(host, journal, permit, entry, link, nursery)


async def _settle_shown(
    host: RelayHost,
    journal: SessionJournal,
    permit: VerifiedPermit,
    entry: Entry,
    link: GatewayLinks,
    nursery: trio.Nursery,
) -> None:
    journal.facts["recovered"] = True
    seconds = host.config.limits.migration_deadline_seconds
    former_end = host.source_end(permit, journal.facts, 300, seconds)
    async with host.leaving(permit.claims.vm, is_recovered=True), former_end as end:
        started, own_leaf = datetime.fromisoformat(str(journal.facts["started"])), local_leaf_sha256(host.credentials)
        facts = ReceiptFacts(Role.SOURCE, permit, end.vm_binding, started, own_leaf, lacks_counts=True)
        session = SourceSession(host, permit, str(journal.facts["address"]), journal, facts)
        session.message = "the relay at the source was restarted during the migration"
        entry.state_of, entry.trouble_of = lambda: journal.state, lambda: session.trouble
        tell = entry.telling(NewsDesk(link, permit.claims.migration_id, nursery).tell)
        await settle_source(session, end, tell)
    if session.outcome != "completed":  # before D has heard of it, which may be gone for good
        await _note_stayed(host, permit, is_spent=session.is_spent)
    await close_source(session, tell)
    entry.state_of = None  # but by its outcome


async def _note_stayed(host: RelayHost, permit: VerifiedPermit, *, is_spent: bool) -> None:
    claims = permit.claims
    try:
        await host.on_disk(host.evacuations.stayed, claims.vm, claims.destination, is_spent=is_spent)
    except (TransportError, OSError) as error:
        log.error("an evacuation permit stays noted as used", vm=permit.claims.vm, cause=str(error))


def _permit_of(host: RelayHost, journal: SessionJournal) -> VerifiedPermit:
    """The permit of a journal, its signature checked again: a pinned key that went away is the operator's to decide."""
    try:
        other = journal.facts.get("other_permit")
        return host.permits.reopen(str(journal.facts["permit"]), None if other is None else str(other))
    except PermitRefused as refused:
        raise SpoolFailed(f"{journal.path}: its permit is not accepted any more ({refused.detail})") from None
