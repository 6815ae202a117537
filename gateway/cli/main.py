"""`sealane`: the tree of commands, and the one edge where errors become a line and an exit code."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gateway.cli import (
    audit,
    break_glass,
    certs,
    demo,
    directory,
    doctor,
    document_check,
    drain,
    enrolment,
    evacuation,
    inventory,
    login,
    migrate,
    migration,
    people,
    placement,
    policy,
    practice,
    reconcile,
    rollover,
    serve,
    session,
    siem,
    siem_files,
    sites,
    whoami,
    witness,
)
from gateway.cli.answer import AnswerLost, AnswerUnread, answer_stream, tell_lost_answer
from gateway.cli.bad_parameter import allowed_of
from gateway.cli.errors import REQUESTER, BadConfiguration, CommandError
from gateway.cli.interruption import EXIT_INTERRUPTED, interrupted_line
from gateway.cli.output import json_asked, print_error

_HELP = """Move running virtual machines over a sealed lane: encrypted, authorised, recorded.

Exit codes: 0 done, 1 denied or failed, 2 usage or configuration, 3 unreachable, 130 interrupted,
141 nobody reads the answer.

\b
Examples:
  sealane login --user alice
  sealane migrate web-1 --to host-b --reason "CHG-1042: empty host-a"
  sealane audit query --vm web-1 --since 7d
  sealane audit verify /var/lib/sealane/log --key log.vkey
"""


class _OneLineErrors(TyperGroup):
    """Commands raise CommandError; it is put into words here and nowhere else."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Python makes surrogates of bytes that are not UTF-8: no name may hold them, and most encoders fail at them.
        if any(not arg.isascii() and any("\ud800" <= char <= "\udfff" for char in arg) for arg in args):
            ctx.fail("an argument is not UTF-8 text")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _in_one_line(lambda: json_asked(ctx)):
                return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = allowed_of(error) or error.message
            raise
        except typer.Abort:
            # Of a question at the terminal: Ctrl-C there, or no input that could answer it.
            if sys.stdin is None or not sys.stdin.isatty():
                unanswered = BadConfiguration(
                    "a question was asked, and the input ended", REQUESTER,
                    "run it at a terminal, or give the answer by an option: --password-file, --yes",
                )  # fmt: skip
                print_error(unanswered, as_json=json_asked(ctx))
                raise typer.Exit(unanswered.exit_code) from None
            sys.stderr.write("\n" + interrupted_line() + "\n")
            raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _in_one_line(as_json: Callable[[], bool]) -> Iterator[None]:
    """Say what a command raised, and `typer.Exit`. `as_json`: whether it is asked for."""
    try:
        yield
    except CommandError as error:
        print_error(error, as_json=as_json())
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        # trio puts it into a group where a task got it.
        if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt) is None:
            raise
        sys.stderr.write(interrupted_line() + "\n")
        raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    name="sealane",
    help=_HELP,
    cls=_OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode=None,  # help texts hold [brackets], and plain help needs no rich on a hypervisor
    pretty_exceptions_enable=False,  # a trace with its variables could show a token
    add_completion=True,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"sealane {version('sealane')}")
        raise typer.Exit(0)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `sealane` itself."""


app.command("migrate")(migrate.migrate)
app.command("login")(login.login)
app.command("whoami")(whoami.whoami)
audit.app.command("verify-document")(document_check.verify_document_command)
audit.app.add_typer(witness.app, name="witness")
audit.app.add_typer(reconcile.app, name="reconcile")
app.add_typer(migration.app, name="migration")
app.add_typer(break_glass.app, name="break-glass")
app.add_typer(audit.app, name="audit")
certs.app.command("token")(enrolment.token)
certs.app.command("revoke")(enrolment.revoke)
serve.relay_app.command("enrol")(enrolment.enrol)
certs.app.add_typer(rollover.app, name="rollover")
app.add_typer(certs.app, name="certs")
siem.app.command("reconcile-file")(siem_files.reconcile_file)
app.add_typer(siem.app, name="siem")
app.add_typer(evacuation.app, name="evacuation")
app.add_typer(people.app, name="people")
app.add_typer(sites.app, name="sites")
app.add_typer(policy.app, name="policy")
app.add_typer(session.app, name="session")
app.add_typer(directory.app, name="directory")
app.add_typer(inventory.app, name="inventory")
serve.gateway_app.command("practice")(practice.practice)
app.add_typer(serve.gateway_app, name="gateway")
app.add_typer(serve.relay_app, name="relay")
app.command("drain")(drain.drain)
app.command("doctor")(doctor.doctor)
app.command("hosts")(placement.hosts)
app.command("vms")(placement.vms)
app.command("demo")(demo.demo)


def run() -> None:
    """Entry point of the console script."""
    _open_closed_streams()
    sys.stdout = answer_stream(sys.stdout)
    try:
        try:
            _run_command(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except (AnswerLost, AnswerUnread) as error:
        sys.exit(tell_lost_answer(error))


def _run_command(words: list[str]) -> None:
    match words:
        case ["relay", "serve", "--config", config] if config.isascii() and not config.startswith("-"):
            # As systemd starts it. What reads options takes 12 MiB, which a relay would hold for as long as it runs; it
            # judges every other way to write this, and what is no text.
            try:
                with _in_one_line(lambda: False):
                    serve.relay_serve(Path(config))
            except typer.Exit as end:
                sys.exit(end.exit_code)
        case _:
            app()


def _open_closed_streams() -> None:
    """Whoever closed one (`>&-`) reads and says nothing there; else the next file that is opened takes its number."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", encoding="utf-8", closefd=False))
