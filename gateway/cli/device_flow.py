"""Login by device flow (RFC 8628): the person approves in any browser, on any machine, comparing a code."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from gateway.cli.errors import OPERATOR, Refused
from gateway.cli.follow import Clock
from gateway.cli.issuer_client import (
    Endpoints,
    IssuerClient,
    OAuthError,
    Seconds,
    TokenAnswer,
    challenge_of,
    require_https,
)

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
MAX_WAIT_SECONDS = 1800
SLOW_DOWN_SECONDS = 5


class DeviceCode(msgspec.Struct, frozen=True):
    """RFC 8628 section 3.2; times in seconds."""

    device_code: str
    user_code: str
    verification_uri: str
    expires_in: Seconds
    interval: Seconds = 5


def by_device(client: IssuerClient, endpoints: Endpoints, note: Callable[[str], None], clock: Clock) -> TokenAnswer:
    """Tell the person where to go, and ask until they have been there. Raises Refused, Unreachable."""
    if endpoints.device_authorization_endpoint is None:
        raise Refused(
            f"{client.login.issuer} has no device flow", OPERATOR, "use `sealane login --browser`", "no_device_flow"
        )
    # PKCE is no part of RFC 8628. Issuers ignore what they do not know; Keycloak demands it here of a client for which
    # it demands it at all, and then only this process can fetch the token.
    verifier = secrets.token_urlsafe(48)
    challenge = {"code_challenge": challenge_of(verifier), "code_challenge_method": "S256"}
    started = client.post(endpoints.device_authorization_endpoint, client.login.form() | challenge, DeviceCode)
    if isinstance(started, OAuthError):
        raise client.refused(started)
    require_https(started.verification_uri, "the verification address")
    # Never `verification_uri_complete`: typing the code is what ties the browser to this terminal.
    note(f"Open {started.verification_uri} and enter the code {started.user_code}")
    return _poll(client, endpoints, started, verifier, clock)


def _poll(client: IssuerClient, endpoints: Endpoints, started: DeviceCode, verifier: str, clock: Clock) -> TokenAnswer:
    form = {"grant_type": GRANT, "device_code": started.device_code, "client_id": client.login.client_id}
    form["code_verifier"] = verifier
    until = clock.now() + min(started.expires_in, MAX_WAIT_SECONDS)
    interval = min(max(started.interval, 1), 60)
    while clock.now() < until:
        clock.sleep(interval)
        answer = client.post(endpoints.token_endpoint, form, TokenAnswer)
        if not isinstance(answer, OAuthError):
            return answer
        if answer.error == "slow_down":
            interval += SLOW_DOWN_SECONDS
        elif answer.error != "authorization_pending":
            raise client.refused(answer)
    raise client.refused(OAuthError("expired_token", "nobody approved the code in time"))
