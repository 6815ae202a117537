"""Whether an Offer's permits are good, in the order of docs/wire-protocol.md section 3; the first failure ends it.

Both relays run all of it offline against what the configuration pins. Single use (`used_permits`) comes last, at D.
Between hosts of two sites there are two permits, the source's gateway's and the destination's; each is held against the
keys pinned for its own site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from audit.checkpoint import LogVerifier, open_checkpoint
from audit.cosignature import CosignerKey, cosignatures, cosigners_of
from audit.errors import CheckpointError, ProofError
from audit.proof import leaf_hash, verify_inclusion
from policy.errors import PermitRefused
from policy.permit import (
    PermitClaims,
    PermitKey,
    VerifiedPermit,
    check_parties,
    check_times,
    paired,
    proof_entry,
    trust_domain_of,
    verify_permit,
)
from transport.errors import OfferRefused, RefusalCode
from transport.relay.pins import Pins
from transport.wire.control import Role

# What a relay can carry, by hypervisor.kind.
PORTS_OF_KIND: Final = {
    "qmp": frozenset({"disks", "memory"}),
    "sockets": frozenset({"memory"}),
    "libvirt": frozenset({"libvirt", "memory", "disks"}),
}

_CODES = {
    "size": RefusalCode.PERMIT_SIZE,
    "signature": RefusalCode.PERMIT_SIGNATURE,
    "key": RefusalCode.PERMIT_SIGNATURE,
    "algorithm": RefusalCode.PERMIT_SIGNATURE,
    "audience": RefusalCode.PERMIT_AUDIENCE,
    "times": RefusalCode.PERMIT_TIMES,
    "source": RefusalCode.PERMIT_PARTIES,
    "destination": RefusalCode.PERMIT_PARTIES,
    "vm": RefusalCode.PERMIT_VM,
    "ports": RefusalCode.PERMIT_PORTS,
}


@dataclass(frozen=True, slots=True)
class SitePins:
    """What this relay pins of another site. `crl_number`: of the CRL of that site's hosts that it holds."""

    permit_keys: tuple[PermitKey, ...]
    log_verifiers: tuple[LogVerifier, ...]
    crl_number: Callable[[], int]


@dataclass(slots=True)
class PermitDesk:
    """What this relay pins and can do. `crl_number`: the lowest CRL number that it holds; `clock`: unix seconds.

    `seals`: how its lanes may be sealed. `sites`: other sites, by trust domain. Pinned keys are replaced as a whole
    when the gateway rolls them over.
    """

    trust_domain: str
    permit_keys: tuple[PermitKey, ...]
    log_verifiers: tuple[LogVerifier, ...]
    witness_keys: tuple[CosignerKey, ...]
    witnesses_required: int
    can_bind_vm: bool
    crl_number: Callable[[], int]
    clock: Callable[[], int]
    supported_ports: frozenset[str] = PORTS_OF_KIND["qmp"]
    seals: frozenset[str] = frozenset({"sealane"})
    sites: Mapping[str, SitePins] = field(default_factory=dict)

    def verify(
        self, token: str, other: str | None = None, *, source: str | None, destination: str | None
    ) -> VerifiedPermit:
        """The permit of this site's gateway, if it is good between these two SPIFFE ids. Raises `OfferRefused`.

        At S, before it has dialled, `destination` is None: the permit itself says where to go, and the peer's
        certificate is held against it after the handshake. `other`: the other site's permit, which must be there where
        a host of another site takes part, and must not where none does.
        """
        with _refusing_offer():
            permit = verify_permit(token, self.permit_keys)
            self._check_claims(permit, source, destination)
            site = self._other_site(permit)
            if (site is None) != (other is None):
                what = "the other site's permit is missing" if other is None else "a second permit within one site"
                raise PermitRefused("form", what)
        if not set(permit.claims.ports) <= self.supported_ports:
            able = ", ".join(sorted(self.supported_ports))
            raise OfferRefused(RefusalCode.PERMIT_PORTS, f"this relay carries these ports only: {able}")
        _check_proof(permit, self.log_verifiers, self.witness_keys, self.witnesses_required)
        self._check_requirements(permit, self.crl_number)
        if site is None or other is None:
            return permit
        return self._with_other(permit, other, site)

    def _with_other(self, permit: VerifiedPermit, token: str, site: SitePins) -> VerifiedPermit:
        """Everything again, by what is pinned for the other site; then that both are of one migration."""
        with _refusing_offer("of the other site's permit: "):
            other = verify_permit(token, site.permit_keys)
            self._check_claims(other, permit.claims.source, permit.claims.destination)
        _check_proof(other, site.log_verifiers)
        self._check_requirements(other, site.crl_number)
        with _refusing_offer("of the other site's permit: "):
            return paired(permit, other)

    def verify_other(self, token: str, trust_domain: str) -> VerifiedPermit:
        """Another site's permit by itself, by what is pinned for that site. Raises `OfferRefused`."""
        if (site := self.sites.get(trust_domain)) is None:
            raise OfferRefused(RefusalCode.PERMIT_PARTIES, f"no site {trust_domain} is configured")
        with _refusing_offer():
            permit = verify_permit(token, site.permit_keys)
            self._check_claims(permit, None, None)
        _check_proof(permit, site.log_verifiers)
        return permit

    def _check_claims(self, permit: VerifiedPermit, source: str | None, destination: str | None) -> None:
        claims = permit.claims
        if claims.aud != claims.destination:
            raise PermitRefused("audience", "audience and destination differ")
        check_times(claims, self.clock())
        check_parties(claims, source or claims.source, destination or claims.destination)

    @property
    def pins(self) -> Pins:
        """Of this site's gateway."""
        return Pins(self.permit_keys, self.log_verifiers)

    def pin(self, pins: Pins) -> None:
        """From now on."""
        self.permit_keys, self.log_verifiers = pins.permit_keys, pins.log_verifiers

    def reopen(self, token: str, other: str | None) -> VerifiedPermit:
        """The permits of a session that this relay has begun: its end is owed whatever the time is. `PermitRefused`."""
        permit = verify_permit(token, self.permit_keys)
        if other is None:
            return permit
        site = self._other_site(permit)
        return paired(permit, verify_permit(other, site.permit_keys if site is not None else ()))

    def _other_site(self, permit: VerifiedPermit) -> SitePins | None:
        """Which other site takes part, None for none. PermitRefused: neither host is ours, or the other is unknown."""
        domains = {trust_domain_of(permit.claims.source), trust_domain_of(permit.claims.destination)}
        if self.trust_domain not in domains:
            raise PermitRefused("destination", "neither host is of this site")
        others = domains - {self.trust_domain}
        if not others:
            return None
        if (site := self.sites.get(name := others.pop())) is None:
            raise PermitRefused("destination", f"no site {name} stands in this relay's [[sites]]")
        return site

    def _check_requirements(self, permit: VerifiedPermit, crl_number: Callable[[], int]) -> None:
        """What the policy requires and this relay cannot do is a refusal, never left out in silence."""
        claims = permit.claims
        wanted = claims.requirements
        unmet: Sequence[tuple[bool, str]] = (
            (claims.seal not in self.seals, f"lanes sealed by {claims.seal}, which [network] seals does not name"),
            (wanted.stream_inspection, "stream inspection"),
            (wanted.vm_binding and not self._binds_vm(claims), "checking the VM's UUID (hypervisor kind qmp)"),
            (claims.minimum_crl_number > crl_number(), "a newer CRL than this relay holds"),
        )
        for is_unmet, what in unmet:
            if is_unmet:
                raise OfferRefused(RefusalCode.PERMIT_REQUIREMENTS, f"the permit requires {what}")

    def _binds_vm(self, claims: PermitClaims) -> bool:
        """Nobody can say which VM a program's stream is of."""
        return self.can_bind_vm and claims.moves_guest


def verify_past(token: str, pins: Pins) -> VerifiedPermit:
    """Signature, form and proof alone: of a permit that was used, whenever that was. Raises `OfferRefused`."""
    with _refusing_offer():
        permit = verify_permit(token, pins.permit_keys)
    _check_proof(permit, pins.log_verifiers)
    return permit


def _check_proof(
    permit: VerifiedPermit,
    logs: tuple[LogVerifier, ...],
    witness_keys: tuple[CosignerKey, ...] = (),
    witnesses_required: int = 0,
) -> None:
    """The permit's own entry must be in a pinned log: proof of a denial or of a sibling proves nothing."""
    proof = permit.proof
    try:
        checkpoint = open_checkpoint(proof.checkpoint, logs)
        witnesses = cosigners_of(cosignatures(proof.checkpoint, witness_keys))
        if len(witnesses) < witnesses_required:
            raise CheckpointError(f"{len(witnesses)} of {witnesses_required} required witnesses cosigned it")
        leaf = leaf_hash(proof_entry(permit))
        verify_inclusion(leaf, proof.index, checkpoint.size, proof.path_hashes(), checkpoint.root)
    except (CheckpointError, ProofError) as error:
        raise OfferRefused(RefusalCode.PERMIT_PROOF, f"the proof of its log entry fails: {error}") from None
    if proof.decision_index >= proof.index:
        raise OfferRefused(RefusalCode.PERMIT_PROOF, "the decision does not come before the permit's entry")


def permits_in_offer(permit: VerifiedPermit, role: Role) -> tuple[str, ...]:
    """The texts as an Offer has them: the source's gateway's first, then the destination's. `role`: this relay's."""
    if permit.other is None:
        return (permit.token,)
    own_first = (permit.token, permit.other.token)
    return own_first if role is Role.SOURCE else own_first[::-1]


def other_in_journal(permit: VerifiedPermit) -> dict[str, str]:
    """What a session's journal says of the other site's permit, beside `permit`."""
    return {} if permit.other is None else {"other_permit": permit.other.token}


@contextmanager
def _refusing_offer(whose: str = "") -> Iterator[None]:
    """In the words of the wire what is refused inside."""
    try:
        yield
    except PermitRefused as refused:
        code = _CODES.get(refused.check, RefusalCode.PERMIT_FORMAT)
        raise OfferRefused(code, whose + refused.detail) from None
