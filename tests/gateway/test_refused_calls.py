"""`libvirt.refused`: what relays refused is on record once, bounded, in strict form, whoever sends it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.starter import Site
from tests.gateway.api.test_https import configured
from tests.gateway.conftest import UUID_WEB, Running, running_gateway


def refusal(**more: Any) -> dict[str, Any]:
    return {
        "role": "source", "peer": "b", "cause": "procedure 12 is refused", "procedure": 12,
        "procedure_name": "domain_destroy", "vm": UUID_WEB, "vm_name": "evil", "uid": 0, "pid": 77,
        "count": 3, "first_ms_ago": 9, "last_ms_ago": 1, **more,
    }  # fmt: skip


async def tell(running: Running, *refusals: dict[str, Any], host: str = "a", **more: Any) -> httpx.Response:
    body = {"epoch": "e" * 32, "sequence": 1, "lost": 0, "refusals": list(refusals), **more}
    return await running.client(host).post("/v1/relay/refusals", json=body)


@pytest.mark.whole
async def test_a_refused_call_is_on_record_once(running: Running) -> None:
    for _ in range(2):
        assert (await tell(running, refusal())).status_code == 204
    (record,) = await running.records("libvirt.refused")
    spiffe = f"spiffe://{running.site.trust_domain}/host/"
    assert (record["outcome"], record["source"], record["destination"]) == ("denied", spiffe + "a", spiffe + "b")
    assert record["actor"]["id"] == spiffe + "a"
    assert record["vm"] == {"uuid": UUID_WEB, "name": "web"}
    details = record["details"]
    assert (details["procedure_name"], details["uid"], details["pid"], details["count"]) == ("domain_destroy", 0, 77, 3)


@pytest.mark.whole
async def test_at_the_destination_the_peer_is_the_source(running: Running) -> None:
    spiffe = f"spiffe://{running.site.trust_domain}/host/"
    told = refusal(role="destination", peer=spiffe + "b", uid=None, pid=None, vm=None, vm_name="no-such-vm")
    stranger = refusal(role="destination", peer="spiffe://else/host/x", vm=None, vm_name=None, procedure=None)
    assert (await tell(running, told, stranger)).status_code == 204
    first, second = await running.records("libvirt.refused")
    assert (first["source"], first["destination"]) == (spiffe + "b", spiffe + "a")
    assert first["vm"] == {"uuid": None, "name": "no-such-vm"}
    assert (second["source"], second["vm"], second["details"]["peer"]) == (None, None, "spiffe://else/host/x")


@pytest.mark.whole
@pytest.mark.parametrize("wrong", [
    {"cause": "a\nb"}, {"cause": "x" * 301}, {"cause": ""}, {"cause": "\u202e"}, {"vm_name": "a\x1b[2J"},
    {"vm_name": "a\u2028b"}, {"vm": "web"}, {"count": 0}, {"count": "1"}, {"role": "witness"}, {"more": 1},
    {"procedure_name": "a b"}, {"peer": ""}, {"uid": -1}, {"first_ms_ago": 1.5},
])  # fmt: skip
async def test_what_is_not_in_form_is_refused_whole(running: Running, wrong: dict[str, Any]) -> None:
    assert (await tell(running, refusal(), refusal(**wrong))).status_code == 400
    assert await running.records("libvirt.refused") == []


@pytest.mark.whole
async def test_a_host_that_makes_things_up_fills_no_log_and_silences_no_other(running: Running) -> None:
    for sequence in range(1, 6):
        many = [refusal(cause=f"no {sequence} {number}") for number in range(32)]
        assert (await tell(running, *many, sequence=sequence, lost=1)).status_code == 204
    assert (await tell(running, refusal(), host="c")).status_code == 204
    records = await running.records("libvirt.refused")
    by_a = [record for record in records if record["source"].endswith("/a")]
    assert 100 <= len(by_a) <= 102
    assert len(records) == len(by_a) + 1
    assert by_a[0]["details"]["left_out"] == 1


@pytest.mark.whole
async def test_a_site_says_how_many_records_of_it_a_host_may_make(site: Site) -> None:
    limits = "refused_calls_per_host = 5\nrefused_calls_per_minute = 1"
    async with running_gateway(configured(site, limits)) as running:
        assert (await tell(running, *(refusal(cause=f"no {number}") for number in range(32)))).status_code == 204
        assert len(await running.records("libvirt.refused")) == 5


@pytest.mark.whole
async def test_only_hosts_may_tell(running: Running) -> None:
    body = {"epoch": "e" * 32, "sequence": 1, "lost": 0, "refusals": [refusal()]}
    assert (await running.person("alice").post("/v1/relay/refusals", json=body)).status_code in {401, 403}
    assert await running.records("libvirt.refused") == []
