"""SIGHUP: inventory, policy bundle, local people and TLS files are read again, each as a whole or not at all.

What was refused stays as it was; both are recorded. A migration that is under way keeps the permit that it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
import trio

from gateway.api.https import HttpsServer, TlsFiles, make_context
from gateway.config import GatewayConfig
from gateway.errors import GatewayError, StartRefused
from gateway.gate import Gate
from gateway.people import People
from gateway.publications import newest_published
from gateway.recording import Event
from gateway.relays import HostTrust
from gateway.reporting import Reporting
from policy.bundle import Bundle
from policy.errors import BundleRefused, DirectoryRefused, InventoryRefused, InventoryUnavailable
from policy.identity.directory_settings import read_credentials
from policy.identity.local import LocalDirectory
from policy.sources.settings import MAIN

log = structlog.get_logger("gateway.reloading")


def load_policy(config: GatewayConfig) -> Bundle:
    """What was published last, else the directory's. Errors: StartRefused, naming the file."""
    if (published := newest_published(config)) is not None:
        return published
    try:
        return Bundle.load(config.path(config.policy.bundle))
    except BundleRefused as error:
        raise StartRefused(str(error)) from error


class Reloader:
    """Puts new files in force in the running pieces."""

    def __init__(  # noqa: PLR0913, PLR0917 - its pieces
        self,
        config: GatewayConfig,
        gate: Gate,
        people: People,
        reporting: Reporting,
        server: HttpsServer,
        tls_files: Callable[[], TlsFiles],
        host_trust: Callable[[], HostTrust],
    ) -> None:
        self._config = config
        self._gate = gate
        self._people = people
        self._reporting = reporting
        self._server = server
        self._tls_files = tls_files
        self._host_trust = host_trust
        self.reload_delivery: Callable[[], list[str]] = list  # returns what was refused
        self.after_tls: Callable[[], None] = lambda: None
        self._lock = trio.Lock()

    def in_force(self) -> dict[str, Any]:
        """What decisions are made with now, for records."""
        bundle, inventory = self._gate.engine.bundle, self._gate.inventory
        return {
            "bundle": {"name": bundle.name, "version": bundle.version, "digest": bundle.digest},
            "inventory": {"hosts": len(inventory.hosts), "vms": len(inventory.vms)},
            "crl_number": self._gate.minimum_crl_number,
            **(
                {"observe": seen.document(self._gate.time.now())}
                if (seen := self._gate.observation) is not None
                else {}
            ),
            **({"people_sha256": local.directory.sha256} if (local := self._people.local) is not None else {}),
            **({"sealed_people_sha256": sealed.file.sha256} if (sealed := self._people.sealed) is not None else {}),
        }

    async def reload(self) -> None:
        """Read all files again. Never raises for what is in them: what is refused is recorded and stays as it was."""
        async with self._lock:
            refused: dict[str, str] = {}
            forgotten: list[str] = []
            for what, put_in_force in (
                ("inventory", self._reload_inventory),
                ("bundle", self._reload_bundle),
                ("people", self._reload_people),
                ("directory", self._reload_directory),
                ("tls", self._reload_tls),
                ("siem", self._reload_siem),
            ):
                try:
                    forgotten += await put_in_force()
                except (
                    InventoryRefused, InventoryUnavailable, BundleRefused, DirectoryRefused, StartRefused
                ) as error:  # fmt: skip
                    log.error("reload refused", what=what, error=str(error))
                    refused[what] = str(error)[:2000]
            details = {**self.in_force(), "refused": refused, "placement_forgotten": forgotten}
            try:
                await self._gate.recorder.append(
                    Event("config.reloaded", "failed" if refused else "completed", details=details)
                )
            except GatewayError as error:
                log.error("reload could not be recorded", error=error.detail)
            self._gate.bell.ring()
            log.info("reloaded", refused=sorted(refused))

    async def reload_tls(self, change: Callable[[], None] | None = None) -> None:
        """Only certificate, key, trust bundle and CRLs, all or none; what is refused stays. Errors: StartRefused.

        `change` is done to the files first, in a thread, while nobody else reads them; its errors are raised.
        """
        async with self._lock:
            if change is not None:
                await trio.to_thread.run_sync(change)
            before = self._reporting.trust.crl_number
            await self._reload_tls()
            self._gate.bell.ring()
        log.info("tls files are in force", crl_number=self._gate.minimum_crl_number, before=before)

    async def _reload_inventory(self) -> list[str]:
        """Returns the VMs whose host the operator changed: the file is newer than what receipts said of them.

        The other sources are asked as well; what comes of that they record themselves.
        """
        try:
            news = await self._gate.sources.refresh(MAIN)
        finally:
            await self._gate.sources.ask_again()
        moved = [] if news is None else list(news.moved)
        self._gate.placement.forget(moved)
        return moved

    async def _reload_bundle(self) -> list[str]:
        if self._config.policy.publishing is not None:
            return []  # what counts is published, and took effect then
        bundle = await trio.to_thread.run_sync(Bundle.load, self._config.path(self._config.policy.bundle))
        current = self._gate.engine.bundle
        if bundle.version < current.version:
            raise BundleRefused("bundle.toml", f"version {bundle.version} is older than {current.version} in force")
        self._gate.engine.swap(bundle)
        return []

    async def _reload_people(self) -> list[str]:
        local, name = self._people.local, self._config.identity.local_directory
        if local is not None and name is not None:
            local.directory = await trio.to_thread.run_sync(LocalDirectory.load, self._config.path(name))
        return []

    async def _reload_directory(self) -> list[str]:
        """The service account's password and the trust bundle; the other settings need a new start."""
        directory, settings = self._people.directory, self._config.identity.active_directory
        if directory is not None and settings is not None:
            directory.directory.use(await trio.to_thread.run_sync(read_credentials, settings, self._config.directory))
        return []

    async def _reload_tls(self) -> list[str]:
        """Certificate, key, trust bundle and CRLs belong together; connections that are open are judged by the new."""
        trust, context = self._host_trust(), make_context(self._tls_files())
        self._server.context = context
        self._reporting.put_in_force(trust)
        self._gate.minimum_crl_number = trust.crl_number
        self.after_tls()
        return []

    async def _reload_siem(self) -> list[str]:
        """Secrets and certificates of the sinks; which sinks there are, and what they get, needs a new start."""
        if refused := self.reload_delivery():
            raise StartRefused("; ".join(refused))
        return []
