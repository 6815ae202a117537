"""What can go wrong in the demo itself.

DemoError
├── MissingProgram     operator: something must be installed first
├── ProcessFailed      us: a process of the demo did not start, or ended; its last lines are in `tail`
└── Unexpected         us: a step gave another result than it should; `step` and `found` say which
"""

from typing import ClassVar, Literal


class DemoError(Exception):
    """Root of this tree."""

    who_must_act: ClassVar[Literal["operator", "us"]] = "us"
    next_step: ClassVar[str] = "Run `sealane demo --keep` and look into the logs that it names."
    tail: str = ""


class MissingProgram(DemoError):
    """A program that the demo drives is not installed."""

    who_must_act = "operator"
    next_step = "Run `make demo` (it installs what is missing), or install the package."

    def __init__(self, program: str, package: str) -> None:
        super().__init__(f"{program} is not installed (Debian package {package})")
        self.program = program
        self.package = package


class ProcessFailed(DemoError):
    """A process did not come up, or ended before its time. `tail`: the last that it said."""

    def __init__(self, name: str, detail: str, tail: str = "") -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.tail = tail


class Unexpected(DemoError):
    """A step of the demo did not give the result that Sealane promises."""

    def __init__(self, step: str, found: str) -> None:
        super().__init__(f"{step}: {found}")
        self.step = step
        self.found = found
