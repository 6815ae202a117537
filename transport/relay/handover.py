"""One guest, in one place, at the source: how a session ends, whatever interrupted it.

`settle_source` is the only way out of a session, in the ordinary case, after a failure and after a restart. The rule
that it keeps (docs/wire-protocol.md section 7): the guest may go on at S only if `handed-over` was never recorded, or
after D's durable `discarded`; S ends its hypervisor only after D's durable `running`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from transport.errors import OfferRefused, RefusalCode, TransportError
from transport.hypervisors.errors import HypervisorError
from transport.relay.dialling import offered
from transport.relay.ends import SourceEnd
from transport.relay.failures import cause_of
from transport.relay.host import now
from transport.relay.news import News, Tell
from transport.relay.recovering import recover_post_copy
from transport.relay.source_session import SourceSession, exchange_receipts_as_source, keep_receipt
from transport.wire.messages import Bye, Cancel, Handover, Outcome, Receipt

log = structlog.get_logger("sealane.relay")
_MAX_PAUSE_SECONDS = 60.0
_SEE_HERE = "see that the hypervisor here answers and that the disk of relay.state_dir takes writes"
_MAX_UNTOLD = 256  # sessions of one destination: one that answers and vanishes, again and again, keeps no more here


async def settle_source(session: SourceSession, end: SourceEnd, tell: Tell) -> None:
    """Bring the guest of a source session to its one place. Waits for D for as long as the rule demands.

    Idempotent: after a cancellation it may be called again, by this process or a later one. `close_source` follows.
    """
    journal = session.journal
    if journal.state in ("begun", "accepted") and session.outcome != "completed":
        await _until_done(session, "note that the session broke", _SEE_HERE, lambda: _give_up_or_away(session, end))
    if journal.state == "abandoned":
        await _until_done(session, "resume the guest here", _SEE_HERE, lambda: _resume(session, end))
        await tell(News(session.outcome, None, None, session.message, session.is_spent))
    if journal.state == "handed-over":
        await tell(News("handing_over", None, None, "waiting for the destination to say what became of the guest"))
        there = session.permit.claims.destination.rpartition("/")[2]
        see_there = (
            f"the guest waits, paused, for its word: see that the relay of {there} runs and can be reached; "
            f"if {there} is gone for good, docs/failures.md says what to do"
        )
        await _until_done(session, "ask for the outcome", see_there, lambda: _ask_outcome(session, end))
    if journal.state == "outcome-running":
        what = "see post-copy through, before its source may end"
        act = "docs/failures.md says how two monitors bring it together by hand (When an operator must decide)"
        await _until_done(session, what, act, lambda: recover_post_copy(session, end, tell))
        await _until_done(session, "end the hypervisor that has handed its guest over", _SEE_HERE, end.release)
        session.outcome = "completed"
        session.message = ""
    elif journal.state == "outcome-discarded":
        await _until_done(session, "resume the guest here", _SEE_HERE, lambda: _resume_unless_gone(session, end))
        session.message = session.message or "the destination discarded the guest; it runs at the source"


async def close_source(session: SourceSession, tell: Tell) -> News:
    """Tell D what it may not know, keep the receipt, and return the last news. Holds nothing of the guest any more."""
    session.facts.outcome = session.outcome
    # "resumed" also after a restart: D may hold a whole guest until it hears this.
    if session.journal.state != "resumed" or await _tell_abandoned(session):
        await _until_done(session, "note the end", _SEE_HERE, lambda: _note_end(session))
    news = News(session.outcome, None, session.facts.downtime_ms, session.message, session.is_spent)
    await tell(news)
    return news


async def _give_up_or_away(session: SourceSession, end: SourceEnd) -> None:
    """A session that broke before it was handed over. It waits for as long as a guest may yet go either way."""
    may_have_switched = session.was_answered or session.is_recovered
    if may_have_switched and await end.is_in_post_copy():
        # Its hypervisor had switched before that was noted: no word of ours brings the guest back to life here.
        await session.host.enter(session.journal, "handed-over", post_copy=True)
        return
    where = await end.whereabouts(accepted=session.journal.state == "accepted")
    if may_have_switched and where == "gone":
        # There is no guest here any more, so D may run it if it has everything: better than losing both.
        session.message = session.message or "the hypervisor at the source has ended"
        await session.host.enter(session.journal, "handed-over")
    else:
        # From here on no Handover of this session is ever sent, so D can never run the guest.
        await session.host.enter(session.journal, "abandoned")


async def _resume(session: SourceSession, end: SourceEnd) -> None:
    await _resume_unless_gone(session, end)
    await session.host.enter(session.journal, "resumed")


async def _resume_unless_gone(session: SourceSession, end: SourceEnd) -> None:
    if await end.is_gone():
        session.message = "the hypervisor at the source has ended, and the guest with it"
    else:
        await end.resume_guest()


async def _tell_abandoned(session: SourceSession) -> bool:
    """Let D know that it may discard, as long as it may matter. D cannot run the guest in any case.

    False where it is left to this relay's successor, which nobody must wait for.
    """
    if not session.was_answered and not session.is_recovered:
        return True
    host, claims = session.host, session.permit.claims
    until = claims.session_until + host.config.limits.remember_outcome_seconds
    pause = host.config.limits.settle_retry_seconds
    with host.waiting_to_tell(claims.destination) as others:
        while now().timestamp() < until and not await _was_told(session):
            if session.facts.vm_binding == "none":
                break  # nothing is held at D for a bare socket, and whoever ran `relay open` waits for its exit code
            if others >= _MAX_UNTOLD:
                log.warning("destination not told that the source keeps the guest: too many wait", others=others)
                break
            if host.board.is_draining:
                return False
            await trio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
    return True


async def _was_told(session: SourceSession) -> bool:
    """Whether D knows now, or knows of no such session."""
    try:
        await _settle_with(session, Cancel("abandoned", "the source keeps the guest"))
    except (TransportError, BaseExceptionGroup) as error:
        cause = cause_of(error)
        if isinstance(cause, OfferRefused) and cause.code is RefusalCode.SESSION_UNKNOWN:
            return True
        log.info("destination not told yet that the source keeps the guest", cause=str(cause))
        session.trouble = (
            f"the destination is not told yet that the guest stays here ({cause}); it may be moved elsewhere"
        )
        return False
    return True


async def _ask_outcome(session: SourceSession, end: SourceEnd) -> None:
    try:
        await _settle_with(session, Handover(session.is_post_copy))
    except OfferRefused as refused:
        # D knows of no guest and there is none here: nobody is left to wait for. A guest that is here stays paused.
        if refused.code is not RefusalCode.SESSION_UNKNOWN or not await end.is_gone():
            raise
        await session.decided("discarded")


async def _settle_with(session: SourceSession, message: Handover | Cancel) -> None:
    try:
        await _settle_on_connection(session, message)
    except OfferRefused as refused:
        if refused.code is RefusalCode.PROTOCOL:
            session.leap()
        raise


async def _settle_on_connection(session: SourceSession, message: Handover | Cancel) -> None:
    """A connection only to settle: Handover or Cancel, Outcome, receipts, Bye."""
    attempt = session.next_attempt()
    async with offered(
        session.host, session.permit, session.address, session.session_id, attempt, "settle"
    ) as connection:
        session.answered(connection.peer, connection.own_leaf_sha256)
        link = connection.link
        await link.send(message)
        outcome = await link.expect(Outcome)
        if isinstance(message, Handover):
            # Durable before Bye: D forgets the session then, and could never say it again.
            await session.decided(outcome.outcome)
            session.outcome = "completed" if outcome.outcome == "running" else "failed"
            if session.is_post_copy and outcome.outcome == "running":
                return  # without Bye: D must know this session as long as memory of its guest is here
        elif outcome.outcome == "running":
            # D can only have chosen this after a Handover, and this session's was never sent.
            log.error("destination says that it runs a guest that was never handed over", session=session.session_id)

        async def ask(ours: Callable[[], Receipt]) -> Receipt:
            await link.send(ours())
            return await link.expect(Receipt)

        try:
            await exchange_receipts_as_source(session, ask)
            await link.send(Bye())
        except TransportError as error:
            log.info("receipts were not exchanged", cause=str(error))


async def _until_done(session: SourceSession, what: str, act: str, work: Callable[[], Awaitable[None]]) -> None:
    """Try again until it is done: the alternative is a guest that runs twice or nowhere. Every try is logged, and who
    asks for the relay's status reads why, and what an operator can do (`act`)."""
    while True:
        try:
            await work()
        except (TransportError, HypervisorError, trio.TooSlowError, BaseExceptionGroup) as error:
            cause = error if isinstance(error, trio.TooSlowError) else cause_of(error)
            if cause is None:
                raise
            words = str(cause) or "the hypervisor did not answer in time"
            session.trouble = f"cannot {what} yet ({words}); {act}"
            log.error(
                f"cannot {what} yet; trying again", session=session.session_id, vm=session.permit.claims.vm,
                cause=words, operator=act,
            )  # fmt: skip
            await trio.sleep(session.host.config.limits.settle_retry_seconds)
        else:
            session.trouble = ""
            return


async def _note_end(session: SourceSession) -> None:
    if not session.has_receipt:
        await keep_receipt(session)
    await session.host.enter(session.journal, "ended")
