"""NetBox as a source of the inventory.

Against answers of a real HTTPS server: those recorded from NetBox 4.6.8 itself (netbox_recorded.json), and others,
hostile ones among them, made from netbox_vm.json, which was written by hand in the shape of NetBox 4.1.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from policy.errors import InventoryRefused, InventoryUnavailable
from policy.inventory import Layer, merge
from policy.sources.https import make_client
from policy.sources.netbox import PATH, NetboxFields, NetboxSource, _decode
from policy.sources.reading import Pace
from tests.policy.sources.https_server import Answer, HttpsServer, Request, https_server

VM: dict[str, Any] = json.loads(Path(__file__).with_name("netbox_vm.json").read_text(encoding="utf-8"))
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("netbox_recorded.json").read_text(encoding="utf-8"))
FIELDS = NetboxFields()
LEDGER = VM["serial"].lower()


def vm(number: int, **changes: Any) -> dict[str, Any]:
    """Another one like it."""
    made = copy.deepcopy(VM) | {"id": number, "name": f"vm-{number}", "serial": f"00000000-0000-4000-8000-{number:012}"}
    return made | changes


def answer_with(*vms: dict[str, Any], cap: int = 1000) -> Any:
    """As NetBox pages: at most `cap` however many are asked for, `next` an absolute URL."""

    def answer(request: Request) -> Answer:
        assert request.path == PATH
        offset, limit = int(request.query["offset"]), min(int(request.query["limit"]), cap)
        shown = vms[offset : offset + limit]
        more = f"https://elsewhere.test{PATH}?offset={offset + limit}" if offset + limit < len(vms) else None
        body = {"count": len(vms), "next": more, "previous": None, "results": shown}
        return Answer(json.dumps(body).encode(), headers={"content-type": "application/json"})

    return answer


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    with https_server(tmp_path_factory.mktemp("netbox")) as running:
        yield running


@pytest.fixture
def server(shared: HttpsServer) -> HttpsServer:
    shared.requests.clear()
    shared.answer = answer_with(VM)
    return shared


@asynccontextmanager
async def source(server: HttpsServer, fields: NetboxFields = FIELDS, page: int = 500) -> AsyncIterator[NetboxSource]:
    async with make_client(server.trust_bundle, "Token s3cret") as client:
        yield NetboxSource("netbox", server.url, client, Pace(), fields, page=page)


async def test_what_netbox_itself_was_recorded_to_say_becomes_facts(server: HttpsServer) -> None:
    server.answer = lambda _request: Answer(json.dumps(RECORDED["list"]).encode())
    async with source(server, NetboxFields(host="device.name")) as netbox:
        vms = (await netbox.read(None)).told.vms
    told = {vm.name: (uuid, vm.zone, vm.classification, vm.tags, vm.host, vm.refused) for uuid, vm in vms.items()}
    pci: frozenset[str] = frozenset({"pci-dss"})
    assert told == {
        "ledger-db": ("6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a11", "production", "restricted", pci, "fra1", None),
        "web": ("5ea1a4e0-0000-4000-8000-0000000000aa", "test", "internal", frozenset(), None, None),
        "unlabelled": ("5ea1a4e0-0000-4000-8000-0000000000ab", None, None, frozenset(), None, None),
    }


async def test_the_pages_of_netbox_itself_are_asked_for_by_number(server: HttpsServer) -> None:
    first, rest = RECORDED["first_of_two_pages"], {**RECORDED["list"], "results": RECORDED["list"]["results"][2:]}
    assert first["next"].startswith("https://localhost:")
    server.answer = lambda request: Answer(json.dumps(rest if request.query["offset"] == "2" else first).encode())
    async with source(server, page=2) as netbox:
        assert len((await netbox.read(None)).told.vms) == 3
    assert [request.query["offset"] for request in server.requests] == ["0", "2"]


async def test_the_refusal_of_netbox_itself_is_named(server: HttpsServer) -> None:
    server.answer = lambda _request: Answer(json.dumps(RECORDED["refused"]).encode(), status=403)
    async with source(server) as netbox:
        with pytest.raises(InventoryUnavailable, match="refuses our token"):
            await netbox.read(None)


async def test_a_virtual_machine_becomes_facts(server: HttpsServer) -> None:
    async with source(server, NetboxFields(host="device.name")) as netbox:
        told = (await netbox.read(None)).told
    found = told.vms[LEDGER]
    assert (found.name, found.zone, found.classification, found.host) == (
        "ledger-db",
        "production",
        "restricted",
        "fra1",
    )
    assert found.tags == frozenset({"pci-dss"})
    (asked,) = server.requests
    assert asked.headers["authorization"] == "Token s3cret"
    assert asked.query["exclude"] == "config_context"


async def test_all_pages_are_read_and_next_is_never_followed(server: HttpsServer) -> None:
    server.answer = answer_with(*(vm(number) for number in range(1, 26)), cap=4)
    async with source(server, page=10) as netbox:
        told = (await netbox.read(None)).told
    assert len(told.vms) == 25
    assert [int(request.query["offset"]) for request in server.requests] == [0, 4, 8, 12, 16, 20, 24]


async def test_a_list_of_any_size_is_not_held(server: HttpsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page was within its limit: a hundred thousand of them, of 16 MiB, were asked for and kept."""
    monkeypatch.setattr("policy.sources.netbox.MAX_LIST_BYTES", 8_192)
    server.answer = answer_with(*(vm(number) for number in range(1, 26)), cap=1)
    async with source(server, page=1) as netbox:
        with pytest.raises(InventoryRefused, match="larger than"):
            await netbox.read(None)
    assert len(server.requests) < 25


async def test_pages_are_read_beside_the_tasks_of_the_gateway(
    server: HttpsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 16 MiB takes a second or more, in which nobody was answered."""
    threads: list[threading.Thread] = []

    def noted(page: bytes, source: str) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return _decode(page, source)

    monkeypatch.setattr("policy.sources.netbox._decode", noted)
    async with source(server) as netbox:
        await netbox.read(None)
    assert threads
    assert threading.current_thread() not in threads


async def test_a_list_that_changes_while_it_is_read_is_read_again_and_then_given_up(server: HttpsServer) -> None:
    growing = [vm(1), vm(2), vm(3)]

    def answer(request: Request) -> Answer:
        if request.query["offset"] != "0":
            growing.append(vm(len(growing) + 1))
        return answer_with(*growing, cap=2)(request)  # type: ignore[no-any-return]

    server.answer = answer
    async with source(server) as netbox:
        with pytest.raises(InventoryUnavailable, match="changes faster"):
            await netbox.read(None)


async def test_an_entry_that_moved_to_the_next_page_is_not_read_twice(server: HttpsServer) -> None:
    server.answer = lambda _request: Answer(json.dumps({"count": 2, "results": [vm(1)]}).encode())
    async with source(server) as netbox:
        with pytest.raises(InventoryUnavailable, match="changes faster"):
            await netbox.read(None)


async def test_no_change_is_no_new_reading(server: HttpsServer) -> None:
    async with source(server) as netbox:
        first = await netbox.read(None)
        assert await netbox.read(first) is first


async def test_tables_translate_and_what_is_not_in_them_is_refused(server: HttpsServer) -> None:
    fields = NetboxFields(zone="tenant.slug", zones={"prod-tenant": "production"})
    other = vm(2, tenant={"id": 8, "slug": "unheard-of"})
    server.answer = answer_with(VM, other)
    async with source(server, fields) as netbox:
        told = (await netbox.read(None)).told
    assert told.vms[LEDGER].zone == "production"
    assert "not in the table" in (told.vms[other["serial"]].refused or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"custom_fields": {"zone": "pr\u043eduction", "classification": "internal"}},  # a Cyrillic letter
        {"custom_fields": {"zone": 7, "classification": "internal"}},
        {"custom_fields": {"zone": "production", "classification": ["internal"]}},
        {"tags": [{"name": "no slug"}]},
        {"tags": "pci"},
        {"name": "a\u202eb"},
        {"name": "6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a12"},
    ],
)
async def test_an_entry_that_cannot_be_used_is_unknown_and_takes_nothing_from_the_others(
    server: HttpsServer, changes: dict[str, Any]
) -> None:
    server.answer = answer_with(VM, vm(2, **changes), vm(3))
    async with source(server) as netbox:
        told = (await netbox.read(None)).told
    refused = told.vms[vm(2)["serial"]]
    assert refused.refused
    inventory = merge([Layer("netbox", told)], {"netbox": 0.0}, lambda: 1.0)
    assert set(inventory.vms) == {LEDGER, vm(3)["serial"]}
    assert inventory.why_unknown(refused.uuid).startswith("netbox: ")


async def test_what_a_refused_entry_would_have_said_is_not_taken_from_a_source_below(server: HttpsServer) -> None:
    server.answer = answer_with(vm(2, custom_fields={"zone": "!", "classification": "restricted"}))
    below = answer_with(vm(2))
    async with source(server) as netbox:
        above = (await netbox.read(None)).told
        server.answer = below
        other = (await netbox.read(None)).told
    inventory = merge([Layer("netbox", above), Layer("cmdb", other)], {}, lambda: 1.0)
    assert inventory.vm(vm(2)["serial"]) is None


async def test_a_vm_without_a_uuid_is_told_of_and_two_of_one_uuid_are_neither(server: HttpsServer) -> None:
    server.answer = answer_with(vm(1, serial=""), vm(2), vm(3, serial=vm(2)["serial"]), vm(4, serial=7))
    async with source(server) as netbox:
        told = (await netbox.read(None)).told
    assert [text.partition(" has ")[0] for text in told.skipped] == ["VM 'vm-1' (id 1)", "VM 'vm-4' (id 4)"]
    assert "several VMs have its UUID" in (told.vms[vm(2)["serial"]].refused or "")


@pytest.mark.parametrize(
    "body",
    [
        b'{"detail": "Not found."}',
        b'{"count": "1", "results": []}',
        b'{"count": -1, "results": []}',
        b'{"count": 1, "results": {}}',
        b'{"count": 1, "results": [7]}',
        b'{"count": 1, "results": [{"name": "x"}]}',
        b'{"count": 200000, "results": []}',
        b'{"count": 1, "count": 0, "results": []}',
        b"<html>",
    ],
)
async def test_what_is_no_list_of_netbox_is_refused(server: HttpsServer, body: bytes) -> None:
    server.answer = lambda _request: Answer(body)
    async with source(server) as netbox:
        with pytest.raises(InventoryRefused):
            await netbox.read(None)


async def test_a_token_that_netbox_does_not_take_is_named(server: HttpsServer) -> None:
    server.answer = lambda _request: Answer(b'{"detail": "Invalid token"}', status=403)
    async with source(server) as netbox:
        with pytest.raises(InventoryUnavailable, match="refuses our token"):
            await netbox.read(None)
