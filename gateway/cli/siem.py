"""`sealane siem`: how far the log has got at each SIEM, and the proof that it is there."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.asking import signed_in
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, print_json, print_table, say
from gateway.cli.record_replies import SiemJob, SinkReply
from gateway.cli.terminal import plain
from gateway.cli.waiting import working
from gateway.counted import counted

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient

EXIT_DIFFERS = 1
_POLL_SECONDS = 0.5
_SHOWN = 20

app = typer.Typer(
    help="Delivery of the log to SIEMs: its state, and whether they hold it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The sink's name in the gateway's configuration.")]


@app.command("status")
def status(
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each sink: how far behind it is, how fast, its last error, its quarantine. Exit code 1: one needs a look.

    \b
    Example:
      sealane siem status
    """
    with signed_in(gateway, ca, token_file) as client:
        sinks = client.sinks().sinks
    in_order = all(sink.state in {"starting", "delivering"} and not sink.quarantined for sink in sinks)
    if as_json:
        import msgspec

        print_json({"outcome": "ok" if in_order else "failed", "sinks": msgspec.to_builtins(sinks)})
    else:
        _show_sinks(sinks)
    raise typer.Exit(0 if in_order else EXIT_DIFFERS)


@app.command("reconcile")
def reconcile(
    name: NameArgument,
    start: Annotated[
        int | None, typer.Option("--from", metavar="N", min=0, help="First entry. Default: as far back as it keeps.")
    ] = None,
    end: Annotated[
        int | None, typer.Option("--to", metavar="M", min=0, help="Entry after the last. Default: all delivered.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Deliver what is missing (needs ManageSiem).")] = False,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that a SIEM holds exactly the records of the log: none missing, none altered, none added.

    Every document is fetched and compared with what the log makes of its entry. The result is recorded. What was
    altered or added is never repaired: it is evidence. Exit code 0: they agree; 1: they do not.

    \b
    Examples:
      sealane siem reconcile elastic
      sealane siem reconcile elastic --from 100000 --to 200000 --repair
    """
    body = _range(start, end) | {"repair": repair}
    job = _run(lambda client: client.begin_siem(name, "reconcile", body), name, gateway, ca, token_file)
    result = job.result or {}
    if as_json:
        outcome = "error" if job.state == "failed" else "agrees" if result.get("agrees") else "differs"
        print_json({"outcome": outcome, "error": job.error, **result})
    elif job.state == "failed":
        say(f"FAILED: {job.error}")
    else:
        _show_findings(result)
    raise typer.Exit(0 if job.state == "done" and result.get("agrees") is True else EXIT_DIFFERS)


@app.command("resend")
def resend(
    name: NameArgument,
    start: Annotated[int, typer.Option("--from", metavar="N", min=0, help="First entry.")],
    end: Annotated[int, typer.Option("--to", metavar="M", min=0, help="Entry after the last.")],
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send entries once more, also those in quarantine. What the SIEM has already stays as it is.

    Exit code 1: some were refused for ever, as where another document has an entry's place. They are in quarantine.

    \b
    Example:
      sealane siem resend elastic --from 1000 --to 2000
    """
    body = _range(start, end)
    job = _run(lambda client: client.begin_siem(name, "resend", body), name, gateway, ca, token_file)
    result = job.result or {}
    refused = result.get("refused", 0)
    outcome = "refused" if refused and job.state == "done" else job.state
    if as_json:
        print_json({"outcome": outcome, "error": job.error, **result})
    elif job.state == "failed":
        say(f"FAILED: {job.error}")
    else:
        say(f"sent {counted(result.get('sent', 0), 'entry')}")
        if refused:
            say(f"REFUSED: {refused} more; see why: sealane siem quarantine {name}")
    raise typer.Exit(0 if outcome == "done" else EXIT_DIFFERS)


@app.command("quarantine")
def quarantine(
    name: NameArgument,
    after: Annotated[int, typer.Option("--after", metavar="N", min=-1, help="Those behind entry N.")] = -1,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a SIEM refuses for ever, and why. `sealane siem resend` tries it again once the cause is cured.

    \b
    Example:
      sealane siem quarantine elastic
    """
    with signed_in(gateway, ca, token_file) as client:
        reply = client.quarantine(name, after)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(reply))
        return
    for one in reply.entries:
        say(f"{one.index}  {one.cause}")
    say(f"{reply.count} in quarantine" + (f"; more with --after {reply.next}" if reply.next is not None else ""))


def _run(
    begin: Callable[[GatewayClient], SiemJob], name: str, gateway: str | None, ca: Path | None, token_file: Path | None
) -> SiemJob:
    """Begin it and wait for its end; Ctrl-C ends the waiting and not the work."""
    with signed_in(gateway, ca, token_file) as client:
        job = begin(client)
        with working(f"the gateway is at it with {name}; Ctrl-C ends the waiting alone"):
            while job.state == "running":
                time.sleep(_POLL_SECONDS)
                job = client.sink(name).job or job
    return job


def _range(start: int | None, end: int | None) -> dict[str, Any]:
    return {name: value for name, value in (("from", start), ("to", end)) if value is not None}


def _show_sinks(sinks: tuple[SinkReply, ...]) -> None:
    from rich.table import Table

    if not sinks:
        say("no sink is configured")
        return
    table = Table("sink", "kind", "state", "behind", "per second", "quarantine", "last delivery", "last error")
    for sink in sinks:
        ago = "never" if sink.delivered_seconds_ago is None else f"{sink.delivered_seconds_ago} s ago"
        state = sink.state + (f" for {sink.failing_seconds} s" if sink.failing_seconds is not None else "")
        style = "green" if sink.state == "delivering" else "red"
        numbers = (sink.lag, sink.rate_per_second, sink.quarantined)
        cells = [plain(sink.name, "bold"), plain(sink.kind), plain(state, style), *map(plain, numbers), plain(ago)]
        table.add_row(*cells, plain(sink.last_error or ""))
    print_table(table)


def _show_findings(result: Mapping[str, Any]) -> None:
    out = console()
    agrees = result.get("agrees") is True
    word = plain("AGREES" if agrees else "DIFFERS", "bold green" if agrees else "bold red")
    out.print(word, plain(f"entries {result.get('from')} to {result.get('to')}, {result.get('compared')} compared"))
    for what in ("missing", "altered", "added"):
        if count := result.get(f"{what}_count"):
            say(f"  {what}: {count}")
            for one in result.get(what, ())[:_SHOWN]:
                if isinstance(one, dict):
                    say(f"    {one.get('index')} at {one.get('place')}: {', '.join(map(str, one.get('fields', ())))}")
                else:
                    say(f"    {one}")
    if repaired := result.get("repaired"):
        say(f"  delivered once more: {repaired}")
