"""The ends of sessions between bare sockets, of whatever program: nothing is known of a VM, and nothing handed over."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal, Self

from transport.errors import LocalBroken
from transport.hypervisors.migration_progress import MigrationProgress
from transport.relay.ends import Arrival, Milestones, Report, Whereabouts
from transport.relay.inlets import Inlet, Port, SourceLanes, listen_unix, peer_process
from transport.relay.local_dial import dial_unix


class SocketSource:
    """Whoever connects to the session's socket, as one of the configured users."""

    vm_binding: Literal["uuid", "none"] = "none"
    hands_over = False

    def __init__(self, peer_uids: frozenset[int]) -> None:
        self._peer_uids = peer_uids
        self.facts: dict[str, object] = {}

    async def prepare(self) -> str:
        return ""

    def inlets(self, socket_path: Path) -> list[Inlet]:
        return [Inlet("memory", listen_unix(socket_path), self._allows)]

    def _allows(self, local: socket.socket) -> bool:
        return peer_process(local)[0] in self._peer_uids

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> MigrationProgress | None:  # noqa: ARG002
        """The caller's channels are all there is."""
        return None

    async def whereabouts(self, *, accepted: bool) -> Whereabouts:  # noqa: ARG002
        return "here"

    async def resume_guest(self) -> None:
        pass

    async def release(self) -> None:
        pass

    async def is_in_post_copy(self) -> bool:
        return False

    async def go_on_with_post_copy(self, report: Report) -> None:
        pass

    async def is_gone(self) -> bool:
        return False

    def broke(self, cause: str) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class SocketDestination:
    """A socket that the configuration names; whoever listens there gets the stream."""

    vm_binding: Literal["uuid", "none"] = "none"
    hands_over = False

    def __init__(self, memory_socket: Path) -> None:
        self._memory_socket = memory_socket
        self.facts: dict[str, object] = {}

    async def prepare(self, folder: Path) -> str:  # noqa: ARG002
        if not self._memory_socket.is_socket():
            raise LocalBroken(f"nothing listens on {self._memory_socket}")
        return ""

    async def dial(self, port: Port, arrival: Arrival) -> socket.socket:  # noqa: ARG002 - one port only
        return await dial_unix(self._memory_socket, arrival.dial_seconds, lambda pid: True)  # noqa: ARG005 - whoever it is

    async def wait_loaded(self, seconds: float) -> bool:  # noqa: ARG002
        return False

    def begin_post_copy(self) -> bool:
        return False

    async def is_in_post_copy(self) -> bool:
        return False

    async def hold_until_whole(self) -> None:
        pass

    async def listen_again(self, folder: Path) -> None:  # noqa: ARG002
        raise LocalBroken("there is no post-copy between bare sockets")

    async def start_guest(self) -> None:
        pass

    async def discard(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass
