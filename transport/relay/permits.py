"""Whether an Offer's permit is good, in the order of docs/wire-protocol.md section 2; the first failure ends it.

Both relays run all of it offline against what the configuration pins. Single use (`used_permits`) comes last, at D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from audit.checkpoint import LogVerifier, open_checkpoint
from audit.cosignature import CosignerKey, cosignatures, cosigners_of
from audit.errors import CheckpointError, ProofError
from audit.proof import leaf_hash, verify_inclusion
from policy.errors import PermitRefused
from policy.permit import (
    PermitKey,
    VerifiedPermit,
    check_parties,
    check_times,
    proof_entry,
    verify_permit,
)
from transport.errors import OfferRefused, RefusalCode

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
class PermitDesk:
    """What this relay pins and can do. `crl_number`: the lowest CRL number that it holds; `clock`: unix seconds."""

    permit_keys: tuple[PermitKey, ...]
    log_verifiers: tuple[LogVerifier, ...]
    witness_keys: tuple[CosignerKey, ...]
    witnesses_required: int
    can_bind_vm: bool
    crl_number: Callable[[], int]
    clock: Callable[[], int]
    supported_ports: frozenset[str] = PORTS_OF_KIND["qmp"]

    def verify(
        self, token: str, *, source: str | None, destination: str | None, settling: bool = False
    ) -> VerifiedPermit:
        """The permit, if it is good between these two SPIFFE ids. Raises `OfferRefused`.

        At S, before it has dialled, `destination` is None: the permit itself says where to go, and the peer's
        certificate is held against it after the handshake. A session that is settled only ends what was begun:
        its times are not looked at, or a guest would be left paused for ever.
        """
        try:
            permit = verify_permit(token, self.permit_keys)
            claims = permit.claims
            if claims.aud != claims.destination:
                raise PermitRefused("audience", "audience and destination differ")
            if not settling:
                check_times(claims, self.clock())
            check_parties(claims, source or claims.source, destination or claims.destination)
        except PermitRefused as refused:
            code = _CODES.get(refused.check, RefusalCode.PERMIT_FORMAT)
            raise OfferRefused(code, refused.detail) from None
        if not set(claims.ports) <= self.supported_ports:
            able = ", ".join(sorted(self.supported_ports))
            raise OfferRefused(RefusalCode.PERMIT_PORTS, f"this relay carries these ports only: {able}")
        self._check_proof(permit)
        self._check_requirements(permit)
        return permit

    def _check_proof(self, permit: VerifiedPermit) -> None:
        """The permit's own entry must be in a pinned log: proof of a denial or of a sibling proves nothing."""
        proof = permit.proof
        try:
            checkpoint = open_checkpoint(proof.checkpoint, self.log_verifiers)
            witnesses = cosigners_of(cosignatures(proof.checkpoint, self.witness_keys))
            if len(witnesses) < self.witnesses_required:
                raise CheckpointError(f"{len(witnesses)} of {self.witnesses_required} required witnesses cosigned it")
            leaf = leaf_hash(proof_entry(permit))
            verify_inclusion(leaf, proof.index, checkpoint.size, proof.path_hashes(), checkpoint.root)
        except (CheckpointError, ProofError) as error:
            raise OfferRefused(RefusalCode.PERMIT_PROOF, f"the proof of its log entry fails: {error}") from None
        if proof.decision_index >= proof.index:
            raise OfferRefused(RefusalCode.PERMIT_PROOF, "the decision does not come before the permit's entry")

    def _check_requirements(self, permit: VerifiedPermit) -> None:
        """What the policy requires and this relay cannot do is a refusal, never left out in silence."""
        claims = permit.claims
        wanted = claims.requirements
        unmet: Sequence[tuple[bool, str]] = (
            (wanted.content_digest, "content digests"),
            (wanted.stream_inspection, "stream inspection"),
            (wanted.vm_binding and not self.can_bind_vm, "checking the VM's UUID (hypervisor kind qmp)"),
            (claims.minimum_crl_number > self.crl_number(), "a newer CRL than this relay holds"),
        )
        for is_unmet, what in unmet:
            if is_unmet:
                raise OfferRefused(RefusalCode.PERMIT_REQUIREMENTS, f"the permit requires {what}")
