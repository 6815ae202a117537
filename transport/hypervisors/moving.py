"""How a VM is to be moved: what both QEMUs are told of it, and what the source does while it moves.

Pure values and one pure function, `next_step`, that says from QEMU's own numbers when it is time for something.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from transport.hypervisors.migration_progress import MigrationProgress

MAX_MULTIFD_CHANNELS = 64
Compression = Literal["none", "zlib", "zstd"]


class Movement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What both QEMUs must be told alike. S says it in its Offer; neither relay believes in it beyond its own QEMU."""

    multifd_channels: Annotated[int, Meta(ge=0, le=MAX_MULTIFD_CHANNELS)] = 0
    multifd_compression: Compression = "none"
    xbzrle: bool = False
    post_copy: bool = False
    preempt: bool = False

    def problem(self) -> str | None:
        """Why no QEMU can do it, if none can."""
        if self.multifd_compression != "none" and not self.multifd_channels:
            return "compression is of multifd channels: ask for at least one"
        if self.multifd_channels and (self.post_copy or self.xbzrle):
            return "multifd goes with neither post-copy nor XBZRLE"
        if self.preempt and not self.post_copy:
            return "preempt is of post-copy: say after how many passes or seconds it begins"
        return None


class How(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a requester may choose of a move. None: as the gateway's configuration says, or never.

    `post_copy_after_passes`, `post_copy_after_seconds`: whichever comes first. `converge_within_seconds`: a pre-copy
    that still runs then meets `at_deadline`: it is cancelled, switched to post-copy, or the guest is paused for the
    rest of it. The permit's own deadline stands behind that and always cancels. `bandwidth_bytes_per_second` goes into
    the permit, if it is lower than what every permit says; 0 is no wish.
    """

    downtime_limit_ms: Annotated[int, Meta(ge=1, le=60_000)] | None = None
    converge_within_seconds: Annotated[int, Meta(ge=1, le=86_400)] | None = None
    at_deadline: Literal["cancel", "post-copy", "pause"] = "cancel"
    auto_converge: bool = False
    xbzrle: bool = False
    multifd_channels: Annotated[int, Meta(ge=0, le=MAX_MULTIFD_CHANNELS)] = 0
    multifd_compression: Compression = "none"
    post_copy_after_passes: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    post_copy_after_seconds: Annotated[int, Meta(ge=0, le=86_400)] | None = None
    preempt: bool = False
    post_copy_bytes_per_second: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0
    bandwidth_bytes_per_second: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0

    @property
    def may_post_copy(self) -> bool:
        """Whether the guest may come to run at the destination before all of its memory is there."""
        by_plan = self.post_copy_after_passes is not None or self.post_copy_after_seconds is not None
        return by_plan or self.at_deadline == "post-copy"

    @property
    def movement(self) -> Movement:
        return Movement(self.multifd_channels, self.multifd_compression, self.xbzrle, self.may_post_copy, self.preempt)

    def problem(self) -> str | None:
        """What is contradictory in it, if anything: the requester's to mend."""
        if self.at_deadline != "cancel" and self.converge_within_seconds is None:
            return "at_deadline needs converge_within_seconds"
        if self.post_copy_bytes_per_second and not self.may_post_copy:
            return "post_copy_bytes_per_second is of post-copy: say after how many passes or seconds it begins"
        return self.movement.problem()


PLAIN = Movement()  # pre-copy over one connection
AS_CONFIGURED = How()


def how_document(how: How) -> dict[str, int | str | bool]:
    """Only what was wished for, in its own names and units."""
    wishes: dict[str, int | str | bool] = msgspec.structs.asdict(how)
    return {name: value for name, value in wishes.items() if value != getattr(AS_CONFIGURED, name)}


class Step(Enum):
    """What the source does next."""

    WAIT = "wait"
    POST_COPY = "post-copy"
    PAUSE = "pause"
    CANCEL = "cancel"


_PRE_COPY = frozenset({"setup", "active"})


def next_step(how: How, seen: MigrationProgress, seconds: float) -> Step:
    """What is due after `seconds` of a migration of which QEMU says `seen`. Only `active` can be switched."""
    if seen.status not in _PRE_COPY:
        return Step.WAIT
    is_late = how.converge_within_seconds is not None and seconds >= how.converge_within_seconds
    if is_late and how.at_deadline == "cancel":
        return Step.CANCEL
    if seen.status != "active":
        return Step.WAIT
    passes, after = how.post_copy_after_passes, how.post_copy_after_seconds
    # QEMU counts the pass that it is in: the first is over when it counts two.
    if (passes is not None and seen.passes > passes) or (after is not None and seconds >= after):
        return Step.POST_COPY
    if is_late:
        return Step.POST_COPY if how.at_deadline == "post-copy" else Step.PAUSE
    return Step.WAIT
