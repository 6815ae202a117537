"""What a gateway tells a relay, what relays and other sites tell a gateway, what this host's people ask and write."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from audit.errors import AuditError
from certs.enrolment import EnrolmentToken
from certs.errors import UNREADABLE, CertificateError, CredentialError
from certs.federation import bundle_document, parse_bundle
from certs.files import write_private_key
from certs.identity import service_id_of
from certs.key_introduction import Introduction, Statement, decode_introductions
from gateway import config as gateway_config
from gateway import receipts
from gateway.cli.sites import lay_down
from gateway.errors import ConfigRefused, GatewayError, ReceiptRefused, RelayRefused
from gateway.receipts import SignedReceipt, read_body
from gateway.relays import HostTrust, relay_of
from gateway.services import ServiceRefused, Services, ServiceTable
from gateway.sites.peer import decode_decision, decode_host, decode_records
from gateway.sites.publishing import decode_site
from gateway.sites.request import HostQuestion, SiteRefused, open_request, sign_request
from gateway.sites.shared import read_body as read_shared_body
from gateway.witness_config import load_witness_config
from policy.permit import PermitKey
from tests.audit.samples import SIGNER
from tests.fuzz.targets.peers import HOST, PEER, SERVICE, SITE, TRUST, of_no_version
from tests.fuzz.targets.peers import NOW as RIGHT_NOW
from tests.fuzz.targets.target import Target, scratch, shaped
from tests.gateway.test_config import GOOD as GATEWAY_TOML
from tests.gateway.test_receipts import GOOD
from tests.policy.forgery import dump, forge
from tests.policy.test_permit import GATEWAY, NOW, PINNED
from tests.transport.relay.test_address_book import A, B, document
from transport.errors import UNDECODABLE, ConfigurationError, SpoolFailed, TransportError
from transport.hypervisors.preflight_facts import Inspection
from transport.link_version import LinkRefused, agreed
from transport.relay import (
    announced,
    enrolling,
    first_contact,
    gateway_answers,
    identity_keeping,
    operating,
)
from transport.relay.address_book import AddressBook
from transport.relay.config import load_relay_config
from transport.relay.front_destinations import FILE_NAME, Loopbacks
from transport.relay.pins import Pins
from transport.relay.placement_report import decode_answer
from transport.relay.receipts import for_gateway_and_permit
from transport.relay.spool import FOLLOWING, SessionJournal
from transport.relay.told_trust import TrustNews

_FOLDER: Final = scratch()


def words_of_an_error(data: bytes) -> bool:
    """Never refused: what a proxy answers is told as nothing."""
    words = gateway_answers.words_of_refusal(data)
    assert words.isprintable()
    return bool(words)


def told_roots(data: bytes) -> None:
    """Roots that a gateway tells: none is believed but those held, and those that one of them has introduced."""
    told = identity_keeping._decode_trust(data)
    if told is not None:
        held = (SITE.ca.certificate,)
        assert {*TrustNews(cast(Any, None), _FOLDER, told, RIGHT_NOW)._roots(held)} <= {*held}


def judged_enrolment(data: bytes) -> None:
    """What a gateway gives to a host that enrols: of this host's key, and with keys that can be read."""
    given = msgspec.json.decode(data, type=enrolling._Enrolled)
    chain = enrolling._judged(given, EnrolmentToken("host-a", bytes(32), bytes(32)), HOST.key, RIGHT_NOW).chain
    assert chain[0] == HOST.certificate


def key_pins(data: bytes) -> None:
    """Keys that a gateway introduces: only what a pinned key vouches for is believed, and here none does."""
    told = identity_keeping._decode_trust(data)
    if told is not None:
        assert told.pins_after(_PINS) == _PINS


def file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        path = _FOLDER / name
        path.write_bytes(data)
        path.chmod(0o600)
        read(path)

    return run


def journal(data: bytes) -> bool:
    path = _FOLDER / "source-0.jsonl"
    path.write_bytes(data)
    read = SessionJournal.load(path, -1)
    assert read is None or read.state in FOLLOWING
    return read is not None


def loopbacks(_: Path) -> None:
    Loopbacks(_FOLDER, "127.77.0.0/16")


def key_introductions(data: bytes) -> None:
    decode_introductions(data)


def kept_receipt(data: bytes) -> bool:
    return for_gateway_and_permit(data)[1] is not None


def receipts_signer(data: bytes) -> None:
    """A chain of one, as a relay sends it. None but the host that was certified can have signed."""
    signed = SignedReceipt("{}", HOST.key.sign(b"{}", ec.ECDSA(hashes.SHA256())), (data,))
    receipts._check_signature(signed, PEER.spiffe_id, HostTrust(TRUST), RIGHT_NOW, RIGHT_NOW)
    assert data == HOST.certificate.public_bytes(Encoding.DER)


def relays_certificate(data: bytes) -> None:
    """A client's, as TLS hands it on."""
    inventory = cast(Any, SimpleNamespace(host=lambda name: name))
    assert relay_of(data, HostTrust(TRUST), inventory, RIGHT_NOW) == PEER.spiffe_id


def services_certificate(data: bytes) -> None:
    name = str(service_id_of(SERVICE.certificate))
    person = Services((ServiceTable(spiffe_id=name),), lambda: HostTrust(TRUST)).person_of(data, RIGHT_NOW)
    assert name in person.id


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


def site_laid_down(data: bytes) -> None:
    """What another site says of itself, into a folder for `sealane sites trust`: what is laid down can be read."""
    document = decode_site(data)
    folder = Path(tempfile.mkdtemp(dir=_FOLDER))
    try:
        lay_down(document, folder)
        parse_bundle((folder / "bundle.json").read_bytes(), document.trust_domain)
    finally:
        shutil.rmtree(folder)


def inspection(data: bytes) -> None:
    """What a relay found out, within a body that pydantic has read."""
    msgspec.convert(msgspec.json.decode(data), Inspection)


def _pem(thing: x509.Certificate | x509.CertificateRevocationList) -> str:
    return thing.public_bytes(Encoding.PEM).decode()


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
for name, key in (("k", Ed25519PrivateKey.generate()), ("t", ec.generate_private_key(ec.SECP256R1()))):
    write_private_key(_FOLDER / name, key)
(_FOLDER / "l").write_text(SIGNER.vkey + "\n")
_ASKS: Final = sign_request(
    HostQuestion(iss="a.test", aud="b.test", iat=NOW, exp=NOW + 10, host="spiffe://b.test/host/b"),
    GATEWAY,
    PINNED.key_id,
)
_TOLD: Final = {"version": "1", "roots": "", "crls": ["x"], "leaving": ["crl:00"], "key_introductions": ["{}"]}
_PINS: Final = Pins((PermitKey(PINNED.key_id, PINNED.public_key),), (SIGNER.verifier,))
_PERMIT_PEM: Final = GATEWAY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
_MIGRATE: Final = {
    "migration_id": "m", "permit": "x", "destination_address": "b:1", "deadline_seconds": 5, "downtime_limit_ms": 9,
}  # fmt: skip
_ENROLLED: Final = {
    "host": str(PEER.spiffe_id), "certificate": _pem(HOST.certificate),
    "address": "a:7443", "gateway_bundle": _pem(SITE.ca.certificate),
    "permit_keys": [_PERMIT_PEM], "log_keys": [SIGNER.vkey],
    "trust_bundle": _pem(SITE.ca.certificate), "crls": [_pem(each) for each in SITE.crls],
}  # fmt: skip
_SITE: Final = {
    "trust_domain": "b.test", "bundle": bundle_document([SITE.ca.certificate], 1), "permit_keys": [_PERMIT_PEM],
    "log_keys": [SIGNER.vkey], "crls": [_pem(SITE.crls[0])],
}  # fmt: skip
_INSPECTION: Final = {
    "machine": {"kind": "qmp", "state": "running", "cpu_words": {"0x1.0.EDX": 3}, "devices": ["a"], "disks": []},
    "checks": [{"code": "arrival", "passed": False, "detail": "no"}],
}  # fmt: skip
_REFUSAL: Final = b'{"error":{"message":"no","next_step":"ask"},"x":[[]]}'
_J: Final = msgspec.json.encode
TARGETS: Final = (
    Target("assignments", gateway_answers.decode_assignments, UNDECODABLE, tuple(
        _J({"assignments": [each], "trust_version": "1"}) for each in (
            {"kind": "migrate", **_MIGRATE}, {"kind": "cancel", "migration_id": "m"},
            {"kind": "inspect", "inspection_id": "i", "vm": _VM, "wanted": None},
            {"kind": "evacuation", "evacuation_id": "e"}, {"kind": "withdraw_evacuation", "evacuation_id": "e"},
        )
    )),
    Target(
        "admission", gateway_answers.decode_admission, UNDECODABLE,
        (_J({"kind": "migrate", **_MIGRATE}), b'{"kind":"denied","message":"no"}'),
    ),
    Target("report-answer", decode_answer, UNDECODABLE, (b'{"resync":true}',)),
    Target("told-trust", identity_keeping._decode_trust, UNDECODABLE, (_J(_TOLD), b"null")),
    Target("told-keys", key_pins, (*UNDECODABLE, CredentialError), (_J(_TOLD | {"key_introductions": []}),)),
    Target(
        "told-roots", told_roots, (*UNDECODABLE, CredentialError),
        (_J(_TOLD | {"roots": _pem(SITE.ca.certificate), "introductions": [_pem(SITE.ca.certificate)]}),),
    ),
    Target("renewed", identity_keeping._decode_renewed, UNDECODABLE, (b'{"certificate":"x"}',)),
    Target("evacuation", gateway_answers.decode_evacuation, UNDECODABLE, (_J(_EVACUATION),)),
    Target("enrolled", shaped(enrolling._Enrolled), UNDECODABLE, (_J(_ENROLLED),)),
    Target("judged-enrolment", judged_enrolment, (*UNDECODABLE, CertificateError), (_J(_ENROLLED),)),
    Target("enrolling-root", shaped(first_contact._Root), UNDECODABLE, (b'{"root":"x"}',)),
    Target("gateway-refusals", words_of_an_error, (), (_REFUSAL,)),
    Target("address-book", AddressBook.decode, (ValueError,), (document(A, B),)),
    Target("link-version", link_version, (LinkRefused,), (b"1", b"2")),
    Target(
        "announcement", announced._decode, UNDECODABLE,
        (b'{"vm":"web","token":"x","minutes":3,"destination":"b","reason":"r"}',),
    ),
    Target(
        "operators-question", operating.decode_question, UNDECODABLE,
        (b'{"ask":"status"}', b'{"ask":"evacuate","vm":"web","to":"b"}', b'{"ask":"cancel","migration_id":"m"}'),
    ),
    Target(
        "journal", journal, (SpoolFailed,), (b'{"state":"begun","vm":"x"}\n{"state":"handed-over"}\n',)
    ),
    Target("kept-receipt", kept_receipt, (), (b'{"receipt":{},"permit":"x"}',)),
    Target(
        "loopbacks", file(FILE_NAME, loopbacks), (ConfigurationError,), (b'{"b":"127.77.0.1"}',),
    ),
    Target(
        "relay-configuration", file("relay.toml", load_relay_config), (TransportError,), (_RELAY_TOML,),
    ),
    Target(
        "gateway-configuration", lambda data: gateway_config.parse(data, _FOLDER / "gateway.toml"), (ConfigRefused,),
        (GATEWAY_TOML.encode(),),
    ),
    Target(
        "witness-configuration", file("witness.toml", load_witness_config), (ConfigRefused,),
        (_WITNESS_TOML,),
    ),
    Target(
        "key-introductions", key_introductions, (CredentialError,), (_J([_INTRODUCTION]),)
    ),
    Target("spiffe-bundle", spiffe_bundle, (CredentialError,), (_J(bundle_document([SITE.ca.certificate], 1)),)),
    Target(
        "receipts-signer", receipts_signer, (ReceiptRefused,),
        (HOST.certificate.public_bytes(Encoding.DER),), (of_no_version(HOST.certificate),),
    ),
    Target(
        "relays-certificate", relays_certificate, (RelayRefused,), (HOST.certificate.public_bytes(Encoding.DER),)
    ),
    Target(
        "services-certificate", services_certificate, (ServiceRefused,),
        (SERVICE.certificate.public_bytes(Encoding.DER),), (of_no_version(SERVICE.certificate),),
    ),
    Target("receipt-body", receipt_body, (ReceiptRefused,), (GOOD,)),
    Target(
        "site-request", site_request, (SiteRefused,), (_ASKS.encode(),)
    ),
    Target("signed-site-request", signed_site_request, (GatewayError,), (dump(_ASKED),)),
    Target(
        "site-document", decode_site, UNDECODABLE,
        (b'{"trust_domain":"a.test","bundle":{"keys":[]},"crls":[],"permit_keys":["x"],"log_keys":["y"]}',),
    ),
    Target("inspection", inspection, UNDECODABLE, (_J(_INSPECTION),)),
    Target(
        "site-laid-down", site_laid_down, (*UNDECODABLE, *UNREADABLE, AuditError, CertificateError), (_J(_SITE),),
        (*(_J(_SITE | {key: ["x"]}) for key in ("crls", "permit_keys", "log_keys")),),
    ),
    Target("site-host", decode_host, UNDECODABLE, (_J(_HOST), b"null")),
    Target(
        "site-decision", decode_decision, UNDECODABLE,
        (b'{"kind":"permit","permit":"x","address":"a:1","record_index":3}', b'{"kind":"denied","message":"no"}'),
    ),
    Target(
        "site-records",
        decode_records,
        UNDECODABLE,
        (
            b'{"log":"l","records":[[1,{"kind":"migration.receipt","migration_id":"m","vm":{"uuid":null},'
            b'"details":{"role":"source","body":"{}"}}],[2,{"kind":"migration.decision","migration_id":"m",'
            b'"vm":{"uuid":"u"},"details":{"site":{"role":"source"},"permit":{"jti":"j","session_until":1}}}]]}',
        ),
        (b'{"log":"l","records":[[1,{}]]}',),
    ),
    Target("site-receipt", read_shared_body, UNDECODABLE, (b'{"outcome":"running","channels":[{"channel":0}]}',)),
)  # fmt: skip
