"""The relay: composition of listener, sessions, recovery and the gateways' links."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial

import structlog
import trio

from transport.errors import ConfigurationError, LocalBroken
from transport.relay import systemd
from transport.relay.assignments import Ask, Assignments
from transport.relay.config import split_address
from transport.relay.destination import Destination
from transport.relay.former_sessions import take_up_former
from transport.relay.fronting import start_front
from transport.relay.gateway_links import GatewayLinks
from transport.relay.host import RelayHost
from transport.relay.identity_keeping import IdentityKeeper
from transport.relay.incoming import Incoming
from transport.relay.inlets import listen_tcp
from transport.relay.metrics import serve_metrics
from transport.relay.operating import Operators, listen_for_operators
from transport.relay.outgoing import mark_packets
from transport.relay.refusal_telling import tell_refused_calls
from transport.relay.watching import Watch, sources_of

log = structlog.get_logger("sealane.relay")
_DRAIN_LOOK_SECONDS = 0.25


async def serve_relay(host: RelayHost, ready: Callable[[str], None], ask: Ask | None = None) -> None:
    """Run until cancelled. `ready` is told the address once the port listens and recovery has begun.

    `ask`: who permits what callers of the front want, if not the gateway.
    """
    with host.spool.served():
        await _serve(host, ready, ask)


async def _serve(host: RelayHost, ready: Callable[[str], None], ask: Ask | None) -> None:
    listening = _listening(host)
    link = GatewayLinks(host)
    try:
        async with trio.open_nursery() as nursery:
            destination = Destination(host, nursery)
            incoming = Incoming(host, nursery, destination, link.show_permit)
            assignments = Assignments(host, nursery, link, ask or link.admit, destination.give_up)
            operators = Operators(host.board, lambda: drain(host), assignments.evacuating, host.metrics)
            control = listen_for_operators(host.control_socket)
            take_up_former(host, destination, link, nursery)
            nursery.start_soon(operators.serve, control)
            nursery.start_soon(_end_when_drained, host, destination, assignments, nursery.cancel_scope)
            if at := host.config.metrics.listen:
                nursery.start_soon(serve_metrics, [_listening_for_metrics(at)], host.metrics)
            nursery.start_soon(incoming.listener.serve, listening)
            keeper = IdentityKeeper(host, link)
            nursery.start_soon(keeper.run)
            nursery.start_soon(link.run, assignments.take, keeper.hear)
            nursery.start_soon(tell_refused_calls, host.refused_calls, link.report_refused_calls)
            if sources := sources_of(host.config):
                seconds = host.config.placement
                sends = [partial(link.report_placement, each) for each in link.all]
                watch = Watch(sources, seconds.scan_seconds, seconds.report_seconds, sends[0], sends[1:])
                nursery.start_soon(watch.run)
            start_front(host, assignments.migrate_for_caller, assignments.announced, nursery)
            name = listening.getsockname()
            ready(f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}")
    finally:
        listening.close()
        with trio.move_on_after(1, shield=True):
            await link.close()


def drain(host: RelayHost) -> None:
    """Take nothing new from now on; what is under way goes on. There is no way back but a new process."""
    if not host.board.is_draining:
        log.warning("draining: nothing new is taken", sessions=len(host.board.entries))
        host.board.is_draining = True
        systemd.notify("STATUS=draining: ends with its last session")


async def _end_when_drained(
    host: RelayHost, destination: Destination, assignments: Assignments, scope: trio.CancelScope
) -> None:
    """Once nothing new is taken: wait for the last session, then for its receipt to be told, and end."""
    board = host.board
    while not board.is_draining or not board.is_empty or destination.admissions.is_busy or assignments.are_under_way:
        await trio.sleep(_DRAIN_LOOK_SECONDS)
    log.info("drained: ending")
    scope.cancel()


def _listening(host: RelayHost) -> trio.socket.SocketType:
    """systemd's socket, if it holds one for us, else our own."""
    if (inherited := systemd.inherited_socket()) is not None:
        return trio.socket.from_stdlib_socket(inherited)
    return _bind(host.config.relay.listen, host.config.network.dscp)


def _listening_for_metrics(at: str) -> trio.socket.SocketType:
    try:
        return listen_tcp(*split_address(at, "metrics.listen"))
    except LocalBroken as error:
        raise ConfigurationError(f"metrics.listen: {error}; stop what holds it or change it") from None


def _bind(listen: str, dscp: int | None) -> trio.socket.SocketType:
    host, port = split_address(listen, "relay.listen")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if dscp is not None:
            mark_packets(sock, dscp)
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        mend = "stop what holds it, or change it" if error.errno == errno.EADDRINUSE else "give an address of this host"
        raise ConfigurationError(f"relay.listen: {listen}: {error.strerror}; {mend}") from None
    return trio.socket.from_stdlib_socket(sock)
