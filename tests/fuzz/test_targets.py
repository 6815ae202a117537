"""Each fuzz target takes its seeds, and whatever is cut, turned, put together and nested out of them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.fuzz.targets.target import Target

ROOT = Path(__file__).parents[2]
# What marks a module as one that takes bytes or texts of others apart.
DECODES = re.compile(
    r"msgspec\.(json|toml|yaml)\.(decode|Decoder)|json\.loads|tomllib\.|load_(pem|der)_\w+\(|ElementTree\.fromstring"
    r"|\.unpack(_from)?\(|yaml\.parse"
)
EACH_SEED = 30


def turned(seed: bytes, chance: random.Random) -> bytes:
    data = bytearray(seed)
    at = chance.randrange(len(data) + 1)
    match chance.randrange(6):
        case 0:
            del data[at:]
        case 1:
            data[at : at + 1] = chance.choice(
                [b"\xff", b"\0", b'"', b"[" * 3000, b"{", b"\xed\xa0\x80", b"-1", b"1e999"]
            )
        case 2:
            data[at : at + 1] = bytes([chance.randrange(256)])
        case 3:
            data[at:at] = data[chance.randrange(len(data) + 1) :]
        case 4:
            data += b'{"x":' * 3000
        case _:
            del data[at : at + chance.randrange(1, 9)]
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_a_target_takes_its_seeds_and_what_is_made_of_them(target: Target) -> None:
    chance = random.Random(target.name)
    for seed in (*target.seeds, b"", b'{"\xff":1}', b'{"x":' + b"[" * 20_000):
        target(seed)
        for _ in range(EACH_SEED):
            target(turned(turned(seed, chance) if chance.random() < 0.5 else seed, chance))


def decoding_modules() -> Iterator[str]:
    for package in ("transport", "certs", "policy", "audit", "gateway"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if DECODES.search(path.read_text(encoding="utf-8")):
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


READS_OTHER_FILES = {"witness-configuration"}  # and refuses where the keys that it names are not there


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - READS_OTHER_FILES))
def test_a_seed_of_each_target_is_taken_so_that_what_is_made_of_it_goes_deep(name: str) -> None:
    target = TARGETS[name]

    def is_taken(seed: bytes) -> bool:
        try:
            target.run(seed)
        except target.refusals:
            return False
        return True

    assert any(map(is_taken, target.seeds))


# Modules whose bytes are this program's own, or the operating system's, or go through a decoder that has a target.
WITHOUT = {
    "audit.pruned": "the log's own file; the verifier reads it by itself, under one except",
    "audit.verify": "the same file; ValueError and every look at its members are caught in one place",
    "certs.files": "files of this host; CRL, certificate and request have targets",
    "certs.pkcs11": "a file of this host",
    "gateway.api.people_calls": "a receipt that is in the log",
    "gateway.demo.evidence": "what the demo's own gateway says",
    "gateway.demo.guest": "what the demo's own guest prints",
    "gateway.demo.processes": "what the demo's own processes print",
    "gateway.host_receipts": "receipts that are in the log",
    "gateway.hosts_seen": "the gateway's own file",
    "gateway.log_watching": "the gateway's own file",
    "gateway.siem.oversight": "entries of the own log",
    "gateway.sites.reconcile": "receipts within records that SharedRecords has decoded",
    "policy.authoring.check": "what cedarpy makes of a policy; `policies` has a target",
    "policy.authoring.pieces": "the same",
    "policy.identity.kerberos": "lengths within a token that GSSAPI has unwrapped",
    "transport.relay.inlets": "the kernel's structures",
    "transport.relay.loopback": "the kernel's structures",
}


def test_each_module_that_decodes_has_a_target_or_a_reason() -> None:
    covered = {module for target in TARGETS.values() for module in target.modules}
    found = set(decoding_modules())
    commands = {module for module in found if module.startswith("gateway.cli.")}  # a person's own terminal and files
    assert sorted(found - covered - commands ^ WITHOUT.keys()) == []
