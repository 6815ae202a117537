"""Control connections of other relays: TLS, the peer's identity, its Offer, and then the session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio
from OpenSSL import SSL

from certs.errors import PeerRefused
from certs.identity import SpiffeId
from certs.tls import ControlPeer, HostCredentials, accept_peer, export_secret, local_leaf_sha256
from transport.errors import ConnectionBroken, OfferRefused, RefusalCode, TransportError
from transport.relay.content_digests import most_channels
from transport.relay.control import ControlLink, TlsStream
from transport.relay.destination import Destination
from transport.relay.host import RelayHost, now
from transport.relay.listener import Listener
from transport.relay.tcp import notice_silence
from transport.wire.control import Role
from transport.wire.keys import ConnectionKeys, exporter_context
from transport.wire.messages import Offer, Refusal

ShowPermit = Callable[[str], Awaitable[None]]
log = structlog.get_logger("sealane.relay")
MAX_SILENT: Final = 16  # connections of one host that say nothing yet
MAX_SILENT_OF_SITE: Final = 128  # of all hosts of another site
_SITE: Final = "site "


def crowd_of(peer: SpiffeId | None, own_trust_domain: str) -> str:
    """With whom a peer shares what has a bound: each host of this site has its own; all of another site, whose CA makes
    names without end, have one, and so have all strangers."""
    if peer is None:
        return ""
    return str(peer) if peer.trust_domain == own_trust_domain else f"{_SITE}{peer.trust_domain}"


class Silences:
    """Connections that have not offered yet, by crowd: they hold descriptors that others need."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, crowd: str) -> None:
        """`ConnectionBroken` at one too many."""
        if self._counts[crowd] >= (MAX_SILENT_OF_SITE if crowd.startswith(_SITE) else MAX_SILENT):
            raise ConnectionBroken("too many silent connections")
        self._counts[crowd] += 1

    def end(self, crowd: str) -> None:
        self._counts[crowd] -= 1
        if not self._counts[crowd]:
            del self._counts[crowd]


class Incoming:
    """`show_permit`: to the gateways, each permit under which something begins here."""

    def __init__(
        self, host: RelayHost, nursery: trio.Nursery, destination: Destination, show_permit: ShowPermit
    ) -> None:
        self._host = host
        self._nursery = nursery
        self._destination = destination
        self._show_permit = show_permit
        self._silences = Silences()
        self.listener = Listener(host.config.limits, self._serve_control, host.addresses.knows)

    async def _serve_control(self, sock: trio.socket.SocketType, first: bytes, proven: Callable[[], None]) -> None:
        """One control connection: TLS, the peer's identity, its Offer, and then the session."""
        limits = self._host.config.limits
        credentials = self._host.credentials
        tls = SSL.Connection(self._host.identity.context, None)
        tls.set_accept_state()
        stream = TlsStream(sock, tls, first)
        link = ControlLink(stream, Role.DESTINATION, limits.message_seconds)
        who: SpiffeId | None = None
        try:
            await stream.handshake()
            peer = accept_peer(tls, credentials, now())
            self._host.identity.require_listed(peer.spiffe_id)
            who = peer.spiffe_id
            proven()
            notice_silence(sock, limits.silence_seconds)
            await self._serve_offer(link, tls, peer, credentials)
        except PeerRefused as refused:
            self._log(who, "peer refused", check=refused.check, detail=refused.detail)
        except ConnectionBroken:
            pass  # a stranger's handshake, or a peer that left before its session began
        except TransportError as error:
            self._log(who, "control connection ended", peer=str(who), cause=str(error))
        except Exception:
            # A bug of ours that one peer has found must not end the sessions of all others; its own ends here.
            log.exception("bug: control connection ended")
        finally:
            with trio.CancelScope(shield=True):
                await link.close()

    async def _serve_offer(
        self, link: ControlLink, tls: SSL.Connection, peer: ControlPeer, credentials: HostCredentials
    ) -> None:
        offer = await self._hear_offer(link, self._crowd_of(peer.spiffe_id))
        if self._host.credentials is not credentials:  # it may have been revoked since, and waited for that in silence
            accept_peer(tls, self._host.credentials, now())
        try:
            session = await self._destination.admissions.admit(offer, peer)
        except OfferRefused as refused:
            source = str(peer.spiffe_id)
            self._log(peer.spiffe_id, "offer refused", source=source, code=refused.code.value, detail=refused.detail)
            # A peer whose permit is good is told what is busy; of a check that failed nothing that helps a forger.
            await link.send(Refusal(refused.code, refused.detail if refused.is_told else _words_for(refused.code)))
            return
        if offer.purpose == "begin":
            self._nursery.start_soon(self._show_permit, session.permit.token)
        context = exporter_context(
            offer.permits,
            peer.leaf_sha256,
            local_leaf_sha256(credentials),
            bytes.fromhex(offer.session_id),
            offer.attempt,
        )
        keys = ConnectionKeys(export_secret(tls, context))
        allowed = most_channels(session.permit.claims)
        desk = self.listener.open_desk(keys, min(allowed, self._host.config.limits.max_channels))
        try:
            await self._destination.serve(session, offer, link, desk, (peer, local_leaf_sha256(credentials)))
        finally:
            self.listener.close_desk(desk)

    async def _hear_offer(self, link: ControlLink, crowd: str) -> Offer:
        self._silences.begin(crowd)
        try:
            return await link.expect(Offer)
        finally:
            self._silences.end(crowd)

    def _crowd_of(self, peer: SpiffeId | None) -> str:
        return crowd_of(peer, self._host.credentials.spiffe_id.trust_domain)

    def _log(self, who: SpiffeId | None, event: str, **facts: object) -> None:
        """At most a line a second of each kind for each crowd."""
        if self._host.log_rate.allows(event, self._crowd_of(who)):
            log.warning(event, **facts)


def _words_for(code: RefusalCode) -> str:
    """What a refused peer reads: who knows more of it, and nothing that helps a forger. A source has words of its own
    for most codes (`refusals`); one of an earlier version shows these to whoever moves a VM."""
    match code:
        case RefusalCode.HYPERVISOR:
            return "the hypervisor there does not take this VM; the log of the relay there says why"
        case RefusalCode.PERMIT_REPLAYED:
            return "this permit was used before, if in vain; the log of the relay there says why"
        case RefusalCode.INTERNAL:
            return "the relay there cannot keep a session; its log says why"
        case _:
            return f"the destination's check of {code.value} failed"
