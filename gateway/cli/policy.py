"""`sealane policy`: its commands, in the order in which an author comes to them."""

from __future__ import annotations

import typer

from gateway.cli import policy_compare, policy_in_force, policy_signing, policy_workshop

app = typer.Typer(
    help="""Policies: write, check, test, explain and compare; sign, approve, publish, try and roll back.

Exit codes: 0 done, nothing to correct; 1 something is, or it was refused; 2 usage; 3 unreachable. docs/policy-guide.md.
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for _module in (policy_workshop, policy_compare, policy_signing, policy_in_force):
    for _words, _command in _module.COMMANDS.items():
        app.command(_words)(_command)
