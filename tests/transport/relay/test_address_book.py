"""The relay's address book: strict, durable, used while the gateway is away; and nothing that decides who a peer is."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.relay.address_book import FILE_NAME, REWRITE_SECONDS, AddressBook, AddressBookFile

A = {
    "spiffe_id": "spiffe://bank.test/host/fra1",
    "name": "fra1",
    "libvirt_name": "FRA1.bank.example",
    "addresses": [
        {"address": "10.7.0.11:7443", "device": "bond1", "dscp": 10},
        {"address": "[fd00::11]:7443", "device": None, "dscp": None},
    ],
}
B = {**A, "spiffe_id": "spiffe://bank.test/host/fra2", "name": "fra2", "libvirt_name": "fra2"}


def document(*hosts: object, **more: object) -> bytes:
    return json.dumps({"version": "0" * 64, "hosts": list(hosts), **more}).encode()


def test_a_host_is_found_by_each_of_its_names() -> None:
    book = AddressBook.decode(document(A, B), fetched=1000)
    found = book.host("fra1")
    assert found is not None
    assert found is book.host("spiffe://bank.test/host/fra1") is book.host("fra1.BANK.example")
    assert [each.address for each in found.addresses] == ["10.7.0.11:7443", "[fd00::11]:7443"]
    assert book.host("fra3") is None


def test_its_age_is_known_and_an_empty_book_has_none() -> None:
    assert AddressBook.decode(document(A), fetched=1000).age_seconds(1060) == 60
    assert AddressBook.decode(document(A), fetched=1000).age_seconds(900) == 0
    assert AddressBook().age_seconds(1000) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        document({**A, "more": 1}),
        document(A, more=1),
        document({**A, "addresses": []}),
        document({**A, "addresses": [{"address": "fra1"}]}),
        document({**A, "addresses": [{"address": "10.7.0.11:7443", "dscp": 64}]}),
        document({**A, "addresses": [{"address": "10.7.0.11:7443", "device": "a/../b"}]}),
        document(A, {**B, "libvirt_name": "fra1"}),
        document(A, {**B, "libvirt_name": "fra1.bank.EXAMPLE"}),
        document(A, {**B, "libvirt_name": "fra2\n127.0.0.1 another"}),
        document(A, A),
        json.dumps({"version": "x", "hosts": []}).encode(),
    ],
)
def test_a_book_that_is_off_is_refused_as_a_whole(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong, it is this kind
        AddressBook.decode(data, fetched=1)


@given(st.binary(max_size=200))
def test_bytes_are_a_book_or_a_value_error(data: bytes) -> None:
    try:
        AddressBook.decode(data, fetched=1)
    except ValueError:
        pass


def test_the_kept_book_survives_a_restart_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    book = AddressBook.decode(document(A, B), fetched=1000)
    AddressBookFile(tmp_path).keep(book)
    assert AddressBookFile(tmp_path).book == book
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_book_that_was_only_confirmed_is_written_once_in_a_while(tmp_path: Path) -> None:
    kept = AddressBookFile(tmp_path)
    kept.keep(AddressBook.decode(document(A), fetched=1000))
    kept.keep(AddressBook.decode(document(A), fetched=1060))
    assert kept.book.fetched == 1060
    assert AddressBookFile(tmp_path).book.fetched == 1000
    kept.keep(AddressBook.decode(document(A), fetched=1000 + REWRITE_SECONDS))
    assert AddressBookFile(tmp_path).book.fetched == 1000 + REWRITE_SECONDS


@pytest.mark.parametrize("damage", [b"", b"{", document(A)[:-10]])
def test_a_damaged_copy_is_no_book_and_stops_nothing(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(damage)
    assert AddressBookFile(tmp_path).book == AddressBook()


def test_it_knows_the_numbers_of_its_hosts_however_they_are_written_and_no_names() -> None:
    entry = {"spiffe_id": "spiffe://t/host/a", "name": "a", "libvirt_name": "a"}
    reach = [{"address": each} for each in ("10.0.0.1:7443", "[2001:db8:0:0::1]:7443", "host-a.example:7443")]
    document = {"version": "0" * 64, "hosts": [{**entry, "addresses": reach}]}
    book = AddressBook.decode(msgspec.json.encode(document))
    assert all(map(book.knows, ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "2001:db8::1%eth0"]))
    assert not any(map(book.knows, ["10.0.0.2", "host-a.example", "", "2001:db8::2"]))
    assert not AddressBook().knows("10.0.0.1")
