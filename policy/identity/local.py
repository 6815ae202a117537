"""The local directory: people in a TOML file, and an issuer of tokens for them. The embedded default.

    [people.alice]
    name = "Alice Example"
    groups = ["migration-operators"]
    password = "$scrypt$ln=15,r=8,p=3$<salt>$<hash>"     # made by `sealane`, PHC string format, base64
    same_as = ["alice@corp.example"]                     # optional: who else this human is, for rules of two persons

Its tokens are checked by the same strict `oidc.TokenVerifier` as those of any other issuer: there is no second way
in. Checking a password takes about 0.3 s of CPU and 32 MiB on purpose: callers use a thread and a rate limit.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import stat
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from policy.errors import DirectoryRefused
from policy.identity.keys import JwkSet
from policy.identity.oidc import IssuerSettings, TokenVerifier
from policy.jws import key_id_of, sign
from policy.settings import SettingRefused, decode_settings

TOKEN_TYPE: Final = "at+jwt"  # noqa: S105 - a media type (RFC 9068), not a secret
CLIENT_ID: Final = "sealane"
MAX_FILE_BYTES: Final = 1 << 20
MAX_PASSWORD_BYTES: Final = 1024
MAX_GROUPS: Final = 64
MAX_GROUPS_BYTES: Final = 8 * 1024  # as JSON, so that a token stays below 16 KiB
SALT_BYTES: Final = 16
HASH_BYTES: Final = 32

_USERNAME: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}\Z")
_PASSWORD: Final = re.compile(
    r"\$scrypt\$ln=(?P<ln>[0-9]{2}),r=(?P<r>[0-9]{1,2}),p=(?P<p>[0-9]{1,2})"
    r"\$(?P<salt>[A-Za-z0-9+/]{22})\$(?P<hash>[A-Za-z0-9+/]{43})\Z"
)
_Text = Annotated[str, Meta(min_length=1, max_length=128)]


@dataclass(frozen=True, slots=True)
class ScryptCost:
    """RFC 7914: 2^`log2_n` blocks of 128 * `r` bytes, `p` times over. The default is OWASP's for 32 MiB."""

    log2_n: int = 15
    r: int = 8
    p: int = 3

    def __post_init__(self) -> None:
        """Bounded both ways: a weak hash is worth little, and a huge one lets the file stop the gateway."""
        if not (14 <= self.log2_n <= 17 and self.r == 8 and 1 <= self.p <= 10):
            raise ValueError("scrypt cost must be ln 14 to 17, r 8, p 1 to 10")


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """A salted scrypt hash; its text form is `$scrypt$ln=…,r=…,p=…$salt$hash`."""

    cost: ScryptCost
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> PasswordHash:
        """Raises ValueError for any other spelling than `__str__` gives."""
        match = _PASSWORD.match(text)
        if match is None:
            raise ValueError("not a password hash made by sealane")
        cost = ScryptCost(int(match["ln"]), int(match["r"]), int(match["p"]))
        parsed = cls(cost, _unpadded_decode(match["salt"]), _unpadded_decode(match["hash"]))
        if str(parsed) != text:
            raise ValueError("not a canonical password hash")
        return parsed

    def __str__(self) -> str:
        cost = f"ln={self.cost.log2_n},r={self.cost.r},p={self.cost.p}"
        return f"$scrypt${cost}${_unpadded_encode(self.salt)}${_unpadded_encode(self.digest)}"

    def matches(self, password: str) -> bool:
        """Whether it is the hash of `password`; the time tells nothing about the hash."""
        secret = _password_bytes(password)
        return secret is not None and hmac.compare_digest(self.digest, _scrypt(secret, self.salt, self.cost))


@dataclass(frozen=True, slots=True)
class LocalPerson:
    """Someone in the file; `groups` are names, not yet bound to the issuer."""

    username: str
    name: str
    groups: tuple[str, ...]
    password: PasswordHash = field(repr=False)
    same_as: tuple[str, ...] = ()


class _PersonTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: _Text
    groups: Annotated[tuple[_Text, ...], Meta(max_length=MAX_GROUPS)]
    password: str
    same_as: Annotated[tuple[_Text, ...], Meta(max_length=16)] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    people: dict[str, _PersonTable]


@dataclass(frozen=True, slots=True)
class LocalDirectory:
    """The people of one file, by user name; `decoy` is checked in place of someone who is not there.

    `sha256` of the file, in hex: so that records can say which one was in force.
    """

    people: Mapping[str, LocalPerson]
    decoy: PasswordHash = field(repr=False)
    sha256: str

    @classmethod
    def load(cls, path: Path) -> LocalDirectory:
        """Read the file; DirectoryRefused (the operator) if anything of it is wrong or others may read it."""
        try:
            return cls.parse(read_private(path))
        except DirectoryRefused as error:
            raise DirectoryRefused(f"{path}: {error}") from error
        except OSError as error:
            raise DirectoryRefused(f"{path}: cannot be read: {error.strerror}") from error

    @classmethod
    def parse(cls, data: bytes) -> LocalDirectory:
        """Decode strictly: unknown keys, bad names and unequal costs are refused. Raises DirectoryRefused."""
        try:
            tables = decode_settings(data, _File).people
        except SettingRefused as error:
            raise DirectoryRefused(str(error)) from None
        people = {username: _person(username, table) for username, table in tables.items()}
        costs = {person.password.cost for person in people.values()}
        if len(costs) > 1:
            # The time of a refused log-in would tell who exists, and whose hash is the weak one.
            raise DirectoryRefused("password hashes of different cost: make all of them anew with one cost")
        cost = costs.pop() if costs else ScryptCost()
        decoy = PasswordHash(cost, bytes(SALT_BYTES), bytes(HASH_BYTES))
        return cls(people, decoy, hashlib.sha256(data).hexdigest())

    def check_password(self, username: str, password: str) -> LocalPerson | None:
        """The person, or None for a wrong name or password, in the same time: an answer tells not who exists.

        CPU-bound (see the module): run it in a thread.
        """
        person = self.people.get(username)
        matches = (person.password if person else self.decoy).matches(password)
        return person if matches else None


def hash_password(password: str, salt: bytes | None = None, cost: ScryptCost = ScryptCost()) -> str:
    """The text for the file; `salt`: 16 random bytes, made here if None. ValueError if the password is not one."""
    secret = _password_bytes(password)
    if not secret:
        raise ValueError(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes and no control characters")
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    return str(PasswordHash(cost, salt, _scrypt(secret, salt, cost)))


def person_table(username: str, name: str, groups: Sequence[str], password_hash: str) -> str:
    """The TOML table of one person, to append to the file. Raises DirectoryRefused if it would not load."""
    _person(username, _PersonTable(name, tuple(groups), password_hash))
    quoted = ", ".join(_toml_string(group) for group in groups)
    return (
        f"[people.{_toml_string(username)}]\nname = {_toml_string(name)}\n"
        f"groups = [{quoted}]\npassword = {_toml_string(password_hash)}\n"
    )


def issue_token(  # noqa: PLR0913, PLR0917 - what an RFC 9068 token says, and nothing else
    person: LocalPerson,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    audience: str,
    now: int,
    lifetime_seconds: int,
    token_id: str | None = None,
) -> str:
    """An RFC 9068 access token, ES256 by a P-256 `key`. `token_id` (jti) None: a random one."""
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": audience,
        "sub": person.username,
        "name": person.name,
        "groups": list(person.groups),
        "client_id": CLIENT_ID,
        "amr": ["pwd"],
        "iat": now,
        "exp": now + lifetime_seconds,
        "jti": token_id or str(uuid.uuid4()),
    }
    payload = msgspec.json.encode(claims, order="sorted")
    return sign(payload, key, key_id=key_id_of(key.public_key()), token_type=TOKEN_TYPE)


def local_verifier(
    public_key: ec.EllipticCurvePublicKey,
    issuer: str,
    audience: str,
    max_lifetime_seconds: int,
    authenticated_by: str = "local",
) -> TokenVerifier:
    """The strict verifier of `oidc`, set up for the tokens of `issue_token`."""
    settings = IssuerSettings(
        issuer=issuer,
        audience=audience,
        algorithms=frozenset({"ES256"}),
        token_types=frozenset({TOKEN_TYPE}),
        max_lifetime_seconds=max_lifetime_seconds,
        group_cap=MAX_GROUPS + 1,
        authorized_parties=frozenset({CLIENT_ID}),
        authenticated_by=authenticated_by,
    )
    return TokenVerifier(settings, JwkSet.of(public_key))


def _person(username: str, table: _PersonTable) -> LocalPerson:
    if not _USERNAME.match(username):
        raise DirectoryRefused(f"people.{username!r}: a user name is a-z, 0-9 and ._@-, at most 64 characters")
    if not all(text.isprintable() for text in (table.name, *table.groups, *table.same_as)):
        raise DirectoryRefused(f"people.{username}: name, groups or same_as hold characters that cannot be printed")
    if len(msgspec.json.encode(table.groups)) > MAX_GROUPS_BYTES:
        raise DirectoryRefused(f"people.{username}.groups: more than {MAX_GROUPS_BYTES} bytes: shorten the names")
    if len(set(table.groups)) != len(table.groups):
        raise DirectoryRefused(f"people.{username}: a group is named twice")
    try:
        return LocalPerson(username, table.name, table.groups, PasswordHash.parse(table.password), table.same_as)
    except ValueError as error:
        raise DirectoryRefused(f"people.{username}.password: {error}") from error


def read_private(path: Path) -> bytes:
    """The bytes of a file that is the user's own and nobody else's to read; DirectoryRefused, OSError.

    Checks and reads one open file, so that nothing can be put in its place in between.
    """
    # O_NONBLOCK: a FIFO under that name must not hang the start.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DirectoryRefused("not a regular file")
        if status.st_uid not in (0, os.geteuid()):
            raise DirectoryRefused("owned by another user: chown it to the user who runs the gateway")
        if status.st_mode & 0o077:
            raise DirectoryRefused("holds password hashes but others may read it: chmod 600")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DirectoryRefused(f"more than {MAX_FILE_BYTES} bytes")
    return data


def _scrypt(secret: bytes, salt: bytes, cost: ScryptCost) -> bytes:
    n, r, p = 2**cost.log2_n, cost.r, cost.p
    memory = 128 * r * (n + p + 2)
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=HASH_BYTES)


def _password_bytes(password: str) -> bytes | None:
    """RFC 8265 section 4.2: NFC, so that a password typed on two systems is one; no control characters.

    None: too long, or no password. Inside scrypt, HMAC pads keys with zeros: with NULs allowed "x" and "x\\0" are one.
    """
    if len(password) > MAX_PASSWORD_BYTES or any(unicodedata.category(c) in {"Cc", "Cs"} for c in password):
        return None
    secret = unicodedata.normalize("NFC", password).encode()
    return secret if len(secret) <= MAX_PASSWORD_BYTES else None


def _toml_string(text: str) -> str:
    """A basic string of TOML: for printable text the same as one of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _unpadded_encode(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode("ascii")


def _unpadded_decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
