"""Files of certificates that others rotate (step-ca, Vault, cert-manager, an operator): noticed, and taken whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

import structlog
import trio

from certs.changes import Marks, marks_of
from certs.crls import newest_crls
from certs.errors import CertificateError
from certs.files import read_certificates
from certs.verification import Trust
from gateway.config import GatewayConfig
from gateway.dispatch import Dispatch
from gateway.errors import StartRefused
from gateway.reloading import Reloader
from gateway.rollover.authorities import beside_files

LOOK_SECONDS: Final = 5.0
log = structlog.get_logger("gateway.enrolment")


class Late:
    """A call that is known only once what it belongs to has been made."""

    def __init__(self) -> None:
        self.call: Callable[[Callable[[], None] | None], Awaitable[None]] | None = None

    async def __call__(self, change: Callable[[], None] | None = None) -> None:
        assert self.call is not None
        await self.call(change)


def days_left(config: GatewayConfig, trust: Trust, now: datetime) -> dict[str, float]:
    """Of what would stop this gateway or its relays when it ends: by its kind, the one that ends first."""
    ends: dict[str, list[datetime]] = {
        "root": [anchor.not_valid_after_utc for anchor in trust.anchors],
        "issuing": [each.not_valid_after_utc for each in trust.intermediates],
        "crl": [crl.next_update_utc for crl in newest_crls(trust.crls) if crl.next_update_utc is not None],
    }
    try:
        ends["gateway"] = [read_certificates(config.path(config.tls.certificate))[0].not_valid_after_utc]
    except CertificateError:
        ends["gateway"] = []
    return {what: (min(moments) - now) / timedelta(days=1) for what, moments in ends.items() if moments}


def tls_marks(config: GatewayConfig) -> Marks:
    """To be taken before the files are read: what changes in between must be noticed."""
    tls = config.tls
    names = (tls.certificate, tls.private_key, tls.client_trust_bundle, *tls.crls)
    files = [config.path(name) for name in names]
    if config.enrolment is not None:
        beside = beside_files(config.path(config.enrolment.authority))
        files += [*beside.bundles, *beside.crls]
    return marks_of(files)


async def watch_tls_files(config: GatewayConfig, in_force: Marks, reloader: Reloader, dispatch: Dispatch) -> None:
    """For ever. A certificate without its key, or half a file, is refused and tried again at the next look."""
    refused: Marks | None = None
    while True:
        await trio.sleep(LOOK_SECONDS)
        found = await trio.to_thread.run_sync(tls_marks, config)
        if found == in_force:
            continue
        try:
            await reloader.reload_tls()
        except StartRefused as error:
            if found != refused:
                log.error("changed certificate files are refused; the old ones stay in force", error=str(error))
            refused = found
            continue
        in_force, refused = found, None
        dispatch.wake_all()
