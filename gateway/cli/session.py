"""`sealane session start`: say on whose behalf a client of libvirt on this host is about to move a VM."""

# A command's parameters are its options.
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.credentials import read_token
from gateway.cli.errors import OPERATOR, REQUESTER, Refused, Unreachable
from gateway.cli.interruption import note_change_asked
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.settings import resolve
from gateway.cli.waiting import waiting_for
from gateway.counted import counted

app = typer.Typer(
    help="Who stands behind what virsh, nova or another client of libvirt moves from this host.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_SOCKET = Path("/run/sealane/session.sock")
_SECONDS = 10.0
_MAX_ANSWER_BYTES = 8 * 1024


@app.callback()
def _sessions() -> None:
    """Keeps `session start` two words with only one command below it."""


@app.command()
def start(
    vm: Annotated[
        str, typer.Argument(metavar="VM", help="The VM, by the name that libvirt has for it or by its UUID.")
    ],
    to: Annotated[str | None, typer.Option("--to", metavar="HOST", help="Only to this host. Default: to any.")] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the record and for policies.")
    ] = None,
    minutes: Annotated[int, typer.Option("--minutes", min=1, max=1440, help="For how long it holds.")] = 15,
    relay_socket: Annotated[
        Path, typer.Option("--socket", metavar="FILE", help="front.session_socket of this host's relay.")
    ] = _SOCKET,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand your token to this host's relay, which asks the gateway with it when libvirt moves the VM.

    Without it the record names no person, which policies may refuse.

    \b
    Examples:
      sealane session start web-1 --reason "CHG-1042" && virsh migrate --live --p2p web-1 --desturi ...
      sealane session start web-1 --to host-b --minutes 60
    """
    settings = resolve(gateway, ca, token_file, Path.home())
    token = read_token(settings.token_file, settings.gateway, int(time.time()), settings.site)
    wish: dict[str, Any] = {"vm": vm, "token": token, "minutes": minutes}
    wish |= {name: value for name, value in (("destination", to), ("reason", reason)) if value is not None}
    note_change_asked("this host's relay")
    answer = _ask(relay_socket, json.dumps(wish).encode() + b"\n")
    if "error" in answer:
        raise Refused(f"the relay does not take it: {answer['error']}", OPERATOR, "see [front] of the relay's file")
    if as_json:
        print_json({"outcome": "announced", "vm": vm, "destination": to, "minutes": minutes})
    else:
        say(f"for {counted(minutes, 'minute')} libvirt moves {vm} from this host on your behalf")


def _ask(path: Path, line: bytes) -> dict[str, Any]:
    try:
        with waiting_for("this host's relay", _SECONDS), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as relay:
            relay.settimeout(_SECONDS)
            relay.connect(str(path))
            relay.sendall(line)
            data = b""
            while not data.endswith(b"\n") and len(data) < _MAX_ANSWER_BYTES and (more := relay.recv(4096)):
                data += more
        answer = json.loads(data)
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"this host's relay does not answer on {path}: {type(error).__name__}",
            REQUESTER,
            "check --socket, and that the relay runs and has a [front]",
        ) from error
    if not isinstance(answer, dict):
        raise Unreachable(f"what answers on {path} is no relay", REQUESTER, "check --socket")
    return answer
