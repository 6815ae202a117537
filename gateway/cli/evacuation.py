"""`sealane evacuation prepare|withdraw|status`, and what `sealane migrate --evacuation` does on the host."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.asking import signed_in
from gateway.cli.errors import OPERATOR, Refused
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, print_json, say
from gateway.cli.relay_operating import DEFAULT, SocketOption, ask
from gateway.cli.terminal import harmless
from gateway.cli.waiting import working
from gateway.counted import counted
from gateway.times import to_the_second

app = typer.Typer(
    help="Permits to empty a host while no gateway can be asked: docs/evacuation.md.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_LOOK_SECONDS = 0.5
_FINAL = frozenset({"completed", "failed", "cancelled"})


@app.command()
def prepare(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host that may have to be emptied.")],
    hours: Annotated[int, typer.Option("--hours", min=1, max=24, help="For how long the permits may be used.")] = 12,
    vm: Annotated[list[str] | None, typer.Option("--vm", metavar="VM", help="Only this VM; repeat it.")] = None,
    to: Annotated[list[str] | None, typer.Option("--to", metavar="HOST", help="Only to this host; repeat it.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; policy demands one.")] = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide now what may leave HOST while both gateways are down, log it, and have its relay keep the permits.

    Each VM gets permits for its best destinations, of which one is used, once. Exits 0 when the relay holds them.

    \b
    Examples:
      sealane evacuation prepare fra1 --hours 12 --reason "CHG-2211: gateways are moved tonight"
      sealane evacuation prepare fra1 --vm web-1 --vm web-2 --to fra2 --reason "storm warning"
    """

    body: dict[str, Any] = {"host": host, "hours": hours}
    body |= {name: value for name, value in (("vms", vm), ("to", to), ("reason", reason)) if value}
    with signed_in(gateway, ca, token_file) as client:
        answer = client.prepare_evacuation(body)
    if as_json:
        print_json(answer)
        return
    until = to_the_second(answer["until"])
    say(f"{host} holds {counted(answer['permits'], 'permit')} for {counted(answer['vms'], 'VM')} until {until}")
    say(f"evacuation {answer['evacuation']}, record {answer['record_index']}")
    for each in answer["left_out"]:
        console().print(f"not {harmless(each['name'])}: {harmless(each['because'])}", markup=False)


@app.command()
def withdraw(
    evacuation_id: Annotated[str, typer.Argument(metavar="ID", help="As `prepare` and the log name it.")],
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="The host whose relay holds it.")],
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the relay forget the permits. Recorded. A relay that cannot be reached keeps them until they end.

    \b
    Example:
      sealane evacuation withdraw 4f1e0c9a2b7d4c5e8f60718293a4b5c6 --host fra1
    """

    with signed_in(gateway, ca, token_file) as client:
        answer = client.withdraw_evacuation(evacuation_id, host)
    if as_json:
        print_json(answer)
    else:
        say(f"{host} is told to forget evacuation {evacuation_id}, if it holds it (record {answer['record_index']})")
        say("What it holds is shown there: sealane evacuation status")


@app.command()
def status(socket_path: SocketOption = DEFAULT, as_json: JsonOption = False) -> None:
    """On the host: which VMs may leave it, where to, for how long. Needs no gateway.

    \b
    Example:
      sealane evacuation status
    """
    answer = ask(socket_path, {"ask": "evacuations"})
    if as_json:
        print_json(answer)
        return
    for each in answer["evacuations"]:
        say(f"evacuation {each['evacuation_id']}, {counted(each['seconds_left'] // 60, 'minute')} left")
        for one in each["vms"]:
            hosts = ", ".join(str(name).rpartition("/")[2] for name in one["destinations"])
            sent = f"; sent to {str(one['sent_to']).rpartition('/')[2]}" if one["sent_to"] else ""
            say(f"  {one['name']} ({one['vm']}) to {hosts}{sent}")
    if not answer["evacuations"]:
        say("this host holds no evacuation permits")


def move_by_evacuation(vm: str, to: str | None, socket_path: Path, wait_seconds: int, *, as_json: bool) -> int:
    """`sealane migrate VM --evacuation`, on the host. The exit code."""
    question: dict[str, Any] = {"ask": "evacuate", "vm": vm}
    if to is not None:
        question["to"] = to
    answer = _asked(socket_path, question)
    if not as_json:
        say(f"{vm} leaves for {answer['destination']} by an evacuation permit, migration {answer['migration_id']}")
    end = time.monotonic() + wait_seconds
    with working(f"{vm} leaves", lambda: str(answer["state"])):
        while answer["state"] not in _FINAL and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            answer = _asked(socket_path, {"ask": "evacuated", "migration_id": answer["migration_id"]})
    if as_json:
        print_json(answer)
    else:
        downtime = f", downtime {answer['downtime_ms']} ms" if answer["downtime_ms"] is not None else ""
        message = f": {answer['message']}" if answer["message"] else ""
        say(f"{answer['state']}{downtime}{message}; its receipts go to the log when a gateway is back")
    return 0 if answer["state"] == "completed" else 1


def _asked(socket_path: Path, question: dict[str, Any]) -> dict[str, Any]:
    answer = ask(socket_path, question)
    if "refused" in answer:
        raise Refused(str(answer["refused"]), OPERATOR, "see `sealane evacuation status` on this host")
    return answer
