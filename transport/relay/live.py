"""What of a destination's session lives between two of its connections: its channels, and talks with the hypervisor's
manager. It ends with the relay process, whose successor has neither the sockets nor anything that was under way."""

from __future__ import annotations

import structlog
import trio

from transport.errors import Misuse, TransportError
from transport.hypervisors.errors import HypervisorError
from transport.relay.channels import Channels
from transport.relay.failures import SessionError, cause_of

log = structlog.get_logger("sealane.relay")


class Live:
    """`run` in a task of the relay's own, from the session's admission to its end."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.is_over = False
        self._failure: SessionError | None = None
        self._nursery: trio.Nursery | None = None
        self._has_begun, self._has_failed, self._is_ending = trio.Event(), trio.Event(), trio.Event()

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._has_begun.set()
                await self._is_ending.wait()
                nursery.cancel_scope.cancel()
        except (TransportError, HypervisorError, BaseExceptionGroup) as error:
            try:
                self._failure = cause_of(error)
            except Exception:
                # The edge: a bug in one session must not end the others.
                log.exception("bug: session ended")
                self._failure = Misuse("a bug of the relay ended the session")
        finally:
            self.end()
            self._has_failed.set()

    async def nursery(self) -> trio.Nursery:
        """For tasks that a lost connection must not end."""
        await self._has_begun.wait()
        if self._nursery is None or self.is_over:
            raise self._failure or Misuse("a task for a session that is over")
        return self._nursery

    async def watch(self) -> None:
        """Raises what ended it, if it was a failure."""
        await self._has_failed.wait()
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Let go of the hypervisor. No connection of the session carries anything from now on."""
        self.is_over = True
        self._is_ending.set()
        self.channels.close()
