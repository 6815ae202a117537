"""Bundles that are signed, approved and published: checked, kept, put in force without a restart, and recorded.

Where `[policy.publishing]` is configured, the directory `policy.bundle` is only what the gateway began with: from the
first publication on nothing but a newer publication replaces it. A publication is recorded before it is in force, and
in force only if it will be again after a restart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

from gateway.asking import decide
from gateway.bell import Bell
from gateway.config import GatewayConfig
from gateway.deciding import decision_document
from gateway.errors import NotAllowed, NotKnown, OperatorError, RequesterError
from gateway.publications import Kept, PublicationStore, SignersUnusable, keep, read_signers, store_of
from gateway.recording import Clock, Event, Recorder, actor_of, identity_of
from gateway.shadowing import Shadow
from gateway.turns import Turns
from policy.bundle import Bundle
from policy.engine import Engine
from policy.errors import BundleRefused
from policy.facts import Context, Person, Question
from policy.publication import decode_publication

ACTION: Final = "PublishPolicy"
Arrive = Callable[[], Awaitable[tuple[bytes, Person]]]  # the body, and its sender as they are known once it is there

log = structlog.get_logger("gateway.publishing")


class PublicationRefused(RequesterError):
    code = "publication_refused"
    status = 409
    next_step = "have the author of the bundle correct it"


class PublicationNotTaken(OperatorError):
    """The gateway's own file of signers, or its disk, is in the way: nothing is wrong with the bundle."""

    code = "publication_not_taken"
    next_step = "mend that at the gateway, then publish the same file again"


class PublishingOff(RequesterError):
    code = "publishing_off"
    status = 409
    next_step = "ask the operator: the gateway's configuration has no [policy.publishing]"

    def __init__(self) -> None:
        super().__init__("at this gateway policies come from its own directory alone")


class Publishing:
    """What people may do with the gateway's policy, each step behind Cedar's PublishPolicy and in the log."""

    def __init__(self, engine: Engine, config: GatewayConfig, recorder: Recorder, clock: Clock, bell: Bell) -> None:
        """Errors: StartRefused."""
        self._engine = engine
        self._recorder = recorder
        self._clock = clock
        self._bell = bell
        self._turns = Turns(1, 1)
        self.shadow = Shadow()
        table = config.policy.publishing
        self._approvals = 0 if table is None else table.approvals
        self._signers_file = None if table is None else config.path(table.signers)
        self._store = None if table is None else store_of(config)
        if self._store is not None:
            self._store.begin()

    async def publish(self, person: Person, arrive: Arrive, address: str) -> dict[str, Any]:
        """Check, record and put in force. `arrive`: awaited once its sender may publish, which is asked again then.

        Errors: NotAllowed, PublicationRefused, PublicationNotTaken (all recorded), Overloaded, LogUnavailable.
        """
        await self._require(person, address, "policy.published")
        store = self._need_store()
        data, person = await arrive()
        async with self._turns.of(person.id):  # the version is compared with the one in force
            await self._require(person, address, "policy.published")
            try:
                kept = await trio.to_thread.run_sync(self._check, data)
                await trio.to_thread.run_sync(store.prepare, kept.publication)
            except (BundleRefused, OSError) as error:
                await self._refuse("policy.published", person, address, error)
            replaced = self._engine.bundle
            details = {**kept.document(), "replaced": {"version": replaced.version, "digest": replaced.digest}}
            if (tried := self.shadow.document()) is not None and tried["digest"] == kept.bundle.digest:
                details["shadow"] = tried
            with trio.CancelScope(shield=True):  # once recorded it comes into force, whatever becomes of the request
                recorded = await self._record("policy.published", "completed", person, address, details)
                try:
                    await trio.to_thread.run_sync(store.finish, kept.bundle.version)
                except OSError as error:
                    await self._refuse("policy.published", person, address, error)
                self._engine.swap(kept.bundle)
                if "shadow" in details:
                    self.shadow.end()  # it would be held against itself
        self._bell.ring()
        log.info("policy published", version=kept.bundle.version, digest=kept.bundle.digest)
        return {**details, "record_index": recorded}

    async def begin_shadow(self, person: Person, arrive: Arrive, address: str) -> dict[str, Any]:
        """Evaluate a candidate beside the live bundle from now on. It decides nothing, so it needs no signature.

        Errors: NotAllowed, PublicationRefused (both recorded), Overloaded, LogUnavailable.
        """
        await self._require(person, address, "policy.shadowed")
        data, person = await arrive()
        await self._require(person, address, "policy.shadowed")
        try:
            bundle = await trio.to_thread.run_sync(_bundle_of, data)
        except BundleRefused as error:
            await self._refuse("policy.shadowed", person, address, error)
        facts = {"name": bundle.name, "version": bundle.version, "digest": bundle.digest}
        async with self._turns.of(person.id):
            with trio.CancelScope(shield=True):
                recorded = await self._record("policy.shadowed", "completed", person, address, facts)
                self.shadow.begin(bundle, self._clock.wall())
        return {**facts, "record_index": recorded}

    async def end_shadow(self, person: Person, address: str) -> dict[str, Any]:
        """Errors: NotAllowed (recorded), NotKnown, Overloaded, LogUnavailable."""
        await self._require(person, address, "policy.shadow_ended")
        async with self._turns.of(person.id):
            if (seen := self.shadow.document()) is None:
                raise NotKnown("no candidate is evaluated here", next_step="begin with `sealane policy shadow DIR`")
            with trio.CancelScope(shield=True):
                recorded = await self._record("policy.shadow_ended", "completed", person, address, {"shadow": seen})
                self.shadow.end()
        return {**seen, "record_index": recorded}

    async def state(self, person: Person, address: str) -> dict[str, Any]:
        """What is in force, what was, what is tried. Errors: NotAllowed (recorded)."""
        await self._require(person, address, "policy.read")
        bundle = self._engine.bundle
        return {
            "in_force": {
                "name": bundle.name,
                "version": bundle.version,
                "digest": bundle.digest,
                "policies": len(bundle.policies),
            },
            "published_versions": self._store.versions() if self._store is not None else [],
            "approvals_required": self._approvals,
            "shadow": self.shadow.document(),
        }

    async def version(self, person: Person, version: int, address: str) -> bytes:
        """A publication that was in force. Errors: NotAllowed (recorded), NotKnown."""
        await self._require(person, address, "policy.read")
        try:
            publication = await trio.to_thread.run_sync(self._need_store().read, version)
        except FileNotFoundError as error:
            raise NotKnown(f"version {version} was never published here") from error
        return publication.encode()

    def _check(self, data: bytes) -> Kept:
        """In a thread: it parses policies and runs their tests. Raises BundleRefused, OSError."""
        assert self._signers_file is not None
        kept = keep(decode_publication(data), read_signers(self._signers_file), self._approvals)
        current = self._engine.bundle
        if kept.bundle.name != current.name:
            raise BundleRefused("bundle.toml", f"is named {kept.bundle.name}; the one in force {current.name}")
        if kept.bundle.version <= current.version:
            raise BundleRefused(
                "bundle.toml",
                f"version {kept.bundle.version} is not above {current.version}, which is in force: "
                "a roll-back is a new version, too (`sealane policy rollback`)",
            )
        return kept

    def _need_store(self) -> PublicationStore:
        if self._store is None:
            raise PublishingOff
        return self._store

    async def _require(self, person: Person, address: str, kind: str) -> None:
        decision = decide(self._engine, Question(ACTION, person, None, None, None, Context(time=self._clock.wall())))
        if not decision.allowed:
            details = {"decision": decision_document(decision)}
            recorded = await self._record(kind, "denied", person, address, details)
            raise NotAllowed("publishing policy is denied", decision.denied_because, recorded)

    async def _refuse(self, kind: str, person: Person, address: str, error: BundleRefused | OSError) -> Any:
        words = (error.detail if isinstance(error, SignersUnusable) else str(error))[:2000]
        index = await self._record(kind, "failed", person, address, {"refused_because": words})
        ours = isinstance(error, SignersUnusable | OSError)
        raise (PublicationNotTaken if ours else PublicationRefused)(f"{words} (record {index})") from error

    async def _record(self, kind: str, outcome: str, person: Person, address: str, details: dict[str, Any]) -> int:
        facts = {**details, "client_address": address, **identity_of(person)}
        recorded = await self._recorder.append(Event(kind, outcome, actor=actor_of(person), details=facts))
        return recorded.index


def _bundle_of(data: bytes) -> Bundle:
    return Bundle.from_files(decode_publication(data).files)
