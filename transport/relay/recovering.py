"""Post-copy that was interrupted for good goes on in a new session of the same permit, until its `recover_until`.

The guest runs at the destination already and part of its memory is here: nothing is left to decide, and whoever gives
up kills the guest. So the source tries by itself, after its resume deadline and after a restart of either relay, for as
long as the permit allows (docs/wire-protocol.md section 7); where libvirt has the guest, whenever a client of libvirt
does. A recovery has a session id, keys and receipts of its own, and no journal: the first session's journal says
`outcome-running` until this one is through.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from datetime import UTC, datetime

import structlog
import trio

from certs.tls import local_leaf_sha256
from transport.errors import LocalBroken, SpoolFailed, TransportError
from transport.hypervisors.errors import HypervisorError
from transport.relay.ends import SourceEnd, make_session_folder, remove_session_folder, session_folder
from transport.relay.failures import cause_of
from transport.relay.host import now
from transport.relay.inlets import SourceLanes
from transport.relay.news import News, Tell
from transport.relay.receipts import MOST_INTERRUPTED, ReceiptFacts
from transport.relay.source_line import SourceLine
from transport.relay.source_session import SourceSession, exchange_receipts_as_source, keep_receipt
from transport.wire.control import Role
from transport.wire.messages import Receipt

log = structlog.get_logger("sealane.relay")
_MAX_PAUSE_SECONDS = 30.0
_TOO_LATE = "post-copy is not over, and its permit's recover_until is past: see docs/failures.md"


async def recover_post_copy(first: SourceSession, end: SourceEnd, tell: Tell) -> None:
    """Carry what is left of the guest's memory, trying again and again. `LocalBroken` past the permit's end of it."""
    claims = first.permit.claims
    pause, tries, cause = 0.0, 0, ""
    while await end.is_in_post_copy():
        if not first.has_receipt:
            first.facts.outcome = "handed-over"  # the guest runs there, by D's durable word, and its memory is here
            await _certify_interrupted(first)
        log.warning(f"post-copy was interrupted: {end.recovers}", vm=claims.vm, tries=tries)
        until = datetime.fromtimestamp(claims.recover_until, UTC)
        words = f"post-copy was interrupted; {end.recovers}, until {until:%Y-%m-%dT%H:%M:%SZ}"
        await tell(News("handing_over", None, None, words + (f" (last tried in vain: {cause})" if cause else "")))
        async with end.recovery(pause) as may_try:
            if not may_try:
                continue
            if now().timestamp() >= claims.recover_until:
                end.broke(_TOO_LATE)
                raise LocalBroken(_TOO_LATE)
            tries += 1
            pause = min(2 * pause or first.host.config.limits.settle_retry_seconds, _MAX_PAUSE_SECONDS)
            try:
                await _recover_once(first, end, tell)
            except (TransportError, HypervisorError, BaseExceptionGroup) as error:
                cause = str(cause_of(error))
                log.warning("post-copy not recovered yet", vm=claims.vm, cause=cause)
                end.broke(cause)
    if first.facts.outcome == "handed-over":
        first.has_receipt = False  # no receipt says that all of its memory went, be it by us or another way


async def _recover_once(first: SourceSession, end: SourceEnd, tell: Tell) -> None:
    """One session of its own, from the Offer to the receipts."""
    host, permit = first.host, first.permit
    own_leaf = local_leaf_sha256(host.credentials)
    facts = ReceiptFacts(Role.SOURCE, permit, end.vm_binding, now(), own_leaf, is_recovery=True)
    facts.outcome = "handed-over"
    session = SourceSession(host, permit, first.address, first.journal, facts, recovery_id=os.urandom(16).hex())
    folder = session_folder(host.spool.run_dir, session.session_id)
    await host.on_disk(make_session_folder, host.spool.run_dir, session.session_id, host.qemu_uid)
    try:
        with host.board.session("source", permit.claims) as entry:
            entry.is_reconnecting = lambda: session.is_reconnecting
            entry.lanes = lambda: facts.channels
            try:
                await _carry(session, end, entry.telling(tell))
            finally:
                entry.state_of = lambda: session.outcome
    finally:
        with trio.CancelScope(shield=True):
            await host.on_disk(remove_session_folder, folder)
            if session.outcome == "completed" or (facts.has_carried and first.interrupted < MOST_INTERRUPTED):
                await _try_to_keep_receipt(session)
            if session.has_receipt:
                first.facts.outcome = facts.outcome
                first.interrupted += session.outcome != "completed"
    while not session.has_receipt:  # nobody else would try again: the guest is whole
        await trio.sleep(host.config.limits.settle_retry_seconds)
        await _try_to_keep_receipt(session)
    first.facts.outcome = facts.outcome


async def _certify_interrupted(first: SourceSession) -> None:
    """Once: a later process, whose gateway may have that receipt by then, has counted nothing of what went before."""
    if first.journal.facts.get("receipt_kept") is True:
        first.has_receipt = True
        return
    await _try_to_keep_receipt(first)
    if first.has_receipt:
        with suppress(SpoolFailed):
            await first.host.on_disk(first.journal.note, receipt_kept=True)


async def _try_to_keep_receipt(session: SourceSession) -> None:
    """Also of what was interrupted: what it carried is certified. A recovery does not wait for a disk."""
    try:
        await keep_receipt(session)
    except SpoolFailed as error:
        log.error("the receipt of interrupted post-copy cannot be kept", vm=session.permit.claims.vm, cause=str(error))


async def _carry(session: SourceSession, end: SourceEnd, tell: Tell) -> None:
    host = session.host
    line = SourceLine(session)
    channels = line.channels
    channels.pace = host.pace_of(session.permit)
    session.facts.channels = channels.counts
    with ExitStack() as held:
        held.callback(channels.close)
        async with trio.open_nursery() as nursery:
            await nursery.start(line.run)
            lanes = SourceLanes(channels, line.most_channels)
            socket_path = session_folder(host.spool.run_dir, session.session_id) / "memory.sock"
            for inlet in end.inlets(socket_path):
                held.enter_context(inlet.listening)
                nursery.start_soon(lanes.accept_forever, inlet)
            await end.go_on_with_post_copy(lanes, lambda seen: tell(News("handing_over", seen)))
            session.outcome = session.facts.outcome = "completed"
            await channels.wait_drained(host.config.limits.drain_seconds)
            await exchange_receipts_as_source(session, lambda ours: line.ask(ours, Receipt))
            await line.say_bye()
            nursery.cancel_scope.cancel()
