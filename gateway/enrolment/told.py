"""What relays are told of trust: the roots and the newest CRLs, under a version by which they know if it is news."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import Encoding

from certs.crls import newest_crls
from certs.verification import Trust
from gateway.rollover.telling import NOTHING_ROLLS, Rolling


@dataclass(frozen=True, slots=True)
class ToldTrust:
    """PEM. Of a CRL that has ended nothing is hidden: the relay judges it."""

    version: str
    roots: str
    crls: tuple[str, ...]
    foreign_crls: dict[str, list[str]] = field(default_factory=dict)
    rolling: Rolling = NOTHING_ROLLS


def told_trust(trust: Trust, foreign_crls: dict[str, list[str]], rolling: Rolling = NOTHING_ROLLS) -> ToldTrust:
    """`foreign_crls`: of other sites, by trust domain."""
    roots = "".join(anchor.public_bytes(Encoding.PEM).decode() for anchor in trust.anchors)
    crls = tuple(sorted(crl.public_bytes(Encoding.PEM).decode() for crl in newest_crls(trust.crls)))
    foreign = [text for domain, texts in sorted(foreign_crls.items()) for text in (domain, *texts)]
    rolls = (*rolling.introductions, *rolling.leaving, "retired", *rolling.retired, *rolling.key_introductions)
    version = hashlib.sha256("\0".join((roots, *crls, *foreign, *rolls)).encode()).hexdigest()
    return ToldTrust(version, roots, crls, foreign_crls, rolling)
