"""A bundle on its way from its author to the gateways: all of its files, and who signed them as what.

```
{"files": {"bundle.toml": "…", …}, "form": 1,
 "signatures": [{"role": "author", "signature": base64, "signer": "alice", "time": "2026-11-26T00:00:00Z"}, …]}
```
Each signature is Ed25519 over a statement of its own: canonical JSON of bundle name, version and digest, role, signer
and time. The digest covers every byte of every file, so that nothing can be changed after the first signature; the role
is signed, so that an author's signature is never an approval. Errors: BundleRefused.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from policy import strict_json
from policy.bundle_files import MAX_BYTES, require_bundle_files
from policy.errors import BundleRefused
from policy.settings import SettingRefused, convert_settings, decode_settings

MAX_SIGNATURES: Final = 32
MAX_SIGNERS: Final = 1_000
# Files as JSON: quotes and line feeds take two bytes, control characters six; texts of policies have few of them.
MAX_PUBLICATION_BYTES: Final = MAX_BYTES * 2
WHERE: Final = "publication"
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"

Role = Literal["author", "approver"]
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}\Z",
        description="a text of 1 to 63 ASCII letters, digits and . _ @ - that begins with a letter or digit",
    ),
]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`time` is the signer's own clock's, for people to read; no rule depends on it."""

    role: Role
    signer: Name
    time: str
    signature: Annotated[str, msgspec.Meta(max_length=88)]


class Publication(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing in it is proven before `check_signatures`."""

    form: Literal[1]
    files: dict[str, str]
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=MAX_SIGNATURES)] = ()

    def encode(self) -> bytes:
        """The one spelling: sorted members, two spaces, so that a diff of two publications can be read."""
        return json.dumps(msgspec.to_builtins(self), sort_keys=True, indent=2, ensure_ascii=False).encode() + b"\n"


class Signer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose signature counts for what. `retired`: only on what was published before."""

    name: Name
    key: Annotated[
        str,
        msgspec.Meta(min_length=44, max_length=44, description="the 44 characters that `sealane policy key` prints"),
    ]
    roles: Annotated[tuple[Role, ...], msgspec.Meta(min_length=1, max_length=2)]
    retired: bool = False


class _SignersFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signer: Annotated[tuple[Signer, ...], msgspec.Meta(min_length=1, max_length=MAX_SIGNERS)]


@dataclass(frozen=True, slots=True)
class Signers:
    """The file of those who may sign, by name: `[[signer]]` with `name`, `key` (base64 of 32 bytes), `roles`."""

    by_name: Mapping[str, Signer]

    @classmethod
    def parse(cls, text: str) -> Signers:
        """Raises ValueError: two of one name, or one key under two names, which would be one person twice."""
        try:
            signers = decode_settings(text, _SignersFile).signer
        except SettingRefused as error:
            raise ValueError(str(error)) from None
        by_name = {signer.name: signer for signer in signers}
        keys = {public_text(_public_key(signer)) for signer in signers}  # of one key there are several spellings
        if len(by_name) != len(signers) or len(keys) != len(signers):
            raise ValueError("two signers have the same name or the same key")
        return cls(by_name)


@dataclass(frozen=True, slots=True)
class Signed:
    """Who proved to have signed: one author, and others who approved."""

    author: str
    approvers: tuple[str, ...]


def decode_publication(data: bytes) -> Publication:
    """Strictly, and with every file such as a bundle may have it. Raises BundleRefused."""
    if len(data) > MAX_PUBLICATION_BYTES:
        raise BundleRefused(WHERE, f"is larger than {MAX_PUBLICATION_BYTES >> 20} MiB")
    try:
        publication = convert_settings(strict_json.decode(data), Publication)
    except (SettingRefused, strict_json.NotStrict) as error:
        raise BundleRefused(WHERE, f"is none, or was cut off or altered: {error}") from None
    require_bundle_files(publication.files)
    return publication


def sign_publication(
    publication: Publication, about: BundleName, role: Role, signer: str, key: Ed25519PrivateKey, now: datetime
) -> Publication:
    """The publication with one more signature. Raises BundleRefused if `signer` has signed it already."""
    if any(signature.signer == signer for signature in publication.signatures):
        raise BundleRefused(WHERE, f"{signer} has signed it already: each person signs once, as author or as approver")
    time = now.astimezone(UTC).strftime(_TIME_FORMAT)
    signed = key.sign(statement(about, role, signer, time))
    signature = Signature(role, signer, time, base64.b64encode(signed).decode())
    return msgspec.structs.replace(publication, signatures=(*publication.signatures, signature))


@dataclass(frozen=True, slots=True)
class BundleName:
    """What a signature is about."""

    name: str
    version: int
    digest: str


def statement(about: BundleName, role: Role, signer: str, time: str) -> bytes:
    """The bytes that are signed."""
    document = {
        "bundle": {"digest": about.digest, "name": about.name, "version": about.version},
        "kind": "sealane-bundle-signature",
        "role": role,
        "signer": signer,
        "time": time,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def check_signatures(
    publication: Publication, about: BundleName, signers: Signers, approvals: int, *, published_before: bool = False
) -> Signed:
    """Every signature must be good; one author, and at least `approvals` others. Raises BundleRefused.

    `published_before`: it is our own copy of what was once accepted, so retired signers count.
    """
    for signature in publication.signatures:
        _check_signature(signature, about, signers, published_before=published_before)
    names = [signature.signer for signature in publication.signatures]
    authors = [signature.signer for signature in publication.signatures if signature.role == "author"]
    if len(set(names)) != len(names):
        raise BundleRefused(WHERE, "somebody signed it twice: each person signs once, as author or as approver")
    if len(authors) != 1:
        raise BundleRefused(
            WHERE, f"has the signatures of {len(authors)} authors, not of one: `sealane policy sign` it"
        )
    approvers = tuple(sorted(set(names) - set(authors)))
    if len(approvers) < approvals:
        raise BundleRefused(
            WHERE,
            f"has {len(approvers)} of {approvals} approvals by others than its author: "
            "have them run `sealane policy approve`",
        )
    return Signed(authors[0], approvers)


def public_text(key: Ed25519PublicKey) -> str:
    """A key as the signers' file has it."""
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _check_signature(signature: Signature, about: BundleName, signers: Signers, *, published_before: bool) -> None:
    signer = signers.by_name.get(signature.signer)
    if signer is None:
        raise BundleRefused(WHERE, f"{signature.signer} signed it, but is not among the gateway's signers")
    if signer.retired and not published_before:
        raise BundleRefused(WHERE, f"{signer.name} signed it, but is retired")
    if signature.role not in signer.roles:
        raise BundleRefused(WHERE, f"{signer.name} signed it as {signature.role}, but may not")
    if _TIME.fullmatch(signature.time) is None:
        raise BundleRefused(WHERE, f"the signature of {signer.name} has no proper time")
    try:
        raw = base64.b64decode(signature.signature, validate=True)
        _public_key(signer).verify(raw, statement(about, signature.role, signature.signer, signature.time))
    except (InvalidSignature, ValueError):
        raise BundleRefused(
            WHERE,
            f"the signature of {signer.name} is not of these files: they or it were altered, or the key is another",
        ) from None


def _public_key(signer: Signer) -> Ed25519PublicKey:
    """Raises ValueError."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(signer.key, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(f"the key of {signer.name} is not the base64 of an Ed25519 public key") from None


def unsigned(files: Mapping[str, str], signatures: Sequence[Signature] = ()) -> Publication:
    """A publication of these files."""
    return Publication(1, dict(files), tuple(signatures))
