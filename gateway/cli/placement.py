"""`sealane hosts` and `sealane vms`: what is where, and who says so; and the names that a shell completes."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.asking import signed_in
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.counted import counted

COMPLETED = 50
_COMPLETION_SECONDS = 2
PrefixArgument = Annotated[str, typer.Argument(metavar="PREFIX", help="Only names that begin so.")]


def hosts(
    prefix: PrefixArgument = "",
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """The hosts: does the relay answer, or was it revoked; how fresh is what it reports, how many VMs run there.

    \b
    Example:
      sealane hosts fra
    """
    import msgspec

    with signed_in(gateway, ca, token_file) as client:
        reply = client.hosts(prefix, 1000)
    if as_json:
        print_json(msgspec.to_builtins(reply))
        return
    if not reply.hosts:
        say(_none("host", prefix))
    for host in reply.hosts:
        relay = "REVOKED" if host.revoked else "relay answers" if host.relay_reachable else "RELAY SILENT"
        age = "" if host.placement_age_seconds is None else f" {host.placement_age_seconds} s ago"
        reported = "reports no placement" if host.placement == "none" else f"placement {host.placement}{age}"
        guests = "" if host.guests is None else f", {counted(host.guests, 'VM')}"
        unknown = f" ({host.guests_not_in_inventory} not in the inventory)" if host.guests_not_in_inventory else ""
        say(f"{host.name}  {host.zone}  {relay}  {reported}{guests}{unknown}  {', '.join(host.addresses)}")
    if reply.more:
        say("… and more: name a longer prefix")


def vms(
    prefix: PrefixArgument = "",
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """The VMs: where each runs, who says so (report, receipt, inventory) and how old that is.

    \b
    Example:
      sealane vms web
    """
    import msgspec

    with signed_in(gateway, ca, token_file) as client:
        reply = client.vms(prefix, 1000)
    if as_json:
        print_json(msgspec.to_builtins(reply))
        return
    if not reply.vms:
        say(_none("VM", prefix))
    for vm in reply.vms:
        age = "" if vm.age_seconds is None else f", {vm.age_seconds} s ago"
        where = "host unknown" if vm.host is None else f"on {vm.host} ({vm.placed_by}{age})"
        problem = f"  PROBLEM: {vm.problem}" if vm.problem else ""
        say(f"{vm.name}  {vm.uuid}  {vm.zone}  {where}{problem}")
    if reply.more:
        say("… and more: name a longer prefix")


def _none(what: str, prefix: str) -> str:
    return f"the inventory has no {what}" + (f" whose name begins with {prefix}" if prefix else "")


def complete_vm(incomplete: str) -> list[str]:
    """Names for the shell; none where the gateway cannot be asked: a completion prints no error."""
    try:
        with signed_in(None, None, None, seconds=_COMPLETION_SECONDS) as client:
            return [vm.name for vm in client.vms(incomplete, COMPLETED).vms if vm.name.isprintable()]
    except Exception:  # noqa: BLE001 - whatever it is, the shell shows nothing
        return []


def complete_host(incomplete: str) -> list[str]:
    """The same for hosts."""
    try:
        with signed_in(None, None, None, seconds=_COMPLETION_SECONDS) as client:
            return [host.name for host in client.hosts(incomplete, COMPLETED).hosts]
    except Exception:  # noqa: BLE001 - whatever it is, the shell shows nothing
        return []
