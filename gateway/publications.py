"""The folder of what was published, and what of it is in force at a start.

```
state_dir/policy/0000000007.json     every publication that was ever in force, by its version; the newest is
state_dir/policy/pending.json        one that was being put in force when the gateway ended; forgotten at its start
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from certs.files import sync_directory, write_atomically
from gateway.config import GatewayConfig
from gateway.errors import StartRefused
from policy.bundle import Bundle
from policy.errors import BundleRefused
from policy.publication import (
    MAX_PUBLICATION_BYTES,
    BundleName,
    Publication,
    Signed,
    Signers,
    check_signatures,
    decode_publication,
)

_PENDING: Final = "pending.json"
_VERSION: Final = re.compile(r"(\d{10})\.json")

log = structlog.get_logger("gateway.publishing")


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
        self._folder = folder

    def begin(self) -> None:
        """For the gateway that publishes, at its start, and for nobody who only reads. Raises StartRefused."""
        folder = self._folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (pending := folder / _PENDING).exists():
                log.warning("a publication had not been finished when the gateway ended; publish it again")
                pending.unlink()
        except OSError as error:
            raise StartRefused(f"{folder}: {error.strerror}") from error

    def versions(self) -> list[int]:
        """Rising. Raises OSError."""
        names = [path.name for path in self._folder.iterdir()] if self._folder.exists() else []
        return sorted(int(match[1]) for name in names if (match := _VERSION.fullmatch(name)))

    def read(self, version: int) -> Publication:
        """Raises BundleRefused, OSError; FileNotFoundError for one that there never was."""
        with (self._folder / f"{version:010}.json").open("rb") as file:
            return decode_publication(file.read(MAX_PUBLICATION_BYTES + 1))

    def prepare(self, publication: Publication) -> None:
        """Durable, but not in force after a restart."""
        write_atomically(self._folder / _PENDING, publication.encode(), 0o600)

    def finish(self, version: int) -> None:
        """In force after a restart, too; or, if it fails, not. Raises OSError."""
        published = self._folder / f"{version:010}.json"
        try:
            (self._folder / _PENDING).rename(published)
            sync_directory(self._folder)
        except OSError as error:
            try:
                published.unlink(missing_ok=True)
                sync_directory(self._folder)  # else the power's failure may bring back what was renamed
            except OSError as again:
                raise OSError(f"{error}; nor is it known whether it comes into force at a start") from again
            raise


def keep(publication: Publication, signers: Signers, approvals: int, *, published_before: bool = False) -> Kept:
    """The bundle of a publication whose signatures are good. Raises BundleRefused."""
    bundle = Bundle.from_files(publication.files)
    about = BundleName(bundle.name, bundle.version, bundle.digest)
    signed = check_signatures(publication, about, signers, approvals, published_before=published_before)
    return Kept(publication, bundle, signed)


class SignersUnusable(BundleRefused):
    """It is the gateway's own file: its operator must act, whoever wrote the bundle."""


def read_signers(path: Path) -> Signers:
    """Read anew at each use: who was taken out counts no more from then on. Raises SignersUnusable."""
    try:
        return Signers.parse(path.read_text())
    except (OSError, ValueError) as error:  # msgspec's and Unicode's errors are ValueErrors
        raise SignersUnusable("signers", f"{path} cannot be used: {error}") from error


def newest_published(config: GatewayConfig) -> Bundle | None:
    """What was published last, its signatures checked again; None where nothing was. Raises StartRefused."""
    table = config.policy.publishing
    if table is None:
        return None
    store = store_of(config)
    try:
        versions = store.versions()
    except OSError as error:
        raise StartRefused(f"the policies that were published cannot be read: {error}") from error
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
