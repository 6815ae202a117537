"""What a source knows of one session while it runs, and the receipts at its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from certs.tls import ControlPeer
from policy.permit import VerifiedPermit
from transport.errors import OfferRefused, RefusalCode
from transport.hypervisors.errors import MigrationCancelled
from transport.hypervisors.moving import PLAIN, Movement
from transport.relay.failures import SessionError
from transport.relay.host import RelayHost, now
from transport.relay.receipts import (
    ReceiptFacts,
    make_receipt,
    naming_peers,
    outcome_of,
    receipt_for_gateway,
    receipt_sha256,
    recovery_suffix,
    verify_peer_receipt,
)
from transport.relay.spool import SessionJournal
from transport.wire.messages import Receipt

log = structlog.get_logger("sealane.relay")
_MAX_ATTEMPT = (1 << 32) - 1
_SPENT: Final = frozenset({RefusalCode.PERMIT_REPLAYED, RefusalCode.HYPERVISOR})  # D asks its hypervisor afterwards


@dataclass(slots=True)
class SourceSession:
    """What S knows of one session while it runs. Its journal holds what must outlive the process."""

    host: RelayHost
    permit: VerifiedPermit
    address: str
    journal: SessionJournal
    facts: ReceiptFacts
    movement: Movement = PLAIN
    outcome: str = "failed"
    message: str = ""
    trouble: str = ""  # what is in the way now, and who must do what
    was_answered: bool = False
    was_refused_as_spent: bool = False
    is_offered: bool = False  # D may know it, although it has not answered
    is_reconnecting: bool = False  # its connection was lost and another is being made: nothing but time passes
    has_receipt: bool = False
    recovery_id: str = ""  # of a session that goes on with interrupted post-copy, under the journal of the first one
    interrupted: int = 0  # recoveries of its post-copy that were certified, and did not bring all
    sent: Receipt | None = None  # its receipt, as the peer was sent it
    sent_between: tuple[bytes, ...] = ()  # SHA-256 of the ends' certificates, ours first
    _attempt: int = -1
    _leap: int = 1

    @property
    def session_id(self) -> str:
        return self.recovery_id or str(self.journal.facts["session_id"])

    @property
    def until(self) -> int:
        """Unix time up to which it may go on. A guest in post-copy would only have to be recovered after it."""
        claims = self.permit.claims
        # D's word that it runs there may be what was lost: it takes the session up again where it has started it.
        is_given_away = self.is_post_copy and self.journal.state in {"handed-over", "outcome-running"}
        return claims.recover_until if self.recovery_id or is_given_away else claims.session_until

    @property
    def is_spent(self) -> bool:
        """Whether D knows its permit as used, for all that is known here."""
        return self.was_answered or self.was_refused_as_spent

    @property
    def is_post_copy(self) -> bool:
        """Whether the guest was handed over before all of its memory was."""
        return self.journal.facts.get("post_copy") is True

    def next_attempt(self) -> int:
        """Strictly increasing over the session's connections, restarts included: seconds since the epoch for those."""
        is_new = self.recovery_id or not self.is_recovered
        if self._attempt >= 0 or is_new:
            self._attempt = min(self._attempt + self._leap, _MAX_ATTEMPT)
        else:
            self._attempt = min(max(0, int(now().timestamp())), _MAX_ATTEMPT - (1 << 24))
        return self._attempt

    def leap(self) -> None:
        """The clock was ahead before an earlier restart: D knows a greater attempt, which 32 leaps come to."""
        self._leap *= 2

    @property
    def is_recovered(self) -> bool:
        return self.journal.facts.get("recovered") is True

    async def note_accepted(self) -> None:
        """D has all of the guest, and whoever moves it here is about to hear so: durable before they do."""
        await self.host.enter(self.journal, "accepted")

    def answered(self, peer: ControlPeer, own_leaf_sha256: bytes) -> None:
        """`own_leaf_sha256`: of the certificate on this very connection, by whose key the peer knows a receipt."""
        self.was_answered = True
        self.facts.peer = peer
        self.facts.own_leaf_sha256 = own_leaf_sha256
        self.facts.connections += 1

    def receipt_for_peer(self) -> Receipt:
        """The same on each connection, as D may hold it since an earlier one; another only where either end shows
        another certificate: D checks it by ours, and names its own in its answer."""
        own, peer = self.facts.own_leaf_sha256, self.facts.peer
        between = (own,) if peer is None else (own, peer.leaf_sha256)
        if self.sent is None or self.sent_between != between:
            self.sent, self.sent_between = make_receipt(self.facts, self.host.identity.of_session(own), now()), between
        return self.sent

    def fail(self, cause: SessionError) -> None:
        self.outcome = "cancelled" if isinstance(cause, MigrationCancelled) else "failed"
        self.message = str(cause)
        self.was_refused_as_spent = isinstance(cause, OfferRefused) and cause.code in _SPENT
        log.warning("session broke", session=self.session_id, vm=self.permit.claims.vm, cause=str(cause))

    async def decided(self, outcome: str) -> None:
        """Durably note what D chose."""
        await self.host.enter(self.journal, f"outcome-{outcome}")


async def keep_receipt(session: SourceSession) -> None:
    """Durably, until the gateway has it. That of a recovery comes after what it recovers: the newest one counts."""
    host, facts, sent, moment = session.host, session.facts, session.sent, now()
    if sent is not None and outcome_of(sent) == facts.outcome:
        # The very body that D may hold: by its digest in D's receipt a gateway sees that both got one. By the key of
        # the certificate that it names: a newer one would not have been valid when it ended.
        own = host.identity.to_certify(session.sent_between[0], moment)
        receipt = naming_peers(sent, facts.peer_receipt_sha256, own)
    else:
        own = host.identity.to_certify(facts.own_leaf_sha256, moment)
        receipt = make_receipt(facts, own, moment)
    name = f"{session.permit.claims.jti}-source"
    if session.recovery_id:
        name += recovery_suffix(session.facts.started, session.recovery_id)
    await host.on_disk(host.spool.keep_receipt, name, receipt_for_gateway(receipt, own.chain, session.permit.token))
    session.has_receipt = True


async def exchange_receipts_as_source(
    session: SourceSession, ask: Callable[[Callable[[], Receipt]], Awaitable[Receipt]]
) -> None:
    """Send ours, which `ask` takes for each connection, and get D's. Each end keeps its own in any case: a break here
    loses only the cross-reference."""
    facts = session.facts
    facts.outcome = _receipt_outcome(session)
    session.sent = None
    theirs = await ask(session.receipt_for_peer)
    if facts.peer is not None:
        verify_peer_receipt(theirs, facts.peer)
        facts.peer_receipt_sha256 = receipt_sha256(theirs)


def _receipt_outcome(session: SourceSession) -> str:
    return "completed" if session.journal.state == "outcome-running" else session.outcome
