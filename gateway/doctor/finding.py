"""One thing that was looked at: how it is, and what to do where it is not as it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["ok", "attention", "wrong", "unknown"]
ORDER: Final = {"wrong": 0, "attention": 1, "unknown": 2, "ok": 3}


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is a stable word. `remedy`: "" where nothing is to be done."""

    check: str
    status: Status
    message: str
    remedy: str = ""


def worst(findings: list[Finding]) -> Status:
    return min((finding.status for finding in findings), key=ORDER.__getitem__, default="ok")
