"""Which session an Offer begins, resumes, recovers or settles at the destination; each begun one durably noted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from certs.tls import ControlPeer, local_leaf_sha256
from policy.permit import VerifiedPermit
from transport.errors import LocalBroken, NobodyListens, NotRecoverable, OfferRefused, RefusalCode, SpoolFailed
from transport.hypervisors.errors import HypervisorError, HypervisorTimeout
from transport.hypervisors.moving import Movement
from transport.libvirt_rpc.errors import LibvirtHangs
from transport.relay.destination_session import DestinationSession
from transport.relay.ends import make_session_folder, remove_session_folder
from transport.relay.host import RelayHost, now
from transport.relay.permits import other_in_journal, permits_in_offer
from transport.relay.receipts import ReceiptFacts
from transport.relay.spool import SessionJournal
from transport.relay.used_permits import SKEW_SECONDS
from transport.wire.control import Role
from transport.wire.messages import Offer

log = structlog.get_logger("sealane.relay")
SessionKey = tuple[str, str]  # S's SPIFFE id, session id
_MAX_FAILED = 256
MAX_WITHOUT_BYE: Final = 256  # sessions of one source


class Admissions:
    """All sessions in which this host is the destination. `bring_to_life`: what is done with each that is carried."""

    def __init__(self, host: RelayHost, bring_to_life: Callable[[DestinationSession], None]) -> None:
        self._host = host
        self._bring_to_life = bring_to_life
        self.sessions: dict[SessionKey, DestinationSession] = {}
        self._vms_being_admitted: set[str] = set()
        self._being_admitted: dict[SessionKey, trio.Event] = {}
        self._waiting: dict[SessionKey, tuple[int, trio.CancelScope]] = {}  # for that, of the newest attempt
        # Of those whose permits were spent in vain: the detail, and whether S may read it. Words alone: an exception
        # that is kept holds the frames through which it went, and more of them each time that it is raised.
        self._failed: dict[SessionKey, tuple[str, bool]] = {}

    @property
    def is_busy(self) -> bool:
        """Whether a guest's way is not decided yet, with or without its connection."""
        return bool(self._vms_being_admitted) or any(session.occupies_vm for session in self.sessions.values())

    def outlived(self, source: str) -> list[DestinationSession]:
        """Sessions that are over and never got a Bye: those that nobody may ask for any more, and of this source more
        than an honest one leaves. Each holds a descriptor. What was discarded goes first: its guest runs at the source
        or nowhere."""
        earliest = now().timestamp() - self._host.config.limits.remember_outcome_seconds
        old, of_source = [], []
        for session in {id(each): each for each in self.sessions.values() if each.is_over}.values():
            if session.permit.claims.session_until < earliest:
                old.append(session)
            elif session.permit.claims.source == source:
                of_source.append(session)
        of_source.sort(key=lambda each: each.journal.state != "discarded")
        return [*old, *of_source[:-MAX_WITHOUT_BYE]]

    def forget(self, session: DestinationSession) -> None:
        for key in [k for k, s in self.sessions.items() if s is session]:
            del self.sessions[key]

    async def admit(self, offer: Offer, peer: ControlPeer) -> DestinationSession:
        """The session that this offer begins or comes back to. Raises `OfferRefused`."""
        key = (str(peer.spiffe_id), offer.session_id)
        if offer.purpose == "settle":
            await self._admitted(key, offer.attempt)
            session = self._known(key, offer)
            session.attempt, session.only_settles = offer.attempt, True
            return session
        if offer.purpose == "resume":
            return await self._resumed(key, offer)
        if offer.purpose == "recover":
            return await self._recovered(key, offer)
        own, other = offer.permits[-1], offer.permits[0] if len(offer.permits) > 1 else None
        permit = self._host.permits.verify(own, other, source=key[0], destination=self._host.spiffe_id)
        vm = permit.claims.vm
        self._require_not_failed(key)
        self._require_new(key)
        if self._host.board.is_draining:
            raise OfferRefused(RefusalCode.BUSY, "this relay is about to be restarted: try again")
        busy = [s for s in self.sessions.values() if s.occupies_vm]
        if vm in self._vms_being_admitted or any(s.permit.claims.vm == vm for s in busy):
            raise OfferRefused(RefusalCode.BUSY, "another session of this VM is under way here")
        if len(busy) + len(self._vms_being_admitted) >= self._host.config.limits.max_sessions:
            raise OfferRefused(RefusalCode.BUSY, "this relay carries as many sessions as it may")
        movement = self._movement(offer)
        self._vms_being_admitted.add(vm)
        self._being_admitted[key] = trio.Event()
        try:
            session = await self._begin(key, permit, movement)
            session.attempt = offer.attempt
            self.sessions[key] = session
        except OfferRefused as refused:
            if refused.code is RefusalCode.HYPERVISOR:
                self._failed[key] = refused.detail, refused.is_told
                while len(self._failed) > _MAX_FAILED:
                    del self._failed[next(iter(self._failed))]
            raise
        finally:
            self._vms_being_admitted.discard(vm)
            self._being_admitted.pop(key).set()
        self._bring_to_life(session)
        return session

    async def _recovered(self, key: SessionKey, offer: Offer) -> DestinationSession:
        """The session in whose post-copy S's connection was lost for good, under the name of a new one. Its permit's
        `exp` and use are not looked at again, all else is: to refuse without need would kill the guest."""
        of_host = (each for (source, _), each in self.sessions.items() if source == key[0])
        of_permits = (each for each in of_host if offer.permits == permits_in_offer(each.permit, Role.DESTINATION))
        session = next((each for each in of_permits if each.may_recover), None)
        if session is None:
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "no guest of this host and permit is in post-copy here")
        if self._host.board.is_draining:
            raise OfferRefused(RefusalCode.BUSY, "this relay is about to be restarted: try again")
        if now().timestamp() > session.permit.claims.recover_until + SKEW_SECONDS:
            raise OfferRefused(RefusalCode.PERMIT_TIMES, "past recover_until")
        self._require_new(key)
        if not session.takes_recovery():
            raise OfferRefused(RefusalCode.BUSY, "its post-copy is being recovered, or was a moment ago: try again")
        self._being_admitted[key] = trio.Event()
        former = (key[0], session.recovery_id)
        try:
            await session.recover(offer.session_id, offer.attempt)
            self.sessions.pop(former, None)  # that of a recovery that was interrupted, too
            self.sessions[key] = session
        except (HypervisorError, LocalBroken) as error:
            words, is_told = f"post-copy cannot be recovered: {error}", isinstance(error, NotRecoverable)
            raise OfferRefused(RefusalCode.HYPERVISOR, words, is_told=is_told) from None
        except SpoolFailed as error:
            log.error("post-copy cannot be recovered", vm=session.permit.claims.vm, cause=str(error))
            raise OfferRefused(RefusalCode.INTERNAL, "the relay cannot write its spool") from None
        finally:
            self._being_admitted.pop(key).set()
        log.warning("post-copy goes on in a new session", vm=session.permit.claims.vm)
        self._bring_to_life(session)
        return session

    def _require_not_failed(self, key: SessionKey) -> None:
        """S does not wait for ever: it offers again, and is told why it got no answer, not that its permit is spent."""
        if key in self._failed:
            detail, is_told = self._failed[key]
            raise OfferRefused(RefusalCode.HYPERVISOR, detail, is_told=is_told)

    def _require_new(self, key: SessionKey) -> None:
        """Also among those that are only being admitted: two of one name would take each other's place."""
        if key in self.sessions or key in self._being_admitted:
            raise OfferRefused(RefusalCode.SESSION_KNOWN, "a session of this name exists")

    def _known(self, key: SessionKey, offer: Offer) -> DestinationSession:
        session = self.sessions.get(key)
        if session is None:
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "no session of this name and host is known here")
        if offer.permits != permits_in_offer(session.permit, Role.DESTINATION):
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "the session was begun under another permit")
        if offer.attempt <= session.attempt:
            raise _not_newer()
        return session

    async def _admitted(self, key: SessionKey, attempt: int) -> None:
        """Wait for an admission that is under way: S may have lost its Answer before it was given. On its newest
        connection alone, which is the one that it hears; one that was held up on its way is an older one."""
        if (admission := self._being_admitted.get(key)) is not None:
            with trio.move_on_after(self._host.config.limits.message_seconds) as patience:
                if key in self._waiting:
                    newest, waiting = self._waiting[key]
                    if attempt <= newest:
                        raise _not_newer()
                    waiting.cancel()
                self._waiting[key] = attempt, patience
                try:
                    await admission.wait()
                finally:
                    if self._waiting.get(key) == (attempt, patience):
                        del self._waiting[key]
            if key in self._being_admitted:
                raise _hangs()

    async def _resumed(self, key: SessionKey, offer: Offer) -> DestinationSession:
        """The session whose connection S has lost. Neither `exp` nor single use are looked at again, all else is."""
        await self._admitted(key, offer.attempt)
        self._require_not_failed(key)
        session = self._known(key, offer)
        if not session.may_go_on:
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "the session's channels are gone: it can only be settled")
        if self.resume_seconds(session) <= 0:
            raise OfferRefused(RefusalCode.PERMIT_TIMES, "the session is past its permit, or is not to be resumed here")
        session.attempt = offer.attempt  # not before: to a greater one that is refused no other may give way
        return session

    def resume_seconds(self, session: DestinationSession) -> float:
        """For how long a lost connection may be replaced by another."""
        left = session.until + SKEW_SECONDS - now().timestamp()
        return max(0.0, min(self._host.config.limits.resume_seconds, left))

    def _movement(self, offer: Offer) -> Movement:
        """How S's QEMU is going to send; only QEMUs that a relay drives are told. `OfferRefused` for what none can."""
        if offer.movement is msgspec.UNSET:
            return Movement()
        if (problem := offer.movement.problem()) is not None:
            raise OfferRefused(RefusalCode.PROTOCOL, problem)
        if self._host.config.hypervisor.kind != "qmp":
            raise OfferRefused(RefusalCode.HYPERVISOR, "no QEMU here is driven by the relay (hypervisor.kind)")
        return offer.movement

    async def _begin(self, key: SessionKey, permit: VerifiedPermit, movement: Movement) -> DestinationSession:
        """Spend the permit, note the session, prepare the hypervisor: in this order, each durable before the next."""
        host, started = self._host, now()
        folder, journal = await self._noted(key, permit, started)
        end = host.destination_end(permit, {}, movement)
        facts = ReceiptFacts(Role.DESTINATION, permit, end.vm_binding, started, local_leaf_sha256(host.credentials))
        session = DestinationSession(host, permit, journal, end, folder, facts)
        try:
            process = await end.prepare(folder)
            await host.enter(journal, "prepared", process=process, **end.facts)
        except (HypervisorError, LocalBroken, ValueError) as error:
            await self._withdraw(session)
            raise _not_prepared(permit.claims.vm, error) from None
        except SpoolFailed as error:
            log.error("a prepared session cannot be noted durably", vm=permit.claims.vm, cause=str(error))
            await end.__aexit__(None, None, None)
            raise OfferRefused(RefusalCode.INTERNAL, "the relay cannot write its spool") from None
        return session

    async def _noted(self, key: SessionKey, permit: VerifiedPermit, started: datetime) -> tuple[Path, SessionJournal]:
        """The folder and journal of a session whose permits are spent now. `OfferRefused`."""
        host = self._host
        name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:32]
        both = [permit] if permit.other is None else [permit, permit.other]
        uses = [(each.key_id, each.claims.jti, each.claims.exp) for each in both]
        try:
            await host.on_disk(host.used_permits.use_all, uses, int(started.timestamp()))
            folder = await host.on_disk(make_session_folder, host.spool.run_dir, name, host.qemu_uid)
            journal = await host.on_disk(
                host.spool.begin,
                Role.DESTINATION,
                name,
                session_id=key[1],
                source=key[0],
                vm=permit.claims.vm,
                permit=permit.token,
                **other_in_journal(permit),
                folder=str(folder),
                started_at=started.isoformat(),
            )
        except (SpoolFailed, OSError) as error:
            log.error("no session can be noted durably", cause=str(error))
            raise OfferRefused(RefusalCode.INTERNAL, "the relay cannot write its spool") from None
        return folder, journal

    async def _withdraw(self, session: DestinationSession) -> None:
        """Whatever is behind that monitor was not prepared by us, so it is left alone."""
        await session.end.__aexit__(None, None, None)
        try:
            await self._host.enter(session.journal, "ended")
        except SpoolFailed as error:  # the next process ends it; S is to hear what failed first
            log.error("a session that was not begun cannot be ended", vm=session.permit.claims.vm, cause=str(error))
        await self._host.on_disk(remove_session_folder, session.folder)


def _not_prepared(vm: str, error: HypervisorError | LocalBroken | ValueError) -> OfferRefused:
    if isinstance(error, NobodyListens):
        log.warning("nobody listens where a port leads", vm=vm, cause=str(error))
        return OfferRefused(RefusalCode.HYPERVISOR, error.told, is_told=True)
    if isinstance(error, HypervisorTimeout | LibvirtHangs):
        log.warning("hypervisor hangs", vm=vm, cause=str(error))
        return _hangs()
    log.warning("hypervisor not ready", vm=vm, cause=str(error))
    return OfferRefused(RefusalCode.HYPERVISOR, f"no hypervisor waits for this VM: {error}")


def _not_newer() -> OfferRefused:
    return OfferRefused(RefusalCode.PROTOCOL, "an attempt that does not increase")


def _hangs() -> OfferRefused:
    """Told in these words to whoever shows a good permit; in what it hangs, our own log says."""
    words = "the hypervisor there hangs: it did not answer in time; the log of the relay there says more"
    return OfferRefused(RefusalCode.HYPERVISOR, words, is_told=True)
