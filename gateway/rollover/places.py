"""Where keys lie while they are rolled over: the configuration names the one in force, next to it are next and former.

    NAME            in force
    NAME.next       made for what follows; `NAME.next.begun` says that it was begun, and when
    NAME.former     what was in force before, until it is retired
    NAME.retired-*  no longer used

NAME is a file or a folder. Each step is a rename or two, in an order of which every part can be done again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from certs.files import sync_directory, write_atomically


class Stage(StrEnum):
    IDLE = "idle"  # one key
    PREPARED = "prepared"  # the next one lies there, and nobody was told
    BEGUN = "begun"  # relays are told of both; the old one is in force
    SWITCHED = "switched"  # the new one is in force; the old one still counts


@dataclass(frozen=True, slots=True)
class Places:
    """`current`: the path that the configuration names."""

    current: Path

    @property
    def next(self) -> Path:
        return self.current.with_name(f"{self.current.name}.next")

    @property
    def former(self) -> Path:
        return self.current.with_name(f"{self.current.name}.former")

    @property
    def begun(self) -> Path:
        return self.current.with_name(f"{self.current.name}.next.begun")

    @property
    def stage(self) -> Stage:
        if self.former.exists():
            return Stage.SWITCHED
        if self.next.exists():
            return Stage.BEGUN if self.begun.exists() else Stage.PREPARED
        return Stage.IDLE

    def beside(self) -> tuple[Path, ...]:
        """What counts besides the one in force."""
        match self.stage:
            case Stage.BEGUN:
                return (self.next,)
            case Stage.SWITCHED:
                return (self.former,)
            case _:
                return ()

    def retired(self) -> tuple[Path, ...]:
        return tuple(sorted(self.current.parent.glob(f"{self.current.name}.retired-*")))

    def retired_as(self, name: str) -> Path:
        return self.current.with_name(f"{self.current.name}.retired-{name}")

    def begin(self, note: str = "") -> None:
        """`note`: what whoever asks later needs to know of the next one."""
        write_atomically(self.begun, note.encode())

    @property
    def note(self) -> str:
        """Of the rollover that was begun."""
        return self.begun.read_text()

    @property
    def switched_at(self) -> float:
        """Unix seconds of the last switch, or later: a file that was restored is as new as that."""
        return self.former.stat().st_ctime

    def switch(self) -> None:
        """Put next in force. Stopped half-way, `mend` goes on. Raises OSError."""
        self.current.rename(self.former)
        self.mend()

    def mend(self) -> None:
        """Finish a switch that was stopped half-way, at the start of a gateway. Raises OSError."""
        if self.next.exists() and self.former.exists() and not self.current.exists():
            self.next.rename(self.current)
            sync_directory(self.current.parent)
        if self.begun.exists() and not self.next.exists():
            self.begun.unlink()
            sync_directory(self.current.parent)

    def retire(self, name: str) -> Path:
        """Let go of the former one; where it lies from now on. Raises OSError."""
        retired = self.retired_as(name)
        self.former.rename(retired)
        sync_directory(self.current.parent)
        return retired

    def require_writable(self) -> None:
        """Before anything is recorded. Raises PermissionError."""
        if not os.access(self.current.parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "this folder must belong to the gateway", str(self.current.parent))
