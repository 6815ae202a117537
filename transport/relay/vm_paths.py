"""Paths of a configuration in which `{uuid}` stands for a VM, and for nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MAX_UNIX_PATH: Final = 107  # sun_path, unix(7)


def has_placeholder(template: str) -> bool:
    """Once, and no other: one path for two VMs would carry the one's stream into, or under the permit of, the other."""
    return template.count("{uuid}") == 1 and template.count("{") == 1


def path_of(template: str, vm: str) -> Path:
    """`vm`: the permit's canonical UUID."""
    return Path(os.path.normpath(template.replace("{uuid}", vm)))
