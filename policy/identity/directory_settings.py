"""What an operator says of the site's Active Directory: the table `[identity.active_directory]`, checked at start."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from policy.errors import DirectoryRefused
from policy.identity.kerberos import is_installed
from policy.secret_files import read_keytab, read_secret_line

T = TypeVar("T")

LDAPS_PORT: Final = 636
MAX_CACHE_SECONDS: Final = 60
# At least two labels, the last of which begins with a letter: no IP address.
_DNS_NAME: Final = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_CONTROLLER: Final = re.compile(r"([^:\s]+)(?::([1-9][0-9]{0,4}))?")
# Without `\\`, by which libkrb5 quotes, and without spaces.
_PRINCIPAL: Final = re.compile(r"[^@\\\s]{1,128}@[A-Z0-9-]+(\.[A-Z0-9-]+)*")
_NETBIOS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")

Text = Annotated[str, Meta(min_length=1, max_length=255)]


class DirectorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`controllers`: `NAME[:PORT]`, the next is asked where one fails; the certificate must be for NAME.

    `addresses`: IP addresses of controllers, by name, where DNS is not to be asked. `trust_bundle`: PEM file of the
    CAs. `base`: DN under which people are. `domain`: the NetBIOS name, in front of `\\` in `DOMAIN\\user`.
    `bind_user`: the service account, as UPN or DN; its password is the only line of `bind_password_file` (0600). With
    `bind = "gssapi"` it is a Kerberos principal, NAME@REALM, whose keys are in `bind_keytab` (0600): then no password.

    Seconds: `connect_` and `receive_` for each step with one controller, `deadline_` for a look-up as a whole,
    `retry_` before a controller that failed is asked again, `cache_` for groups (0: asked each time).
    The account's state is never cached.
    """

    controllers: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=16)]
    trust_bundle: Text
    base: Text
    domain: Text
    bind: Literal["password", "gssapi"] = "password"
    bind_user: Text
    bind_password_file: Text | None = None
    bind_keytab: Text | None = None
    addresses: dict[str, str] = {}
    connect_seconds: Annotated[int, Meta(ge=1, le=30)] = 3
    receive_seconds: Annotated[int, Meta(ge=1, le=30)] = 5
    deadline_seconds: Annotated[int, Meta(ge=1, le=60)] = 10
    retry_seconds: Annotated[int, Meta(ge=1, le=300)] = 5
    cache_seconds: Annotated[int, Meta(ge=0, le=MAX_CACHE_SECONDS)] = MAX_CACHE_SECONDS
    connections: Annotated[int, Meta(ge=1, le=64)] = 4

    def checked_controllers(self) -> tuple[Endpoint, ...]:
        """Where to connect. Raises ValueError, naming the key."""
        endpoints = tuple(self._endpoint(text) for text in self.controllers)
        if len(set(endpoints)) != len(endpoints):
            raise ValueError("controllers: one is named twice")
        unknown = set(self.addresses) - {endpoint.name for endpoint in endpoints}
        if unknown:
            raise ValueError(f"addresses: {min(unknown)} is not among the controllers")
        if _NETBIOS.fullmatch(self.domain) is None:
            raise ValueError("domain: must be the NetBIOS name of the domain, as in CORP\\user")
        if "=" not in self.base:
            raise ValueError("base: must be a distinguished name, as DC=corp,DC=example")
        self._check_bind()
        return endpoints

    def _check_bind(self) -> None:
        by_password = self.bind == "password"
        wanted, other = ("bind_password_file", "bind_keytab") if by_password else ("bind_keytab", "bind_password_file")
        if getattr(self, wanted) is None:
            raise ValueError(f'{wanted}: is missing, and bind = "{self.bind}" needs it')
        if getattr(self, other) is not None:  # a secret that lies about without use
            raise ValueError(f'{other}: is of no use with bind = "{self.bind}": leave it out, and delete the file')
        if not by_password and _PRINCIPAL.fullmatch(self.bind_user) is None:
            raise ValueError("bind_user: must be a Kerberos principal, with the realm in capitals, as svc@CORP.EXAMPLE")

    def _endpoint(self, text: str) -> Endpoint:
        match = _CONTROLLER.fullmatch(text)
        # A name and no address: certificates of domain controllers are for names.
        if match is None or _DNS_NAME.fullmatch(match[1]) is None or int(match[2] or 1) > 65_535:
            raise ValueError(f"controllers: {text!r} is not a full DNS name in lower case, with or without :PORT")
        name = match[1]
        address = self.addresses.get(name)
        if address is not None:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise ValueError(f"addresses: {address!r} is not an IP address") from None
        return Endpoint(name, int(match[2] or LDAPS_PORT), address)


class Endpoint(msgspec.Struct, frozen=True):
    """A controller: its DNS name, which its certificate must prove, and where it is (`address`, else DNS)."""

    name: str
    port: int = LDAPS_PORT
    address: str | None = None

    def __str__(self) -> str:
        return f"{self.name}:{self.port}"


class Credentials(msgspec.Struct, frozen=True):
    """Secrets and files of the settings, as read. Never printed. `keytab`: in the place of a password, then ""."""

    bind_password: str
    trusted_pem: str
    keytab: bytes | None = None

    def __repr__(self) -> str:
        return "Credentials(…)"


def read_credentials(settings: DirectorySettings, directory: Path) -> Credentials:
    """The files that the settings name, relative to `directory`. Raises DirectoryRefused."""
    bind_password, keytab = "", None
    if settings.bind_keytab is None:
        bind_password = _secret(directory / str(settings.bind_password_file), read_secret_line)
    elif is_installed():
        keytab = _secret(directory / settings.bind_keytab, read_keytab)
    else:
        raise DirectoryRefused(
            'bind = "gssapi" needs the package gssapi: pip install "sealane[gssapi]", or Debian\'s python3-gssapi'
        )
    bundle = directory / settings.trust_bundle
    try:
        trusted = bundle.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DirectoryRefused(f"{bundle}: cannot be read as PEM: {error}") from error
    if "-----BEGIN CERTIFICATE-----" not in trusted:
        raise DirectoryRefused(f"{bundle}: holds no certificate in PEM")
    return Credentials(bind_password, trusted, keytab)


def _secret(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DirectoryRefused(f"{path}: {reason}") from error
