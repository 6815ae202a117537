"""Each fuzz target takes its seeds, and raises nothing for whatever is cut, turned and nested out of them."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import msgspec
import pytest

from tests.fuzz.targets import TARGETS
from tests.fuzz.targets.target import Target

ROOT = Path(__file__).parents[2]
# What marks a module as one that takes bytes or texts of others apart.
DECODES = re.compile(
    r"msgspec\.((json|toml|yaml)\.(decode|Decoder)|convert\()|json\.loads|tomllib\.|load_(pem|der)_\w+\(|ElementTree\.fromstring"
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
    for seed in (*target.seeds, *target.wrong, b"", b'{"\xff":1}', b'{"x":' + b"[" * 20_000):
        target(seed)
        for _ in range(EACH_SEED):
            target(turned(turned(seed, chance) if chance.random() < 0.5 else seed, chance))


@pytest.mark.parametrize("name", TARGETS)
def test_each_seed_is_taken_so_that_what_is_made_of_it_goes_deep(name: str) -> None:
    target = TARGETS[name]
    assert target.seeds
    assert [target.takes(seed) for seed in (*target.seeds, *target.wrong)] == [
        *[True] * len(target.seeds),
        *[False] * len(target.wrong),
    ]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_does_not_take_everything(name: str) -> None:
    assert not all(map(TARGETS[name].takes, (b"", b"\xff", b"[" * 20_000)))


# Modules whose bytes are this program's own, or the operating system's, or those of whoever runs it.
WITHOUT = {
    "gateway.cli.doctor": "this host's relay.toml, read by `transport.relay.config` in the same breath",
    "gateway.cli.proving": "the line that its own export wrote, after the verifier took it",
    "gateway.cli.relay_operating": "the socket of this host's own relay, at root's terminal",
    "gateway.cli.session": "the same, for who announces a session",
    "gateway.reading": "what `decode_entry` takes, out of the own log",
    "gateway.api.relay_calls": "within a request; target `inspection` does the same",
    "gateway.enrolment.refused_renewals": "a certificate that TLS took; target `host-certificate` does the same",
    "gateway.cli.sites": "what its client has decoded; target `site-laid-down` begins behind it",
    "policy.decision": "a request that this program made, or a record of one",
    "audit.pruned": "the log's own file; the verifier reads it by itself, under one except",
    "audit.verify": "the same file; ValueError and every look at its members are caught in one place",
    "certs.pkcs11": "a file of this host",
    "gateway.api.people_calls": "a receipt that is in the log",
    "gateway.demo.evidence": "what the demo's own gateway says",
    "gateway.demo.guest": "what the demo's own guest prints",
    "gateway.demo.processes": "what the demo's own processes print",
    "gateway.host_receipts": "receipts that are in the log",
    "gateway.hosts_seen": "the gateway's own file",
    "gateway.log_watching": "the gateway's own file",
    "gateway.siem.oversight": "entries of the own log",
    "policy.authoring.check": "what cedarpy makes of a policy; `policies` has a target",
    "policy.authoring.pieces": "the same",
    "policy.identity.kerberos": "lengths within a token that GSSAPI has unwrapped",
    "transport.relay.loopback": "the kernel's structures",
}


def decoding_lines() -> dict[str, tuple[str, set[int]]]:
    """By file: the module, and where it takes something apart."""
    found = {}
    for package in ("transport", "certs", "policy", "audit", "gateway"):
        for path in sorted((ROOT / package).rglob("*.py")):
            lines = path.read_text(encoding="utf-8").splitlines()
            if at := {number for number, line in enumerate(lines, 1) if DECODES.search(line)}:
                found[str(path)] = (".".join(path.relative_to(ROOT).with_suffix("").parts), at)
    return found


class Watch:
    """Which modules take something apart while it is on: by a line that ran, or by a decoder of theirs that was called
    (those are made when a module is imported), or by a decoder of a type of theirs.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._files = decoding_lines()

    @contextmanager
    def on(self) -> Iterator[None]:
        before = sys.gettrace(), sys.getprofile()
        sys.settrace(self._trace)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.settrace(before[0])
            sys.setprofile(before[1])

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        module, lines = self._files.get(frame.f_code.co_filename, ("", set()))
        if module and event == "line" and frame.f_lineno in lines:
            self.seen.add(module)
        return self._trace if module else None

    def _profile(self, _: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and isinstance(decoder := getattr(called, "__self__", None), msgspec.json.Decoder):
            self.seen |= {each.__module__ for each in _parts(decoder.type)}


def _parts(shape: Any) -> Iterator[type]:
    """`X | None`: X and NoneType."""
    yield from get_args(shape) or (shape,)


@cache
def modules_that_seeds_reach() -> frozenset[str]:
    watch = Watch()
    for target in TARGETS.values():
        for seed in target.seeds:
            with watch.on():
                target(seed)
    return frozenset(watch.seen)


def test_each_module_that_decodes_is_reached_by_a_seed_or_has_a_reason() -> None:
    found = {module for module, _ in decoding_lines().values()}
    assert sorted(found - modules_that_seeds_reach() ^ WITHOUT.keys()) == []
