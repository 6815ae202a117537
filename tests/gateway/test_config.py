from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import load, parse, parse_address
from gateway.errors import ConfigRefused
from gateway.starter import Site

FILE = Path("/etc/sealane/gateway.toml")
GOOD = """
[gateway]
listen = "127.0.0.1:8443"
name = "gw"
state_dir = "state"
[tls]
certificate = "tls.pem"
private_key = "tls.key"
client_trust_bundle = "ca.pem"
crls = ["crl.pem"]
[log]
directory = "log"
signing_key = "log.key"
origin = "example.org/log"
[permits]
signing_key = "permit.key"
[policy]
bundle = "bundle"
inventory = "inventory.toml"
[identity]
local_directory = "people.toml"
[identity.local_issuer]
issuer = "sealane-local"
audience = "sealane"
signing_key = "token.key"
"""


def test_what_the_starter_lays_out_is_accepted(site: Site) -> None:
    config = load(site.gateway_config)
    assert config.path(config.log.directory) == site.log


def test_paths_are_relative_to_the_file() -> None:
    assert parse(GOOD.encode(), FILE).path("log") == Path("/etc/sealane/log")


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        (
            'name = "gw"',
            'name = "gw"\nport = 1',
            "gateway.port: is no key; the keys of [gateway] are listen, name, state_dir",
        ),
        (
            'origin = "example.org/log"',
            "origin = 5",
            "log.origin: is 5; allowed is a text of 1 to 255 characters of ASCII",
        ),
        (
            'origin = "example.org/log"',
            'origin = "a b"',
            'log.origin: is "a b"; allowed is a text of 1 to 255 characters of ASCII',
        ),
        (
            'signing_key = "permit.key"',
            'signing_key = "permit.key"\nlifetime_seconds = 0',
            "permits.lifetime_seconds: is 0; allowed is a whole number of seconds, from 5 to 3600",
        ),
        ('listen = "127.0.0.1:8443"', 'listen = "127.0.0.1"', 'gateway.listen: "127.0.0.1" is not HOST:PORT'),
        ('local_directory = "people.toml"', "", "identity: `local_directory` and `local_issuer` need each other"),
        ('crls = ["crl.pem"]', "", "tls.crls: is missing; it must be a list"),
        ("[policy]", "[limits]\nrelay_silence_seconds = 20\n[policy]", "limits.relay_silence_seconds: must be longer"),
        ("[policy]", "[policy", "is not TOML"),
    ],
)
def test_what_is_wrong_is_refused_with_file_and_key(before: str, after: str, where: str) -> None:
    with pytest.raises(ConfigRefused) as refused:
        parse(GOOD.replace(before, after).encode(), FILE)
    assert str(FILE) in refused.value.detail
    assert where in refused.value.detail


def test_a_site_where_nobody_could_sign_in_is_refused() -> None:
    with pytest.raises(ConfigRefused, match="nobody could sign in"):
        parse(GOOD[: GOOD.index("local_directory")].encode(), FILE)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigRefused, match=r"/nowhere/gateway\.toml: no such file"):
        load(Path("/nowhere/gateway.toml"))


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_configuration_or_refused(content: bytes) -> None:
    with pytest.raises(ConfigRefused):
        parse(content, FILE)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:8443", "[::1]:65535"])
def test_addresses_are_spelt_as_they_were_read(text: str) -> None:
    assert str(parse_address(text)) == text


HOSTS = st.sampled_from(["127.0.0.1", "localhost", "::1", "[::1]", "[fd00::1%eth0]", "[]", "-", ""])
PORTS = st.integers(-1, 70_000) | st.sampled_from(["\u0667", "07", "+7", "7 ", ""])


@given(st.text() | st.builds("{}:{}".format, HOSTS | st.text(max_size=5), PORTS))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    host, _, port = text.rpartition(":")
    assert host in {address.host, f"[{address.host}]"}
    assert (port.isascii(), int(port)) == (True, address.port)
    assert 0 <= address.port <= 65_535
