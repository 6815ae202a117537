from __future__ import annotations

import dataclasses
from datetime import datetime
from ipaddress import IPv6Address, ip_address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import FactRefused
from policy.facts import (
    ACTIONS,
    NOT_AUTHENTICATED,
    SEALED_ACTIONS,
    Context,
    HostFacts,
    Person,
    VmFacts,
    check_text,
    group_id,
    nobody,
    split_address,
)
from tests.policy.cedar_world import LAB1, NOW, OLGA, SANDBOX


def test_everything_sealane_can_be_asked_is_an_action() -> None:
    assert len(set(ACTIONS)) == len(ACTIONS)
    assert set(ACTIONS) >= SEALED_ACTIONS


@pytest.mark.parametrize(
    "change",
    [
        {"id": "olga"},
        {"id": "other-issuer#olga"},
        {"id": "sealane-local#"},
        {"issuer": "sealane-local#olga", "id": "sealane-local#olga#x"},
        {"issuer": "", "id": "#olga"},
        {"name": ""},
        {"name": "olga\nallowed by root"},
        {"name": "olga\u202egro.elpmaxe"},
        {"name": "olga\ud800"},
        {"name": "o" * 1025},
        {"authenticated_by": "local directory"},
        {"groups": frozenset({"operators"})},
        {"groups": frozenset({"#operators"})},
        {"groups": frozenset({"S-1-5-21-x"})},
        {"groups": frozenset({"S-1-5-32-५४४"})},
        {"groups": frozenset(f"i#{n}" for n in range(2001))},
    ],
)
def test_a_person_with_an_ambiguous_or_unprintable_fact_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(FactRefused):
        dataclasses.replace(OLGA, **change)  # type: ignore[arg-type]


def test_people_of_two_issuers_are_never_the_same_principal() -> None:
    here = Person("a#b", "a", "x", frozenset(), "oidc")
    with pytest.raises(FactRefused):
        Person("a#b", "a#b", "x", frozenset(), "oidc")
    assert here.id != Person("c#b", "c", "x", frozenset(), "oidc").id


def test_names_in_any_script_are_names() -> None:
    assert dataclasses.replace(OLGA, name="Ольга Ωmega 李 نازنین").name.startswith("Ольга")


def test_an_issuer_cannot_claim_a_sid_or_a_group_of_another_issuer() -> None:
    assert group_id("https://evil.test", "S-1-5-32-544") == "https://evil.test#S-1-5-32-544"
    assert group_id("https://evil.test", "good#admins") == "https://evil.test#good#admins"
    with pytest.raises(FactRefused):
        group_id("good#admins", "x")
    with pytest.raises(FactRefused):
        group_id("", "x")


def test_nobody_is_a_principal_of_the_host_that_asks() -> None:
    person = nobody(LAB1.spiffe_id)
    assert person.authenticated_by == NOT_AUTHENTICATED
    assert person.groups == frozenset()
    assert person.id.startswith(LAB1.spiffe_id)


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": SANDBOX.uuid.upper()},
        {"uuid": SANDBOX.uuid.replace("-", "")},
        {"uuid": SANDBOX.uuid + "\n"},
        {"name": "0e3b7b2c-0000-4000-8000-00000000000a"},
        {"name": "0E3B7B2C-0000-4000-8000-00000000000A"},
        {"name": "a\tb"},
        {"zone": ""},
        {"zone": "prоduction"},  # noqa: RUF001 - a Cyrillic o
        {"zone": "production "},
        {"zone": "production\n"},
        {"classification": "x" * 64},
        {"tags": frozenset({"pci", "a b"})},
    ],
)
def test_a_vm_that_policies_could_misread_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(FactRefused):
        dataclasses.replace(SANDBOX, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"spiffe_id": "spiffe://bank.test/host/lab2"},
        {"spiffe_id": "spiffe://Bank.test/host/lab1"},
        {"spiffe_id": "spiffe://bank.test:1/host/lab1"},
        {"spiffe_id": "spiffe://bank.test/host/lab1/x"},
        {"spiffe_id": "spiffe://bank.test/host/lab1\n"},
        {"name": "lab-1"},
        {"zone": "te st"},
        {"jurisdiction": ""},
        {"address": "lab1.bank.test:7443"},
        {"address": "10.0.0.1"},
        {"address": "10.0.0.1:0"},
        {"address": "10.0.0.1:65536"},
        {"address": "10.0.0.1:٧٤٤٣"},
        {"address": "10.0.0.1:+743"},
        {"address": "10.0.0.1:7443\n"},
        {"address": "fd00::1:7443"},
        {"address": "[10.0.0.1]:7443"},
        {"address": "[fe80::1%eth0]:7443"},
        {"address": ":7443"},
    ],
)
def test_a_host_with_a_second_name_or_a_doubtful_address_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(FactRefused):
        dataclasses.replace(LAB1, **change)  # type: ignore[arg-type]


def test_an_address_is_split_into_ip_and_port() -> None:
    assert split_address("10.0.0.1:7443") == ("10.0.0.1", 7443)
    assert split_address("[fd00::1]:1") == ("fd00::1", 1)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(FactRefused):
        Context(time=datetime(2026, 1, 1))
    assert Context(time=NOW).ports == {"memory"}


@given(st.text())
def test_whatever_text_is_taken_can_be_recorded_and_shown_on_one_line(text: str) -> None:
    try:
        check_text("text", text)
    except FactRefused:
        return
    assert text.encode()
    assert len(text.splitlines()) == 1


IPS = st.ip_addresses().map(str)
PLACES = IPS | IPS.map("[{}]".format) | st.sampled_from(["[::1%eth0]", "[FD00:0::1]", "localhost", "010.0.0.1"])


@given(st.text(max_size=40) | st.builds("{}:{}".format, PLACES, st.integers(-1, 70_000) | st.text(max_size=5)))
def test_any_address_is_split_or_refused(text: str) -> None:
    try:
        ip, port = split_address(text)
    except FactRefused:
        return
    host, _, number = text.rpartition(":")
    assert number == str(port)
    assert 0 < port < 65536
    assert host == ip or ip_address(host.removeprefix("[").removesuffix("]")) == IPv6Address(ip)


@given(st.uuids(), st.text(), st.text(), st.text())
def test_any_vm_is_built_or_refused(uuid: UUID, name: str, zone: str, classification: str) -> None:
    try:
        VmFacts(str(uuid), name, zone, classification)
    except FactRefused:
        return


@given(st.text(), st.text())
def test_any_host_is_built_or_refused(spiffe_id: str, name: str) -> None:
    with pytest.raises(FactRefused):
        HostFacts(spiffe_id, name, "fra", "test", "DE", "10.0.0.1:1")
