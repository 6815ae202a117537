"""What a QEMU is told before a migration: its capabilities, its parameters and its name for a socket.

The names are those of QEMU's qapi/migration.json. Pure.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transport.hypervisors.moving import PLAIN, Movement

# QEMU's own default of 128 MiB/s would hide a relay's speed; this is what its documentation calls unlimited.
UNLIMITED_BYTES_PER_SECOND = 107374182400
_MAX_UNIX_PATH_BYTES = 107  # sun_path with its NUL, unix(7)

# What the handover stands on. Anything switched on earlier that would start or end the migration in
# another order than the relays expect is switched off.
_ON_BOTH = ("return-path", "validate-uuid", "events")
_OFF_ON_BOTH = (
    "postcopy-ram",
    "postcopy-preempt",
    "multifd",
    "xbzrle",
    "auto-converge",
    "pause-before-switchover",
    "background-snapshot",
    "x-colo",
)


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    """What both QEMUs are told before a migration. A bandwidth of 0 means unlimited, no multifd channels one stream.

    `pauses_before_switchover`: the source stops its guest and then waits for `continue_migration`.
    """

    bandwidth_bytes_per_second: int = 0
    downtime_limit_ms: int = 300
    movement: Movement = PLAIN
    auto_converge: bool = False
    post_copy_bytes_per_second: int = 0
    pauses_before_switchover: bool = False


def source_capabilities(settings: MigrationSettings, known: Iterable[str]) -> dict[str, bool]:
    """All that is set at the side that sends. `known`: by this QEMU; what is to be on and is not known, it refuses."""
    own = {"auto-converge": settings.auto_converge, "pause-before-switchover": settings.pauses_before_switchover}
    return _wanted(_of_movement(settings.movement) | own, frozenset(known))


def destination_capabilities(settings: MigrationSettings, known: Iterable[str]) -> dict[str, bool]:
    """As `source_capabilities`, at the side that loads."""
    # late-block-activate: disks stay the source's until the guest is started, as it may get the guest back.
    return _wanted(_of_movement(settings.movement) | {"late-block-activate": True}, frozenset(known))


def migration_parameters(settings: MigrationSettings) -> dict[str, int | str]:
    """Of either side."""
    bandwidth, movement = settings.bandwidth_bytes_per_second, settings.movement
    parameters: dict[str, int | str] = {
        "max-bandwidth": bandwidth or UNLIMITED_BYTES_PER_SECOND,
        "downtime-limit": settings.downtime_limit_ms,
        "multifd-compression": movement.multifd_compression,
    }
    if movement.multifd_channels:
        parameters["multifd-channels"] = movement.multifd_channels
    if movement.post_copy:
        # Its own default is no limit at all, which would go past the permit's.
        parameters["max-postcopy-bandwidth"] = min(
            (each for each in (settings.post_copy_bytes_per_second, bandwidth) if each), default=0
        )
    return parameters


def _wanted(more: dict[str, bool], known: frozenset[str]) -> dict[str, bool]:
    # Switching off what this QEMU does not know is no wish; switching on is, and QEMU refuses it.
    wanted = {name: False for name in _OFF_ON_BOTH if name in known}
    wanted |= {name: state for name, state in more.items() if state or name in known}
    return wanted | dict.fromkeys(_ON_BOTH, True)


def _of_movement(movement: Movement) -> dict[str, bool]:
    return {
        "multifd": movement.multifd_channels > 0,
        "xbzrle": movement.xbzrle,
        "postcopy-ram": movement.post_copy,
        "postcopy-preempt": movement.preempt,
    }


def unix_uri(path: Path) -> str:
    """QEMU's name for a unix socket. ValueError for a path that no socket can have."""
    raw = os.fsencode(path)
    if not path.is_absolute() or len(raw) > _MAX_UNIX_PATH_BYTES or not raw.isascii() or b"\0" in raw:
        raise ValueError(f"not an absolute ASCII path of at most {_MAX_UNIX_PATH_BYTES} bytes: {path}")
    return f"unix:{path}"
