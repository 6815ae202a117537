"""A finding: what is wrong where, and what to do about it."""

from __future__ import annotations

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True, order=True):
    """`line` and `column` from 1; 0 if it is of the whole file. An error keeps the bundle from being trusted, a
    warning is for a person to look at."""

    file: str
    line: int
    column: int
    severity: Literal["error", "warning"]
    rule: str
    message: str
    hint: str
    policy: str = ""

    def text(self) -> str:
        """As compilers write it, so that editors and CI find the place."""
        place = f"{self.file or '.'}:{self.line}:{self.column}" if self.line else self.file or "."
        return f"{place}: {self.severity}[{self.rule}]: {self.message}\n    hint: {self.hint}"
