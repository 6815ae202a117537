"""The services: `sealane gateway serve`, `sealane relay serve` and the one-shot `sealane relay open`.

A relay runs on a hypervisor without the `[gateway]` extra: nothing of it is imported before the
gateway's own command runs.
"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# Options are arguments to typer.
# ruff: noqa: PLC0415, PLR0913, PLR0917

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import relay_operating
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration, Refused, Unreachable
from gateway.cli.options import CaOption, GatewayOption, ServeConfigOption, TokenFileOption

if TYPE_CHECKING:
    from gateway.cli.named_ports import Opening

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


NameArgument = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="A port of [ports] in the relays' configuration; with --vm."),
]
PermitOption = Annotated[
    Path | None, typer.Option("--permit", metavar="FILE", help="Instead of NAME: a permit, as the gateway issued it.")
]
ToOption = Annotated[
    str,
    typer.Option("--to", metavar="HOST", help="Destination host: its name; with --permit also HOST:PORT of its relay."),
]
VmOption = Annotated[
    str | None, typer.Option("--vm", metavar="VM", help="With NAME: whose stream it is, by name or UUID.")
]
ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="With NAME: why; recorded.")]
WaitOption = Annotated[
    int, typer.Option("--wait-seconds", min=1, help="With NAME: stop following after this time; the session goes on.")
]
_WAIT_SECONDS = 4 * 3600


@relay_app.command("open")
def relay_open(
    config: ServeConfigOption,
    to: ToOption,
    name: NameArgument = None,
    permit: PermitOption = None,
    socket: Annotated[
        Path | None,
        typer.Option("--socket", metavar="PATH", help="With --permit: unix socket to make; what connects is carried."),
    ] = None,
    vm: VmOption = None,
    reason: ReasonOption = None,
    wait_seconds: WaitOption = _WAIT_SECONDS,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Open a lane for any other program, on the source host: make a socket, carry what connects to it, say the outcome.

    With NAME the gateway is asked, and decides by the action OpenPort; with --permit it has decided already. Promises
    nothing beyond its channels: no guest is moved.

    \b
    Examples:
      sealane relay open backup --config relay.toml --vm web-1 --to host-b --reason CHG-7
      sealane relay open --config relay.toml --permit permit.jwt --to 192.0.2.7:7443 --socket /run/x/lane.sock
    """
    opening = _opening(name, permit, vm, to, reason, config, wait_seconds)
    if opening is not None and socket is not None:
        raise BadConfiguration("--socket is for --permit", REQUESTER, "set `listen` of the port in the configuration")
    if opening is not None:
        from gateway.cli.named_ports import open_port

        raise typer.Exit(open_port(opening, gateway, ca, token_file))
    if socket is None or permit is None:
        raise BadConfiguration("--permit needs --socket", REQUESTER, "say where the socket shall be")
    from transport.relay.process import run_open

    with _relay_errors():
        raise typer.Exit(run_open(config, permit, to, socket))


@relay_app.command("pipe")
def relay_pipe(
    config: ServeConfigOption,
    to: ToOption,
    name: NameArgument = None,
    permit: PermitOption = None,
    vm: VmOption = None,
    reason: ReasonOption = None,
    wait_seconds: WaitOption = _WAIT_SECONDS,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Carry standard input to the destination's socket, and what comes back to standard output; then exit.

    With NAME the gateway is asked, and decides by the action OpenPort; with --permit it has decided already. Says its
    outcome on stderr. Exits 0 only if all of it arrived and ended in order.

    \b
    Examples:
      tar -c /srv/vm | sealane relay pipe backup --config relay.toml --vm web-1 --to host-b
      tar -c /srv/vm | sealane relay pipe --config relay.toml --permit permit.jwt --to host-b
    """
    opening = _opening(name, permit, vm, to, reason, config, wait_seconds)
    if opening is not None:
        from gateway.cli.named_ports import pipe_port

        raise typer.Exit(pipe_port(opening, gateway, ca, token_file))
    assert permit is not None
    from transport.relay.process import run_pipe

    with _relay_errors():
        raise typer.Exit(run_pipe(config, permit, to))


def _opening(
    name: str | None, permit: Path | None, vm: str | None, to: str, reason: str | None, config: Path, wait_seconds: int
) -> Opening | None:
    """What the gateway is to be asked; None where a permit is there. BadConfiguration for neither or both."""
    from gateway.cli.named_ports import Opening

    if (name is None) == (permit is None) or (name is None) != (vm is None):
        raise BadConfiguration(
            "either NAME with --vm, or --permit",
            REQUESTER,
            "name the port and the VM to have the gateway asked, or give a permit that it has issued",
        )
    if permit is not None and reason is not None:
        raise BadConfiguration("--permit takes no --reason", REQUESTER, "leave it out: that decision has been made")
    return None if name is None or vm is None else Opening(name, vm, to, reason, config, wait_seconds)
