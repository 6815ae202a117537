"""The services: `sealane gateway serve`, `sealane relay serve` and the one-shot `sealane relay open`.

A relay runs on a hypervisor without the `[gateway]` extra: nothing of it is imported before the
gateway's own command runs.
"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli import relay_operating
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration, Refused, Unreachable
from gateway.cli.options import ServeConfigOption

EXTRA_MODULES = frozenset({"cedarpy", "fastapi", "hypercorn", "ldap3", "luqum", "pyasn1", "starlette"})

gateway_app = typer.Typer(
    help="The gateway: decides, records, issues permits, serves the API.", no_args_is_help=True, rich_markup_mode=None
)
relay_app = typer.Typer(
    help="The relay of a hypervisor host: carries what a permit allows.", no_args_is_help=True, rich_markup_mode=None
)


@contextmanager
def needs_gateway_extra() -> Iterator[None]:
    """Around the imports of a gateway: says what to install where the extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA_MODULES:
            raise
        raise BadConfiguration(
            f"the gateway needs {error.name}, which is not installed here",
            OPERATOR,
            "run pip install 'sealane[gateway]'",
            "extra_missing",
        ) from error


@contextmanager
def _gateway_errors() -> Iterator[None]:
    from gateway.errors import GatewayError

    try:
        yield
    except GatewayError as error:
        raise BadConfiguration(error.detail, error.who_must_act, error.next_step, error.code) from error


@contextmanager
def _relay_errors() -> Iterator[None]:
    from certs.errors import CertificateError
    from transport import errors

    try:
        yield
    except (errors.ConfigurationError, CertificateError) as error:
        raise BadConfiguration(str(error), OPERATOR, "correct it and start again") from error
    except errors.OfferRefused as error:
        raise Refused(str(error), REQUESTER, "ask for a new permit", error.code.value) from error
    except errors.ConnectionBroken as error:
        raise Unreachable(str(error), OPERATOR, "check that the relay of the destination runs") from error
    except errors.TransportError as error:
        raise Refused(str(error), OPERATOR, "look at the relay's log") from error


@gateway_app.command("serve")
def gateway_serve(config: ServeConfigOption) -> None:
    """Run the gateway in the foreground until SIGTERM or Ctrl-C; SIGHUP reloads policy and inventory.

    Prints {"ready": true, "listen": "HOST:PORT"} on stdout once it answers.

    \b
    Example:
      sealane gateway serve --config /etc/sealane/gateway.toml
    """
    with needs_gateway_extra():
        from gateway.process import run_gateway
    with _gateway_errors():
        raise typer.Exit(run_gateway(config))


@relay_app.command("serve")
def relay_serve(config: ServeConfigOption) -> None:
    """Run the relay in the foreground until SIGTERM or Ctrl-C.

    Prints {"ready": true, "listen": "HOST:PORT"} on stdout once it accepts peers.

    \b
    Example:
      sealane relay serve --config /etc/sealane/relay.toml
    """
    from transport.relay.process import run_relay

    with _relay_errors():
        raise typer.Exit(run_relay(config))


relay_app.command("status")(relay_operating.status)
relay_app.command("cancel")(relay_operating.cancel)
relay_app.command("drain")(relay_operating.drain)
relay_app.command("metrics")(relay_operating.metrics)


@relay_app.command("open")
def relay_open(
    config: ServeConfigOption,
    permit: Annotated[Path, typer.Option("--permit", metavar="FILE", help="The permit, as the gateway issued it.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="HOST", help="Destination host: its name in the address book, or HOST:PORT of its relay."
        ),
    ],
    socket: Annotated[
        Path,
        typer.Option("--socket", metavar="PATH", help="Unix socket to make; what connects to it is carried."),
    ],
) -> None:
    """Carry one session as the source, for any program, with a permit in a file; then exit.

    Promises nothing beyond its channels: the handover of the guest is the program's own.

    \b
    Example:
      sealane relay open --config relay.toml --permit permit.jwt --to 192.0.2.7:7443 --socket /run/x/lane.sock
    """
    from transport.relay.process import run_open

    with _relay_errors():
        raise typer.Exit(run_open(config, permit, to, socket))


@relay_app.command("pipe")
def relay_pipe(
    config: ServeConfigOption,
    permit: Annotated[Path, typer.Option("--permit", metavar="FILE", help="The permit, as the gateway issued it.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="HOST", help="Destination host: its name in the address book, or HOST:PORT of its relay."
        ),
    ],
) -> None:
    """Carry standard input to the destination's socket, and what comes back to standard output; then exit.

    Says its outcome on stderr. Exits 0 only if all of it arrived and ended in order.

    \b
    Example:
      tar -c /srv/vm | sealane relay pipe --config relay.toml --permit permit.jwt --to host-b
    """
    from transport.relay.process import run_pipe

    with _relay_errors():
        raise typer.Exit(run_pipe(config, permit, to))
