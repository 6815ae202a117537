"""Auditors' tools that read the whole log, tile by tile: allowed by ReadAudit, and on record without flooding the log.

A tool may fetch ten thousand tiles an hour. The first of a person from an address in WINDOW_SECONDS is recorded before
it is answered (`audit.read`); what they read in that window is counted and recorded once more at its end. So reading
adds at most two records for each person and address in that time, and whoever reads the log reads of their own reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
import trio

from audit.errors import EntryPruned, LogDamaged
from audit.log_keys import KEYS_FILE, read_successors
from audit.tiles import TILE_WIDTH, Resource
from gateway.committer import Committer
from gateway.errors import GatewayError, NotKnown, SearchUnavailable
from gateway.reading import Reading
from gateway.recording import Event, Recorder, actor_of
from policy.facts import Person

WINDOW_SECONDS: Final = 900.0
SWEEP_SECONDS: Final = 30.0
MAX_WINDOWS: Final = 256

log = structlog.get_logger("gateway.tile_reading")


@dataclass(slots=True)
class _Window:
    """What one person has read from one address since `began` (trio's clock)."""

    person: Person
    address: str
    began: float
    under_way: int = 0  # it is not ended before they are counted
    requests: int = 0
    bytes: int = 0
    entry_bundles: int = 0
    lowest_entry: int | None = None
    highest_entry: int | None = None


class TileReading:
    """`run` ends windows; `finish` ends all of them, at the stop."""

    def __init__(self, reading: Reading, committer: Committer, recorder: Recorder, directory: Path) -> None:
        """`directory`: of the log."""
        self._reading = reading
        self._committer = committer
        self._directory = directory
        self._recorder = recorder
        self._windows: dict[tuple[str, str], _Window] = {}

    async def read(self, person: Person, now: datetime, address: str, wanted: Resource) -> bytes:
        """Errors: NotAllowed (recorded), NotKnown, LogUnavailable."""
        window = await self._window(person, now, address)
        window.under_way += 1
        try:
            data = await self._committer.read(lambda opened: opened.resource(wanted))
        except EntryPruned as error:
            raise NotKnown(str(error), next_step="mount the archive, or ask whoever keeps it") from error
        except IndexError as error:
            raise NotKnown("the log has no such tile") from error
        finally:
            window.under_way -= 1
        window.requests += 1
        window.bytes += len(data)
        if wanted.level is None:
            last = wanted.lowest_entry + wanted.width - 1
            window.entry_bundles += 1
            lowest, highest = window.lowest_entry, window.highest_entry
            window.lowest_entry = wanted.lowest_entry if lowest is None else min(lowest, wanted.lowest_entry)
            window.highest_entry = last if highest is None else max(highest, last)
        return data

    async def keys(self) -> bytes:
        """How the log's keys followed each other: public, and signed by both of each two. Errors: SearchUnavailable.

        Not by the committer: what is wrong with this file stops no admission.
        """
        try:
            return await trio.to_thread.run_sync(read_successors, self._directory)
        except (LogDamaged, OSError) as error:
            raise SearchUnavailable(
                f"the log's file `{KEYS_FILE}` cannot be read: {error}", next_step="restore that file from an archive"
            ) from error

    async def run(self) -> None:
        """Record what was read in windows that have passed, until cancelled."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            await self.sweep()

    async def sweep(self) -> None:
        for window in list(self._windows.values()):
            if trio.current_time() - window.began >= WINDOW_SECONDS and not window.under_way:
                await self._end(window)

    async def finish(self) -> None:
        for window in list(self._windows.values()):
            await self._end(window)

    async def _window(self, person: Person, now: datetime, address: str) -> _Window:
        """The window under way, whose begin is on record. Asked of the policy each time: rights may have ended."""
        key = person.id, address
        begins = key not in self._windows
        what = {"tiles": {"tile_width": TILE_WIDTH, "window_seconds": int(WINDOW_SECONDS)}}
        await self._reading.require_read_audit(person, now, address, what, recorded=begins)
        if begins and len(self._windows) >= MAX_WINDOWS:
            await self._end(min(self._windows.values(), key=lambda window: window.under_way))  # the oldest of those
        return self._windows.setdefault(key, _Window(person, address, trio.current_time()))

    async def _end(self, window: _Window) -> None:
        if self._windows.pop((window.person.id, window.address), None) is None:
            return
        read = {
            "requests": window.requests,
            "bytes": window.bytes,
            "entry_bundles": window.entry_bundles,
            "lowest_entry": window.lowest_entry,
            "highest_entry": window.highest_entry,
        }
        details = {"client_address": window.address, "read": {"tiles": read}}
        event = Event("audit.read", "completed", actor=actor_of(window.person), details=details)
        try:
            await self._recorder.append(event)
        except GatewayError as error:
            log.warning("what was read of the log could not be recorded", who=window.person.id, error=error.detail)
