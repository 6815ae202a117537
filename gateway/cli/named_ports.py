"""`sealane relay open NAME` and `sealane relay pipe NAME`: another program's stream in a lane, asked for as a person.

The gateway decides by the action OpenPort and hands the permit to this host's relay, which makes the socket; this
command only asks, says where the socket is (or uses it), and follows to the outcome. Needs no [gateway] extra.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.answer import EXIT_UNREAD
from gateway.cli.asking import signed_in
from gateway.cli.errors import OPERATOR, BadConfiguration, Refused
from gateway.cli.follow import FINAL_STATES, Clock, Interrupts, follow
from gateway.cli.waiting import working
from transport.relay.standard_streams import StandardStreams, break_off

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient
    from gateway.cli.replies import MigrationReply
    from transport.relay.config import RelayConfig
    from transport.relay.named_ports import PortSection


@dataclass(frozen=True, slots=True)
class Opening:
    """What is asked for, and `config`: this host's relay's, which says where its ports listen."""

    port: str
    vm: str
    destination: str
    reason: str | None
    config: Path
    wait_seconds: int

    def question(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"vm": self.vm, "destination": self.destination, "ports": [self.port]}
        return asked if self.reason is None else {**asked, "reason": self.reason}


def open_port(opening: Opening, gateway: str | None, ca: Path | None, token_file: Path | None) -> int:
    """Print where the socket is once it is there, and the outcome. The exit code."""

    def tell(path: Path) -> None:
        print(json.dumps({"ready": True, "listen": str(path)}), flush=True)

    with signed_in(gateway, ca, token_file) as client:
        document = _follow(client, opening, tell)
    print(json.dumps(document), flush=True)
    return 0 if document["outcome"] == "completed" else 1


def pipe_port(opening: Opening, gateway: str | None, ca: Path | None, token_file: Path | None) -> int:
    """Carry standard input there, and what comes back to standard output; the outcome on stderr. The exit code."""
    pipe = _Pipe(sys.stdin.fileno(), sys.stdout.fileno())
    with signed_in(gateway, ca, token_file) as client:
        document = _follow(client, opening, pipe.connect, pipe)
    document = pipe.finish(document)
    print(json.dumps(document), file=sys.stderr, flush=True)
    if pipe.is_unread:
        return EXIT_UNREAD
    return 0 if document["outcome"] == "completed" else 1


def _follow(
    client: GatewayClient, opening: Opening, ready: Callable[[Path], None], pipe: _Pipe | None = None
) -> dict[str, Any]:
    config = _relay_config(opening.config)
    section, here = _section(config, opening), _this_host(config)
    has_begun = has_given_up = False

    def show(reply: MigrationReply) -> None:
        nonlocal has_begun, has_given_up
        if pipe is not None and pipe.trouble and not has_given_up and reply.state not in FINAL_STATES:
            has_given_up = True
            pipe.give_up(lambda: client.cancel(reply.migration_id))
        if here is not None and reply.source is not None and reply.source != here:
            client.cancel(reply.migration_id)
            there = reply.source.rpartition("/")[2]
            raise Refused(
                f"{opening.vm} is on {there}, by what the gateway knows, and so would the socket be", OPERATOR,
                f"run this on {there}",
            )  # fmt: skip
        vm = reply.vm.uuid if reply.vm is not None else None
        if reply.state == "running" and not has_begun and vm is not None:
            has_begun = True
            until_open.close()
            try:
                ready(section.listens_at(opening.port, vm))
            except Refused:
                client.cancel(reply.migration_id)  # else it waits for a connection that nobody makes
                raise

    with Interrupts() as interrupts, ExitStack() as until_open:
        answer = client.request_migration(opening.question())
        decision = answer.decision
        if not decision.allowed or answer.migration_id is None:
            why = decision.denied_because or "policy does not allow it"
            return {"outcome": "denied", "message": why, "record_index": answer.record_index}
        until_open.enter_context(working("waiting for both relays to open the lane"))
        reply = follow(
            client,
            answer.migration_id,
            interrupts=interrupts,
            clock=Clock(time.monotonic, time.sleep),
            deadline_seconds=opening.wait_seconds,
            show=show,
            note=lambda text: print(text, file=sys.stderr, flush=True),
        )
    return {
        "outcome": reply.state,
        "message": reply.message or "",
        "record_index": answer.record_index,
        "migration_id": answer.migration_id,
    }


def _relay_config(path: Path) -> RelayConfig:
    from transport.errors import ConfigurationError  # noqa: PLC0415 - the relay's parts load slowly
    from transport.relay.config import load_relay_config  # noqa: PLC0415

    try:
        return load_relay_config(path)
    except ConfigurationError as error:
        raise BadConfiguration(str(error), OPERATOR, "name the relay's configuration with --config") from None


def _section(config: RelayConfig, opening: Opening) -> PortSection:
    if (section := config.ports.get(opening.port)) is None:
        raise BadConfiguration(
            f"{opening.config} has no [ports.{opening.port}]", OPERATOR, "add it at both hosts and reload their relays"
        )
    return section


def _this_host(config: RelayConfig) -> str | None:
    """Its SPIFFE id, if whoever asks may read its certificate."""
    from certs.errors import CertificateError  # noqa: PLC0415
    from certs.files import read_certificates  # noqa: PLC0415
    from certs.identity import spiffe_id_of  # noqa: PLC0415

    with suppress(CertificateError):
        return str(spiffe_id_of(read_certificates(Path(config.identity.certificate))[0]))
    return None


class _Pipe:
    """Standard input and output at the relay's socket, once it is there."""

    def __init__(self, source: int, sink: int) -> None:
        self._streams = StandardStreams(source, sink)
        self._sock: socket.socket | None = None

    @property
    def trouble(self) -> str:
        return self._streams.trouble

    @property
    def is_unread(self) -> bool:
        return self._streams.is_unread

    def connect(self, path: Path) -> None:
        self._sock = sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
        except OSError as error:
            raise Refused(
                f"{path}: {error.strerror}", OPERATOR, "see peer_uids of the port in the relay's configuration"
            ) from None
        self._streams.carry(sock)

    def give_up(self, cancel: Callable[[], None]) -> None:
        """After `trouble`."""
        try:
            cancel()
        except Refused:  # who may not cancel it must not leave it waiting either
            if self._sock is not None:
                break_off(self._sock)

    def finish(self, document: dict[str, Any]) -> dict[str, Any]:
        """Once the relay has carried all: until the last of it is on standard output. What broke here is said first."""
        is_completed = document["outcome"] == "completed"
        if is_completed and not self._streams.has_begun:
            return {**document, "outcome": "failed", "message": "the session ended before its socket was seen"}
        if is_completed:
            self._streams.finish()
        words = self.trouble or (self._streams.lost if is_completed else "")
        return {**document, "outcome": "failed", "message": words} if words else document
