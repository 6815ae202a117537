"""The relay as a process: `sealane relay serve`, `open` and `pipe`, with their signals, exit codes and log."""

from __future__ import annotations

import gc
import json
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog
import trio

from policy.settings.allowed import shown
from transport.errors import (
    ConfigurationError,
    ConnectionBroken,
    Misuse,
    OfferRefused,
    PeerCancelled,
    SpoolFailed,
    TransportError,
)
from transport.hypervisors.errors import HypervisorError
from transport.relay import systemd
from transport.relay.config import load_relay_config, split_address
from transport.relay.failures import cause_of
from transport.relay.host import RelayHost, open_host
from transport.relay.news import News
from transport.relay.piping import pipe
from transport.relay.service import drain, serve_relay
from transport.relay.source import MigrationOrder, carry_as_source

EXIT_DONE, EXIT_FAILED, EXIT_CONFIGURATION, EXIT_INTERRUPTED, EXIT_UNREAD = 0, 1, 2, 130, 141


def run_relay(config_path: Path) -> int:
    """`sealane relay serve`: run until SIGTERM or SIGINT. Returns the exit code."""

    async def main() -> None:
        host = open_host(load_relay_config(config_path))
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:

                async def stop() -> None:
                    async for each in signals:
                        if each == signal.SIGHUP:
                            drain(host)
                        else:
                            nursery.cancel_scope.cancel()

                nursery.start_soon(stop)
                nursery.start_soon(systemd.keep_alive)
                await serve_relay(host, _print_ready)
                nursery.cancel_scope.cancel()

    return _run(main)


def run_open(config_path: Path, permit_path: Path, address: str, socket_path: Path) -> int:
    """`sealane relay open`: carry one program's stream under one permit, from `socket_path`. Returns the exit code."""

    async def carry(cancelled: trio.Event) -> int:
        host, permit, where = _permitted(config_path, permit_path, address)
        _make_room(socket_path)

        async def tell(news: News) -> None:
            if news.state == "running" and news.progress is None:
                is_ours.set()
                _print_ready(str(socket_path))

        is_ours = trio.Event()
        order = MigrationOrder(permit, where)
        try:
            news = await carry_as_source(
                host, order, tell, cancelled, socket_path, end=partial(host.port_source, listens_at=socket_path)
            )
        finally:
            if is_ours.is_set():
                socket_path.unlink(missing_ok=True)
        print(json.dumps({"outcome": news.state, "message": news.message}), flush=True)
        return EXIT_DONE if news.state == "completed" else EXIT_FAILED

    return _run(partial(_until_interrupted, carry))


def run_pipe(config_path: Path, permit_path: Path, address: str) -> int:
    """`sealane relay pipe`: standard input and output as one channel; its outcome on stderr. Returns the exit code."""

    async def carry(cancelled: trio.Event) -> int:
        host, permit, where = _permitted(config_path, permit_path, address)
        piped = await pipe(host, permit, where, (0, 1), cancelled)
        print(json.dumps({"outcome": piped.news.state, "message": piped.news.message}), file=sys.stderr, flush=True)
        if piped.is_unread:
            return EXIT_UNREAD
        return EXIT_DONE if piped.news.state == "completed" else EXIT_FAILED

    return _run(partial(_until_interrupted, carry))


async def _until_interrupted(carry: Callable[[trio.Event], Awaitable[int]]) -> int:
    """Ctrl-C or SIGTERM gives the session up in order, so that both ends and their gateway know; the second leaves."""
    cancelled = trio.Event()
    is_in_background = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # of a script, whose Ctrl-C is not for it
    heard = {signal.SIGTERM} if is_in_background else {signal.SIGTERM, signal.SIGINT}
    with trio.open_signal_receiver(*heard) as signals:
        async with trio.open_nursery() as nursery:

            async def hear() -> None:
                async for _ in signals:
                    if cancelled.is_set():
                        nursery.cancel_scope.cancel()
                    cancelled.set()

            nursery.start_soon(hear)
            code = await carry(cancelled)
            nursery.cancel_scope.cancel()
            return code
    return EXIT_INTERRUPTED


def _permitted(config_path: Path, permit_path: Path, address: str) -> tuple[RelayHost, str, str]:
    """This host, the permit's text, and where its destination's relay listens. ConfigurationError."""
    host = open_host(load_relay_config(config_path))
    known = host.addresses.book.host(address)
    where = known.addresses[0].address if known is not None else address
    try:
        split_address(where, "--to")
    except ConfigurationError:
        raise ConfigurationError(f"--to: {shown(address)} is no host of the address book, nor HOST:PORT") from None
    try:
        return host, permit_path.read_text().strip(), where
    except OSError as error:
        raise ConfigurationError(f"{permit_path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{permit_path}: holds no permit, but bytes that are no text") from None


def _make_room(path: Path) -> None:
    """For a socket, before a permit is used that serves once. What a killed process left goes. ConfigurationError."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"--socket: {path.parent} is no folder; make it, or name another")
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # one whose queue is full would be waited for, for ever
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        if path.is_socket():
            path.unlink()
            return
    except OSError as error:
        raise ConfigurationError(f"--socket: {path}: {error.strerror or error}; name another path") from None
    raise ConfigurationError(f"--socket: {path} is in use, or no socket; name another path")


def _run(main: Callable[[], Awaitable[int | None]]) -> int:
    log_to_stderr()
    # Each channel takes two descriptors; the shell's soft limit of 1,024 is for programs that call select().
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold keys and guest memory
    # What imports made stays; a stream leaves no cycles, and looking for them costs a twentieth of a migration's time.
    gc.freeze()
    gc.set_threshold(50_000)
    try:
        result = trio.run(main)
    except (TransportError, HypervisorError, BaseExceptionGroup) as error:
        cause = cause_of(error)
        if isinstance(cause, (ConfigurationError, SpoolFailed)):
            print(f"sealane relay: {cause}; the operator must act; correct it and start again", file=sys.stderr)
            return EXIT_CONFIGURATION
        print(f"sealane relay: {cause}; {_who_must_act(cause)}", file=sys.stderr)
        return EXIT_FAILED
    return int(result or EXIT_DONE)


def _who_must_act(cause: Exception) -> str:
    """By the tree of errors (`transport.errors`), for whoever started this command."""
    match cause:
        case OfferRefused():
            return "the requester must act; ask for a new permit for these hosts and this VM"
        case PeerCancelled():
            return "the operator must act; ask the other host's operator why, then ask anew"
        case ConnectionBroken():
            return "the operator must act; check that the other host's relay runs and can be reached, then ask anew"
        case Misuse():
            return "Sealane's developers must act; send them the log"
        case _:
            return "the operator must act; look at the log above and at the other relay's"


def _print_ready(where: str) -> None:
    systemd.notify("READY=1")
    print(json.dumps({"ready": True, "listen": where}), flush=True)


def log_to_stderr() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Plain text: structlog's own tracebacks print local variables, tokens and keys among them.
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
