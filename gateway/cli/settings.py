"""Where the gateway is and how to trust it: options first, then ~/.config/sealane/client.toml.

gateway = "https://gateway.example:8443"
others = ["https://gateway2.example:8443"]   # of the same site: asked while the first one is away
ca = "ca.pem"                    # relative to this file
token_file = "token.json"
timeout_seconds = 30
certificate = "service.pem"      # a program's own, with its key (0600); a token is not needed then
private_key = "service.key"
issuer_ca = "issuer-ca.pem"      # of the identity provider, where this system does not trust it; relative to this file

[issuer]                         # only where the gateway does not tell it
issuer = "https://login.example"
client_id = "sealane-cli"
scopes = ["openid"]
resource = "https://sealane.example"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration
from policy.settings import SettingRefused, decode_settings
from policy.settings.allowed import shown

_MAX_FILE_BYTES = 64 * 1024


class IssuerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to sign in, if the gateway shall not be asked."""

    issuer: str
    client_id: str
    scopes: tuple[str, ...] = ("openid",)
    resource: str | None = None


class ClientFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """client.toml, decoded strictly: a misspelt `ca` must not fall back to other trust in silence."""

    gateway: str | None = None
    others: Annotated[tuple[str, ...], msgspec.Meta(max_length=3)] = ()
    ca: str | None = None
    token_file: str | None = None
    timeout_seconds: Annotated[int, msgspec.Meta(ge=1, le=600)] = 30
    issuer_ca: str | None = None
    issuer: IssuerTable | None = None
    certificate: str | None = None
    private_key: str | None = None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """gateway: `https://host[:port]` without a path. ca: None means the system's trust store."""

    gateway: str
    ca: Path | None
    token_file: Path
    timeout_seconds: int
    issuer: IssuerTable | None = None
    issuer_ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    others: tuple[str, ...] = ()  # gateways of the same site, asked in this order while the first one is away
    site: tuple[str, ...] = ()  # all gateways of client.toml, which take the same tokens, if the one above is of them


def client_directory(home: Path) -> Path:
    """The folder of client.toml and of the token that `sealane login` keeps."""
    return home / ".config" / "sealane"


def resolve(gateway: str | None, ca: Path | None, token_file: Path | None, home: Path) -> ClientSettings:
    """Options win over the file; raises BadConfiguration that names the option, or the file and key."""
    directory = client_directory(home)
    path = directory / "client.toml"
    stored = read_client_file(path)
    url = gateway or stored.gateway
    if url is None:
        raise BadConfiguration(
            "no gateway is configured",
            REQUESTER,
            f'give --gateway https://HOST:PORT, or write gateway = "https://HOST:PORT" to {path}',
        )
    if (stored.certificate is None) != (stored.private_key is None):
        raise BadConfiguration(
            f"{path}: certificate and private_key need each other", REQUESTER, "name both files, or none"
        )
    asked = canonical_url(url, "--gateway" if gateway else f"{path}: gateway")
    others = tuple(canonical_url(each, f"{path}: others") for each in stored.others)
    site = (*([] if stored.gateway is None else [canonical_url(stored.gateway, f"{path}: gateway")]), *others)
    return ClientSettings(
        gateway=asked,
        ca=ca or (directory / stored.ca if stored.ca else None),
        token_file=token_file or directory / (stored.token_file or "token.json"),
        timeout_seconds=stored.timeout_seconds,
        issuer=stored.issuer,
        issuer_ca=directory / stored.issuer_ca if stored.issuer_ca else None,
        certificate=directory / stored.certificate if stored.certificate else None,
        private_key=directory / stored.private_key if stored.private_key else None,
        # A gateway that was named on the command line is the one that is meant.
        others=() if gateway else others,
        site=site if asked in site else (),
    )


def read_client_file(path: Path) -> ClientFile:
    """The decoded file, or all defaults where there is none."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return ClientFile()
    except OSError as error:
        raise BadConfiguration(f"{path} cannot be read: {error.strerror}", OPERATOR, "check the file") from error
    try:
        if len(text) > _MAX_FILE_BYTES:
            raise SettingRefused((), "is larger than 64 KiB")
        return decode_settings(text, ClientFile)
    except SettingRefused as error:
        raise BadConfiguration(f"{path}: {error}", REQUESTER, "correct the file") from None


def canonical_url(url: str, where: str) -> str:
    """`https://host[:port]`; anything else is refused: a token is never sent in the clear."""
    try:
        # urlsplit drops line breaks in silence: what is then asked is not what was written.
        parts = urlsplit(url if url.isprintable() else "")
        port = parts.port
        host = parts.hostname
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    rest = (parts.username, parts.password, parts.query, parts.fragment, parts.path.strip("/"))
    if parts.scheme != "https" or not host or any(rest) or not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
        raise BadConfiguration(
            f"{where}: {shown(url)} is not a gateway's address",
            REQUESTER,
            "write it as https://HOST or https://HOST:PORT",
        )
    name = f"[{host}]" if ":" in host else host.lower()
    return f"https://{name}" if port is None else f"https://{name}:{port}"
