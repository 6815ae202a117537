"""`sealane inventory`: what the gateway knows of VMs and hosts, from where and how old; and do its sources work?"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.credentials import token_of
from gateway.cli.errors import BadConfiguration
from gateway.cli.options import CaOption, GatewayOption, JsonOption, ServeConfigOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.serve import needs_gateway_extra
from gateway.cli.settings import resolve
from gateway.cli.waiting import waiting_for
from gateway.counted import counted

if TYPE_CHECKING:
    from gateway.cli.replies import InventoryReply, NamedReply, ToldReply
    from policy.sources.keeper import Condition, Sources

EXIT_FAILED = 1
EXIT_UNREACHABLE = 3
_SHOWN_PROBLEMS = 50

app = typer.Typer(help="VMs and hosts as the gateway knows them.", no_args_is_help=True, rich_markup_mode=None)


@app.command("show")
def show(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A VM (name, UUID) or host; without: all.")] = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the sources of the running gateway, or what is known of one VM or host: each fact, its source, its age.

    Exit code 1: a source is not believed, or what is told of the VM is not enough for a decision.

    \b
    Examples:
      sealane inventory show
      sealane inventory show ledger-db --json
    """
    from gateway.cli.client import GatewayClient

    settings = resolve(gateway, ca, token_file, Path.home())
    token = token_of(settings, int(time.time()))
    with GatewayClient(settings, token) as client:
        failed = _show_all(client.inventory(), as_json) if name is None else _show_one(client.named(name), as_json)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _show_all(reply: InventoryReply, as_json: bool) -> bool:
    failed = any(not source.believed for source in reply.sources)
    if as_json:
        import msgspec

        print_json({"outcome": "failed" if failed else "ok", **msgspec.to_builtins(reply)})
        return failed
    for source in reply.sources:
        age = "never answered" if source.age_seconds is None else f"confirmed {source.age_seconds} s ago"
        holds = f"{counted(source.vms, 'VM')}, {counted(source.hosts, 'host')}"
        say(f"{'ok  ' if source.believed else 'FAIL'}  {source.name}  {holds}, {age}")
        if source.failure:
            say(f"      last attempt: {source.failure}")
    known = f"{counted(reply.vms, 'VM')}, {counted(reply.hosts, 'host')}"
    say(f"known: {known}; not enough is told of {counted(reply.unknown_vms, 'VM')}")
    for problem in reply.problems[:_SHOWN_PROBLEMS]:
        say(f"  {problem}")
    return failed


def _show_one(reply: NamedReply, as_json: bool) -> bool:
    failed = reply.vm is None and reply.host is None
    if as_json:
        import msgspec

        print_json({"outcome": "unknown" if failed else "known", **msgspec.to_builtins(reply)})
        return failed
    if reply.unknown_because is not None:
        say(f"not known: {reply.unknown_because}")
    if reply.vm is not None:
        say(f"VM {reply.vm.name}  {reply.vm.uuid}  on {reply.vm.host or 'an unknown host'}")
        _say_facts(reply.vm.facts)
    if reply.host is not None:
        say(f"host {reply.host.name}  {reply.host.spiffe_id}")
        _say_facts(reply.host.facts)
    return failed


def _say_facts(facts: Mapping[str, ToldReply]) -> None:
    for fact, told in facts.items():
        value = told.value if isinstance(told.value, str) else ", ".join(told.value) or "none"
        say(f"  {fact:<15} {value}  (from {told.source}, {told.age_seconds} s old)")


@app.command("check")
def check(config: ServeConfigOption, as_json: JsonOption = False) -> None:
    """Read each source of a gateway's configuration now, and say what is wrong in it; the gateway need not run.

    Exit code 0: all sources answer and agree; 1: something must be corrected; 3: a source does not answer.

    \b
    Example:
      sealane inventory check --config /etc/sealane/gateway.toml
    """
    import trio

    conditions, problems = trio.run(_read_all, config)
    failed = [each for each in conditions if each.failure is not None]
    if as_json:
        print_json(_document(conditions, problems))
    else:
        _say_conditions(conditions, problems)
    if failed or problems:
        raise typer.Exit(EXIT_FAILED if all(each.answers for each in failed) else EXIT_UNREACHABLE)


async def _read_all(path: Path) -> tuple[list[Condition], tuple[str, ...]]:
    from contextlib import AsyncExitStack

    with needs_gateway_extra():
        from gateway import config as configuration
        from gateway.errors import GatewayError
        from gateway.inventories import open_sources
    try:
        config = configuration.load(path)
        async with AsyncExitStack() as stack:
            sources: Sources = await open_sources(config, stack)
            longest = sum(each.deadline_seconds for each in config.inventory.sources)
            with waiting_for("the inventory's sources", longest):
                await sources.begin()
            return sources.conditions(), sources.inventory.problems
    except GatewayError as error:
        raise BadConfiguration(error.detail, error.who_must_act, error.next_step, error.code) from error


def _say_conditions(conditions: list[Condition], problems: tuple[str, ...]) -> None:
    for each in conditions:
        words = each.failure or f"{counted(each.vms, 'VM')}, {counted(each.hosts, 'host')}"
        say(f"{'ok  ' if each.failure is None else 'FAIL'}  {each.name}  {words}")
    for problem in problems[:_SHOWN_PROBLEMS]:
        say(f"      to do: {problem}")
    if not problems and all(each.failure is None for each in conditions):
        say("All sources answer and agree.")


def _document(conditions: list[Condition], problems: tuple[str, ...]) -> dict[str, Any]:
    failed = problems or any(each.failure is not None for each in conditions)
    return {
        "outcome": "failed" if failed else "ok",
        "sources": [
            {"name": each.name, "failure": each.failure, "vms": each.vms, "hosts": each.hosts, "digest": each.digest}
            for each in conditions
        ],
        "problems": list(problems),
    }
