from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy import inventory as inventory_module
from policy.errors import InventoryRefused
from policy.facts import HostFacts, MigrationAddress, VmFacts
from policy.inventory import Inventory

UUID = "6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a11"
OTHER = "6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a12"
FILE = f"""
[[hosts]]
name = "fra1"
spiffe_id = "spiffe://bank.test/host/fra1"
site = "fra"
zone = "production"
jurisdiction = "DE"
address = "10.7.0.11:7443"

[[hosts]]
name = "zrh1"
spiffe_id = "spiffe://bank.test/host/zrh1"
site = "zrh"
zone = "production"
jurisdiction = "CH"
address = "[fd00::7]:7443"

[[vms]]
name = "Ledger DB"
uuid = "{UUID}"
zone = "production"
classification = "restricted"
tags = ["pci", "linux"]
host = "fra1"

[[vms]]
name = "ledger db"
uuid = "{OTHER}"
zone = "test"
classification = "internal"
"""


def refused(text: str | bytes) -> str:
    with pytest.raises(InventoryRefused) as caught:
        Inventory.parse(text.encode() if isinstance(text, str) else text, "inventory.toml")
    assert caught.value.file == "inventory.toml"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_vm_is_found_by_its_name_and_by_its_uuid() -> None:
    inventory = Inventory.parse(FILE.encode())
    ledger = VmFacts(UUID, "Ledger DB", "production", "restricted", frozenset({"pci", "linux"}), "fra1")
    assert inventory.vm("Ledger DB") == inventory.vm(UUID) == inventory.vm(UUID.upper()) == ledger
    assert inventory.vm("LEDGER DB") is None
    assert inventory.vm(OTHER) == VmFacts(OTHER, "ledger db", "test", "internal")


def test_a_host_is_found_by_its_name_and_by_its_spiffe_id() -> None:
    inventory = Inventory.parse(FILE.encode())
    zurich = HostFacts("spiffe://bank.test/host/zrh1", "zrh1", "zrh", "production", "CH", "[fd00::7]:7443")
    assert inventory.host("zrh1") == inventory.host("spiffe://bank.test/host/zrh1") == zurich
    assert inventory.host("ZRH1") is None
    assert inventory.host("spiffe://bank.test/host/lab1") is None


@pytest.mark.parametrize(
    "name", ["", " ", "Ledger DB ", "Ledger DB\0", "../Ledger DB", "Ledger%20DB", UUID[:-1], "unknown"]
)
def test_a_name_that_is_not_exactly_one_is_unknown(name: str) -> None:
    inventory = Inventory.parse(FILE.encode())
    assert inventory.vm(name) is None
    assert inventory.host(name) is None


def test_an_empty_inventory_knows_nothing() -> None:
    inventory = Inventory.parse(b"")
    assert not inventory.vms
    assert not inventory.hosts


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'zone = "test"',
            'zone = "test"\ncolour = "red"',
            "colour: is no key",
        ),
        ("[[vms]]", "[[machines]]", "machines: is no key; the keys and tables of the file are hosts, vms"),
        (
            'zone = "test"',
            "",
            'zone: is missing; it must be 1 to 63 ASCII letters, digits and . _ : / - (in the entry named "ledger db")',
        ),
        ('zone = "test"', "zone = 7", "zone: is 7; allowed is 1 to 63 ASCII letters"),
        ('zone = "test"', 'zone = "te st"', "VM 'ledger db': VM zone must be"),
        ('zone = "test"', 'zone = "Production"', "zone is spelt 'Production' and 'production'"),
        ('tags = ["pci", "linux"]', 'tags = ["pci", "PCI"]', "tag is spelt"),
        ('tags = ["pci", "linux"]', 'tags = ["pci", "pci"]', "a tag stands twice"),
        ('name = "ledger db"', 'name = "Ledger DB"', "VM name 'Ledger DB' stands twice"),
        ('name = "ledger db"', f'name = "{UUID}"', "must not look like a UUID"),
        ('name = "ledger db"', f'name = "{UUID.upper()}"', "must not look like a UUID"),
        ('name = "ledger db"', 'name = "a\\u001bb"', "control"),
        (OTHER, UUID, f"VM uuid '{UUID}' stands twice"),
        (OTHER, OTHER.upper(), "lower-case UUID"),
        ('host = "fra1"', 'host = "fra9"', "is on host 'fra9', which is not in the file"),
        ('host = "fra1"', 'host = "spiffe://bank.test/host/fra1"', "which is not in the file"),
        ("/host/zrh1", "/host/fra1", "must be the last part of its spiffe_id"),
        ("spiffe://bank.test/host/zrh1", "spiffe://bank.test/host/zrh1/", "host spiffe_id must be"),
        ("[fd00::7]:7443", "10.7.0.11:7443", "host address '10.7.0.11:7443' stands twice"),
        ("[fd00::7]:7443", "zrh1.bank.test:7443", "host address must be"),
        ("[[hosts]]", "[hosts]", "line"),
        ('jurisdiction = "CH"', 'jurisdiction = "de"', "jurisdiction is spelt"),
        ('name = "fra1"', 'name = "fra1"\nname = "fra1"', "line"),
    ],
)
def test_a_file_with_a_fault_is_refused_as_a_whole(old: str, new: str, words: str) -> None:
    assert words in refused(FILE.replace(old, new))


def test_a_host_that_stands_twice_is_refused() -> None:
    host = FILE.split("[[hosts]]")[1].replace("10.7.0.11", "10.7.0.12")
    assert "host name 'fra1' stands twice" in refused(f"{FILE}\n[[hosts]]{host}")


@pytest.mark.parametrize("content", [b"\xff", b"[[vms", b"\0", b"a = " + b"[" * 100_000, b"\xef\xbb\xbf[[vms]]"])
def test_what_is_not_toml_is_refused(content: bytes) -> None:
    refused(content)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inventory.toml"
    with pytest.raises(InventoryRefused, match="cannot be read"):
        Inventory.load(path)
    path.write_text(FILE, encoding="utf-8")
    assert Inventory.load(path).vm(UUID) is not None
    monkeypatch.setattr(inventory_module, "MAX_BYTES", 10)
    with pytest.raises(InventoryRefused, match="is larger"):
        Inventory.load(path)


def test_an_inventory_cannot_be_changed_by_whoever_holds_it() -> None:
    inventory = Inventory.parse(FILE.encode())
    with pytest.raises(TypeError):
        inventory.vms[UUID] = None  # type: ignore[index]


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_content_is_loaded_or_refused(content: bytes) -> None:
    try:
        Inventory.parse(content)
    except InventoryRefused:
        return


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_name_is_found_exactly_or_its_file_refused(name: str, asked: str) -> None:
    quoted = '"' + "".join(f"\\U{ord(c):08X}" for c in name) + '"'
    try:
        inventory = Inventory.parse(FILE.replace('"ledger db"', quoted).encode())
    except InventoryRefused:
        return
    found = inventory.vm(name)
    assert found is not None
    assert found.uuid == OTHER
    assert (inventory.vm(asked) is not None) == (asked in {name, "Ledger DB"} or asked.lower() in {UUID, OTHER})


NETWORKED = """
[[hosts]]
name = "fra1"
spiffe_id = "spiffe://bank.test/host/fra1"
site = "fra"
zone = "production"
jurisdiction = "DE"
address = "10.7.0.11:7443"
libvirt_name = "fra1.Bank.example"
[[hosts.migration]]
address = "[fd00:7::11]:7443"
device = "bond1"
dscp = 10
[[hosts.migration]]
address = "10.7.0.11:7443"
"""


def test_a_host_has_migration_addresses_best_first_and_the_name_that_libvirt_gives_it() -> None:
    host = Inventory.parse(NETWORKED.encode()).host("fra1")
    assert host is not None
    assert host.libvirt_name == "fra1.Bank.example"
    assert host.addresses == (MigrationAddress("[fd00:7::11]:7443", "bond1", 10), MigrationAddress("10.7.0.11:7443"))
    plain = Inventory.parse(FILE.encode()).host("zrh1")
    assert plain is not None
    assert plain.addresses == (MigrationAddress("[fd00::7]:7443"),)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("dscp = 10", "dscp = 64", "must be 0 to 63"),
        ("dscp = 10", "dscp = 10\nvlan = 7", "hosts[0].migration[0].vlan: is no key"),
        ('"bond1"', '".."', "network interface"),
        ('"bond1"', '"a/b"', "network interface"),
        ('"fra1.Bank.example"', '"fra1_x"', "must be a host name"),
        ('[fd00:7::11]:7443"', 'fra1:7443"', "IPv4:port"),
        ('[fd00:7::11]:7443"', '10.7.0.11:7443"', "stands twice"),
        ('[[hosts.migration]]\naddress = "10.7.0.11:7443"\n', "", "must be among its migration addresses"),
        (
            "[[hosts.migration]]",
            '[[hosts.migration]]\naddress = "10.0.0.9:1"\n[[hosts]]\nname = "fra2"\nsite = "fra"\nzone = "production"\n'
            'spiffe_id = "spiffe://bank.test/host/fra2"\njurisdiction = "DE"\naddress = "10.7.0.12:7443"\n'
            'libvirt_name = "FRA1.bank.example"\n[[hosts.migration]]',
            "stands twice",
        ),
    ],
)
def test_what_would_dial_the_wrong_host_refuses_the_file(before: str, after: str, says: str) -> None:
    assert before in NETWORKED
    assert says in refused(NETWORKED.replace(before, after, 1))
