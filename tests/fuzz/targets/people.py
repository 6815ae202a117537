"""What people, issuers and directories say: tokens, keys, directory entries, inventories, policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from policy.bundle import decode_manifest
from policy.cases import read_cases
from policy.errors import BundleRefused, DirectoryRefused, DirectoryUnavailable, InventoryRefused, TokenRefused
from policy.identity.directory_account import RawAttributes, decode_account
from policy.identity.keys import JwkSet
from policy.identity.local import LocalDirectory
from policy.identity.oidc import TokenVerifier
from policy.identity.sids import decode_guid, decode_sid, encode_sid
from policy.jws import SUPPORTED_ALGORITHMS, decode_object, parse_strict
from policy.publication import Signers, decode_publication, unsigned
from policy.rules import compile_rules
from policy.sources.netbox import NetboxFields, read_pages
from policy.told import parse_json, parse_toml
from policy.yaml_text import NotStrict
from policy.yaml_text import decode as decode_yaml
from tests.fuzz.targets.target import Target
from tests.policy.cedar_world import ALLOW_ALL, BANK, OUR_SCHEMA
from tests.policy.forgery import dump, forge
from tests.policy.identity.test_keys import EC_KEY, RSA_KEY
from tests.policy.identity.test_local import FILE as PEOPLE
from tests.policy.identity.test_oidc import CLAIMS, HEADER, KEY, KEYS, MATERIAL, NOW, SETTINGS
from tests.policy.test_inventory import FILE as INVENTORY
from tests.policy.test_publication import signers_text


def token(data: bytes) -> None:
    """As it comes in a header."""
    TokenVerifier(SETTINGS, KEYS).verify(data.decode("latin-1"), NOW)


def signed_token(data: bytes) -> None:
    """What an issuer's key signs, whatever it is: the claims. A person whose groups are told, or a refusal."""
    person = TokenVerifier(SETTINGS, KEYS).verify(forge(HEADER, data, KEY), NOW)
    assert person.id.startswith(SETTINGS.issuer + "#")


def jws(data: bytes) -> None:
    parsed = parse_strict(data.decode("latin-1"), algorithms=SUPPORTED_ALGORITHMS)
    assert parsed.token.encode("latin-1") == data


def json_object(data: bytes) -> None:
    """What passes says the same to another reader: no member twice, no number that others read in another way."""
    assert decode_object(data) == json.loads(data)


def key_set(data: bytes) -> None:
    JwkSet.parse(data)


def local_people(data: bytes) -> None:
    LocalDirectory.parse(data)


def sid(data: bytes) -> None:
    assert encode_sid(decode_sid(data)) == data
    decode_guid(data[:16])


def directory_entry(data: bytes) -> None:
    """Attributes of an account, as a directory may answer: a line each, of `name=hexadecimal`."""
    attributes: dict[str, list[bytes]] = {}
    for line in data.split(b"\n"):
        name, _, value = line.partition(b"=")
        try:
            attributes.setdefault(name.decode("latin-1"), []).append(bytes.fromhex(value.decode("latin-1")))
        except ValueError:
            attributes.setdefault(name.decode("latin-1"), []).append(value)
    raw: RawAttributes = attributes
    decode_account(raw)


def inventory_toml(data: bytes) -> None:
    for partial in (False, True):
        parse_toml(data, "inventory", partial=partial)


def inventory_json(data: bytes) -> None:
    for partial in (False, True):
        parse_json(data, "inventory", partial=partial)


def netbox(data: bytes) -> None:
    """A page that says how many there are, as the first look takes it, and then what they are."""
    if isinstance(decode_or_refuse(data).get("results"), list):
        read_pages([data], "netbox", NetboxFields(host="device.name"))


def decode_or_refuse(data: bytes) -> dict[str, Any]:
    try:
        return decode_object(data)
    except TokenRefused as error:
        raise InventoryRefused("netbox", str(error)) from error


def publication(data: bytes) -> None:
    decode_publication(data)


def signers(data: bytes) -> None:
    Signers.parse(data.decode(errors="replace"))


def manifest(data: bytes) -> None:
    decode_manifest(data.decode(errors="replace"))


def yaml_text(data: bytes) -> None:
    decode_yaml(data.decode(errors="replace"))


def policy_tests(data: bytes) -> None:
    read_cases({"tests/a.yaml": data.decode(errors="replace")})


def policies(data: bytes) -> None:
    compile_rules("schema.cedarschema", OUR_SCHEMA, {"policies/a.cedar": data.decode(errors="replace")})


_SID: Final = encode_sid("S-1-5-21-1-2-3-1104")
_ENTRY: Final = b"\n".join(
    name + b"=" + value.hex().encode()
    for name, value in (
        (b"objectGUID", bytes(16)), (b"objectSid", _SID), (b"tokenGroups", _SID), (b"sAMAccountName", b"alice"),
        (b"userAccountControl", b"512"), (b"msDS-User-Account-Control-Computed", b"0"), (b"pwdLastSet", b"1"),
        (b"accountExpires", b"133500000000000000"),
    )
)  # fmt: skip
_NETBOX: Final = dump({"count": 1, "next": None, "results": [{"id": 1, "name": "web", "tags": [{"slug": "pci"}]}]})
_VMS: Final = dump(
    {
        "vms": [
            {
                "uuid": "6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a11",
                "name": "web",
                "zone": "z",
                "classification": "c",
                "tags": ["a"],
            }
        ]
    }
)
_FILES: Final = {"bundle.toml": "name = 'a'", "policies/a.cedar": ALLOW_ALL, "schema.cedarschema": ""}
_CASES: Final = b"""people:
  olga: {groups: [S-1-5-21-1-2-3-4]}
cases:
  - name: operators check
    action: CheckDecision
    person: olga
    expect: allow
    by: [all]
"""
_TESTS: Final = sorted((BANK / "tests").glob("*.yaml"))
_I: Final = "policy.identity."


def _short(path: Path) -> bytes:
    return path.read_bytes()[:3000]


TARGETS: Final = (
    Target("token", token, (TokenRefused,), (MATERIAL.good.encode(),)),
    Target("signed-token", signed_token, (TokenRefused,), (dump(CLAIMS),)),
    Target("jws", jws, (TokenRefused,), (MATERIAL.good.encode(),)),
    Target("json-object", json_object, (TokenRefused,), (dump(CLAIMS), b'{"a":[1,"\\u00e9",{}]}')),
    Target(
        "key-set", key_set, (TokenRefused,), (dump({"keys": [EC_KEY, RSA_KEY]}),)
    ),
    Target("local-people", local_people, (DirectoryRefused,), (PEOPLE.encode(),)),
    Target("sid", sid, (ValueError,), (_SID,)),
    Target("directory-entry", directory_entry, (DirectoryUnavailable,), (_ENTRY,)),
    Target("inventory-toml", inventory_toml, (InventoryRefused,), (INVENTORY.encode(),)),
    Target("inventory-json", inventory_json, (InventoryRefused,), (_VMS,)),
    Target("netbox", netbox, (InventoryRefused,), (_NETBOX,)),
    Target(
        "publication", publication, (BundleRefused,), (unsigned(_FILES).encode(),)
    ),
    Target(
        "signers", signers, (ValueError, BundleRefused), (signers_text().encode(),),
    ),
    Target("bundle-manifest", manifest, (BundleRefused,), (_short(BANK / "bundle.toml"),)),
    Target("yaml", yaml_text, (NotStrict,), tuple(map(_short, _TESTS[:2]))),
    Target("policy-tests", policy_tests, (BundleRefused,), (_CASES,)),
    Target("policies", policies, (BundleRefused,), (ALLOW_ALL.encode(),)),
)  # fmt: skip
