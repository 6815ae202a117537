"""What an option or argument may be, for whoever gave another value."""

from __future__ import annotations

from typing import Any

import typer


def allowed_of(error: typer.BadParameter) -> str | None:
    """Instead of pydantic's words, whose range has one end and whose text is for programmers; None: keep the words."""
    from pydantic import ValidationError  # noqa: PLC0415 - typer has loaded it by then, and nobody else needs it

    if not isinstance(error.__cause__, ValidationError):
        return None
    first = error.__cause__.errors()[0]
    kind, given = str(first["type"]), first.get("input")
    if kind == "value_error":  # ours, or typer's of a choice: after the words for programmers
        return str(first["msg"]).removeprefix("Value error, ")
    if not kind.startswith(("int_", "float_", "greater_", "less_")):
        return None
    number = "a number" if kind.startswith("float_") else "a whole number"
    return f"{given!r} is not allowed; allowed is {number}{_range(error.param)}"


def _range(parameter: Any) -> str:
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f", {low} or more"
    return f", {high} or less" if high is not None else ""
