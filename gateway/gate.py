"""What admission works with: the pieces of a running gateway, and what every permit of it says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec

from certs.tls import CIPHER as TLS_CIPHER
from gateway.bell import Bell
from gateway.dispatch import Dispatch
from gateway.inspections import Inspections
from gateway.migrations import Migrations
from gateway.observing import Observation
from gateway.people import People
from gateway.placement import Placement
from gateway.recording import Clock, Recorded, Recorder
from gateway.shadowing import Shadow
from gateway.sites.settings import Sites
from gateway.steady import SteadyTime
from policy.engine import Engine
from policy.facts import Protection
from policy.inventory import Inventory
from policy.permit import Limits, PermitProof, Requirements, Seal
from policy.sources.keeper import Sources
from transport.hypervisors.moving import How
from transport.wire.frames import CIPHER

if TYPE_CHECKING:
    from gateway.break_glass.glass import BreakGlass  # it takes steps with a gate


@dataclass(frozen=True, slots=True)
class PermitTerms:
    """What every permit of this site says. Durations in seconds, from the moment of the decision."""

    issuer: str
    private_key: ec.EllipticCurvePrivateKey
    key_id: str
    lifetime_seconds: int
    session_seconds: int
    recover_seconds: int
    downtime_limit_ms: int
    limits: Limits
    how: How
    requirements: Requirements
    seal: Seal = "sealane"

    @property
    def protection(self) -> Protection:
        """What policies see of it: whatever else is negotiated ends the session."""
        cipher = TLS_CIPHER if self.seal == "tls" else CIPHER
        return Protection(lane_cipher=cipher, vm_binding=self.requirements.vm_binding)


@dataclass(slots=True)
class Gate:
    """All that admission works with. `minimum_crl_number` is replaced at a reload; `sources` keep themselves fresh.

    `break_glass`, `observation`, `shadow`, `sites`: None where there is none. `time`: for what must end in time.
    `preflight_first`: whether hosts are asked if the VM can move, before a permit is given.
    `bell`: rings when something changed that running migrations stand on. `is_revoked`: whether the certificate that a
    host last showed has been revoked, or all that it had.
    """

    people: People
    engine: Engine
    sources: Sources
    placement: Placement
    migrations: Migrations
    dispatch: Dispatch
    recorder: Recorder
    prove: Callable[[Recorded], Awaitable[PermitProof]]  # the proof of the permit entry after this decision
    terms: PermitTerms
    clock: Clock
    new_id: Callable[[], str]
    relay_silence_seconds: float
    minimum_crl_number: int
    inspections: Inspections
    time: SteadyTime
    bell: Bell
    preflight_first: bool = False
    break_glass: BreakGlass | None = None
    observation: Observation | None = None
    shadow: Shadow | None = None
    sites: Sites | None = None
    own_trust_domain: str = ""
    is_revoked: Callable[[str], bool] = lambda _host: False

    @property
    def inventory(self) -> Inventory:
        """What is known now of VMs and hosts."""
        return self.sources.inventory
