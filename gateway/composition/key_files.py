"""The keys and the TLS files that the configuration names, each read by our own rule (0600)."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from certs.errors import CertificateError
from certs.files import read_private_key
from gateway.api.https import TlsFiles
from gateway.config import GatewayConfig
from gateway.errors import StartRefused


def tls_files(config: GatewayConfig) -> TlsFiles:
    tls = config.tls
    # Read by our own rule first: the `ssl` module would take a key file that everybody can read.
    private_key(config, tls.private_key)
    return TlsFiles(
        config.path(tls.certificate), config.path(tls.private_key), config.path(tls.client_trust_bundle), crls(config)
    )


def crls(config: GatewayConfig) -> tuple[Path, ...]:
    return tuple(config.path(name) for name in config.tls.crls)


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
