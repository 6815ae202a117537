"""Whether a file is not there, as a thing of its own: it has another remedy than one that cannot be used."""

from __future__ import annotations

from pathlib import Path


def is_missing(path: Path) -> bool:
    """What else may be wrong with it is told by reading it."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
