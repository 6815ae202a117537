"""What a destination knows of one session, and the only place where a guest is started or discarded.

`DestinationSession.settle` runs in the ordinary case, for a session that comes back to be settled, and after a restart.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import trio

from policy.permit import VerifiedPermit
from transport.errors import ProtocolViolation, SpoolFailed
from transport.relay.ends import DestinationEnd, restore_session_folder
from transport.relay.host import RelayHost, now
from transport.relay.live import Live
from transport.relay.receipts import (
    MOST_INTERRUPTED,
    ReceiptFacts,
    make_receipt,
    naming_peers,
    receipt_for_gateway,
    recovery_suffix,
)
from transport.relay.spool import SessionJournal
from transport.wire.messages import Receipt

OUTCOMES: Final = {"started": "running", "running": "running", "discarded": "discarded", "prepared": "completed"}
UNDECIDED: Final = frozenset({"prepared", "loaded"})  # nothing was chosen yet
_RECOVERY_SECONDS: Final = 1.0  # from one to the next at least


def receipt_name(permit: VerifiedPermit) -> str:
    """Under which it waits for its gateway."""
    return f"{permit.claims.jti}-destination"


@dataclass(slots=True)
class DestinationSession:
    """What D knows of one session. Its journal holds what must outlive the process."""

    host: RelayHost
    permit: VerifiedPermit
    journal: SessionJournal
    end: DestinationEnd
    folder: Path
    facts: ReceiptFacts
    attempt: int = -1
    only_settles: bool = False
    has_said_bye: bool = False  # S, on a connection that has ended
    is_left: bool = False  # to this relay alone, which settles what it can
    askers: int = 0  # for its outcome, that were not answered yet
    is_held: bool = False  # its monitor is kept, as part of the guest's memory is at S
    live: Live | None = None  # of a session that this very process has admitted
    began: float = field(default_factory=trio.current_time)
    recovery_id: str = ""  # session id of the latest recovery of its post-copy
    source_certifies: str | None = None  # what S's receipt says that it came to
    _interrupted: list[str] = field(default_factory=list)  # names of the receipts of recoveries that did not bring all
    _last_recovery: float = -math.inf
    _settling: trio.Lock = field(default_factory=trio.Lock)
    _connection: trio.CancelScope | None = None
    _connection_closed: trio.Event = field(default_factory=trio.Event)
    _returned: trio.Event = field(default_factory=trio.Event)

    @property
    def is_undecided(self) -> bool:
        return self.journal.state in UNDECIDED or self.journal.state == "running"

    @property
    def occupies_vm(self) -> bool:
        """Whether no other session of this VM may begin here yet."""
        return self.journal.state == "admitted" or self.is_undecided

    async def settle(self, *, handed_over: bool, post_copy: bool = False) -> Literal["running", "discarded"]:
        """Durably choose, then act; idempotent. Without `handed_over` the choice can only be to discard.

        Raises `HypervisorError` or `SpoolFailed` when nothing could be chosen, or not yet carried out: no answer may
        be given then, and the next call goes on from what is durable.
        """
        async with self._settling:
            if self.journal.state in UNDECIDED:
                seconds = self.host.config.limits.hypervisor_seconds
                # In post-copy it has not all of the guest, and S cannot run it any more: there is nothing to wait for.
                is_due = handed_over and post_copy and self.end.begin_post_copy()
                if is_due or (handed_over and await self.end.wait_loaded(seconds)):
                    more = {"post_copy": True, **self.end.facts} if is_due else {}
                    await self.host.enter(self.journal, "running", **more)
                else:
                    await self.end.discard()
                    await self.host.enter(self.journal, "discarded")
            if self.journal.state == "running":
                await self.end.start_guest()
                await self.host.enter(self.journal, "started")
            if self.journal.state not in ("started", "discarded"):
                # Any answer here could be another than the one that was given before.
                raise ProtocolViolation("the outcome of a session that has ended is asked for")
            # The monitor takes one program at a time, and S may never say Bye: whoever moves this VM next needs it.
            if not self.may_recover:
                await self.end.__aexit__(None, None, None)
            return "running" if self.journal.state == "started" else "discarded"

    async def note_ended(self) -> None:
        """Durably, and not in the midst of being settled."""
        async with self._settling:
            if not self.journal.is_ended:
                await self.host.enter(self.journal, "ended")

    async def look_ahead(self) -> None:
        """All memory was carried: let the hypervisor be asked before S asks, for the guest stands still meanwhile."""
        async with self._settling:
            if self.journal.state in UNDECIDED:
                await self.end.look_ahead()

    async def holds_whole_guest(self, seconds: float) -> bool:
        """Whether all of the guest is here and nothing was chosen yet; waits for the hypervisor to know.

        In post-copy S may have given the guest away already, whose devices are here and whose memory is there.
        """
        async with self._settling:
            if self.journal.state not in UNDECIDED:
                return False
            return await self.end.is_in_post_copy() or await self.end.wait_loaded(seconds)

    async def note_loaded(self, **facts: object) -> None:
        """The hypervisor has all of the guest and holds it, by its manager's word: durable before S hears of it."""
        async with self._settling:
            if self.journal.state != "prepared":
                raise ProtocolViolation("the guest came after its session had been settled")
            await self.host.enter(self.journal, "loaded", **facts)

    async def take_connection(self, scope: trio.CancelScope, attempt: int) -> bool:
        """The session's older connection, if any, is closed and all of its tasks have ended when this returns.

        False, and nothing was touched, where a newer attempt is there: an older one that comes late ends no newer one.
        """
        while attempt == self.attempt and self._connection is not None:
            self._connection.cancel()
            await self._connection_closed.wait()
        if attempt != self.attempt:
            return False
        self._connection = scope
        self._connection_closed = trio.Event()
        self._returned.set()
        return True

    def takes_recovery(self) -> bool:
        """Whether to try it now: one after the other, and one a second. Else a source could have as many connections
        wait here, and as many receipts and lines written, as it likes."""
        moment = trio.current_time()
        if self._settling.locked() or moment - self._last_recovery < _RECOVERY_SECONDS:
            return False
        self._last_recovery = moment
        return True

    async def recover(self, session_id: str, attempt: int) -> None:
        """Let the hypervisor wait for the rest of a guest that runs here; whatever carried it before is closed first.

        The receipt of what follows is another one. Raises `SpoolFailed`, the hypervisor being untouched, `LocalBroken`
        or `HypervisorError`.
        """
        async with self._settling:
            self.let_go()
            if self._connection is not None:
                self._connection.cancel()
                await self._connection_closed.wait()
            if self.owes_receipt:
                await self.keep_receipt()
            await self.host.on_disk(restore_session_folder, self.folder, self.host.qemu_uid)
            await self.end.listen_again(self.folder)
        facts = self.facts
        self.facts = ReceiptFacts(
            facts.role, facts.permit, facts.vm_binding, now(), facts.own_leaf_sha256, is_recovery=True
        )
        self.recovery_id, self.attempt, self.only_settles, self.began = session_id, attempt, False, trio.current_time()
        self.has_said_bye = False

    @property
    def has_receipt(self) -> bool:
        return self.facts.is_kept

    @property
    def owes_receipt(self) -> bool:
        """Whether one is to be kept unasked: of a recovery where it carried anything, whether S wants it or not."""
        if self.has_receipt or not self.recovery_id:
            return not self.has_receipt
        return self.facts.has_carried and (self._has_all_memory or len(self._interrupted) < MOST_INTERRUPTED)

    @property
    def may_recover(self) -> bool:
        """Whether post-copy began in it: the guest runs here and may lack memory that is at S."""
        return self.journal.state == "started" and self.journal.facts.get("post_copy") is True

    @property
    def _has_all_memory(self) -> bool:
        """That S had to send. A former process had the channels of a session that has none here: then S knows."""
        if self.live is None:
            return self.source_certifies == "completed"
        return self.live.channels.has_written("memory")

    @property
    def until(self) -> int:
        """Unix time up to which S may go on with it. A guest in post-copy would only have to be recovered after it."""
        claims = self.permit.claims
        return claims.recover_until if self.recovery_id or self.may_recover else claims.session_until

    @property
    def is_over(self) -> bool:
        """Nothing is left to do here, and nobody is connected: it is known only for its source to ask."""
        is_settled = self.journal.state in ("started", "discarded") and not self.owes_receipt
        may_be_recovered = self.may_recover and now().timestamp() < self.until
        return is_settled and not may_be_recovered and not self.is_carried and self._connection is None

    @property
    def has_arrived(self) -> bool:
        """Between bare sockets: whether all that either end sent is at the other, for all that is known here."""
        return not self.end.hands_over and self.live is not None and self.live.channels.has_arrived

    def leave_connection(self) -> None:
        self._connection = None
        self._connection_closed.set()
        self._returned = trio.Event()

    async def comes_back(self, seconds: float) -> bool:
        """Whether S has another connection, or makes one within `seconds`."""
        returned = self._returned
        with trio.move_on_after(seconds):
            await returned.wait()
        return returned.is_set()

    @property
    def is_carried(self) -> bool:
        """Whether its channels are there, with or without a connection."""
        return self.live is not None and not self.live.is_over

    @property
    def may_go_on(self) -> bool:
        """Whether another connection can take its channels up."""
        return self.is_carried and not self.only_settles

    def let_go(self) -> None:
        """Nothing is carried any more; what is left is to settle it."""
        if self.live is not None:
            self.live.end()

    async def keep_receipt(self) -> Receipt:
        """Durably keep this session's receipt, as things stand."""
        if self.journal.state not in OUTCOMES or (self.end.hands_over and self.is_undecided):
            # Else a source that never handed over would hold our word that it did.
            raise ProtocolViolation("a receipt is asked for before the outcome, or after the end")
        facts = self.facts  # a recovery that begins meanwhile has others
        facts.outcome = OUTCOMES[self.journal.state]
        facts.lacks_memory = self.may_recover and not self._has_all_memory
        identity, moment = self.host.identity, now()
        receipt = make_receipt(facts, identity.of_session(facts.own_leaf_sha256), moment)
        own = identity.to_certify(facts.own_leaf_sha256, moment)
        kept = naming_peers(receipt, facts.peer_receipt_sha256, own)  # the very body
        name = self._take_name(facts)
        data = receipt_for_gateway(kept, own.chain, self.permit.token)
        await self.host.on_disk(self.host.spool.keep_receipt, name, data)
        facts.is_kept = True
        await self._note_receipt()
        return receipt

    def _take_name(self, facts: ReceiptFacts) -> str:
        """Under which its receipt waits. Of interrupted recoveries beyond the most the last has that of the one before:
        their source may ask again and again."""
        name = receipt_name(self.permit)
        if not self.recovery_id:
            return name
        name += recovery_suffix(facts.started, self.recovery_id)
        if facts.lacks_memory and name not in self._interrupted:
            if len(self._interrupted) >= MOST_INTERRUPTED:
                return self._interrupted[-1]
            self._interrupted.append(name)
        return name

    async def _note_receipt(self) -> None:
        """For a later process, whose gateway may have it by then: it has counted nothing, and must not certify that."""
        if self.journal.facts.get("receipt_kept") is not True:
            with suppress(SpoolFailed), trio.CancelScope(shield=True):
                await self.host.on_disk(self.journal.note, receipt_kept=True)
