"""`sealane migrate`: ask, show the decision, follow the move, say what came of it."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.credentials import token_of
from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.evacuation import move_by_evacuation
from gateway.cli.follow import Clock, Interrupts, follow
from gateway.cli.move_options import (
    AtDeadlineOption,
    AutoConvergeOption,
    BandwidthOption,
    CompressionOption,
    ConvergeOption,
    DowntimeOption,
    MultifdOption,
    PassesOption,
    PostCopyRateOption,
    PreemptOption,
    SecondsOption,
    XbzrleOption,
    wishes,
)
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, print_json, say
from gateway.cli.placement import complete_host, complete_vm
from gateway.cli.relay_operating import DEFAULT
from gateway.cli.settings import resolve

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient
    from gateway.cli.replies import DecisionReply, MigrationReply


def migrate(
    vm: Annotated[
        str,
        typer.Argument(metavar="VM", help="The VM's name in the inventory, or its UUID.", autocompletion=complete_vm),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="HOST", help="Destination: the host's name or SPIFFE id.", autocompletion=complete_host
        ),
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="TEXT", help="Why, e.g. a ticket; recorded. Policy may demand one."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only ask whether it may and can move: policy, then both hosts. Nothing moves; recorded."
        ),
    ] = False,
    port: Annotated[
        list[str] | None,
        typer.Option("--port", metavar="PORT", help="Port the permit shall open; repeat it. Default: memory."),
    ] = None,
    break_glass: Annotated[
        str | None,
        typer.Option("--break-glass", metavar="ID", help="Move it under this approved breaking of glass."),
    ] = None,
    evacuation: Annotated[
        bool,
        typer.Option(
            "--evacuation",
            help="On the VM's host, by a permit that was prepared for it: asks this host's relay and no gateway. "
            "Without --to to its first destination.",
        ),
    ] = False,
    relay_socket: Annotated[
        Path, typer.Option("--socket", metavar="FILE", help="With --evacuation: the relay's control socket.")
    ] = DEFAULT,
    wait_seconds: Annotated[
        int,
        typer.Option("--wait-seconds", min=1, help="Stop following after this time; the migration goes on."),
    ] = 4 * 3600,
    with_disks: Annotated[
        bool,
        typer.Option("--with-disks", help="Also copy the disks: opens the port disks, beside the memory's."),
    ] = False,
    downtime_limit_ms: DowntimeOption = None,
    converge_within_seconds: ConvergeOption = None,
    at_deadline: AtDeadlineOption = None,
    auto_converge: AutoConvergeOption = False,
    xbzrle: XbzrleOption = False,
    multifd: MultifdOption = None,
    compression: CompressionOption = None,
    post_copy_after_passes: PassesOption = None,
    post_copy_after_seconds: SecondsOption = None,
    preempt: PreemptOption = False,
    post_copy_bytes_per_second: PostCopyRateOption = None,
    bandwidth_bytes_per_second: BandwidthOption = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a running VM to another host, if policy allows it.

    Shows the decision with the policies and their reasons, then progress, then downtime, bytes, protection
    and the record's index. Ctrl-C asks for an end and waits for the outcome. Exits 0 when the VM
    has moved (with --check: may and can), 1 denied, failed or cancelled, 2 usage, 3 unreachable.

    \b
    Examples:
      sealane migrate web-1 --to host-b
      sealane migrate web-1 --to host-b --reason "CHG-1042" --json
      sealane migrate web-1 --to host-b --check
      sealane migrate web-1 --evacuation
      sealane migrate web-1 --to host-b --converge-within-seconds 600 --at-deadline post-copy
    """
    how = wishes(
        downtime_limit_ms=downtime_limit_ms,
        converge_within_seconds=converge_within_seconds,
        at_deadline=at_deadline,
        auto_converge=auto_converge,
        xbzrle=xbzrle,
        multifd_channels=multifd,
        multifd_compression=compression,
        post_copy_after_passes=post_copy_after_passes,
        post_copy_after_seconds=post_copy_after_seconds,
        preempt=preempt,
        post_copy_bytes_per_second=post_copy_bytes_per_second,
        bandwidth_bytes_per_second=bandwidth_bytes_per_second,
    )
    if evacuation:
        if check or port or break_glass is not None or with_disks or how or reason is not None:
            raise BadConfiguration(
                "--evacuation was decided beforehand", REQUESTER, "give VM, --to and --wait-seconds alone"
            )
        raise typer.Exit(move_by_evacuation(vm, to, relay_socket, wait_seconds, as_json=as_json))
    if to is None:
        raise BadConfiguration("no destination", REQUESTER, "name it with --to HOST")
    from policy.permit import HYPERVISOR_PORTS, named_port

    if not check and (named := named_port(port or ())) is not None:
        # It would be opened, and wait for a program that nobody has started.
        raise BadConfiguration(
            f"no VM moves by the port {named!a}: those are {', '.join(sorted(HYPERVISOR_PORTS))}",
            REQUESTER,
            "open a named port by sealane relay open or sealane relay pipe, on the VM's host",
        )
    from gateway.cli.client import GatewayClient

    settings = resolve(gateway, ca, token_file, Path.home())
    token = token_of(settings, int(time.time()))
    question: dict[str, Any] = {"vm": vm, "destination": to}
    if reason is not None:
        question["reason"] = reason
    if port or with_disks:
        question["ports"] = sorted({*(port or ["memory"]), *(["disks"] if with_disks else [])})
    if how:
        question["how"] = how
    if break_glass is not None:
        question["break_glass"] = break_glass
    with GatewayClient(settings, token) as client:
        if check:
            raise typer.Exit(_check(client, question, as_json=as_json))
        raise typer.Exit(_move(client, question, wait_seconds, as_json=as_json))


def _check(client: GatewayClient, question: dict[str, Any], *, as_json: bool) -> int:
    from gateway.cli import migration_view as view

    answer = client.check({**question, "preflight": True, "explain": True})
    decision, found = answer.decision, answer.preflight
    outcome = "denied" if not decision.allowed else "would_deny" if decision.observed else "allowed"
    if decision.allowed and found is not None and not found.can_move:
        outcome = "cannot_move"
    if as_json:
        document = {"outcome": outcome, **view.decision_document(answer)}
        told = None if found is None else view.preflight_document(found)
        print_json({**document, "preflight": told, "explanation": list(answer.explanation)})
    else:
        view.show_decision(console(), answer, would=True)
        view.show_explanation(console(), answer)
        if found is not None:
            view.show_preflight(console(), found)
    return 0 if outcome in {"allowed", "would_deny"} else 1


def _move(client: GatewayClient, question: dict[str, Any], wait_seconds: int, *, as_json: bool) -> int:
    from gateway.cli import migration_view as view
    from gateway.cli.convergence import Convergence

    clock = Clock(time.monotonic, time.sleep)
    convergence = Convergence(question.get("how", {}))
    # Entered before the request: a Ctrl-C while the gateway decides must still find the migration's id.
    with Interrupts() as interrupts:
        started = clock.now()
        answer = client.request_migration(question)
        if not as_json:
            view.show_decision(console(), answer)
        if not answer.decision.allowed or answer.migration_id is None:
            if as_json:
                print_json({"outcome": "denied", **view.decision_document(answer)})
            return 1
        if not as_json:
            say(f"  migration   {answer.migration_id}")  # now: whoever cancels it elsewhere needs it
        with _bar(as_json=as_json) as bar:

            def show(reply: MigrationReply) -> None:
                bar.show(reply)
                if (advice := convergence.advice(reply)) is not None:
                    bar.note(advice)

            reply = follow(
                client,
                answer.migration_id,
                interrupts=interrupts,
                clock=clock,
                deadline_seconds=wait_seconds,
                show=show,
                note=bar.note,
            )
    _tell(answer, reply, clock.now() - started, as_json=as_json)
    if reply.state == "failed" and not as_json:
        say("  next        the same with --check says what is in the way, and who must act")
    return 0 if reply.state == "completed" else 1


def _bar(*, as_json: bool) -> AbstractContextManager[Any]:
    from gateway.cli import migration_view as view

    out = console()
    return view.Bar(out) if out.is_terminal and not as_json else view.Lines()


def _tell(answer: DecisionReply, reply: MigrationReply, seconds: float, *, as_json: bool) -> None:
    from gateway.cli import migration_view as view

    summary = view.summarise(answer, reply, seconds)
    if as_json:
        print_json(summary)
    else:
        view.show_summary(console(), summary)
