"""How a bare host becomes one of a site, with nothing but a gateway's address and a one-time token.

make a key here → prove the gateway by the root that the token names (`first_contact`) → token and request →
judge the answer as any peer would → write the files, the configuration last.

The key never leaves the host. It is on disk before the token is used, so that a lost answer can be asked for again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from audit.checkpoint import LogVerifier
from audit.errors import AuditError
from certs.credentials import HostCredentials
from certs.crl_folder import keep_crls
from certs.enrolment import EnrolmentToken, make_request
from certs.errors import UNREADABLE, CredentialError
from certs.files import read_private_key, write_atomically, write_private_key
from policy.permit import PermitKey
from transport.errors import UNDECODABLE, ConfigurationError
from transport.relay.config import load_relay_config, split_address
from transport.relay.first_contact import Proven, first_contact
from transport.relay.gateway_answers import GatewayAway

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
_Pem = Annotated[str, Meta(max_length=1024 * 1024)]


class _Enrolled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`address`: where the inventory expects this host's relay."""

    host: Annotated[str, Meta(max_length=255)]
    certificate: _Pem
    address: Annotated[str, Meta(max_length=261)] | None
    gateway_bundle: _Pem
    permit_keys: Annotated[list[_Pem], Meta(min_length=1, max_length=16)]
    log_keys: Annotated[list[_Pem], Meta(min_length=1, max_length=16)]
    trust_bundle: _Pem
    crls: Annotated[list[str], Meta(min_length=1, max_length=16)]


@dataclass(frozen=True, slots=True)
class Plan:
    """`url`: https://HOST[:PORT]. `folder`: of the identity's files, below `state_dir`. `config`: relay.toml."""

    url: str
    config: Path
    state_dir: Path
    hypervisor: Literal["libvirt", "qmp"]
    qmp_socket: str = "/run/vms/{uuid}/qmp.sock"

    @property
    def folder(self) -> Path:
        return self.state_dir / "identity"


@dataclass(frozen=True, slots=True)
class Outcome:
    host: str
    valid_until: datetime
    wrote_config: bool


def enrol(plan: Plan, token: EnrolmentToken, now: datetime) -> Outcome:
    """Raises `CertificateError`, `ConfigurationError`, `GatewayAway` or `GatewayRefuses`; then run it again.

    A configuration that is there already stays as it is: enrolling again only brings a new certificate.
    """
    folder = plan.folder
    for private in (plan.state_dir, folder, folder / "crls"):  # one by one: `parents` would be open to all
        private.mkdir(mode=0o700, exist_ok=True)
    key = _own_key(folder / "host.key")
    with first_contact(plan.url) as unproven:
        given = _ask_for_certificate(unproven.prove(token, now), token, key)
    credentials = _judged(given, token, key, now)
    _write_pinned(folder, given)
    keep_crls(folder / "crls", given.crls, credentials.authorities)
    write_atomically(folder / "roots.pem", given.trust_bundle.encode())
    write_atomically(folder / "host.pem", given.certificate.encode())
    wrote = not plan.config.exists()
    if wrote:
        plan.config.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(plan.config, _relay_toml(plan, given).encode(), 0o640)
    load_relay_config(plan.config)
    return Outcome(given.host, credentials.chain[0].not_valid_after_utc, wrote)


def _own_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        write_private_key(path, ec.generate_private_key(ec.SECP256R1()))
    key = read_private_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialError(path, "is not an EC P-256 key", "move it away: enrolling makes a new one")
    return key


def _ask_for_certificate(gateway: Proven, token: EnrolmentToken, key: ec.EllipticCurvePrivateKey) -> _Enrolled:
    body = {"token": token.text(), "request": make_request(key).decode()}
    data = gateway.post("/v1/enrolment", body, MAX_ANSWER_BYTES)
    try:
        return msgspec.json.decode(data, type=_Enrolled)
    except UNDECODABLE as error:
        raise GatewayAway(f"the gateway answers in another version's words: {error}") from None


def _judged(given: _Enrolled, token: EnrolmentToken, key: ec.EllipticCurvePrivateKey, now: datetime) -> HostCredentials:
    """If every peer would accept them and they are of this host. Pinned keys that cannot be read fail here."""
    try:
        chain = tuple(x509.load_pem_x509_certificates(given.certificate.encode()))
        is_ours = chain[0].public_key() == key.public_key()
        roots = tuple(x509.load_pem_x509_certificates(given.trust_bundle.encode()))
        crls = tuple(x509.load_pem_x509_crl(crl.encode()) for crl in given.crls)
        for permit_key in given.permit_keys:
            PermitKey.from_pem(permit_key.encode())
        for log_key in given.log_keys:
            LogVerifier.parse(log_key)
        if given.address is not None:
            split_address(given.address, "address")
    except (*UNREADABLE, AuditError, ConfigurationError) as error:
        raise CredentialError(None, f"the gateway's answer cannot be used: {error}", "look at its log") from None
    if not is_ours:
        raise CredentialError(None, "the certificate is of another key", "look at the gateway's log")
    credentials = HostCredentials(chain, key, roots, crls)
    credentials.require_usable(now)
    if credentials.spiffe_id.name != token.host or str(credentials.spiffe_id) != given.host:
        raise CredentialError(None, f"the certificate is of {credentials.spiffe_id}", "look at the gateway's log")
    return credentials


def _write_pinned(folder: Path, given: _Enrolled) -> None:
    write_atomically(folder / "gateway-root.pem", given.gateway_bundle.encode())
    for number, permit_key in enumerate(given.permit_keys):
        write_atomically(folder / f"permit-{number}.pub", permit_key.encode())
    for number, log_key in enumerate(given.log_keys):
        write_atomically(folder / f"log-{number}.vkey", f"{log_key}\n".encode())


def _relay_toml(plan: Plan, given: _Enrolled) -> str:
    folder = plan.folder.resolve()

    def text(value: object) -> str:
        return json.dumps(str(value))  # a JSON string is a TOML string

    def texts(stem: str, suffix: str, count: int) -> str:
        return "[" + ", ".join(text(folder / f"{stem}-{number}{suffix}") for number in range(count)) + "]"

    listen = given.address or "0.0.0.0:7443"
    qmp = f"qmp_socket = {text(plan.qmp_socket)}\n" if plan.hypervisor == "qmp" else ""
    placement = '\n[placement]\nlibvirt_uri = "qemu:///system"\n' if plan.hypervisor == "libvirt" else ""
    return f"""\
# Written by `sealane relay enrol`, which never changes it again.
[relay]
listen = {text(listen)}
state_dir = {text(plan.state_dir.resolve())}

[identity]
certificate = {text(folder / "host.pem")}
private_key = {text(folder / "host.key")}
trust_bundle = {text(folder / "roots.pem")}
crls = [{text(folder / "crls")}]
from_gateway = true

[gateway]
url = {text(plan.url)}
trust_bundle = {text(folder / "gateway-root.pem")}
permit_keys = {texts("permit", ".pub", len(given.permit_keys))}
log_keys = {texts("log", ".vkey", len(given.log_keys))}

[hypervisor]
kind = {text(plan.hypervisor)}
{qmp}{placement}"""
