"""The inventory's sources as the operator configured them, and records of what changes in them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import structlog
import trio

from gateway.bell import Bell
from gateway.config import GatewayConfig
from gateway.errors import GatewayError, StartRefused
from gateway.placement import Placement
from gateway.recording import Event, Recorder
from policy.errors import InventoryRefused, InventoryUnavailable
from policy.inventory import Inventory
from policy.secret_files import read_secret_line
from policy.sources.document import DocumentSource
from policy.sources.file import FileSource
from policy.sources.https import make_client
from policy.sources.keeper import Condition, News, Sources
from policy.sources.netbox import NetboxFields, NetboxSource
from policy.sources.reading import Pace, Source
from policy.sources.settings import MAIN, FileTable, NetboxTable, SourceTable

START_SECONDS: Final = 2.0  # a source that takes longer is read while the gateway serves

log = structlog.get_logger("gateway.inventories")


async def open_sources(config: GatewayConfig, stack: AsyncExitStack) -> Sources:
    """All sources, nothing read yet. Errors: StartRefused, naming the source."""
    settings = config.inventory
    sources: list[Source] = [main_file(config)]
    for table in settings.sources:
        try:
            sources.append(await _source(config, table, stack))
        except (OSError, ValueError) as error:
            raise StartRefused(f"inventory source {table.name}: {error}") from error
    return Sources(
        sources,
        ask_again_seconds=settings.ask_again_seconds,
        ask_deadline_seconds=settings.ask_deadline_seconds,
    )


async def read_at_start(sources: Sources) -> None:
    """The file must be there and right; the others may be down, or hang. Errors: StartRefused."""
    try:
        await sources.refresh(MAIN)
    except (InventoryRefused, InventoryUnavailable) as error:
        raise StartRefused(str(error)) from error
    with trio.move_on_after(START_SECONDS):
        await sources.begin()
    for condition in sources.conditions():
        failure = condition.failure
        if failure is None and condition.age_seconds is None:
            failure = f"no answer within {START_SECONDS:g} s: what it may tell is denied until it answers; see to it"
        if failure is not None:
            log.warning("inventory source unavailable", source=condition.name, error=failure)


def main_file(config: GatewayConfig) -> FileSource:
    """The file that `[policy] inventory` names. What it says is believed however old; policies may differ."""
    settings = config.inventory
    pace = Pace(settings.refresh_seconds, max_age_seconds=None)
    return FileSource(MAIN, config.path(config.policy.inventory), pace, partial=not settings.is_alone)


async def _source(config: GatewayConfig, table: SourceTable, stack: AsyncExitStack) -> Source:
    pace = Pace(table.refresh_seconds, table.deadline_seconds, table.max_age_seconds)
    if isinstance(table, FileTable):
        return FileSource(table.name, config.path(table.path), pace, table.partial, table.hosts)
    trust_bundle = None if table.trust_bundle is None else str(config.path(table.trust_bundle))
    token = None if table.token_file is None else read_secret_line(config.path(table.token_file))
    scheme = table.token_scheme if isinstance(table, NetboxTable) else "Bearer"
    client = make_client(trust_bundle, None if token is None else f"{scheme} {token}")
    await stack.enter_async_context(client)
    if isinstance(table, NetboxTable):
        fields = NetboxFields(
            table.uuid, table.zone, table.classification, table.host, table.zones, table.classifications
        )
        return NetboxSource(table.name, table.url.rstrip("/"), client, pace, fields)
    return DocumentSource(table.name, table.url, client, pace, table.partial, table.hosts, table.max_bytes)


class InventoryNews:
    """Records each change of a source and each failure that follows a success; forgets what receipts said before."""

    def __init__(self, recorder: Recorder, placement: Placement, bell: Bell) -> None:
        self._bell = bell
        self._recorder = recorder
        self._placement = placement

    async def tell(self, news: News) -> None:
        """Never raises: a log that cannot take it must not end the task that keeps the inventory fresh."""
        self._placement.forget(news.moved)
        self._bell.ring()
        details: dict[str, Any] = {"source": news.source, "placement_forgotten": list(news.moved)}
        if news.failure is not None:
            log.warning("inventory source failed", source=news.source, error=news.failure)
            details["failure"] = news.failure[:2000]
        else:
            details |= {"digest": news.digest, "vms": news.vms, "hosts": news.hosts}
        outcome = "completed" if news.failure is None else "failed"
        try:
            await self._recorder.append(Event("inventory.source", outcome, details=details))
        except GatewayError as error:
            log.warning("a change of the inventory could not be recorded", error=error.detail)


def conditions_document(conditions: Sequence[Condition], inventory: Inventory) -> dict[str, Any]:
    """What is known, from where, how old; for the API."""
    return {
        "sources": [
            {
                "name": each.name,
                "age_seconds": each.age_seconds,
                "believed": each.believed,
                "failure": each.failure,
                "vms": each.vms,
                "hosts": each.hosts,
                "digest": each.digest,
            }
            for each in conditions
        ],
        "vms": len(inventory.vms),
        "hosts": len(inventory.hosts),
        "unknown_vms": len(inventory.unknown),
        "problems": list(inventory.problems),
    }
