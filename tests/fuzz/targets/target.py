"""What a target is."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Target:
    """`run` takes bytes and raises nothing but `refusals`. `seeds`: good input; `wrong`: in one thing each, far within.

    What it returns is False where the decoder refuses without raising. So a seed is taken, or the seed is none.
    """

    name: str
    run: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    wrong: tuple[bytes, ...] = ()

    def __call__(self, data: bytes) -> None:
        try:
            self.run(data)
        except self.refusals:
            pass

    def takes(self, data: bytes) -> bool:
        try:
            return self.run(data) is not False
        except self.refusals:
            return False


def shaped(shape: Any) -> Callable[[bytes], object]:
    """Bytes before the decoder of a shape, as its caller makes it."""
    return msgspec.json.Decoder(shape).decode


def in_pieces(feed: Callable[[bytes], list[object]], data: bytes) -> list[object]:
    """What a reader makes of `data` when it comes byte by byte."""
    found: list[object] = []
    for at in range(len(data)):
        found += feed(data[at : at + 1])
    return found


def scratch(within: Path | None = None) -> Path:
    """A folder for decoders that read files, `within` another where there is that. It goes with the process that made
    it, not with children of it.
    """
    where = within if within is not None and within.is_dir() else None
    folder, maker = Path(tempfile.mkdtemp(prefix="sealane-fuzz-", dir=where)), os.getpid()

    def remove() -> None:
        if os.getpid() == maker:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
