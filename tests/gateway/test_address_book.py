"""The address book that the gateway serves, and the relay that fetches, keeps and uses it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import msgspec
import pytest

from gateway.address_book import address_book
from policy.inventory import Inventory
from tests.gateway.conftest import Running
from transport.relay.address_book import AddressBook
from transport.relay.config import RelayConfig, load_relay_config
from transport.relay.gateway_link import GatewayLink
from transport.relay.host import open_host

HOST = """
[[hosts]]
name = "fra1"
spiffe_id = "spiffe://bank.test/host/fra1"
site = "fra"
zone = "production"
jurisdiction = "DE"
address = "10.7.0.11:7443"
libvirt_name = "fra1.bank.example"
[[hosts.migration]]
address = "[fd00:7::11]:7443"
device = "bond1"
dscp = 10
[[hosts.migration]]
address = "10.7.0.11:7443"
"""


def test_it_is_what_a_relay_decodes_and_changes_its_version_with_its_content() -> None:
    document = address_book(Inventory.parse(HOST.encode()))
    entry = AddressBook.decode(msgspec.json.encode(document), fetched=1).host("FRA1.bank.example")
    assert entry is not None
    assert [(each.address, each.device, each.dscp) for each in entry.addresses] == [
        ("[fd00:7::11]:7443", "bond1", 10),
        ("10.7.0.11:7443", None, None),
    ]
    other = address_book(Inventory.parse(HOST.replace("dscp = 10", "dscp = 11").encode()))
    assert other["version"] != document["version"]


@pytest.mark.whole
async def test_only_a_host_gets_it_and_only_if_it_has_changed(running: Running) -> None:
    assert (await running.client().post("/v1/relay/hosts", json={"known_version": ""})).status_code == 403
    answer = await running.client("a").post("/v1/relay/hosts", json={"known_version": ""})
    book = answer.json()
    assert {host["name"] for host in book["hosts"]} == {"a", "b", "c", "prod"}
    again = await running.client("a").post("/v1/relay/hosts", json={"known_version": book["version"]})
    assert again.json() is None
    assert (await running.client("a").post("/v1/relay/hosts", json={"known_version": "x"})).status_code == 400


@pytest.fixture
def state_dir() -> Iterator[str]:
    """Short: unix sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="sl") as folder:
        yield folder


def relay_config(running: Running, name: str, state_dir: str) -> RelayConfig:
    config = load_relay_config(running.site.relay_config(name))
    return msgspec.structs.replace(
        config,
        relay=msgspec.structs.replace(config.relay, state_dir=state_dir),
        gateway=msgspec.structs.replace(config.gateway, url=running.url),
    )


@pytest.mark.whole
async def test_a_relay_fetches_it_and_has_it_when_the_gateway_is_away(running: Running, state_dir: str) -> None:
    config = relay_config(running, "a", state_dir)
    host = open_host(config)
    link = GatewayLink(host)
    await link.refresh_address_book()
    fetched = host.addresses.book
    await link.refresh_address_book()
    assert host.addresses.book.version == fetched.version
    await link.close()
    entry = open_host(config).addresses.book.host("b")
    assert entry is not None
    assert entry.addresses[0].address == "127.0.0.3:7443"
