"""On whose behalf a VM is about to be moved: tokens that people hand in at a socket, or an orchestrator in a file.

libvirt's RPC names no person. So whoever is going to run `virsh migrate` says so before, with a token of theirs, for
one VM and some minutes; the gateway verifies it. A token is kept in memory only, and never logged.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
import trio
from msgspec import Meta

from policy.strict_json import strictly
from transport.errors import UNDECODABLE, ConfigurationError, LocalBroken
from transport.libvirt_rpc.errors import LibvirtAway, RpcFailed, RpcMalformed
from transport.relay.inlets import listen_unix, peer_uid
from transport.relay.log_rate import LogRate
from transport.relay.wish import NotAdmitted, Wish

log = structlog.get_logger("sealane.relay")
MAX_MINUTES: Final = 24 * 60
_MAX_BYTES: Final = 32 * 1024
_MAX_ANNOUNCED: Final = 1024
_MAX_OF_ONE: Final = 256  # of one user, but root, who may announce for anybody
_MAX_AT_ONCE: Final = 16  # of one user, that are read or whose VM is looked up
_SECONDS: Final = 5.0
Text = Annotated[str, Meta(min_length=1, max_length=255)]


class Announcement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `sealane session start` sends: one line of JSON. `vm`: its UUID, or the name that libvirt here has for it;
    `destination` None: any.
    """

    vm: Text
    token: Annotated[str, Meta(min_length=1, max_length=16 * 1024)]
    minutes: Annotated[int, Meta(ge=1, le=MAX_MINUTES)]
    destination: Text | None = None
    reason: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None


@dataclass(frozen=True, slots=True)
class _Kept:
    announcement: Announcement
    uid: int
    until: float


_decode: Final = strictly(msgspec.json.Decoder(Announcement).decode)


class Announced:
    """All that was announced and has not expired; the newest that fits counts. `clock`: seconds, never back.

    `find`: the UUID of the domain of a name on this host, or None. `LibvirtAway`, `RpcFailed`, `RpcMalformed`.
    """

    def __init__(
        self,
        token_file: str,
        find: Callable[[str], Awaitable[str | None]],
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._token_file = token_file
        self._find = find
        self._clock = clock
        self._kept: list[_Kept] = []
        self._taking: Counter[int] = Counter()
        self._log_rate = LogRate()

    def keep(self, announcement: Announcement, uid: int) -> None:
        """For its minutes, for a UUID. `LocalBroken` where there is no room: nobody's is thrown out for another's."""
        self._forget_expired()
        same = (announcement.vm, announcement.destination)
        self._kept = [k for k in self._kept if (k.announcement.vm, k.announcement.destination, k.uid) != (*same, uid)]
        if uid and sum(kept.uid == uid for kept in self._kept) >= _MAX_OF_ONE:
            raise LocalBroken("too many of yours are announced; wait for some to expire")
        if len(self._kept) >= _MAX_ANNOUNCED:
            raise LocalBroken("too many sessions are announced; wait for some to expire")
        self._kept.append(_Kept(announcement, uid, self._clock() + announcement.minutes * 60))

    def named(self, wish: Wish) -> Wish:
        """The wish with the token and the reason of whoever announced it. `NotAdmitted` if a token file is unusable."""
        self._forget_expired()
        for kept in reversed(self._kept):
            announcement = kept.announcement
            # The token is somebody's: only root, as libvirtd is, moves for others.
            is_theirs = wish.caller_uid in (0, kept.uid)
            is_meant = announcement.vm == wish.vm and announcement.destination in (None, wish.destination)
            if is_theirs and is_meant:
                return replace(wish, token=announcement.token, reason=announcement.reason)
        return replace(wish, token=_token_in(Path(self._token_file))) if self._token_file else wish

    async def serve(self, listening: trio.socket.SocketType, peer_uids: frozenset[int]) -> None:
        """Take announcements for ever; each connection is one."""
        with listening:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        accepted, _ = await listening.accept()
                    except OSError:
                        await trio.sleep(0.05)
                        continue
                    nursery.start_soon(self._take, accepted, peer_uids)

    async def _take(self, accepted: trio.socket.SocketType, peer_uids: frozenset[int]) -> None:
        with accepted, trio.move_on_after(_SECONDS):
            try:
                uid = peer_uid(accepted)
            except OSError:
                return  # out of descriptors: others go on
            try:
                if uid not in peer_uids:
                    raise LocalBroken(f"user {uid} may not announce sessions: see front.peer_uids")
                if self._taking[uid] >= _MAX_AT_ONCE:
                    raise LocalBroken("you announce too many sessions at this moment: try again")
                self._taking[uid] += 1
                try:
                    data = await _read_line(accepted)
                    self.keep(await self._resolved(_decode(data)), uid)
                finally:
                    self._taking[uid] -= 1
                answer = b'{"announced":true}\n'
            except UNDECODABLE:
                answer = msgspec.json.encode({"error": "this is no announcement of this version"}) + b"\n"
            except (LocalBroken, LibvirtAway, RpcFailed, RpcMalformed) as error:
                if self._log_rate.allows(str(uid)):  # anybody on this host may dial
                    log.warning("session not announced", uid=uid, cause=str(error))
                answer = msgspec.json.encode({"error": str(error)}) + b"\n"
            except OSError:
                return
            try:
                await accepted.send(answer)
            except OSError:
                pass

    async def _resolved(self, announcement: Announcement) -> Announcement:
        """For the UUID that its name has now: later another VM may bear it, or a caller say so. `LocalBroken`."""
        try:
            found: str | None = str(uuid.UUID(announcement.vm))
        except ValueError:
            found = await self._find(announcement.vm)
        if found is None:
            raise LocalBroken(f"libvirt on this host has no VM named {announcement.vm!a}")
        return msgspec.structs.replace(announcement, vm=found)

    def _forget_expired(self) -> None:
        now = self._clock()
        self._kept = [kept for kept in self._kept if kept.until > now]


def listen_for_announcements(path: Path) -> trio.socket.SocketType:
    """`ConfigurationError` if the socket cannot be had."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return listen_unix(path, 0o666)  # who may come is said by front.peer_uids
    except (OSError, LocalBroken) as error:
        raise ConfigurationError(f"front.session_socket: {error}") from None


async def _read_line(accepted: trio.socket.SocketType) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        more = await accepted.recv(_MAX_BYTES)
        data += more
        if not more or len(data) > _MAX_BYTES:
            raise LocalBroken("an announcement that is too long, or cut short")
    return data


def _token_in(path: Path) -> str:
    """An orchestrator's token. A file that others can read or change is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            is_private = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077
            token = file.read(_MAX_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotAdmitted(f"front.token_file {path} cannot be read: {type(error).__name__}") from None
    if not is_private or status.st_uid not in (0, os.geteuid()) or not token or not token.isprintable():
        raise NotAdmitted(f"front.token_file {path} must hold a token and be the relay's alone (chmod 600)")
    return token
