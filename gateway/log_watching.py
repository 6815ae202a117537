"""Keeps an eye on the log's files while the gateway runs, and remembers outside of them what they were when it stopped.

    state_dir/log-seen      JSON: the newest checkpoint that was seen, and the size of each full bundle

Every second a slice of all files is looked at (`audit.watch`), so that each is within `log.watch_seconds`; what is
missing, shorter or altered stops admissions until it is back. At the next start, and before a failed log is used
again, the log must continue the checkpoint and have all those files: a folder put back from a backup is refused until
an operator removes `log-seen`, and says with it that entries may be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
import trio

from audit.checkpoint import Checkpoint, LogSigner, open_checkpoint
from audit.errors import AuditError, CheckpointError, LogError, LogTruncated
from audit.log import Log
from audit.watch import Watch
from certs.files import write_atomically
from gateway.committer import Committer
from gateway.errors import LogUnavailable, StartRefused
from transport.errors import UNDECODABLE

TICK_SECONDS: Final = 1.0
SAVE_SECONDS: Final = 60

log = structlog.get_logger("gateway.log_watching")

SizeBytes = Annotated[int, msgspec.Meta(ge=0, le=2**32)]


class _Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's content."""

    checkpoint: str
    bundle_sizes: tuple[SizeBytes, ...]


class LogWatching:
    """Of the log in `directory`, remembered in `seen_file`."""

    def __init__(self, directory: Path, seen_file: Path, signer: LogSigner, watch_seconds: int) -> None:
        """Errors: StartRefused, if the file is there and cannot be used."""
        self._seen_file = seen_file
        self._known, sizes = _read(seen_file, signer)
        self._watch = Watch(directory, sizes)
        self._checkpoint = directory / "checkpoint"
        self._is_begun = self._known is not None
        self._slices = max(1, int(watch_seconds / TICK_SECONDS))
        self._limiter = trio.CapacityLimiter(1)

    @property
    def known_bundles(self) -> int:
        """How many full bundles have been read and are watched."""
        return len(self._watch.sizes)

    def opening(self, open_log: Callable[[], Log]) -> Callable[[], Log]:
        """`open_log` with what is remembered as a condition. Errors of the result: LogError, OSError."""

        def open_and_check() -> Log:
            # Opening would begin another log, beneath the folder where a file system is to be mounted, say.
            if self._is_begun and not self._checkpoint.exists():
                raise LogTruncated(f"{self._checkpoint} is missing; mount or restore the log")
            opened = open_log()
            try:
                if self._known is not None:
                    opened.require_extends(self._known)
                self._watch.check_all()
            except BaseException:
                opened.close()
                raise
            self._is_begun = True
            return opened

        return open_and_check

    def let_go(self, bundles: int) -> None:
        """The log's first `bundles` were pruned, on record: they may be missing from now on."""
        self._watch.let_go(bundles)

    def require(self, known: Checkpoint) -> None:
        """From now on the log is opened only if it continues `known`, too, which somebody else showed us."""
        self._known = known

    async def run(self, committer: Committer) -> None:
        """Watch until cancelled."""
        while True:
            for _ in range(SAVE_SECONDS):
                await trio.sleep(TICK_SECONDS)
                await self.look(committer)
            await self.save(committer)

    async def look(self, committer: Committer) -> None:
        """One slice, and the files that grow. Damage stops the log until it is gone."""
        if committer.failed_because is not None:
            return  # reopening looks at everything
        try:
            await committer.read(lambda opened: opened.require_untouched())
            await trio.to_thread.run_sync(self._watch.check_slice, committer.size, self._slices, limiter=self._limiter)
        except LogUnavailable:
            pass  # the committer says so itself
        except (LogError, OSError) as error:
            await committer.distrust(str(error))

    async def save(self, committer: Committer) -> None:
        """Remember the log as it is. A failure is logged: what was remembered before is still true."""
        try:
            text = await committer.read(lambda opened: opened.checkpoint_text)
            content = msgspec.json.encode(_Seen(text, tuple(self._watch.sizes)))
            await trio.to_thread.run_sync(write_atomically, self._seen_file, content, limiter=self._limiter)
        except (LogUnavailable, OSError, AuditError) as error:
            log.warning("cannot remember the log's state", file=str(self._seen_file), error=str(error))


def _read(path: Path, signer: LogSigner) -> tuple[Checkpoint | None, list[int]]:
    try:
        seen = msgspec.json.decode(path.read_bytes(), type=_Seen)
        return open_checkpoint(seen.checkpoint, signer.verifiers), list(seen.bundle_sizes)
    except FileNotFoundError:
        return None, []
    except (OSError, CheckpointError, *UNDECODABLE) as error:
        raise StartRefused(
            f"{path} cannot be used ({error}); compare the log with checkpoints that others keep, then remove it"
        ) from error
