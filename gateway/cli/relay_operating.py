"""`sealane relay status|cancel|drain|metrics`: for operators on a hypervisor host, by the relay's control socket.

Needs no gateway and no [gateway] extra: it works while the gateway is away.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.errors import OPERATOR, Refused, Unreachable
from gateway.cli.interruption import note_change_asked
from gateway.cli.options import JsonOption
from gateway.cli.output import console, print_json, say
from gateway.cli.waiting import waiting_for

if TYPE_CHECKING:
    from rich.console import Console

_SECONDS = 10.0
_TABLE_WIDTH = 150  # ids of 32 and 36 characters among nine numbers
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
    out = console()
    if not watch:
        out.print(_shown(ask(socket_path, {"ask": "status"}), out.width))
        return
    try:
        if out.is_terminal:
            _watch(socket_path, out)
        while True:  # each state after the other, for a file or a pipe
            out.print(_shown(ask(socket_path, {"ask": "status"}), out.width))
            out.file.flush()
            time.sleep(1)
    except KeyboardInterrupt:
        pass


def _watch(socket_path: Path, out: Console) -> None:
    from rich.live import Live  # noqa: PLC0415 - only for whoever watches

    with Live(_shown(ask(socket_path, {"ask": "status"}), out.width), console=out, auto_refresh=False) as live:
        while True:
            time.sleep(1)
            live.update(_shown(ask(socket_path, {"ask": "status"}), out.width), refresh=True)


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
            f"this host's relay does not answer on {path}: {_words(error, path)}",
            OPERATOR,
            "run it as root on the relay's host, check --socket, and that the relay runs",
        ) from error
    if not isinstance(answer, dict) or "error" in answer:
        raise Refused(f"the relay does not take it: {answer}", OPERATOR, "use the same version of sealane")
    return answer


def _words(error: OSError | ValueError, path: Path) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_SECONDS:.0f} s"
    if isinstance(error, ConnectionRefusedError):
        return "no relay listens there" if path.is_socket() else "that is no socket"
    return (isinstance(error, OSError) and error.strerror) or "what it says is no answer of a relay"


def _shown(document: dict[str, Any], width: int) -> Any:
    """The sessions as a table, or each on some lines where the terminal is too narrow for one; then who waits."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415 - a peer's words are in it, which must not rule the terminal

    sessions = [_cells(each) for each in document["sessions"]]
    lines: list[Any] = ["no sessions"]
    if sessions:
        lines = [_table(sessions)] if width >= _TABLE_WIDTH else [line for cells in sessions for line in _block(cells)]
    said = [(each["migration_id"], each["message"]) for each in document["sessions"] if each.get("message")]
    lines += [Text(f"{migration_id}: {message}") for migration_id, message in said]
    for place, waiting in enumerate(document["queue"], start=1):
        seconds = f"{waiting['seconds']:.0f} s"
        lines.append(f"waits, place {place}: {waiting['migration_id']} (VM {waiting['vm']}, {seconds})")
    if document["draining"]:
        lines.append("draining: takes nothing new, ends with its last session")
    return Group(*lines)


def _cells(session: dict[str, Any]) -> dict[str, str]:
    arrow = "→ " if session["role"] == "source" else "← "
    kind = "" if session["kind"] in (None, "none", "active", "completed") else f" ({session['kind']})"
    return {
        "migration": session["migration_id"],
        "VM": session["vm"],
        "to or from": arrow + session["peer"].rpartition("/")[2],
        "state": session["state"] + kind,
        "rate": _size(session["rate_bytes_per_second"], "/s"),
        "carried": _size(session["carried_bytes"]),
        "left": _size(session["remaining_bytes"]),
        "pass": "-" if not session["pass"] else str(session["pass"]),
        "dirties": _size(session["dirty_bytes_per_second"], "/s"),
        "time left": "-" if session["seconds_left"] is None else f"{session['seconds_left']} s",
        "lanes": str(len(session["channels"])),
    }


def _table(sessions: list[dict[str, str]]) -> Any:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for name in sessions[0]:
        table.add_column(name, overflow="fold", justify="right" if name == "lanes" else "left")
    for cells in sessions:
        table.add_row(*cells.values())
    return table


def _block(cells: dict[str, str]) -> list[str]:
    """For a terminal in which a table would be columns of single letters."""
    told = [f"{name} {cells[name]}" for name in ("left", "pass", "dirties", "time left", "lanes") if cells[name] != "-"]
    return [
        f"{cells['to or from']}  {cells['state']}",
        f"  {cells['migration']}",
        f"  VM {cells['VM']}",
        f"  {cells['rate']}, {cells['carried']} carried",
        *(f"  {', '.join(told[at : at + 3])}" for at in range(0, len(told), 3)),
    ]


def _size(size_bytes: int | None, suffix: str = "") -> str:
    if size_bytes is None:
        return "-"
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}{suffix}"
    return f"{size_bytes} B{suffix}"
