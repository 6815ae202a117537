"""What a target is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """`run` takes bytes and raises nothing but `refusals`. `seeds`: good input. `modules`: whose decoder it is."""

    name: str
    run: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    modules: tuple[str, ...]

    def __call__(self, data: bytes) -> None:
        try:
            self.run(data)
        except self.refusals:
            pass


def in_pieces(feed: Callable[[bytes], list[object]], data: bytes) -> list[object]:
    """What a reader makes of `data` when it comes byte by byte."""
    found: list[object] = []
    for at in range(len(data)):
        found += feed(data[at : at + 1])
    return found
