"""`sealane ARGS…` within the process of a test."""

from __future__ import annotations

from collections.abc import Mapping

from typer.testing import CliRunner, Result

from gateway.cli.main import app


def invoke(*arguments: object, stdin: str | None = None, env: Mapping[str, str] | None = None) -> Result:
    """A bug reaches the test. Typer's runner would make exit code 1 of it, that of a refusal, and print nothing."""
    return CliRunner().invoke(app, [str(one) for one in arguments], input=stdin, env=env, catch_exceptions=False)
