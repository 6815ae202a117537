"""What a gateway tells a relay, what relays and other sites tell a gateway, what this host's people ask and write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from certs.errors import CredentialError
from certs.federation import bundle_document, parse_bundle
from certs.key_introduction import Introduction, Statement, decode_introductions
from gateway import config as gateway_config
from gateway.errors import ConfigRefused, GatewayError, ReceiptRefused
from gateway.receipts import SignedReceipt, read_body
from gateway.sites.peer import Admitted, Denied, SharedRecords
from gateway.sites.publishing import SiteDocument
from gateway.sites.request import HostQuestion, SiteRefused, ToldHost, open_request, sign_request
from gateway.witness_config import load_witness_config
from policy.permit import PermitKey
from tests.fuzz.targets.peers import SITE
from tests.fuzz.targets.target import Target, scratch
from tests.gateway.test_config import GOOD as GATEWAY_TOML
from tests.gateway.test_receipts import GOOD
from tests.policy.forgery import dump, forge
from tests.policy.test_permit import GATEWAY, NOW, PINNED
from tests.transport.relay.test_address_book import A, B, document
from transport.errors import UNDECODABLE, ConfigurationError, SpoolFailed, TransportError
from transport.link_version import LinkRefused, agreed
from transport.relay import (
    announced,
    enrolling,
    evacuations,
    first_contact,
    gateway_answers,
    identity_keeping,
    operating,
)
from transport.relay.address_book import AddressBook
from transport.relay.config import load_relay_config
from transport.relay.front_destinations import FILE_NAME, Loopbacks
from transport.relay.placement_report import decode_answer
from transport.relay.receipts import for_gateway_and_permit
from transport.relay.spool import FOLLOWING, SessionJournal

_FOLDER: Final = scratch()


def each(*decoders: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """Bytes before all of several decoders, one after the other."""

    def run(data: bytes) -> None:
        for decode in decoders:
            try:
                decode(data)
            except UNDECODABLE:
                pass

    return run


def words_of_an_error(data: bytes) -> None:
    """Never refused: what a proxy answers is told as nothing."""
    assert gateway_answers.words_of_refusal(data).isprintable()


def file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        path = _FOLDER / name
        path.write_bytes(data)
        path.chmod(0o600)
        read(path)

    return run


def journal(data: bytes) -> None:
    path = _FOLDER / "source-0.jsonl"
    path.write_bytes(data)
    read = SessionJournal.load(path, -1)
    assert read is None or read.state in FOLLOWING


def loopbacks(_: Path) -> None:
    Loopbacks(_FOLDER, "127.77.0.0/16")


def key_introductions(data: bytes) -> None:
    decode_introductions(data)


def kept_receipt(data: bytes) -> None:
    for_gateway_and_permit(data)


def receipt_body(data: bytes) -> None:
    """Only canonical JSON passes."""
    body = read_body(SignedReceipt(data.decode("utf-8", "surrogateescape"), b"", ()))
    assert msgspec.json.encode(body, order="sorted") == data


def site_request(data: bytes) -> None:
    """Nothing but what was signed opens; what a site signs may be anything."""
    open_request(data.decode(errors="replace"), _KEYS, "b.test", 1_790_000_000)


def signed_site_request(data: bytes) -> None:
    token = forge({"alg": "ES256", "kid": PINNED.key_id, "typ": "sealane-site-request+jwt"}, data, GATEWAY)
    open_request(token, _KEYS, "b.test", 1_790_000_000)


def link_version(data: bytes) -> None:
    agreed(data.decode("latin-1"))


def spiffe_bundle(data: bytes) -> None:
    parse_bundle(data, "b.test")


_KEYS: Final = {"a.test": (PermitKey(PINNED.key_id, PINNED.public_key),)}
_VM: Final = "11111111-2222-4333-8444-555555555555"
_HOST: Final = {
    "spiffe_id": "spiffe://a.test/host/a", "name": "a", "site": "a", "zone": "z", "jurisdiction": "DE",
    "address": "a:1",
}  # fmt: skip
_ASKED: Final = {
    "iss": "a.test", "aud": "b.test", "iat": 1_790_000_000, "exp": 1_790_000_010, "what": "host",
    "host": "spiffe://b.test/host/b",
}  # fmt: skip
_ORDER: Final = {
    "permit": "x", "vm": _VM, "vm_name": "web", "destination": "spiffe://a.test/host/b",
    "destination_address": "b:7443", "downtime_limit_ms": 300, "session_seconds": 60,
}  # fmt: skip
_EVACUATION: Final = {"evacuation_id": "0" * 32, "until": 1, "orders": [_ORDER], "begun": {_VM: "b"}}
_STATEMENT: Final = msgspec.json.encode(Statement("permit", "pem"), order="sorted").decode()
_INTRODUCTION: Final = Introduction(_STATEMENT, "0" * 8, b"x", "0" * 8, b"y")
_RELAY_TOML: Final = b"""[relay]\nlisten = "127.0.0.1:7443"\nstate_dir = "s"\n[identity]\ncertificate = "c"
private_key = "k"\ntrust_bundle = "t"\ncrls = ["x"]\n[gateway]\nurl = "https://g"\ntrust_bundle = "t"
permit_keys = ["p"]\nlog_keys = ["l"]\n[hypervisor]\nkind = "sockets"
memory_socket = "/m/{uuid}"\n[ports.criu]\nconnect = "127.0.0.1:873"\n"""
_WITNESS_TOML: Final = b"""[witness]\nlisten = "127.0.0.1:1"\nname = "w.example/w"\nstate_dir = "s"\nkeys = ["k"]
[tls]\ncertificate = "c"\nprivate_key = "k"\n[[logs]]\nkeys = ["l"]\n"""
_ASKS: Final = sign_request(
    HostQuestion(iss="a.test", aud="b.test", iat=NOW, exp=NOW + 10, host="spiffe://b.test/host/b"),
    GATEWAY,
    PINNED.key_id,
)
_R: Final = "transport.relay."
_J: Final = msgspec.json.encode
TARGETS: Final = (
    Target(
        "assignments", each(gateway_answers.decode_assignments, gateway_answers.decode_admission), UNDECODABLE,
        (
            b'{"assignments":[{"kind":"cancel","migration_id":"m"}],"trust_version":"1"}',
            b'{"assignments":[{"kind":"inspect","inspection_id":"i","vm":"' + _VM.encode() + b'","wanted":null}]}',
            b'{"assignments":[{"kind":"evacuation","evacuation_id":"e"}]}',
            b'{"kind":"denied","message":"no"}',
        ),
        (_R + "gateway_answers",),
    ),
    Target(
        "gateway-answers",
        each(
            decode_answer,
            identity_keeping._decode_trust,
            identity_keeping._decode_renewed,
            lambda data: msgspec.json.decode(data, type=evacuations.Evacuation),
            lambda data: msgspec.json.decode(data, type=enrolling._Enrolled),
            lambda data: msgspec.json.decode(data, type=first_contact._Root),
        ),
        (),
        (
            b'{"resync":true}', b'{"certificate":"x"}', _J(_EVACUATION),
            b'{"version":"1","roots":"","crls":["x"],"leaving":["crl:00"],"key_introductions":["{}"]}',
        ),
        (_R + "placement_report", _R + "identity_keeping", _R + "told_trust", _R + "evacuations", _R + "enrolling"),
    ),
    Target(
        "gateway-refusals", words_of_an_error, (), (b'{"error":{"message":"no","next_step":"ask"},"x":[[]]}',),
        (_R + "gateway_answers", _R + "first_contact"),
    ),
    Target("address-book", AddressBook.decode, (ValueError,), (document(A, B),), (_R + "address_book",)),
    Target("link-version", link_version, (LinkRefused,), (b"1", b"2"), ("transport.link_version",)),
    Target(
        "announcement", each(announced._decode), (),
        (b'{"vm":"web","token":"x","minutes":3,"destination":"b","reason":"r"}',), (_R + "announced",),
    ),
    Target(
        "operators-question", each(operating.decode_question), (),
        (b'{"ask":"status"}', b'{"ask":"evacuate","vm":"web","to":"b"}', b'{"ask":"cancel","migration_id":"m"}'),
        (_R + "operating",),
    ),
    Target(
        "journal", journal, (SpoolFailed,), (b'{"state":"begun","vm":"x"}\n{"state":"handed-over"}\n',), (_R + "spool",)
    ),
    Target("kept-receipt", kept_receipt, (), (b'{"receipt":{},"permit":"x"}',), (_R + "receipts",)),
    Target(
        "loopbacks", file(FILE_NAME, loopbacks), (ConfigurationError,), (b'{"b":"127.77.0.1"}',),
        (_R + "front_destinations",),
    ),
    Target(
        "relay-configuration", file("relay.toml", load_relay_config), (TransportError,), (_RELAY_TOML,),
        (_R + "config",),
    ),
    Target(
        "gateway-configuration", lambda data: gateway_config.parse(data, _FOLDER / "gateway.toml"), (ConfigRefused,),
        (GATEWAY_TOML.encode(),),
        ("gateway.config",),
    ),
    Target(
        "witness-configuration", file("witness.toml", load_witness_config), (ConfigRefused,),
        (_WITNESS_TOML,), ("gateway.witness_config",),
    ),
    Target(
        "key-introductions", key_introductions, (CredentialError,), (_J([_INTRODUCTION]),), ("certs.key_introduction",)
    ),
    Target("spiffe-bundle", spiffe_bundle, (CredentialError,), (_J(bundle_document([SITE.ca.certificate], 1)),),
           ("certs.federation",)),
    Target("receipt-body", receipt_body, (ReceiptRefused,), (GOOD,), ("gateway.receipts",)),
    Target(
        "site-request", site_request, (SiteRefused,), (_ASKS.encode(),), ("gateway.sites.request", "policy.jws")
    ),
    Target("signed-site-request", signed_site_request, (GatewayError,), (dump(_ASKED),), ("gateway.sites.request",)),
    Target(
        "site-answers",
        each(*(msgspec.json.Decoder(shape).decode for shape in (
            SiteDocument, ToldHost | None, Admitted | Denied, SharedRecords,
        ))),
        (),
        (
            _J(_HOST), b'{"kind":"permit","permit":"x","address":"a:1","record_index":3}',
            b'{"log":"l","records":[[1,{}]]}',
            b'{"trust_domain":"a.test","bundle":{"keys":[]},"crls":[],"permit_keys":["x"],"log_keys":["y"]}',
        ),
        ("gateway.sites.peer", "gateway.sites.publishing"),
    ),
)  # fmt: skip
