"""What can be rolled over at this gateway."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from audit.checkpoint import LogSigner
from certs.errors import CertificateError
from gateway.composition.key_files import signing_kinds
from gateway.config import GatewayConfig
from gateway.enrolment.files import Late
from gateway.enrolment.office import Office
from gateway.errors import StartRefused
from gateway.gate import Gate
from gateway.reporting import Reporting
from gateway.rollover.issuing import IssuingCa
from gateway.rollover.kinds import Kind
from gateway.rollover.log_key import LogKeyRollover
from gateway.rollover.permit_key import PermitKeyRollover
from gateway.rollover.places import Places
from gateway.rollover.signing_keys import pinned
from gateway.rollover.steps import Rollovers


def make_rollovers(
    config: GatewayConfig, gate: Gate, signer: LogSigner, office: Office | None, reporting: Reporting, change_tls: Late
) -> Rollovers:
    """CAs only where this gateway has one; others are their owners' to roll over. Errors: StartRefused."""
    permit_keys, log_keys = signing_kinds(config)

    async def change(work: Callable[[], None]) -> None:
        await change_tls(work)
        rollovers.pinned = now = await trio.to_thread.run_sync(pinned, permit_keys, log_keys)
        if office is not None:
            office.pin(now)
        gate.dispatch.wake_all()

    key_rollover: dict[str, Any] = {
        "gate": gate,
        "signer": signer,
        "holdings": reporting.holdings,
        "change": change,
        "evacuation_seconds": 0 if config.evacuation is None else config.evacuation.max_hours * 3_600,
    }
    kinds: dict[str, Kind] = {
        "permit-key": PermitKeyRollover(permit_keys, **key_rollover),
        "log-key": LogKeyRollover(log_keys, log=config.path(config.log.directory), **key_rollover),
    }
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
        kinds = {"issuing": issuing_ca(with_root=False), "root": issuing_ca(with_root=True), **kinds}
    try:
        rollovers = Rollovers(gate, kinds, pinned(permit_keys, log_keys))
    except CertificateError as error:
        raise StartRefused(str(error)) from error
    return rollovers


def mend_rollovers(config: GatewayConfig) -> None:
    """Finish what was cut off between two renames, before any file is read. Errors: StartRefused."""
    names = [config.permits.signing_key, config.log.signing_key]
    names += [] if config.enrolment is None else [config.enrolment.authority]
    try:
        for name in names:
            Places(config.path(name)).mend()
    except OSError as error:
        raise StartRefused(f"a rollover that was cut off cannot be finished: {error}") from error
