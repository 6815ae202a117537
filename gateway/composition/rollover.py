"""What can be rolled over at this gateway."""

from __future__ import annotations

from functools import partial

from gateway.config import GatewayConfig
from gateway.enrolment.files import Late
from gateway.enrolment.office import Office
from gateway.errors import StartRefused
from gateway.gate import Gate
from gateway.reporting import Reporting
from gateway.rollover.issuing import IssuingCa
from gateway.rollover.kinds import Kind
from gateway.rollover.places import Places
from gateway.rollover.steps import Rollovers


def make_rollovers(
    config: GatewayConfig, gate: Gate, office: Office | None, reporting: Reporting, change_tls: Late
) -> Rollovers:
    """CAs only where this gateway has one; others are their owners' to roll over."""
    kinds: dict[str, Kind] = {}
    if office is not None:
        tls = config.path(config.tls.certificate)
        issuing_ca = partial(
            IssuingCa,
            gate=gate,
            office=office,
            seen=reporting.seen,
            holdings=reporting.holdings,
            change_tls=change_tls,
            tls=tls,
        )
        kinds = {"issuing": issuing_ca(with_root=False), "root": issuing_ca(with_root=True)}
    return Rollovers(gate, kinds)


def mend_rollovers(config: GatewayConfig) -> None:
    """Finish what was cut off between two renames, before any file is read. Errors: StartRefused."""
    if config.enrolment is None:
        return
    try:
        Places(config.path(config.enrolment.authority)).mend()
    except OSError as error:
        raise StartRefused(f"a rollover that was cut off cannot be finished: {error}") from error
