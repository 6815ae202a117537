"""A log's folder, as commands begin to read it: by its checkpoint, of which nothing is believed yet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.cli.errors import REQUESTER, BadConfiguration

MAX_CHECKPOINT_BYTES: Final = 64 * 1024


def read_checkpoint(directory: Path) -> str:
    """Its text, cut where it is longer than any can be. Raises BadConfiguration."""
    try:
        with (directory / "checkpoint").open("rb") as file:
            return file.read(MAX_CHECKPOINT_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{directory} is no log: {error}", REQUESTER, "name the folder of a log") from error


def require_one(log: Path | None, gateway: str | None) -> None:
    """Records are read from one place."""
    if log is not None and gateway is not None:
        raise BadConfiguration("--log and --gateway exclude each other", REQUESTER, "give one of them")
