"""The front leads to the hosts of the address book, each by an address that never leads to another."""

from __future__ import annotations

from pathlib import Path

import pytest

from transport.errors import ConfigurationError
from transport.relay.address_book import AddressBook, Entry, Reach
from transport.relay.config_sections import FrontDestination, FrontSection
from transport.relay.front_destinations import FILE_NAME, Loopbacks, leads_to, wanted_destinations, write_hosts

OWN = "spiffe://bank.example/host/a"
NETWORK = "127.77.0.0/16"


def entry(name: str) -> Entry:
    return Entry(f"spiffe://bank.example/host/{name}", name, f"{name}.bank.example", (Reach(f"10.0.0.1:{7000}"),))


def book(*names: str) -> AddressBook:
    hosts = tuple(entry(name) for name in names)
    return AddressBook("0" * 64, hosts, 1, {each.name: each for each in hosts})


def addresses(tmp_path: Path, section: FrontSection, *names: str) -> dict[str, str]:
    loopbacks = Loopbacks(tmp_path, section.loopback_network)
    return {each.host: each.loopback for each in wanted_destinations(section, book(*names), OWN, loopbacks)}


def test_every_other_host_has_an_address_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    first = addresses(tmp_path, FrontSection(), "a", "b", "c")
    assert set(first) == {"b", "c"}
    assert len(set(first.values())) == 2
    assert all(address.startswith("127.77.") for address in first.values())
    assert addresses(tmp_path, FrontSection(), "a", "c", "d")["c"] == first["c"]
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_the_address_of_a_host_that_left_leads_to_nobody_else(tmp_path: Path) -> None:
    section = FrontSection(loopback_network="127.77.0.0/29")  # six addresses
    gone = set(addresses(tmp_path, section, "b", "c", "d", "e").values())
    later = addresses(tmp_path, section, "f", "g", "h")
    assert gone.isdisjoint(later.values())
    assert sorted(bool(address) for address in later.values()) == [False, True, True]
    assert set(addresses(tmp_path, section, "b", "c", "d", "e").values()) == gone


def test_what_is_written_by_hand_comes_first(tmp_path: Path) -> None:
    section = FrontSection(destinations=[FrontDestination("b", "127.77.0.9"), FrontDestination("x")])
    found = addresses(tmp_path, section, "a", "b", "c")
    assert (found["b"], found["x"]) == ("127.77.0.9", "")
    assert found["c"] not in ("", "127.77.0.9")
    by_hand = FrontSection(destinations=[FrontDestination("b")], from_address_book=False)
    assert addresses(tmp_path, by_hand, "a", "b", "c") == {"b": ""}


def test_there_are_no_addresses_where_none_are_wanted_and_no_more_hosts_than_allowed(tmp_path: Path) -> None:
    assert addresses(tmp_path, FrontSection(loopback_network=""), "b", "c") == {"b": "", "c": ""}
    assert set(addresses(tmp_path, FrontSection(max_destinations=1), "b", "c")) == {"b"}


@pytest.mark.parametrize("name", ["..", "b/../../etc", "B", "-b", "b.c", "ü"])
def test_a_name_that_is_no_hosts_becomes_no_folder(tmp_path: Path, name: str) -> None:
    assert addresses(tmp_path, FrontSection(), name) == {}
    assert not leads_to(FrontSection(), book(name), OWN, name)


def test_a_file_that_is_damaged_gives_nobodys_address_away(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"b":"127.77.0.1"')
    with pytest.raises(ConfigurationError, match="restore it"):
        Loopbacks(tmp_path, NETWORK)


def test_an_order_goes_where_the_front_leads() -> None:
    assert leads_to(FrontSection(), book("a", "b"), OWN, "b")
    assert not leads_to(FrontSection(), book("a", "b"), OWN, "a")
    assert not leads_to(FrontSection(from_address_book=False), book("a", "b"), OWN, "b")
    assert leads_to(FrontSection(destinations=[FrontDestination("x")]), book(), OWN, "x")


def test_the_addresses_stand_in_a_file_that_resolvers_read(tmp_path: Path) -> None:
    write_hosts(tmp_path, [FrontDestination("b", "127.77.3.4"), FrontDestination("c")], book("b", "c"))
    lines = (tmp_path / "hosts").read_text().splitlines()
    assert lines[1:] == ["127.77.3.4 b.bank.example b"]
    assert (tmp_path / "hosts").stat().st_mode & 0o777 == 0o644
