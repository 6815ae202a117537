"""What is wrong with a configuration file is said by key, by what stands there and by what may."""

from __future__ import annotations

import json
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType, inspect

from gateway.config import GatewayConfig
from policy.settings import SettingRefused, decode_settings
from policy.settings.allowed import allowed, shown
from policy.settings.misfit import first_misfit
from tests.gateway.test_config import GOOD
from transport.relay.config import RelayConfig


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Far(Strict, frozen=True, tag="far", tag_field="kind"):
    url: Annotated[str, Meta(pattern=r"^https://", description="https://HOST")]


class Near(Strict, frozen=True, tag="near", tag_field="kind"):
    path: str


class Hot(Strict, frozen=True, tag="hot", tag_field="kind"):
    degrees: int = 90


class Cold(Strict, frozen=True, tag="cold", tag_field="kind"):
    degrees: int = 4
    most: int = 0


class Limits(Strict, frozen=True):
    wait_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 1.0
    window_bytes: Annotated[int, Meta(ge=1 << 20, le=4 << 20)] = 1 << 20
    most: Annotated[int, Meta(ge=0)] | None = None


class File(Strict, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=8)]
    limits: Limits = Limits()
    drink: Hot | Cold = Hot()
    colour: Colour = Colour.RED
    way: Literal["in", "out"] = "in"
    until: Annotated[datetime, Meta(tz=True)] | None = None
    sources: Annotated[tuple[Far | Near, ...], Meta(max_length=2)] = ()
    ports: dict[Annotated[str, Meta(pattern=r"^[a-z]+$")], Near] = {}
    uids: tuple[int, ...] = (0,)
    groups: list[str] | UnsetType = UNSET


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("", "name: is missing; it must be a text of 1 to 8 characters"),
        ('name = ""', 'name: is ""; allowed is a text of 1 to 8 characters'),
        ('name = "a"\nnam = 1', 'nam: is no key; did you mean "name"?'),
        ('name = "a"\nwait_seconds = 1', "wait_seconds: is no key of this table; it belongs in [limits]"),
        ('name = "a"\ndegrees = 1', "degrees: is no key of this table; it belongs in [drink]"),
        ('name = "a"\nmost = 1', "most: is no key; the keys and tables"),
        ('name = "a"\nzzz = 1', "zzz: is no key; the keys and tables of the file are name, limits, drink,"),
        ('name = "a"\nlimits = 3', "limits: is a number; allowed is a table"),
        (
            'name = "a"\n[limits]\nwait_seconds = 0',
            "limits.wait_seconds: is 0; allowed is a number of seconds, above 0, at most 86400 (1 day)",
        ),
        (
            'name = "a"\n[limits]\nwindow_bytes = 5',
            "window_bytes: is 5; allowed is a whole number of bytes, from 1048576 (1 MiB) to 4194304 (4 MiB)",
        ),
        ('name = "a"\n[limits]\nmost = true', "limits.most: is true; allowed is a whole number, 0 or more"),
        ('name = "a"\n[limits]\nmost = -1', "limits.most: is -1; allowed is a whole number, 0 or more"),
        ('name = "a"\ncolour = "green"', 'colour: is "green"; allowed is "red" or "blue"'),
        ('name = "a"\nway = 5', 'way: is 5; allowed is "in" or "out"'),
        ('name = "a"\nuntil = 2026-01-01', "until: is 2026-01-01; allowed is a moment with its time zone"),
        ('name = "a"\n[[sources]]\npath = "x"', 'sources[0].kind: is missing; it must be one of "far", "near"'),
        ('name = "a"\n[[sources]]\nkind = "odd"', 'sources[0].kind: is "odd"; allowed is one of "far", "near"'),
        (
            'name = "a"\n[[sources]]\nkind = "far"\nurl = "http://u:hush@h"',
            'sources[0].url: is "http://…@h"; allowed is https://HOST',
        ),
        ('name = "a"\n[[sources]]\nkind = "near"\npath = "x"\nhost = 1', "sources[0].host: is no key"),
        ('name = "a"\n[ports.UP]\n', "ports.UP: is no name that may stand here"),
        ('name = "a"\n[ports.up]\n', "ports.up.path: is missing"),
        ('name = "a"\nuids = [0, "1"]', 'uids[1]: is "1"; allowed is a whole number'),
        ('name = "a"\nuids = 5', "uids: is 5; allowed is a list"),
        ('name = "a"\ngroups = 1', "groups: is 1; allowed is a list; each of it a text"),
        ("name = ", "is not TOML: Invalid value"),
        ('name = "a"\nname = "b"\n', "is not TOML: a key stands twice in one table"),
        (f"name = {'9' * 5000}", "is not TOML: a number has thousands of digits"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_the_key_what_stands_there_and_what_is_allowed(file: str, said: str) -> None:
    with pytest.raises(SettingRefused) as refused:
        decode_settings(file.encode(), File)
    assert said in str(refused.value)


def test_bytes_that_are_no_text_are_named() -> None:
    with pytest.raises(SettingRefused, match="byte 0xff at position 1 is no UTF-8"):
        decode_settings(b"a\xff", File)


def test_a_secret_key_that_does_not_exist_is_named_without_its_value() -> None:
    with pytest.raises(SettingRefused) as refused:
        decode_settings(b'name = "a"\npassword = "hush"', File)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("value", ["\x1b[2J", "a\nb", "x" * 5000, 10**400, [1] * 9999, {"a": 1}, float("nan")])
def test_what_stands_there_is_shown_in_one_short_printable_line(value: Any) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) < 80


def test_each_type_of_our_own_files_has_words() -> None:
    def words(kind: inspect.Type) -> str:
        return allowed(kind)

    for shape in (RelayConfig, GatewayConfig):
        table = inspect.type_info(shape)
        assert isinstance(table, inspect.StructType)
        assert all(
            "docs/configuration.md" not in words(field.type) for field in table.fields if field.name != "directory"
        )


BARE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["far", "a", "red"])
)
KEYS = st.sampled_from([*File.__struct_fields__, "kind", "url", "path", "up", "most", "x"])
TREES = st.recursive(BARE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


FITTING: dict[str, Any] = {
    "limits": {"wait_seconds": 2, "most": 0},
    "colour": "blue",
    "way": "out",
    "sources": [{"kind": "near", "path": ""}, {"kind": "far", "url": "https://a"}],
    "ports": {"up": {"path": "a"}},
    "uids": [1],
    "groups": ["a"],
}
NAMES = st.sampled_from(["a", "", "a" * 8, "a" * 9])
# A file that fits but for a value at most here and there.
FILES = st.fixed_dictionaries(
    {"name": NAMES}, optional={key: st.just(value) | st.just(value) | TREES for key, value in FITTING.items()}
)


@given(st.dictionaries(KEYS, TREES, max_size=5) | FILES)
def test_a_misfit_is_found_exactly_where_msgspec_refuses(tree: dict[str, Any]) -> None:
    tree = _without_null(tree)
    try:
        msgspec.convert(tree, File)
    except msgspec.ValidationError:
        assert first_misfit(tree, File) is not None, json.dumps(tree)
    else:
        assert first_misfit(tree, File) is None, json.dumps(tree)


def _without_null(value: Any) -> Any:
    """TOML has none."""
    if isinstance(value, dict):
        return {key: _without_null(one) for key, one in value.items() if one is not None}
    return [_without_null(one) for one in value if one is not None] if isinstance(value, list) else value


@pytest.mark.parametrize("line", range(len(GOOD.splitlines())))
def test_a_gateways_file_that_lacks_a_line_is_refused_by_our_words(line: int) -> None:
    lines = GOOD.splitlines()
    problem = _problem("\n".join(lines[:line] + lines[line + 1 :]).encode())
    assert "`" not in problem
    assert "Expected" not in problem


def _problem(content: bytes) -> str:
    try:
        decode_settings(content, GatewayConfig)
    except SettingRefused as error:
        return str(error)
    return ""
