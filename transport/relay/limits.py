"""The bounds and deadlines of a relay, a section of its configuration file."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0, le=30 * 86400)]
Count = Annotated[int, Meta(ge=1, le=65536)]


class LimitsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Each has its unit in its name; docs/relay.md says what each is for.

    `bandwidth_bytes_per_second`: of all that this host sends, 0 for no limit. `max_moves`: of how many VMs at once;
    others wait for `queue_seconds`, and no longer than their permits may begin.

    `first_connection_seconds`: until a program connects to a port that was opened for it, a named one or, where the
    relay only carries (hypervisor.kind "sockets"), any.

    `resume_seconds`: for how long a session whose connection was lost tries to go on over another, 0 for never;
    `silence_seconds`: after how much silence of the peer's kernel a connection counts as lost;
    `unacknowledged_seconds`: the same where that has all that was sent, and the peer's relay acknowledges none of it,
    longer each time, up to sixteen times as long; `window_bytes`: what each channel
    may have under way, and keeps until the peer has acknowledged it; `lane_memory_bytes`: what all sessions together
    may keep of large frames that are under way, left out: three windows; `max_further_lanes`: of all sessions
    together, beyond the one that each has in any case, and of one session no more than are left.

    `seal_threads`: for frames of several channels at once, 0 for none; left out, one for each core but one where there
    are four or more.
    """

    handshake_seconds: Seconds = 10.0
    message_seconds: Seconds = 30.0
    dial_seconds: Seconds = 5.0
    hypervisor_seconds: Seconds = 30.0
    migration_deadline_seconds: Seconds = 3600.0
    settle_retry_seconds: Seconds = 5.0
    resume_seconds: Annotated[float, Meta(ge=0, le=86400)] = 60.0
    silence_seconds: Annotated[float, Meta(ge=2, le=300)] = 6.0
    unacknowledged_seconds: Annotated[float, Meta(ge=2, le=3600)] = 10.0
    window_bytes: Annotated[int, Meta(ge=8 << 20, le=256 << 20)] = 16 << 20
    lane_memory_bytes: Annotated[int, Meta(ge=24 << 20, le=64 << 30)] | None = None
    seal_threads: Annotated[int, Meta(ge=0, le=64)] | None = None
    drain_seconds: Seconds = 30.0
    stop_seconds: Seconds = 10.0
    remember_outcome_seconds: Seconds = 30 * 86400.0
    ack_interval_seconds: Annotated[float, Meta(ge=0.01, le=0.1)] = 0.1
    bandwidth_bytes_per_second: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0
    max_moves: Count = 32
    queue_seconds: Seconds = 600.0
    first_connection_seconds: Seconds = 120.0
    max_sessions: Count = 64
    max_further_lanes: Count = 64
    max_channels: Annotated[int, Meta(ge=1, le=256)] = 64
    max_callers: Count = 128
    max_unauthenticated: Count = 256
    max_unauthenticated_per_address: Count = 64
    handshakes_per_second: Count = 100

    def may_ask_again(self, left_seconds: float) -> bool:
        """Whether a connection may be given up for a peer's silence alone: another one may be had, and what is left of
        the session for that is not cut short."""
        return self.resume_seconds > 0 and left_seconds >= min(self.resume_seconds, self.unacknowledged_seconds)
