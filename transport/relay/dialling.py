"""S's way to D: connect, TLS, mutual identity, Offer, Answer. No lane opens and no hypervisor is read before Answer."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import trio
from OpenSSL import SSL

from certs.errors import PeerRefused
from certs.tls import ControlPeer, HostCredentials, accept_peer, client_context, export_secret, local_leaf_sha256
from policy.permit import VerifiedPermit
from transport.errors import ConnectionBroken, OfferRefused, RefusalCode
from transport.hypervisors.moving import PLAIN, Movement
from transport.relay.control import ControlLink, TlsStream
from transport.relay.host import RelayHost, now
from transport.relay.outgoing import Leaving, connect, connect_first, routes
from transport.relay.permits import permits_in_offer
from transport.relay.refusals import words_of
from transport.relay.tcp import notice_silence
from transport.wire.control import Role
from transport.wire.keys import ConnectionKeys, exporter_context
from transport.wire.messages import Answer, Offer, Purpose, Refusal
from transport.wire.preface import make_preface


class AnswerLost(ConnectionBroken):
    """The connection broke after the Offer was sent: D may have taken it."""


@dataclass(frozen=True, slots=True)
class SourceConnection:
    """One answered control connection, and what its lanes need."""

    link: ControlLink
    peer: ControlPeer
    keys: ConnectionKeys
    address: tuple[str, int]
    leaving: Leaving
    answer: Answer
    own_leaf_sha256: bytes

    async def open_lane(self, channel: int, seconds: float) -> socket.socket:
        """A TCP connection to D that has said which channel it is; non-blocking."""
        sock = await connect(self.address, self.leaving, seconds)
        preface = make_preface(self.keys, channel)
        try:
            with trio.fail_after(seconds):
                view = memoryview(preface)
                while view:
                    view = view[await sock.send(view) :]
        except (OSError, trio.TooSlowError):
            sock.close()
            raise ConnectionBroken("a lane could not be opened") from None
        except BaseException:  # cancelled
            sock.close()
            raise
        lane = socket.socket(fileno=sock.detach())
        lane.setblocking(False)
        return lane


@asynccontextmanager
async def offered(  # noqa: PLR0913, PLR0917 - what an Offer says
    host: RelayHost,
    permit: VerifiedPermit,
    address: str,
    session_id: str,
    attempt: int,
    purpose: Purpose,
    movement: Movement = PLAIN,
    following: Mapping[str, int] | None = None,
) -> AsyncIterator[SourceConnection]:
    """An answered connection to D; closed at the end of the block. Raises `OfferRefused`, `ConnectionBroken`.

    `following`: of a resumption, the first of D's frames by channel that is not here.
    """
    limits = host.config.limits
    tokens = permits_in_offer(permit, Role.SOURCE)
    credentials = host.credentials  # once: a renewal meanwhile must not change by what the keys are derived
    tls = SSL.Connection(client_context(credentials), None)
    tls.set_connect_state()
    leaving = host.leaving_by
    ways = routes(address, permit.claims.destination, host.addresses.book)
    sock, where = await connect_first(ways, leaving, limits.dial_seconds)
    notice_silence(sock, limits.silence_seconds)
    stream = TlsStream(sock, tls)
    link = ControlLink(stream, Role.SOURCE, limits.message_seconds)
    try:
        peer = await _require_destination(host, stream, permit, credentials)
        context = exporter_context(
            tokens,
            local_leaf_sha256(credentials),
            peer.leaf_sha256,
            bytes.fromhex(session_id),
            attempt,
        )
        keys = ConnectionKeys(export_secret(tls, context))
        told = movement if movement != PLAIN else msgspec.UNSET
        try:
            await link.send(Offer(1, purpose, tokens, session_id, attempt, dict(following or {}), told))
            answer = await link.expect(Answer, Refusal)
        except ConnectionBroken as broken:
            raise AnswerLost(str(broken)) from None
        if isinstance(answer, Refusal):
            raise OfferRefused(answer.code, words_of(answer, purpose))
        assert isinstance(answer, Answer)
        yield SourceConnection(link, peer, keys, where, leaving, answer, local_leaf_sha256(credentials))
    finally:
        with trio.CancelScope(shield=True):
            await link.close()


async def _require_destination(
    host: RelayHost, stream: TlsStream, permit: VerifiedPermit, credentials: HostCredentials
) -> ControlPeer:
    """The peer, if it is the host that the permit names: the permit goes to no other. Raises `OfferRefused`."""
    try:
        with trio.fail_after(host.config.limits.handshake_seconds):
            await stream.handshake()
        peer = accept_peer(stream.tls, credentials, now())
        host.identity.require_listed(peer.spiffe_id)
    except trio.TooSlowError:
        raise ConnectionBroken("the destination relay did not finish the TLS handshake in time") from None
    except PeerRefused as refused:
        detail = f"the destination relay's identity is not accepted ({refused.check}: {refused.detail})"
        raise OfferRefused(RefusalCode.PERMIT_PARTIES, detail) from None
    if str(peer.spiffe_id) != permit.claims.destination:
        detail = f"another host answers at the destination's address: {peer.spiffe_id}"
        raise OfferRefused(RefusalCode.PERMIT_PARTIES, detail)
    return peer
