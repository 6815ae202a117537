"""The sealed file: people for the night in which the directory is down, written beforehand and not touched since.

The form is that of the local directory. What seals it is its SHA-256 in the gateway's configuration: the file is read
anew whenever somebody of it acts, and one that was edited, however well, is nobody's. To change it, seal it again and
put the new digest into the configuration; the start that needs is in the log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from policy.errors import DirectoryRefused
from policy.identity.local import LocalDirectory, read_private


class SealBroken(DirectoryRefused):
    """The file is not the one that was sealed: somebody must find out who changed it."""


@dataclass(frozen=True, slots=True)
class SealedFile:
    """`sha256` in lower-case hex."""

    path: Path
    sha256: str

    def read(self) -> LocalDirectory:
        """Blocking. Raises SealBroken; DirectoryRefused if it cannot be read, or others may read it."""
        data = _read(self.path)
        # Before it is parsed: what is not ours is not even looked at.
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise SealBroken(f"{self.path}: is not the file that was sealed")
        return _parse(self.path, data)


def seal(path: Path) -> SealedFile:
    """The file as it is now, once it is one that would be accepted. Raises DirectoryRefused."""
    return SealedFile(path, _parse(path, _read(path)).sha256)


def _read(path: Path) -> bytes:
    try:
        return read_private(path)
    except DirectoryRefused as error:
        raise DirectoryRefused(f"{path}: {error}") from error
    except OSError as error:
        raise DirectoryRefused(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, data: bytes) -> LocalDirectory:
    try:
        return LocalDirectory.parse(data)
    except DirectoryRefused as error:
        raise DirectoryRefused(f"{path}: {error}") from error
