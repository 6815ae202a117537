"""Post-copy of libvirt's guests that was interrupted for good, until a client of libvirt takes it up again.

QEMUs that a relay drives are recovered by the relay itself. libvirt's are only by its own `--postcopy-resume`, whose
Prepare comes to the front: it finds here the very session that gave the guest away, whose permit then serves on. So
the flag begins nothing, and leads a guest to no other host than the one where it runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from policy.permit import PermitClaims
from transport.relay.caller import Conversation
from transport.relay.news import News
from transport.relay.wish import NotAdmitted, Wish

Key = tuple[str, str]  # VM, name of the destination's host


def key_of(claims: PermitClaims) -> Key:
    return claims.vm, claims.destination.rpartition("/")[2]


@dataclass(eq=False, slots=True)
class _Wait:
    """One session that waits. `over`: whoever came was served, well or not."""

    conversation: Conversation | None = None
    came: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)


class Interrupted:
    """Of one relay."""

    def __init__(self) -> None:
        self._waits: dict[Key, _Wait] = {}

    @asynccontextmanager
    async def client(self, key: Key, wait_gone: Callable[[], Awaitable[None]]) -> AsyncIterator[Conversation | None]:
        """The next client that takes it up, who is served until the block ends; None once `wait_gone` returned."""
        wait = self._waits[key] = _Wait()
        try:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await wait_gone()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                await wait.came.wait()
                nursery.cancel_scope.cancel()
            yield wait.conversation
        finally:
            del self._waits[key]
            wait.over.set()

    def why_not(self, vm: str, destination: str) -> str | None:
        """In words, if nobody may take up the post-copy of this VM to that host now."""
        wait = self._waits.get((vm, destination))
        if wait is not None:
            return "its post-copy is being taken up already" if wait.came.is_set() else None
        return (
            f"no post-copy of this VM to {destination} waits to be taken up, and --postcopy-resume begins nothing. "
            "Where virsh domstate --reason says post-copy failed on both hosts, end neither: the relay here may not "
            "have settled its session yet (see its log). Where it says on neither that the guest runs, it is lost: "
            "virsh destroy what is left of it, then virsh start it on one"
        )

    def claim(self, wish: Wish, conversation: Conversation) -> Callable[..., Awaitable[News]]:
        """From now on the session that waits for it carries the client's conversation, and nobody else's. What is
        returned waits for the end of that. `NotAdmitted`."""
        if (why := self.why_not(wish.vm, wish.destination)) is not None:
            raise NotAdmitted(why)
        wait = self._waits[wish.vm, wish.destination]
        wait.conversation = conversation
        wait.came.set()

        async def wait_over(*_: object) -> News:
            await wait.over.wait()
            return News("failed", message=conversation.cause) if conversation.broke.is_set() else News("completed")

        return wait_over
