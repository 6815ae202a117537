"""The keys and the TLS files that the configuration names, each read by our own rule (0600)."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from certs.errors import CertificateError
from certs.files import read_passphrase, read_private_key
from gateway.api.https import TlsFiles
from gateway.config import GatewayConfig
from gateway.errors import StartRefused
from gateway.relays import HostTrust
from gateway.rollover.authorities import beside_files
from gateway.rollover.places import Places
from gateway.rollover.signing_keys import SigningKeys, told_keys
from gateway.rollover.telling import Rolling, rolling, with_keys


def tls_files(config: GatewayConfig) -> TlsFiles:
    tls = config.tls
    # Read by our own rule first: the `ssl` module would take a key file that everybody can read.
    private_key(config, tls.private_key)
    return TlsFiles(config.path(tls.certificate), config.path(tls.private_key), *_trust_files(config))


def host_trust(config: GatewayConfig) -> HostTrust:
    """By what hosts are judged: the configured files, and those of a CA that comes or goes. Errors: StartRefused."""
    table, kinds = config.enrolment, signing_kinds(config)

    def told() -> Rolling:
        of_authorities = Rolling() if table is None else rolling(config.path(table.authority))
        return with_keys(of_authorities, told_keys(kinds))

    return HostTrust.load(*_trust_files(config), told)


def signing_kinds(config: GatewayConfig) -> tuple[SigningKeys, SigningKeys]:
    """The keys of permits, and those of the log. Errors: StartRefused."""
    permits, log = config.permits, config.log
    return (
        SigningKeys(
            "permit", Places(config.path(permits.signing_key)), "", _passphrase(config, permits.passphrase_file)
        ),
        SigningKeys("log", Places(config.path(log.signing_key)), log.origin, _passphrase(config, log.passphrase_file)),
    )


def permit_key(config: GatewayConfig) -> ec.EllipticCurvePrivateKey:
    """Errors: StartRefused."""
    kind, _ = signing_kinds(config)
    key = _read(kind)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _read(kind: SigningKeys) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    try:
        return kind.read(kind.places.current)
    except CertificateError as error:
        raise StartRefused(str(error)) from error


def _passphrase(config: GatewayConfig, file: str | None) -> bytes | None:
    try:
        return None if file is None else read_passphrase(config.path(file))
    except CertificateError as error:
        raise StartRefused(str(error)) from error


def _trust_files(config: GatewayConfig) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Bundles and CRLs. Paths are files once: a rollover may come to a folder that the configuration names."""
    bundles, crls = (config.path(config.tls.client_trust_bundle),), tuple(map(config.path, config.tls.crls))
    if config.enrolment is None:
        return bundles, crls
    beside = beside_files(config.path(config.enrolment.authority))
    return (*bundles, *beside.bundles), (*crls, *beside.crls)


def private_key(config: GatewayConfig, name: str) -> object:
    try:
        return read_private_key(config.path(name))
    except CertificateError as error:
        raise StartRefused(str(error)) from error


def p256_key(config: GatewayConfig, name: str) -> ec.EllipticCurvePrivateKey:
    key = private_key(config, name)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise StartRefused(f"{config.path(name)}: is not an EC key on P-256")
    return key
