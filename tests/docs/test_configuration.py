"""Each key of a TOML block is one that the program takes, with such a value."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from certs.pkcs11 import TokenTable
from gateway.cli.settings import ClientFile
from gateway.config import GatewayConfig
from gateway.witness_config import WitnessFile
from policy.identity.local import _File as PeopleFile
from policy.publication import _SignersFile
from policy.told import _Whole as InventoryFile
from tests.docs.pages import PAGES, blocks
from transport.relay.config import RelayConfig

FILES = (GatewayConfig, RelayConfig, ClientFile, WitnessFile, InventoryFile, _SignersFile, PeopleFile, TokenTable)


def test_each_key_that_a_page_shows_is_taken_with_that_value() -> None:
    shown = [block for page in PAGES for block in blocks(page) if block.kind == "toml"]
    assert len(shown) > 30
    assert [f"{block}: {fault}" for block in shown for fault in faults_of(block.text)] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[permits]\nseals = 'tls'", "permits.seals: no such key"),
        ("[permits]\nseal = 'none'", "permits.seal: Invalid enum value 'none'"),
        ("[[siem.sinks]]\nkind = 'relp'\nname = 'r'\nurl = 'x'", "siem.sinks.url: no such key"),
        ("[revocation]\ninterval_seconds = 31", "revocation.interval_seconds: Expected `int` <= 30"),
        ("[ports.backup]\nlisten = 7", "ports.backup.listen: Expected `str`"),
    ],
)
def test_what_is_wrong_is_found(text: str, said: str) -> None:
    assert [fault for fault in faults_of(text) if fault.startswith(said)]


def faults_of(text: str) -> list[str]:
    """A block may show parts of two files: each table is judged by the one that it fits best."""
    found = []
    for name, value in tomllib.loads(text).items():
        readings = [list(faults({name: value}, file, "")) for file in FILES]
        best = min(readings, key=lambda reading: (len(reading), _depth(reading)))
        found += best
    return found


def _depth(found: list[str]) -> int:
    """The file that takes most of a key's path is the one that was meant."""
    return -max((fault.partition(":")[0].count(".") for fault in found), default=0)


def faults(value: Any, taken: Any, path: str) -> Iterator[str]:
    """What of `value` a field of type `taken` would refuse, but for what is missing or abbreviated by …"""
    structs = [each for each in _alternatives(taken) if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    plain = get_args(taken)[0] if get_origin(taken) is Annotated else taken
    if structs and isinstance(value, dict):
        struct = next((each for each in structs if _tag(each) in {None, value.get(_tag_field(each))}), structs[0])
        hints = get_type_hints(struct, include_extras=True)
        for key, inner in value.items():
            where = f"{path}.{key}".strip(".")
            if key in hints:
                yield from faults(inner, hints[key], where)
            elif key != _tag_field(struct):
                yield f"{where}: no such key"
    elif get_origin(plain) in {list, tuple} and isinstance(value, list) and value and isinstance(value[0], dict):
        for each in value:
            yield from faults(each, get_args(plain)[0], path)
    elif get_origin(plain) is dict and isinstance(value, dict):
        for key, inner in value.items():
            yield from faults(inner, get_args(plain)[1], f"{path}.{key}")
    elif not (isinstance(value, str) and "…" in value):
        try:
            msgspec.convert(value, taken)
        except msgspec.ValidationError as error:
            yield f"{path}: {error}"


def _alternatives(taken: Any) -> tuple[Any, ...]:
    while get_origin(taken) is Annotated:
        taken = get_args(taken)[0]
    return get_args(taken) if get_origin(taken) in {Union, UnionType} else (taken,)


def _tag(struct: type[msgspec.Struct]) -> Any:
    return struct.__struct_config__.tag


def _tag_field(struct: type[msgspec.Struct]) -> str | None:
    return struct.__struct_config__.tag_field
