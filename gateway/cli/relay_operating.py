"""`sealane relay status|cancel|drain|metrics`: for operators on a hypervisor host, by the relay's control socket.

Needs no gateway and no [gateway] extra: it works while the gateway is away.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.errors import OPERATOR, Refused, Unreachable
from gateway.cli.interruption import note_change_asked
from gateway.cli.options import JsonOption
from gateway.cli.output import console, print_json, say
from gateway.cli.waiting import waiting_for

_SECONDS = 10.0
_CHANGING = frozenset({"cancel", "drain", "evacuate"})
_MAX_ANSWER_BYTES = 4 * 1024 * 1024
SocketOption = Annotated[
    Path,
    typer.Option("--socket", metavar="FILE", help="The relay's control socket: control.sock in its state_dir."),
]
DEFAULT = Path("/var/lib/sealane/control.sock")


def status(
    socket_path: SocketOption = DEFAULT,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every second, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What this host's relay carries: rate, pass, dirty rate, time left, channels; and who waits for a place.

    \b
    Examples:
      sealane relay status --watch
      sealane relay status --json
    """
    if as_json:
        print_json(ask(socket_path, {"ask": "status"}))
        return
    if not watch:
        console().print(_table(ask(socket_path, {"ask": "status"})))
        return
    from rich.live import Live  # noqa: PLC0415 - only for whoever watches

    try:
        with Live(_table(ask(socket_path, {"ask": "status"})), console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(1)
                live.update(_table(ask(socket_path, {"ask": "status"})), refresh=True)
    except KeyboardInterrupt:
        pass


def cancel(
    migration_id: Annotated[str, typer.Argument(metavar="ID", help="The migration's id, as `status` shows it.")],
    socket_path: SocketOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Give up a migration from this host; its guest goes on here. Safe until the guest is handed over, then not heeded.

    \b
    Example:
      sealane relay cancel 4f1e0c9a2b7d4c5e8f60718293a4b5c6
    """
    answer = ask(socket_path, {"ask": "cancel", "migration_id": migration_id})
    if not answer.get("cancelled"):
        raise Refused(
            f"no migration {migration_id} leaves this host",
            OPERATOR,
            "see `sealane relay status`; it is cancelled at its source",
        )
    if as_json:
        print_json(answer)
    else:
        say(f"asked for the end of {migration_id}; see `sealane relay status`")


def drain(socket_path: SocketOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Take no new sessions, and end when those under way have ended: for a restart that interrupts nothing.

    \b
    Example:
      sealane relay drain && systemctl status sealane-relay
    """
    answer = ask(socket_path, {"ask": "drain"})
    if as_json:
        print_json(answer)
    else:
        say("the relay takes nothing new and ends with its last session")


def metrics(socket_path: SocketOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Its metrics in Prometheus' text format, for a file that node_exporter reads.

    \b
    Example:
      sealane relay metrics > /var/lib/node_exporter/sealane.prom.new
    """
    answer = ask(socket_path, {"ask": "metrics"})
    if as_json:
        print_json(answer)
    else:
        typer.echo(str(answer.get("text", "")), nl=False)


def ask(path: Path, question: dict[str, Any]) -> dict[str, Any]:
    """One question, one answer. Raises Unreachable, Refused."""
    if question["ask"] in _CHANGING:
        note_change_asked("this host's relay")
    try:
        with waiting_for("this host's relay", _SECONDS), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as relay:
            relay.settimeout(_SECONDS)
            relay.connect(str(path))
            relay.sendall(json.dumps(question).encode() + b"\n")
            data = bytearray()
            while not data.endswith(b"\n") and len(data) < _MAX_ANSWER_BYTES and (more := relay.recv(65536)):
                data += more
        answer = json.loads(data)
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"this host's relay does not answer on {path}: {_words(error)}",
            OPERATOR,
            "run it as root on the relay's host, check --socket, and that the relay runs",
        ) from error
    if not isinstance(answer, dict) or "error" in answer:
        raise Refused(f"the relay does not take it: {answer}", OPERATOR, "use the same version of sealane")
    return answer


def _words(error: OSError | ValueError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_SECONDS:.0f} s"
    return (isinstance(error, OSError) and error.strerror) or "what it says is no answer of a relay"


def _table(document: dict[str, Any]) -> Any:
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for name in ("migration", "VM", "to or from", "state", "rate", "carried", "left", "pass", "dirties", "time left"):
        table.add_column(name, overflow="fold")
    table.add_column("lanes", justify="right")
    for each in document["sessions"]:
        arrow = "→ " if each["role"] == "source" else "← "
        kind = "" if each["kind"] in (None, "none", "active", "completed") else f" ({each['kind']})"
        table.add_row(
            each["migration_id"],
            each["vm"],
            arrow + each["peer"].rpartition("/")[2],
            each["state"] + kind,
            _size(each["rate_bytes_per_second"], "/s"),
            _size(each["carried_bytes"]),
            _size(each["remaining_bytes"]),
            "-" if not each["pass"] else str(each["pass"]),
            _size(each["dirty_bytes_per_second"], "/s"),
            "-" if each["seconds_left"] is None else f"{each['seconds_left']} s",
            str(len(each["channels"])),
        )
    lines: list[Any] = [table if document["sessions"] else "no sessions"]
    for place, waiting in enumerate(document["queue"], start=1):
        seconds = f"{waiting['seconds']:.0f} s"
        lines.append(f"waits, place {place}: {waiting['migration_id']} (VM {waiting['vm']}, {seconds})")
    if document["draining"]:
        lines.append("draining: takes nothing new, ends with its last session")
    return Group(*lines)


def _size(size_bytes: int | None, suffix: str = "") -> str:
    if size_bytes is None:
        return "-"
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}{suffix}"
    return f"{size_bytes} B{suffix}"
