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
from gateway.cli.errors import OPERATOR, CommandError, Refused, Unreachable
from gateway.cli.follow import Interrupts
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, note, print_json, say
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
_PREPARE_SECONDS = 180  # thousands of decisions, each logged; then 30 s in which the relay may come to hold them
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
    with signed_in(gateway, ca, token_file, at_least_seconds=_PREPARE_SECONDS) as client:
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
        left = (
            f"{counted(-(-each['seconds_left'] // 60), 'minute')} left"
            if each["seconds_left"]
            else "its hours are over"
        )
        say(f"evacuation {each['evacuation_id']}, {left}")
        for one in each["vms"]:
            spent = one["spent"]
            hosts = ", ".join(
                _host(name) + (" (used in vain)" if name in spent else "") for name in one["destinations"]
            )
            sent = f"; sent to {_host(one['sent_to'])}" if one["sent_to"] else ""
            say(f"  {one['name']} ({one['vm']}) to {hosts}{sent}")
    if not answer["evacuations"]:
        say("this host holds no evacuation permits")


def move_by_evacuation(vm: str, to: str | None, socket_path: Path, wait_seconds: int, *, as_json: bool) -> int:
    """`sealane migrate VM --evacuation`, on the host. The exit code."""
    question: dict[str, Any] = {"ask": "evacuate", "vm": vm}
    if to is not None:
        question["to"] = to
    # Entered before the request: a Ctrl-C while the relay begins must still find the migration's id.
    with Interrupts() as interrupts:
        answer = _asked(socket_path, question)
        if not as_json:
            say(f"{vm} leaves for {_host(answer['destination'])} by an evacuation permit")
            say(f"  migration   {answer['migration_id']}")
        try:
            answer = _followed(vm, answer, socket_path, wait_seconds, interrupts)
        except (Refused, Unreachable) as error:
            raise _lost_sight(answer["migration_id"], error) from error
    has_moved = answer["state"] == "completed"
    if as_json:
        print_json(answer)
        return 0 if has_moved else 1
    downtime = f", downtime {answer['downtime_ms']} ms" if answer["downtime_ms"] is not None else ""
    message = f": {answer['message'].removesuffix('.')}" if answer["message"] else ""
    say(f"{answer['state']}{downtime}{message}")
    say("  receipts    go to the log when a gateway is back")
    if not has_moved:
        say("  next        the same without --to tries the next destination that a permit is left for")
    return 0 if has_moved else 1


def _followed(
    vm: str, answer: dict[str, Any], socket_path: Path, wait_seconds: int, interrupts: Interrupts
) -> dict[str, Any]:
    """The last news. Ctrl-C has the relay give it up, if it is not too late."""
    question = {"ask": "evacuated", "migration_id": answer["migration_id"]}
    end = time.monotonic() + wait_seconds
    is_asked = False
    with working(f"{vm} leaves", lambda: str(answer["state"])):
        while answer["state"] not in _FINAL:
            if time.monotonic() >= end:
                raise Refused("it has not ended yet", OPERATOR, "", "still_running")
            if interrupts.asked and not is_asked:
                is_asked = bool(ask(socket_path, {**question, "ask": "cancel"})["cancelled"])
                if is_asked:
                    note("Asked the relay to give it up. Waiting for the outcome; Ctrl-C again leaves without it.")
            time.sleep(_LOOK_SECONDS)
            answer = _asked(socket_path, question)
    return answer


def _lost_sight(migration_id: str, error: Refused | Unreachable) -> CommandError:
    what = f"migration {migration_id} is not followed to its end, and goes on as far as it can: {error.what}"
    later = "see `sealane relay status` and `sealane evacuation status` on this host before you ask again"
    return type(error)(what, OPERATOR, later, error.code)


def _asked(socket_path: Path, question: dict[str, Any]) -> dict[str, Any]:
    answer = ask(socket_path, question)
    if "refused" in answer:
        raise Refused(str(answer["refused"]), OPERATOR, "see `sealane evacuation status` on this host")
    return answer


def _host(spiffe_id: object) -> str:
    return str(spiffe_id).rpartition("/")[2]
