"""The ends of sessions between bare sockets, of whatever program: nothing is known of a VM, and nothing handed over."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal, Self

import trio

from transport.errors import LocalBroken, NobodyListens
from transport.hypervisors.migration_progress import MigrationProgress
from transport.relay.ends import Arrival, Milestones, Report, Whereabouts
from transport.relay.inlets import Inlet, Port, SourceLanes, listen_unix, peer_process
from transport.relay.local_dial import dial_loopback, dial_unix

_LEADS_NOWHERE = "the destination's [ports] do not say where that port leads (connect)"


class SocketSource:
    """Whoever connects to the session's socket, as one of the configured users."""

    vm_binding: Literal["uuid", "none"] = "none"
    hands_over = False
    recovers = ""

    def __init__(
        self,
        peer_uids: frozenset[int],
        port: Port = "memory",
        listens_at: Path | None = None,
        patience_seconds: float = math.inf,
    ) -> None:
        """`listens_at`: instead of the session's own socket, where programs look for a named port.

        `patience_seconds`: until the first one connects. A session in which nobody does holds its VM's moves up.
        """
        self._peer_uids = peer_uids
        self._port = port
        self._listens_at = listens_at
        self._patience = patience_seconds
        self.facts: dict[str, object] = {}

    async def prepare(self) -> str:
        return ""

    def inlets(self, socket_path: Path) -> list[Inlet]:
        if self._listens_at is None:
            return [Inlet(self._port, listen_unix(socket_path), self._allows)]
        return [Inlet(self._port, self._listen_again(self._listens_at), self._allows)]

    def _listen_again(self, path: Path) -> trio.socket.SocketType:
        """In place of what a former session left; who may connect is said by `peer_uids`, asked of the kernel."""
        folder = path.parent
        try:
            if not folder.exists():
                folder.mkdir(parents=True)
                folder.chmod(0o755)  # whatever the umask: who may come is said by peer_uids
            found = folder.stat()
            if found.st_uid not in {0, os.geteuid()} or found.st_mode & 0o022:
                # Whoever can write there could put a link in the socket's place while its mode is set.
                raise LocalBroken(f"{folder} must belong to root or the relay's user, and be writable by nobody else")
            if path.is_socket():
                path.unlink()
        except OSError as error:
            raise LocalBroken(f"{path}: {error.strerror}") from None
        return listen_unix(path, 0o600 if self._peer_uids <= {0, os.geteuid()} else 0o666)

    async def _allows(self, local: socket.socket) -> bool:
        return peer_process(local)[0] in self._peer_uids

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        """The caller's channels are all there is. LocalBroken if there is none in time."""
        with trio.move_on_after(self._patience) as patience:
            await lanes.wait_first()
        if patience.cancelled_caught:
            raise LocalBroken(f"nobody connected within {self._patience:g} s (limits.first_connection_seconds)")

    async def last_numbers(self) -> MigrationProgress | None:
        return None

    async def whereabouts(self, *, accepted: bool) -> Whereabouts:  # noqa: ARG002
        return "here"

    async def resume_guest(self) -> None:
        pass

    async def release(self) -> None:
        pass

    async def is_in_post_copy(self) -> bool:
        return False

    @asynccontextmanager
    async def recovery(self, pause_seconds: float) -> AsyncIterator[bool]:  # noqa: ARG002
        yield False

    async def go_on_with_post_copy(self, lanes: SourceLanes, report: Report) -> None:
        pass

    async def is_gone(self) -> bool:
        return False

    def broke(self, cause: str) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listens_at is not None:
            with suppress(OSError):
                self._listens_at.unlink(missing_ok=True)


class SocketDestination:
    """A socket that the configuration names; whoever listens there gets the stream.

    `at`: of unix, or a port of loopback; None for a named port that does not lead anywhere here.
    """

    vm_binding: Literal["uuid", "none"] = "none"
    hands_over = False

    def __init__(self, at: Path | tuple[str, int] | None) -> None:
        self._at = at
        self.facts: dict[str, object] = {}

    async def prepare(self, folder: Path) -> str:  # noqa: ARG002
        if self._at is None:
            raise NobodyListens(_LEADS_NOWHERE, _LEADS_NOWHERE)
        if isinstance(self._at, Path) and not self._at.is_socket():
            raise NobodyListens(f"nobody listens on {self._at}")
        return ""

    async def dial(self, port: Port, arrival: Arrival) -> socket.socket:  # noqa: ARG002 - one port only
        if isinstance(self._at, Path):
            return await dial_unix(self._at, arrival.dial_seconds, lambda pid: True)  # noqa: ARG005 - whoever it is
        if self._at is not None:
            return await dial_loopback(*self._at, arrival.dial_seconds)
        raise NobodyListens(_LEADS_NOWHERE, _LEADS_NOWHERE)

    async def look_ahead(self) -> None:
        pass

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
