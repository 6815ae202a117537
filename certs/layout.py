"""What `sealane certs init` lays down for a site, and where its parts are.

D/ca.pem  ca.key  crl.pem               see `certs.authority`
D/gateway/tls.pem  tls.key              HTTPS server, EC P-256
D/gateway/permit.key  permit.pub        permits, ES256
D/gateway/log.key  log.vkey             checkpoints, Ed25519; one C2SP verifier key line
D/hosts/NAME/host.pem  host.key         one host's identity, EC P-256
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certs.authority import HOST_LIFETIME, NEXT_TLS, ROOT_CRL, Authority, trust_domain_of
from certs.crls import crl_number_of
from certs.errors import CredentialError, IdentityError
from certs.files import (
    read_certificates,
    read_crl,
    read_private_key,
    sync_directory,
    write_atomically,
    write_private_key,
)
from certs.identity import SpiffeId, spiffe_id_of

# The gateway's first certificate lasts until someone renews it by hand; its CA is private to the site.
FIRST_GATEWAY_LIFETIME = timedelta(days=398)
_ED25519 = b"\x01"  # C2SP signed-note, signature type


@dataclass(frozen=True, slots=True)
class Fact:
    """One file for `sealane certs show`. `state`: valid, not yet valid, expired, revoked, or stale (a CRL)."""

    kind: str  # "ca", "crl", "gateway", "host"
    name: str
    file: str  # relative to the folder
    serial: str  # lower hex; of a CRL its number
    valid_until: datetime
    state: str
    sha256: str  # of the DER, lower hex


def init(  # noqa: PLR0913, PLR0917 - what differs between sites
    directory: Path,
    trust_domain: str,
    log_origin: str,
    gateway_dns_names: Sequence[str],
    gateway_ips: Sequence[str],
    now: datetime,
    passphrase: bytes | None = None,
    token_file: Path | None = None,
) -> bool:
    """Make `directory`, whole or not at all; False if a CA of this trust domain is there: it is never touched.

    `passphrase`, `token_file`: of the CA's key alone. Raises `CertificateError`.
    """
    directory = directory.resolve()
    if (directory / "ca.pem").exists() and trust_domain_of(directory / "ca.pem") == trust_domain:
        return False
    log_key = ed25519.Ed25519PrivateKey.generate()
    vkey = verifier_key(log_origin, log_key.public_key())
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CredentialError(directory, "is not empty", "name a new folder, or use the CA that is in it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        staging.chmod(0o755)
        authority = Authority.create(staging, trust_domain, now, passphrase, token_file)
        gateway = staging / "gateway"
        gateway.mkdir()
        (staging / "hosts").mkdir()
        tls_key, permit_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        chain = authority.issue_gateway(
            "gateway", tls_key.public_key(), gateway_dns_names, gateway_ips, now, FIRST_GATEWAY_LIFETIME
        )
        write_private_key(gateway / "tls.key", tls_key)
        write_atomically(gateway / "tls.pem", _pem(chain))
        write_private_key(gateway / "permit.key", permit_key)
        public = permit_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        write_atomically(gateway / "permit.pub", public)
        write_private_key(gateway / "log.key", log_key)
        write_atomically(gateway / "log.vkey", f"{vkey}\n".encode())
        sync_directory(staging)
        staging.rename(directory)  # onto an empty folder at most
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_directory(directory.parent)
    return True


def init_issuing(
    root: Path,
    directory: Path,
    now: datetime,
    passphrase: bytes | None = None,
    own_passphrase: bytes | None = None,
    token_file: Path | None = None,
) -> bool:
    """Make an issuing CA below `root` in `directory`; False if one is there. `own_passphrase` is of the new key.

    Raises `CertificateError`, also where half of one is there.
    """
    directory = directory.resolve()
    if (directory / "ca.pem").exists():
        if not (directory / ROOT_CRL).exists():
            raise CredentialError(directory, "holds half of an issuing CA", "remove it and make it anew")
        Authority.load(directory, own_passphrase)
        return False
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    Authority.load(root, passphrase).create_issuing(directory, now, passphrase=own_passphrase, token_file=token_file)
    return True


def init_successor(  # noqa: PLR0913, PLR0917 - two roots, their keys
    root: Path,
    directory: Path,
    gateway_tls: Path,
    now: datetime,
    passphrase: bytes | None = None,
    own_passphrase: bytes | None = None,
    token_file: Path | None = None,
) -> bool:
    """Make the root that follows `root` in `directory`, introduced by it; False if one is there.

    `gateway_tls`: the gateway's certificate as it is; the new root certifies the same key and names, beside itself.
    Raises `CertificateError`.
    """
    directory = directory.resolve()
    if (directory / NEXT_TLS).exists():
        Authority.load(directory, own_passphrase)
        return False
    held = read_certificates(gateway_tls)[0]
    old = Authority.load(root, passphrase)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise CredentialError(directory, "is not empty", "name a new folder; remove what a failed attempt left in it")
    new = old.create_successor(directory, now, own_passphrase, token_file)
    try:
        names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise CredentialError(gateway_tls, "has no names", "give the gateway's own certificate") from None
    dns = names.get_values_for_type(x509.DNSName)
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    chain = new.issue_gateway("gateway", held.public_key(), dns, addresses, now, FIRST_GATEWAY_LIFETIME)
    write_atomically(directory / NEXT_TLS, _pem(chain))
    return True


def issue_host(
    directory: Path,
    name: str,
    now: datetime,
    lifetime: timedelta = HOST_LIFETIME,
    passphrase: bytes | None = None,
) -> x509.Certificate:
    """Issue or renew D/hosts/NAME and publish a new CRL; the new leaf.

    A renewal keeps host.key and replaces host.pem in one step, so that a reader never sees two halves of a pair.
    """
    authority = Authority.load(directory, passphrase)
    issue = partial(authority.issue_host, name, now=now, lifetime=lifetime)
    return _certified(directory / "hosts", name, "host", authority, issue, now)


def issue_service(
    directory: Path,
    name: str,
    now: datetime,
    lifetime: timedelta = HOST_LIFETIME,
    passphrase: bytes | None = None,
) -> x509.Certificate:
    """Issue or renew D/services/NAME (service.pem, service.key) and publish a new CRL; the new leaf."""
    authority = Authority.load(directory, passphrase)
    issue = partial(authority.issue_service, name, now=now, lifetime=lifetime)
    return _certified(directory / "services", name, "service", authority, issue, now)


def _certified(
    folder: Path,
    name: str,
    what: str,
    authority: Authority,
    issue: Callable[[PublicKeyTypes], list[x509.Certificate]],
    now: datetime,
) -> x509.Certificate:
    SpiffeId(authority.trust_domain, name)  # before it becomes a path; a service's name is as strict as a host's
    folder /= name
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    key_file = folder / f"{what}.key"
    if not key_file.exists():
        write_private_key(key_file, ec.generate_private_key(ec.SECP256R1()))
    chain = issue(read_private_key(key_file).public_key())
    write_atomically(folder / f"{what}.pem", _pem(chain))
    authority.publish_crl(now)
    return chain[0]


def describe(directory: Path, now: datetime) -> list[Fact]:
    """What is there and in what state: CA, CRL, gateway, hosts and services by name. Reads no private key.

    An issuing CA's folder has no gateway, nor may that of a root.
    """
    (ca,) = read_certificates(directory / "ca.pem")[:1]
    crl = read_crl(directory / "crl.pem")
    facts = [
        _certificate_fact("ca", ca.subject.rfc4514_string(), directory, Path("ca.pem"), crl, now),
        _crl_fact(crl, now),
    ]
    if (directory / "gateway/tls.pem").exists():
        facts.append(_certificate_fact("gateway", "gateway", directory, Path("gateway/tls.pem"), crl, now))
    for file in sorted(directory.glob("hosts/*/host.pem")):
        relative = file.relative_to(directory)
        facts.append(_certificate_fact("host", _host_name(file), directory, relative, crl, now))
    for file in sorted(directory.glob("services/*/service.pem")):
        facts.append(_certificate_fact("service", file.parent.name, directory, file.relative_to(directory), crl, now))
    return facts


def verifier_key(origin: str, public_key: ed25519.Ed25519PublicKey) -> str:
    """The C2SP signed-note verifier key `<origin>+<key id>+<base64(type ‖ key)>`; the key id is 8 hex digits."""
    if not origin or "+" in origin or any(c.isspace() or not c.isprintable() for c in origin):
        raise CredentialError(None, f"{origin!a:.80} is not a log origin", "use a name without spaces and plus signs")
    key = _ED25519 + public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    key_id = hashlib.sha256(origin.encode() + b"\n" + key).digest()[:4]
    return f"{origin}+{key_id.hex()}+{base64.b64encode(key).decode()}"


def _pem(chain: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


def _host_name(file: Path) -> str:
    try:
        return str(spiffe_id_of(read_certificates(file)[0]))
    except IdentityError:
        return f"{file.parent.name} (no SPIFFE id)"


def _certificate_fact(
    kind: str, name: str, directory: Path, file: Path, crl: x509.CertificateRevocationList, now: datetime
) -> Fact:
    certificate = read_certificates(directory / file)[0]
    state = "valid"
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        state = "revoked"
    elif now < certificate.not_valid_before_utc:
        state = "not yet valid"
    elif now > certificate.not_valid_after_utc:
        state = "expired"
    return Fact(
        kind,
        name,
        str(file),
        f"{certificate.serial_number:x}",
        certificate.not_valid_after_utc,
        state,
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _crl_fact(crl: x509.CertificateRevocationList, now: datetime) -> Fact:
    ends = crl.next_update_utc
    if ends is None:
        raise CredentialError(None, "crl.pem has no end", "publish it anew")
    state = "valid" if crl.last_update_utc <= now < ends else "stale"
    number = crl_number_of(crl)
    digest = crl.fingerprint(hashes.SHA256()).hex()
    return Fact("crl", f"{len(crl)} revoked", "crl.pem", f"{number}", ends, state, digest)
