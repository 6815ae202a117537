"""Bundles that are signed, approved and published: checked, kept, put in force without a restart, and recorded.

```
state_dir/policy/0000000007.json     every publication that was ever in force, by its version; the newest is
state_dir/policy/pending.json        one that was being put in force when the gateway ended; forgotten at its start
```
Where `[policy.publishing]` is configured, the directory `policy.bundle` is only what the gateway began with: from the
first publication on nothing but a newer publication replaces it. A publication is recorded before it is in force, and
in force only if it will be again after a restart.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from certs.files import sync_directory, write_atomically
from gateway.asking import decide
from gateway.bell import Bell
from gateway.config import GatewayConfig
from gateway.deciding import decision_document
from gateway.errors import NotAllowed, NotKnown, RequesterError, StartRefused
from gateway.recording import Clock, Event, Recorder, actor_of, identity_of
from gateway.shadowing import Shadow
from policy.bundle import Bundle
from policy.engine import Engine
from policy.errors import BundleRefused
from policy.facts import Context, Person, Question
from policy.publication import (
    MAX_PUBLICATION_BYTES,
    BundleName,
    Publication,
    Signed,
    Signers,
    check_signatures,
    decode_publication,
)

ACTION: Final = "PublishPolicy"
ReadBody = Callable[[], Awaitable[bytes]]
_PENDING: Final = "pending.json"
_VERSION: Final = re.compile(r"(\d{10})\.json")

log = structlog.get_logger("gateway.publishing")


class PublicationRefused(RequesterError):
    code = "publication_refused"
    status = 409
    next_step = "have the author of the bundle correct it"


class PublishingOff(RequesterError):
    code = "publishing_off"
    status = 409
    next_step = "ask the operator: the gateway's configuration has no [policy.publishing]"

    def __init__(self) -> None:
        super().__init__("at this gateway policies come from its own directory alone")


@dataclass(frozen=True, slots=True)
class Kept:
    """A publication with the bundle that came of it."""

    publication: Publication
    bundle: Bundle
    signed: Signed

    def document(self) -> dict[str, Any]:
        """As records and the API tell it."""
        bundle = self.bundle
        return {
            "name": bundle.name,
            "version": bundle.version,
            "digest": bundle.digest,
            "policies": len(bundle.policies),
            "tests_passed": bundle.tests_passed,
            "author": self.signed.author,
            "approvers": list(self.signed.approvers),
        }


class PublicationStore:
    """The folder of what was published."""

    def __init__(self, folder: Path) -> None:
        """Raises StartRefused."""
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (pending := folder / _PENDING).exists():
                log.warning("a publication had not been finished when the gateway ended; publish it again")
                pending.unlink()
        except OSError as error:
            raise StartRefused(f"{folder}: {error.strerror}") from error

    def versions(self) -> list[int]:
        """Rising."""
        return sorted(int(match[1]) for path in self._folder.iterdir() if (match := _VERSION.fullmatch(path.name)))

    def read(self, version: int) -> Publication:
        """Raises BundleRefused, OSError; FileNotFoundError for one that there never was."""
        with (self._folder / f"{version:010}.json").open("rb") as file:
            return decode_publication(file.read(MAX_PUBLICATION_BYTES + 1))

    def prepare(self, publication: Publication) -> None:
        """Durable, but not in force after a restart."""
        write_atomically(self._folder / _PENDING, publication.encode(), 0o600)

    def finish(self, version: int) -> None:
        """In force after a restart, too."""
        (self._folder / _PENDING).rename(self._folder / f"{version:010}.json")
        sync_directory(self._folder)


class Publishing:
    """What people may do with the gateway's policy, each step behind Cedar's PublishPolicy and in the log."""

    def __init__(self, engine: Engine, config: GatewayConfig, recorder: Recorder, clock: Clock, bell: Bell) -> None:
        self._engine = engine
        self._recorder = recorder
        self._clock = clock
        self._bell = bell
        self._lock = trio.Lock()
        self.shadow = Shadow()
        table = config.policy.publishing
        self._approvals = 0 if table is None else table.approvals
        self._signers_file = None if table is None else config.path(table.signers)
        self._store = None if table is None else store_of(config)

    @property
    def is_on(self) -> bool:
        return self._store is not None

    async def publish(self, person: Person, read: ReadBody, address: str) -> dict[str, Any]:
        """Check, record and put in force. `read`: the body, once its sender may publish.

        Errors: NotAllowed, PublicationRefused (both recorded), LogUnavailable.
        """
        await self._require(person, address, "policy.published")
        store = self._need_store()
        data = await read()
        async with self._lock:  # the version is compared with the one in force
            # Again: while the body was on its way, a policy may have come into force by which they may not.
            await self._require(person, address, "policy.published")
            try:
                kept = await trio.to_thread.run_sync(self._check, data)
                await trio.to_thread.run_sync(store.prepare, kept.publication)
            except (BundleRefused, OSError) as error:
                await self._refuse("policy.published", person, address, error)
            replaced = self._engine.bundle
            details = {**kept.document(), "replaced": {"version": replaced.version, "digest": replaced.digest}}
            recorded = await self._record("policy.published", "completed", person, address, details)
            with trio.CancelScope(shield=True):  # recorded, so it comes into force, whatever becomes of the request
                await trio.to_thread.run_sync(store.finish, kept.bundle.version)
                self._engine.swap(kept.bundle)
        self._bell.ring()
        log.info("policy published", version=kept.bundle.version, digest=kept.bundle.digest)
        return {**details, "record_index": recorded}

    async def begin_shadow(self, person: Person, read: ReadBody, address: str) -> dict[str, Any]:
        """Evaluate a candidate beside the live bundle from now on. It decides nothing, so it needs no signature.

        Errors: NotAllowed, PublicationRefused (both recorded), LogUnavailable.
        """
        await self._require(person, address, "policy.shadowed")
        data = await read()
        try:
            bundle = await trio.to_thread.run_sync(_bundle_of, data)
        except BundleRefused as error:
            await self._refuse("policy.shadowed", person, address, error)
        facts = {"name": bundle.name, "version": bundle.version, "digest": bundle.digest}
        recorded = await self._record("policy.shadowed", "completed", person, address, facts)
        self.shadow.begin(bundle, self._clock.wall())
        return {**facts, "record_index": recorded}

    async def end_shadow(self, person: Person, address: str) -> dict[str, Any]:
        """Errors: NotAllowed (recorded), NotKnown, LogUnavailable."""
        await self._require(person, address, "policy.shadow_ended")
        if (seen := self.shadow.document()) is None:
            raise NotKnown("no candidate is evaluated here", next_step="begin with `sealane policy shadow DIR`")
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
        words = str(error)[:2000]
        index = await self._record(kind, "failed", person, address, {"refused_because": words})
        raise PublicationRefused(f"{words} (record {index})") from error

    async def _record(self, kind: str, outcome: str, person: Person, address: str, details: dict[str, Any]) -> int:
        facts = {**details, "client_address": address, **identity_of(person)}
        recorded = await self._recorder.append(Event(kind, outcome, actor=actor_of(person), details=facts))
        return recorded.index


def keep(publication: Publication, signers: Signers, approvals: int, *, published_before: bool = False) -> Kept:
    """The bundle of a publication whose signatures are good. Raises BundleRefused."""
    bundle = Bundle.from_files(publication.files)
    about = BundleName(bundle.name, bundle.version, bundle.digest)
    signed = check_signatures(publication, about, signers, approvals, published_before=published_before)
    return Kept(publication, bundle, signed)


def read_signers(path: Path) -> Signers:
    """Read anew at each use: who was taken out counts no more from then on. Raises BundleRefused."""
    try:
        return Signers.parse(path.read_text())
    except (OSError, ValueError) as error:  # msgspec's and Unicode's errors are ValueErrors
        raise BundleRefused("signers", f"{path} cannot be used: {error}") from error


def newest_published(config: GatewayConfig) -> Bundle | None:
    """What was published last, its signatures checked again; None where nothing was. Raises StartRefused."""
    table = config.policy.publishing
    if table is None:
        return None
    store = store_of(config)
    versions = store.versions()
    if not versions:
        read_or_refuse(config)
        return None
    try:
        signers = read_signers(config.path(table.signers))
        # How many had to approve may have risen since; that it was approved by somebody else is asked for again.
        return keep(store.read(versions[-1]), signers, min(table.approvals, 1), published_before=True).bundle
    except (BundleRefused, OSError) as error:
        raise StartRefused(
            f"the policy that was published as version {versions[-1]} cannot be used: {error}",
            next_step="mark a signer who left `retired = true` and do not remove him; or restore the gateway's state",
        ) from error


def read_or_refuse(config: GatewayConfig) -> None:
    """Raises StartRefused where nobody could ever publish."""
    table = config.policy.publishing
    if table is None:
        return
    try:
        signers = read_signers(config.path(table.signers))
    except BundleRefused as error:
        raise StartRefused(f"policy.publishing.signers: {error.detail}") from error
    usable = list(_usable(signers))
    authors = [signer for signer in usable if "author" in signer.roles]
    approvers = [signer for signer in usable if "approver" in signer.roles]
    if not authors or len(usable) < table.approvals + 1 or len(approvers) < table.approvals:
        raise StartRefused("policy.publishing.signers: there are too few of them for an author and all approvals")


def _usable(signers: Signers) -> Iterator[Any]:
    return (signer for signer in signers.by_name.values() if not signer.retired)


def store_of(config: GatewayConfig) -> PublicationStore:
    return PublicationStore(config.path(config.gateway.state_dir) / "policy")


def _bundle_of(data: bytes) -> Bundle:
    return Bundle.from_files(decode_publication(data).files)
