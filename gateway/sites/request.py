"""What one site's gateway asks another's, signed with its permit key: the key that is pinned there in any case.

A request is a compact JWS of a type of its own, so that it never passes for a permit, for one site, for a minute. What
would do harm if it came twice names a migration, which is admitted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from gateway.errors import RelayError
from policy.errors import TokenRefused
from policy.jws import VerificationKey, parse_strict, sign, verify_signature
from policy.permit import CanonicalUuid, HostId, PermitKey
from transport.errors import UNDECODABLE

REQUEST_TYPE: Final = "sealane-site-request+jwt"
LIFETIME_SECONDS: Final = 60
SKEW_SECONDS: Final = 30
MAX_GROUPS: Final = 64

Text = Annotated[str, Meta(min_length=1, max_length=255)]
Label = Annotated[str, Meta(min_length=1, max_length=63)]
Seconds = Annotated[int, Meta(ge=0, le=253_402_300_799)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ToldHost(_Strict, frozen=True):
    """A host as its own site's inventory has it."""

    spiffe_id: HostId
    name: Label
    site: Label
    zone: Label
    jurisdiction: Label
    address: Text


class ToldVm(_Strict, frozen=True):
    """A VM as the site that it leaves has it. `devices`: None where no fresh report tells."""

    uuid: CanonicalUuid
    name: Text
    zone: Label
    classification: Label
    tags: Annotated[tuple[Label, ...], Meta(max_length=64)]
    devices: Annotated[tuple[Text, ...], Meta(max_length=64)] | None


class ToldPerson(_Strict, frozen=True):
    """Who asked at the site that the VM leaves. `groups`: those that its policies name; None: unknown."""

    id: Text
    name: Text
    groups: Annotated[tuple[Text, ...], Meta(max_length=MAX_GROUPS)] | None


class _Request(_Strict, frozen=True, tag_field="what", kw_only=True):
    """`iss`, `aud`: trust domains. Times are unix seconds."""

    iss: Text
    aud: Text
    iat: Seconds
    exp: Seconds


class HostQuestion(_Request, frozen=True, tag="host", kw_only=True):
    """What do you say of this host of yours?"""

    host: HostId


class AdmissionRequest(_Request, frozen=True, tag="admission", kw_only=True):
    """May what my permit says arrive at your host?"""

    permit_sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    vm: ToldVm
    source: ToldHost
    person: ToldPerson
    reason: Annotated[str, Meta(min_length=1, max_length=1024)] | None
    post_copy: bool


class RecordsWanted(_Request, frozen=True, tag="records", kw_only=True):
    """What have you on record of migrations between us? `since`: in a record's form."""

    since: Text


Request = HostQuestion | AdmissionRequest | RecordsWanted
_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


class SiteRefused(RelayError):
    """A request that is not that of another site's gateway; why, only in our own log."""

    code = "site_refused"
    next_step = "compare [[sites]] of both gateways: trust domains, permit keys, clocks"


def sign_request(request: Request, key: ec.EllipticCurvePrivateKey, key_id: str) -> str:
    return sign(msgspec.json.encode(request, order="sorted"), key, key_id=key_id, token_type=REQUEST_TYPE)


def open_request(token: str, keys_of: Mapping[str, Sequence[PermitKey]], own: str, now: int) -> Request:
    """The request, if it is of one of the sites (permit keys by trust domain), for `own`, and fresh. SiteRefused."""
    try:
        parsed = parse_strict(token, algorithms=frozenset({"ES256"}), header_members=frozenset({"alg", "kid", "typ"}))
        issuer = parsed.claims.get("iss")
        keys = keys_of.get(issuer, ()) if isinstance(issuer, str) else ()
        key = next((each for each in keys if each.key_id == parsed.key_id), None)
        if key is None:
            raise SiteRefused("not signed by a gateway of a site that is known here")
        verify_signature(parsed, VerificationKey(key.key_id, key.public_key, "ES256"))
        request = _decoder.decode(parsed.payload)
    except (TokenRefused, *UNDECODABLE) as error:
        raise SiteRefused("the request is not one of another site's gateway") from error
    if parsed.header.get("typ") != REQUEST_TYPE:
        raise SiteRefused(f"typ is not {REQUEST_TYPE}")
    if request.aud != own:
        raise SiteRefused("the request is for another site")
    is_timely = request.iat - SKEW_SECONDS <= now <= request.exp + SKEW_SECONDS
    if not is_timely or request.exp - request.iat > LIFETIME_SECONDS:
        raise SiteRefused("the request is not fresh: compare the clocks of both gateways")
    return request
