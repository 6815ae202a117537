"""A small site for the transport's tests: real certificates, a real log, and permits of every kind, good and bad."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from audit.checkpoint import LogSigner
from audit.log import Log
from audit.proof import leaf_hash
from certs import layout
from certs.files import read_private_key
from policy.permit import (
    Limits,
    PermitClaims,
    PermitKey,
    PermitProof,
    Requirements,
    permit_entry,
    seal_permit,
)
from transport.relay.config import RelayConfig

ORIGIN = "sealane.example.test/log"
DOMAIN = "example.test"


@dataclass
class Site:
    """Certificates in `folder`, a log beside them, and hosts named by letters."""

    folder: Path
    log: Log
    permit_key: ec.EllipticCurvePrivateKey
    domain: str = DOMAIN

    @classmethod
    def lay_out(
        cls, folder: Path, hosts: tuple[str, ...] = ("a", "b"), domain: str = DOMAIN, origin: str = ORIGIN
    ) -> Site:
        certs = folder / "certs"
        now = datetime.now(UTC)
        layout.init(certs, domain, origin, ["localhost"], ["127.0.0.1"], now)
        for name in hosts:
            layout.issue_host(certs, name, now)
        log_key = read_private_key(certs / "gateway" / "log.key")
        permit_key = read_private_key(certs / "gateway" / "permit.key")
        assert isinstance(log_key, ed25519.Ed25519PrivateKey)
        assert isinstance(permit_key, ec.EllipticCurvePrivateKey)
        return cls(folder, Log.open(folder / "log", LogSigner(origin, log_key)), permit_key, domain)

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    def spiffe(self, name: str) -> str:
        return f"spiffe://{self.domain}/host/{name}"

    def claims(self, **changes: Any) -> PermitClaims:
        now = int(time.time())
        claims = PermitClaims(
            iss="gateway.example.test",
            aud=self.spiffe("b"),
            jti=uuid.uuid4().hex,
            iat=now,
            nbf=now,
            exp=now + 60,
            session_until=now + 600,
            recover_until=now + 600,
            migration_id=uuid.uuid4().hex,
            vm=str(uuid.uuid4()),
            source=self.spiffe("a"),
            destination=self.spiffe("b"),
            ports=("memory",),
            limits=Limits(max_channels=16, bandwidth_bytes_per_second=0),
            requirements=Requirements(content_digest=False, stream_inspection=False, vm_binding=False),
            minimum_crl_number=0,
            bundle="0" * 64,
        )
        return msgspec.structs.replace(claims, **changes)

    def proof(self, claims: PermitClaims) -> PermitProof:
        """Append a decision and the permit's entry in one commit, and prove the latter."""
        decision = f"decision {claims.jti}".encode()
        digest = leaf_hash(decision)
        commit = self.log.append([lambda index: [decision, permit_entry(claims, index, digest)]])
        index = commit.first_index[0] + 1
        return PermitProof(
            decision_index=index - 1,
            decision_leaf_hash=base64_text(digest),
            index=index,
            checkpoint=commit.checkpoint_text,
            path=tuple(base64_text(node) for node in commit.inclusion_path(index)),
        )

    def permit(self, **changes: Any) -> str:
        claims = self.claims(**changes)
        return self.seal(claims, self.proof(claims))

    def seal(self, claims: PermitClaims, proof: PermitProof) -> str:
        key = PermitKey.from_public_key(self.permit_key.public_key())
        return seal_permit(claims, proof, self.permit_key, key.key_id)

    def relay_config(self, name: str, **hypervisor: Any) -> RelayConfig:
        """A relay that listens on an ephemeral port of loopback and knows no gateway that answers."""
        gateway = self.certs / "gateway"
        host = self.certs / "hosts" / name
        return msgspec.convert(
            {
                "relay": {"listen": "127.0.0.1:0", "state_dir": str(self.folder / f"relay-{name}")},
                "identity": {
                    "certificate": str(host / "host.pem"),
                    "private_key": str(host / "host.key"),
                    "trust_bundle": str(self.certs / "ca.pem"),
                    "crls": [str(self.certs / "crl.pem")],
                },
                "gateway": {
                    "url": "https://127.0.0.1:1",
                    "trust_bundle": str(self.certs / "ca.pem"),
                    "permit_keys": [str(gateway / "permit.pub")],
                    "log_keys": [str(gateway / "log.vkey")],
                },
                "hypervisor": hypervisor
                or {"kind": "sockets", "memory_socket": str(self.folder / "vm" / "{uuid}" / "memory.sock")},
                "network": {"seals": ["sealane", "tls"]},
                "limits": {
                    "resume_seconds": 0.0,  # what breaks ends: test_resumption.py is about what goes on
                    "settle_retry_seconds": 0.2,
                    "drain_seconds": 5.0,
                    "handshake_seconds": 3.0,
                    "message_seconds": 5.0,
                },
            },
            type=RelayConfig,
        )


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write_toml(config: RelayConfig | Mapping[str, Any], path: Path) -> Path:
    """A relay's file; lists of tables, such as `sites`, are left out."""
    # Text, numbers and lists of them are written alike in JSON and TOML.
    path.write_text(
        "\n".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in of.items() if value is not None)
            for name, of in msgspec.to_builtins(config).items()
            if isinstance(of, dict)
        )
    )
    return path
