"""`sealane break-glass`: ask, approve, end, see; and seal the file of the people for the worst night."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli.asking import signed_in
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, print_json, print_table, say
from gateway.cli.terminal import harmless, plain
from gateway.counted import counted
from gateway.times import to_the_second

if TYPE_CHECKING:
    from gateway.cli.replies import GrantReply

app = typer.Typer(
    help="Break glass: an emergency move that one person asks for and another approves.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a name that no shell and no command takes for more

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Eight characters, as `break-glass list` shows them.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask whether you mean it.")]


@app.command("request")
def request(
    vm: Annotated[str, typer.Argument(metavar="VM", help="The VM's name in the inventory, or its UUID.")],
    to: Annotated[str, typer.Option("--to", metavar="HOST", help="Destination: the host's name or SPIFFE id.")],
    ticket: Annotated[str, typer.Option("--ticket", metavar="ID", help="The incident's ticket.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; whoever approves reads it.")],
    minutes: Annotated[
        int, typer.Option("--minutes", min=1, max=1440, help="How long it shall be good, from the approval on.")
    ] = 30,
    port: Annotated[
        list[str] | None, typer.Option("--port", metavar="PORT", help="Port to open; repeat it. Default: memory.")
    ] = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask to break glass for one VM and one destination. Nothing moves before another person approves.

    Recorded, whatever is decided. Then tell the ID to somebody who may approve.

    \b
    Example:
      sealane break-glass request ledger --to host-b --ticket INC-4711 --minutes 30 --reason "storage of host-a fails"
    """
    body: dict[str, object] = {
        "vm": vm,
        "destination": to,
        "ticket": ticket,
        "reason": reason,
        "minutes": minutes,
        **({"ports": port} if port else {}),
    }
    with signed_in(gateway, ca, token_file) as client:
        grant = client.ask_to_break_glass(body)
    if as_json:
        print_json(_document(grant))
        return
    until = to_the_second(grant.answer_until)
    say(f"Recorded as {grant.id} (record {grant.record_index}). It waits for an approval until {until}.")
    say(f"Next: have somebody else run `sealane break-glass approve {grant.id}`")


@app.command("approve")
def approve(
    grant_id: IdArgument,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Recorded with the approval.")] = None,
    yes: YesOption = False,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve what another person asked for, after it was shown. Never one's own, under any account.

    \b
    Example:
      sealane break-glass approve 5f3a90c1
    """
    with signed_in(gateway, ca, token_file) as client:
        waiting = {grant.id: grant for grant in client.break_glass()}.get(grant_id)
        if waiting is not None and not as_json:
            _show(waiting)
        elif waiting is None and not yes:
            raise BadConfiguration(
                f"{grant_id} is not among what you may see",
                REQUESTER,
                "check the ID with who asked; --yes approves it without having seen it",
            )
        if not yes and not typer.confirm("Approve this?", err=True):
            raise typer.Exit(1)
        grant = client.approve_break_glass(grant_id, reason)
    if as_json:
        print_json(_document(grant))
        return
    say(f"Approved until {to_the_second(grant.until or 0)}. {grant.requested_by.name} may now run:")
    say(f"  {command_of(grant)}")


def command_of(grant: GrantReply) -> str:
    """To be copied into a shell: a VM is named by whoever made it, and its name must not be a command or an option."""
    vm = grant.vm.name if _PLAIN.fullmatch(grant.vm.name) else grant.vm.uuid
    to = grant.destination.rpartition("/")[2]
    words = ("sealane", "migrate", vm, "--to", to, "--reason", grant.ticket, "--break-glass", grant.id)
    return shlex.join(words)


@app.command("end")
def end(
    grant_id: IdArgument,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Recorded.")] = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """End it now, refuse it, or take it back. What is moving under it is cancelled while that is safe.

    \b
    Example:
      sealane break-glass end 5f3a90c1 --reason "solved otherwise"
    """
    with signed_in(gateway, ca, token_file) as client:
        grant = client.end_break_glass(grant_id, reason)
    if as_json:
        print_json(_document(grant))
    else:
        say(f"{grant.id} has ended ({grant.ended_because}).")


@app.command("list")
def list_(
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was asked for, approved and ended in the last days, newest first. One's own, or all if policy allows.

    \b
    Example:
      sealane break-glass list
    """
    with signed_in(gateway, ca, token_file) as client:
        grants = client.break_glass()
    if as_json:
        print_json({"break_glass": [_document(grant) for grant in grants]})
        return
    from rich.table import Table

    table = Table("id", "state", "VM", "from → to", "who", "ticket", "approved by", "until (UTC)", "reason", box=None)
    for grant in grants:
        cells = (grant.id, grant.ended_because or grant.state, grant.vm.name, _route(grant), grant.requested_by.id)
        until = to_the_second(grant.until if grant.until is not None else grant.answer_until)
        table.add_row(*(plain(cell or "") for cell in (*cells, grant.ticket, grant.approved_by, until, grant.reason)))
    print_table(table)


@app.command("seal")
def seal_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file of sealed people, mode 0600.")],
    as_json: JsonOption = False,
) -> None:
    """Check the file of sealed people and print what seals it, for [break_glass.sealed] of the gateway's configuration.

    \b
    Example:
      sealane break-glass seal /etc/sealane/sealed.toml
    """
    from policy.errors import DirectoryRefused
    from policy.identity.sealed import seal

    try:
        sealed = seal(file)
        people = sorted(sealed.read().people)
    except DirectoryRefused as error:
        raise BadConfiguration(str(error), OPERATOR, "correct the file and seal it then") from error
    if as_json:
        print_json({"outcome": "sealed", "people": people, "people_sha256": sealed.sha256})
        return
    say(f"{len(people)} sealed people: {', '.join(people)}")
    say(f'people_sha256 = "{sealed.sha256}"')
    say("Next: put this line into [break_glass.sealed] of gateway.toml and restart the gateway.")


def _document(grant: GrantReply) -> dict[str, object]:
    import msgspec

    document = msgspec.to_builtins(grant)
    assert isinstance(document, dict)
    return {**document, "outcome": grant.state}


def _show(grant: GrantReply) -> None:
    out = console()
    for what, text in (
        ("asked by", f"{grant.requested_by.name} ({grant.requested_by.id})"),
        ("VM", f"{grant.vm.name} ({grant.vm.uuid})"),
        ("move", _route(grant)),
        ("for", f"{counted(grant.minutes, 'minute')} from the approval on"),
        ("ports", ", ".join(grant.ports)),
        ("ticket", grant.ticket),
        ("reason", grant.reason),
        ("state", grant.state),
    ):
        out.print(plain(f"  {what:<9} {harmless(text, limit=1000)}", limit=1100), soft_wrap=True)


def _route(grant: GrantReply) -> str:
    return " → ".join(end.rpartition("/host/")[2] for end in (grant.source, grant.destination))
