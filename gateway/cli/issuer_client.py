"""A public client of an OpenID provider: discovery, and forms to its endpoints; HTTPS only, bounded, no redirects.

The client has no secret: what protects the code is PKCE and the loopback redirect (RFC 8252), what protects the
device flow is that a person compares the code (RFC 8628). Tokens are not read here: the gateway judges them.
"""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration, Refused, Unreachable
from gateway.cli.waiting import waiting_for
from gateway.deadline import Deadline
from transport.errors import UNDECODABLE

MAX_ANSWER_BYTES = 256 * 1024
TIMEOUT_SECONDS = 20
ISSUER_ADMINISTRATOR = "administrator of the identity provider"
Seconds = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Shape = TypeVar("Shape", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class IssuerLogin:
    """Where and as which client to sign in: of client.toml, or told by the gateway. `ca`: None is the system's."""

    issuer: str
    client_id: str
    scopes: tuple[str, ...] = ("openid",)
    resource: str | None = None
    ca: Path | None = None

    def form(self) -> dict[str, str]:
        """What every first request of a flow says."""
        form = {"client_id": self.client_id, "scope": " ".join(self.scopes)}
        return form if self.resource is None else {**form, "resource": self.resource}


class Endpoints(msgspec.Struct, frozen=True):
    """The part of the discovery document that a login needs."""

    issuer: str
    token_endpoint: str
    authorization_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    authorization_response_iss_parameter_supported: bool = False


class TokenAnswer(msgspec.Struct, frozen=True):
    """RFC 6749 section 5.1; `expires_in` in seconds. A refresh token, if there is one, is dropped."""

    access_token: str
    token_type: str
    expires_in: Seconds = 300


class OAuthError(msgspec.Struct, frozen=True):
    """RFC 6749 section 5.2."""

    error: str
    error_description: str = ""


class IssuerClient:
    """One connection pool to one issuer; use it as a context manager."""

    def __init__(self, login: IssuerLogin) -> None:
        self.login = login
        require_https(login.issuer, "the issuer")
        context = _tls_context(login.ca)
        self._deadline = Deadline(context)
        self._http = httpx.Client(verify=context, timeout=TIMEOUT_SECONDS, trust_env=False, follow_redirects=False)

    def __enter__(self) -> IssuerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def discover(self) -> Endpoints:
        """OpenID Connect Discovery 1.0. Raises Unreachable."""
        issuer = self.login.issuer
        status, data = self._ask("GET", issuer.rstrip("/") + "/.well-known/openid-configuration", None)
        found = self._decode(data, Endpoints) if status == 200 else None
        if found is None or found.issuer != issuer:
            # The mix-up attack: a document that leads to the endpoints of another issuer.
            raise self._no_sense(f"its discovery document (status {status}) is not that of this issuer")
        for url in (found.token_endpoint, found.authorization_endpoint, found.device_authorization_endpoint):
            if url is not None:
                require_https(url, "an endpoint of the issuer")
        return found

    def post(self, url: str, form: Mapping[str, str], shape: type[Shape]) -> Shape | OAuthError:
        """The answer, or the error that the issuer names. Raises Unreachable."""
        status, data = self._ask("POST", url, form)
        if status == 200:
            return self._decode(data, shape)
        if 400 <= status < 500:
            return self._decode(data, OAuthError)
        raise self._no_sense(f"status {status}")

    def refused(self, error: OAuthError) -> Refused:
        """The issuer's no, in a line."""
        described = f": {error.error_description}" if error.error_description else ""
        said = f"{self.login.issuer} refuses the login: {error.error}{described}"
        if error.error in {"access_denied", "expired_token"}:
            return Refused(said, REQUESTER, "run `sealane login` again and approve it in time", "login_refused")
        return Refused(said, ISSUER_ADMINISTRATOR, "check the client, its grants, scopes and resource", "login_refused")

    def _ask(self, method: str, url: str, form: Mapping[str, str] | None) -> tuple[int, bytes]:
        data = bytearray()
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        try:
            with (
                waiting_for(self.login.issuer, 2 * TIMEOUT_SECONDS),
                self._deadline.within(2 * TIMEOUT_SECONDS),
                self._http.stream(method, url, data=form, headers=headers) as answer,
            ):
                for part in answer.iter_raw():  # as it came: see `connection`
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        raise self._no_sense("the answer is too long")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(
                f"the issuer {self.login.issuer} cannot be reached: {error or type(error).__name__}",
                REQUESTER,
                "check the connection, and `issuer_ca` in client.toml if its CA is not one that this system trusts",
            ) from error
        return answer.status_code, bytes(data)

    def _decode(self, data: bytes, shape: type[Shape]) -> Shape:
        try:
            return msgspec.json.decode(data, type=shape)
        except UNDECODABLE as error:
            raise self._no_sense(str(error)) from error

    def _no_sense(self, reason: str) -> Unreachable:
        return Unreachable(
            f"{self.login.issuer} gave an answer that is not an issuer's: {reason}",
            OPERATOR,
            "check the issuer's address in the gateway's configuration or in client.toml",
            "unexpected_answer",
        )


def access_token_of(answer: TokenAnswer, login: IssuerLogin) -> str:
    """The token, if it is one that the gateway could read. Raises Refused."""
    if answer.token_type.lower() != "bearer":
        raise Refused(
            f"{login.issuer} gave a token of type {answer.token_type}, not a bearer token",
            ISSUER_ADMINISTRATOR,
            "do not bind the tokens of this client to a key",
        )
    if answer.access_token.count(".") != 2:
        raise Refused(
            f"{login.issuer} gave an opaque token, which only itself can read",
            OPERATOR,
            "set `scopes` or `resource` of the issuer's login so that it gives a JWT for the gateway's audience",
            "opaque_token",
        )
    return answer.access_token


def require_https(url: str, what: str) -> None:
    """Raises BadConfiguration: codes and tokens do not travel in the clear."""
    try:
        parts = urlsplit(url if url.isprintable() else "")
        good = parts.scheme == "https" and bool(parts.hostname) and parts.username is None
    except ValueError:
        good = False
    if not good:
        raise BadConfiguration(f"{what} {url!r} is not an https:// address", OPERATOR, "correct the issuer")


def _tls_context(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as error:
        raise BadConfiguration(
            f"the CA file {ca} cannot be used: {error.strerror or error}",
            REQUESTER,
            "correct `issuer_ca` in client.toml",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def challenge_of(verifier: str) -> str:
    """RFC 7636 section 4.2, S256."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
