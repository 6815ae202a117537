"""Relays: who may speak for which host, and what a receipt must be before it is recorded."""

from __future__ import annotations

import base64
import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from certs import layout
from certs.authority import Authority
from certs.files import read_certificates
from gateway.migrations import MAX_RECEIPTS
from gateway.starter import Site
from policy.permit import VerifiedPermit
from tests.gateway.break_glass.conftest import Hands
from tests.gateway.conftest import UUID_WEB, Running, rfc3339, running_gateway
from tests.gateway.test_watch import edit, own_bundle
from transport.relay.content_digests import MAX_DIGESTED_CHANNELS, ContentDigests, document
from transport.wire.control import Role
from transport.wire.preface import MAX_CHANNELS

pytestmark = pytest.mark.whole

PROGRESS = {
    "transferred_bytes": 10,
    "remaining_bytes": 20,
    "total_bytes": 30,
    "rate_bytes_per_second": 5,
    "pass": 1,
}


async def refused(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    answer = await client.post(path, json=body)
    assert answer.status_code in {400, 403}, answer.text
    return str(answer.json()["error"]["code"])


async def is_hung_up_on(running: Running, certificate: Path, key: Path) -> None:
    """With TLS 1.3 a client learns only by reading that its certificate was refused."""
    context = ssl.create_default_context(cafile=str(running.site.ca))
    context.load_cert_chain(certificate, key)
    host, _, port = running.gateway.listen.rpartition(":")
    stream = await trio.open_ssl_over_tcp_stream(host, int(port), ssl_context=context)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
        await stream.send_all(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await stream.receive_some() == b"", "it was served"
        raise trio.BrokenResourceError
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("path", ["/v1/relay/poll", "/v1/relay/progress", "/v1/receipts"])
async def test_relay_calls_need_a_client_certificate(running: Running, path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/relay/poll": {"wait_seconds": 0},
        "/v1/relay/progress": {"migration_id": "m", "state": "running", **PROGRESS},
        "/v1/receipts": {"receipt": {"body": "{}", "signature": "AAAA", "chain": ["AAAA"]}},
    }
    assert await refused(running.person("alice"), path, bodies[path]) == "relay_refused"


async def test_a_certificate_of_another_ca_ends_the_handshake(running: Running, tmp_path: Path) -> None:
    other = tmp_path / "other"
    layout.init(other, running.site.trust_domain, "other.example/log", ["localhost"], [], datetime.now(UTC))
    layout.issue_host(other, "a", datetime.now(UTC))
    files = (other / "hosts/a/host.pem", other / "hosts/a/host.key")
    await is_hung_up_on(running, *files)


async def test_a_certificate_of_the_gateway_is_not_that_of_a_host(running: Running) -> None:
    files = (running.site.certs / "gateway/tls.pem", running.site.certs / "gateway/tls.key")
    await is_hung_up_on(running, *files)


async def test_a_host_that_the_inventory_does_not_list_is_refused(running: Running) -> None:
    layout.issue_host(running.site.certs, "stranger", datetime.now(UTC))
    assert await refused(running.client("stranger"), "/v1/relay/poll", {"wait_seconds": 0}) == "relay_refused"


async def test_a_revoked_host_is_refused_after_a_reload_even_on_an_open_connection(running: Running) -> None:
    client = running.client("a")
    assert (await client.post("/v1/relay/poll", json={"wait_seconds": 0})).status_code == 200
    leaf = read_certificates(running.site.host_folder("a") / "host.pem")[0]
    authority = Authority.load(running.site.certs)
    authority.revoke(leaf.serial_number, datetime.now(UTC))
    authority.publish_crl(datetime.now(UTC))
    await running.gateway.reload()
    assert await refused(client, "/v1/relay/poll", {"wait_seconds": 0}) == "relay_revoked"
    folder = running.site.host_folder("a")
    await is_hung_up_on(running, folder / "host.pem", folder / "host.key")


async def test_a_host_gets_and_reports_only_what_is_its_own(running: Running) -> None:
    migration_id, permit = await running.begin()
    assert await running.poll("b") == []
    body = {"migration_id": migration_id, "state": "failed", **PROGRESS}
    assert await refused(running.client("c"), "/v1/relay/progress", body) == "not_a_party"
    forged = running.receipt("c", permit, "source", "completed")
    assert await refused(running.client("c"), "/v1/receipts", forged) == "not_a_party"
    state = (await running.person("alice").get(f"/v1/migrations/{migration_id}")).json()["state"]
    assert state == "assigned"


async def test_progress_moves_the_state_forward_and_never_back(running: Running) -> None:
    migration_id, _ = await running.begin()
    relay, alice = running.client("a"), running.person("alice")
    for state, expected in (("running", "running"), ("handing_over", "handing_over"), ("running", "handing_over")):
        body = {"migration_id": migration_id, "state": state, "downtime_ms": 7, **PROGRESS}
        assert (await relay.post("/v1/relay/progress", json=body)).status_code == 204
        shown = (await alice.get(f"/v1/migrations/{migration_id}")).json()
        assert shown["state"] == expected
        assert shown["progress"]["pass"] == 1
        assert shown["progress"]["transferred_bytes"] == 10


async def deliver(running: Running, host: str, receipt: dict[str, Any]) -> int:
    answer = await running.client(host).post("/v1/receipts", json=receipt)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["record_index"])


async def test_receipts_are_recorded_once_however_often_they_are_sent(running: Running) -> None:
    migration_id, permit = await running.begin()
    source = running.receipt("a", permit, "source", "completed")
    destination = running.receipt("b", permit, "destination", "running")
    index = await deliver(running, "a", source)
    assert await deliver(running, "a", source) == index
    await deliver(running, "b", destination)
    records = await running.records("migration.receipt")
    assert [record["outcome"] for record in records] == ["completed", "running"]
    assert records[0]["details"]["body"] == source["receipt"]["body"]
    shown = (await running.person("alice").get(f"/v1/migrations/{migration_id}")).json()
    assert (shown["state"], shown["outcome"]) == ("completed", "completed")
    assert [receipt["role"] for receipt in shown["receipts"]] == ["source", "destination"]


@pytest.mark.parametrize(("loud", "other"), [("source", "destination"), ("destination", "source")])
async def test_no_host_keeps_the_other_ones_receipt_out_by_however_many_of_its_own(
    running: Running, loud: str, other: str
) -> None:
    """What a host lies about the other one would else have certified in vain."""
    _, permit = await running.begin()
    hosts, outcomes = {"source": "a", "destination": "b"}, {"source": "failed", "destination": "running"}
    relay = running.client(hosts[loud])
    statuses = [
        (await relay.post("/v1/receipts", json=running.receipt(hosts[loud], permit, loud, outcomes[loud]))).status_code
        for _ in range(MAX_RECEIPTS + 1)
    ]
    assert (set(statuses[:-1]), statuses[-1]) == ({200}, 400)
    await deliver(running, hosts[other], running.receipt(hosts[other], permit, other, outcomes[other]))
    told = [record["details"]["role"] for record in await running.records("migration.receipt")]
    assert told == [loud] * MAX_RECEIPTS + [other]


async def test_what_a_host_has_not_said_yet_is_taken_after_however_many_that_said_another_thing(
    running: Running,
) -> None:
    """A source that asks again and again has its destination certify, so many times, that memory had not come."""
    migration_id, permit = await running.begin()
    for _ in range(MAX_RECEIPTS):
        await deliver(running, "b", running.receipt("b", permit, "destination", "running", lacks_memory=True))
    await deliver(running, "b", running.receipt("b", permit, "destination", "running"))
    again = running.receipt("b", permit, "destination", "running")
    assert (await running.client("b").post("/v1/receipts", json=again)).status_code == 400
    await deliver(running, "a", running.receipt("a", permit, "source", "completed"))
    shown = (await running.person("alice").get(f"/v1/migrations/{migration_id}")).json()
    assert shown["state"] == "completed"


async def test_a_receipt_of_a_recovery_is_recorded_as_one(running: Running) -> None:
    _, permit = await running.begin()
    await deliver(running, "a", running.receipt("a", permit, "source", "completed"))
    await deliver(running, "a", running.receipt("a", permit, "source", "completed", recovery=True))
    first, second = (record["details"] for record in await running.records("migration.receipt"))
    assert ("recovery" in first, second["recovery"]) == (False, True)
    for lie in (False, 1, "yes"):
        forged = running.receipt("a", permit, "source", "completed", recovery=lie)
        assert await refused(running.client("a"), "/v1/receipts", forged) == "receipt_refused"


async def test_a_receipt_of_a_guest_that_lacks_memory_ends_nothing(running: Running) -> None:
    migration_id, permit = await running.begin()
    await deliver(running, "b", running.receipt("b", permit, "destination", "running", lacks_memory=True))
    (record,) = await running.records("migration.receipt")
    assert record["details"]["lacks_memory"] is True
    shown = (await running.person("alice").get(f"/v1/migrations/{migration_id}")).json()
    assert (shown["state"], shown["outcome"]) == ("handing_over", None)
    for lie in (False, 1, "yes"):
        forged = running.receipt("b", permit, "destination", "running", lacks_memory=lie)
        assert await refused(running.client("b"), "/v1/receipts", forged) == "receipt_refused"
    for host, role, outcome in (("b", "destination", "discarded"), ("a", "source", "running")):
        forged = running.receipt(host, permit, role, outcome, lacks_memory=True)
        assert await refused(running.client(host), "/v1/receipts", forged) == "receipt_refused"


async def test_a_receipt_of_a_relay_that_was_restarted_is_recorded_without_counts(running: Running) -> None:
    _, permit = await running.begin()
    lacking = running.receipt("b", permit, "destination", "running", lacks_counts=True, channels=[])
    await deliver(running, "b", lacking)
    (details,) = (record["details"] for record in await running.records("migration.receipt"))
    assert (details["lacks_counts"], "sent_bytes" in details, "received_bytes" in details) == (True, False, False)


async def test_the_vm_is_where_the_destination_certifies_to_run_it(running: Running) -> None:
    _, permit = await running.begin()
    await deliver(running, "a", running.receipt("a", permit, "source", "completed"))
    await deliver(running, "b", running.receipt("b", permit, "destination", "running"))
    await running.poll("b")
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "c"})
    assert answer.status_code == 201
    (assignment,) = await running.poll("b")
    assert running.open_permit(assignment["permit"]).claims.source == running.site.spiffe_id("b")


async def where_web_is(running: Running) -> tuple[str, str]:
    (web,) = (await running.person("alice").get("/v1/vms", params={"prefix": "web"})).json()["vms"]
    return web["host"], web["placed_by"]


async def sent_on(running: Running, source: str, destination: str) -> VerifiedPermit:
    """The permit by which `source`, where web is by now, sends it on."""
    await running.poll(source)
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": destination})
    assert answer.status_code == 201, answer.text
    (assignment,) = await running.poll(source)
    return running.open_permit(assignment["permit"])


async def test_what_is_certified_late_or_once_more_brings_no_vm_back(site: Site) -> None:
    hands = Hands()
    async with running_gateway(site, hands.clock()) as running:
        _, first = await running.begin()
        await deliver(running, "b", running.receipt("b", first, "destination", "running"))
        hands.pass_by(minutes=0.5)  # the source's receipt is spooled: its host cannot reach the gateway
        second = await sent_on(running, "b", "c")
        await deliver(running, "c", running.receipt("c", second, "destination", "running"))
        await deliver(running, "b", running.receipt("b", second, "source", "completed"))
        assert await where_web_is(running) == ("c", "receipt")
        await deliver(running, "a", running.receipt("a", first, "source", "completed"))
        assert await where_web_is(running) == ("c", "receipt"), "the one that was late is of an earlier move"
        await deliver(running, "b", running.receipt("b", first, "destination", "completed"))
        assert await where_web_is(running) == ("c", "receipt"), "b had the VM, and cannot draw it back by its word"
        last = (await running.records("migration.receipt"))[-1]
        assert last["details"]["places_vm"] is False
    async with running_gateway(site) as running:
        assert await where_web_is(running) == ("c", "receipt")


async def test_an_inventory_that_lags_behind_takes_no_vm_from_where_it_is_certified_to_run(site: Site) -> None:
    async with running_gateway(site) as running:
        _, permit = await running.begin()
        edit(site.inventory, lambda text: text.replace('host = "a"', 'host = "c"'))
        await running.gateway.reload()
        assert await where_web_is(running) == ("c", "inventory")
        await deliver(running, "b", running.receipt("b", permit, "destination", "running"))
        assert await where_web_is(running) == ("b", "receipt")


async def test_a_host_that_failed_to_get_a_vm_does_not_get_it_from_where_it_went_since(site: Site) -> None:
    async with running_gateway(site) as running:
        _, first = await running.begin()
        await deliver(running, "a", running.receipt("a", first, "source", "failed"))
        _, second = await running.begin(destination="c")
        await deliver(running, "c", running.receipt("c", second, "destination", "running"))
        await deliver(running, "a", running.receipt("a", second, "source", "completed"))
        await deliver(running, "b", running.receipt("b", first, "destination", "running"))
        assert await where_web_is(running) == ("c", "receipt")
    async with running_gateway(site) as running:
        assert await where_web_is(running) == ("c", "receipt")


async def test_nor_once_the_vm_is_back_where_that_move_began(site: Site) -> None:
    hands = Hands()
    async with running_gateway(site, hands.clock()) as running:
        _, first = await running.begin()
        await deliver(running, "a", running.receipt("a", first, "source", "failed"))
        _, second = await running.begin(destination="c")
        await deliver(running, "c", running.receipt("c", second, "destination", "running"))
        await deliver(running, "a", running.receipt("a", second, "source", "completed"))
        hands.pass_by(minutes=3)
        third = await sent_on(running, "c", "a")
        await deliver(running, "a", running.receipt("a", third, "destination", "running"))
        await deliver(running, "c", running.receipt("c", third, "source", "completed"))
        assert await where_web_is(running) == ("a", "receipt")
        hands.pass_by(minutes=5)
        await deliver(running, "b", running.receipt("b", first, "destination", "running"))
        assert await where_web_is(running) == ("a", "receipt")


async def test_all_of_it_is_known_again_after_a_restart(site: Site) -> None:
    async with running_gateway(site) as running:
        migration_id, permit = await running.begin()
        index = await deliver(running, "a", running.receipt("a", permit, "source", "completed"))
        destination = running.receipt("b", permit, "destination", "running")
        await deliver(running, "b", destination)
    async with running_gateway(site) as running:
        shown = (await running.person("alice").get(f"/v1/migrations/{migration_id}")).json()
        assert shown["state"] == "completed"
        assert shown["receipts"][0]["record_index"] == index
        size = running.gateway.committer.size
        await deliver(running, "b", destination)  # the relay had not heard that it was taken
        assert running.gateway.committer.size == size
        await running.poll("b")
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "c"})
        assert answer.status_code == 201


async def test_a_vm_stays_where_it_is_when_its_named_ports_stream_has_arrived_also_after_a_restart(site: Site) -> None:
    (own_bundle(site) / "ports.cedar").write_text(
        '@id("p") @reason("r") permit (principal, action == Sealane::Action::"OpenPort", resource);'
    )
    async with running_gateway(site) as running:
        await running.poll("a")
        wish = {"vm": "web", "destination": "b", "ports": ["backup"]}
        answer = await running.person("alice").post("/v1/migrations", json=wish)
        assert answer.status_code == 201, answer.text
        (assignment,) = await running.poll("a")
        permit = running.open_permit(assignment["permit"])
        await deliver(running, "b", running.receipt("b", permit, "destination", "completed"))
        await deliver(running, "a", running.receipt("a", permit, "source", "completed"))
        assert [each["details"]["moves_guest"] for each in await running.records("migration.receipt")] == [False, False]
    async with running_gateway(site) as running:
        await running.begin("web", "b")


async def test_an_unfinished_migration_blocks_its_vm_after_a_restart_too(site: Site) -> None:
    async with running_gateway(site) as running:
        migration_id, permit = await running.begin()
    async with running_gateway(site) as running:
        await running.poll("a")
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "c"})
        assert answer.status_code == 409
        await deliver(running, "a", running.receipt("a", permit, "source", "failed"))
        shown = (await running.person("alice").get(f"/v1/migrations/{migration_id}")).json()
        assert shown["state"] == "failed"


async def altered(running: Running, permit: VerifiedPermit, **changes: Any) -> str:
    """How the gateway answers a receipt of host a that says something else."""
    said = {"role": "source", "outcome": "completed", **changes}
    answer = await running.client("a").post("/v1/receipts", json=running.receipt("a", permit, **said))
    assert answer.status_code in {400, 403}, answer.text
    return str(answer.json()["error"]["message"])


async def test_a_receipt_must_agree_with_what_was_permitted(running: Running) -> None:
    _, permit = await running.begin()
    assert "jti" in await altered(running, permit, jti="another")
    assert "vm " in await altered(running, permit, vm=UUID_WEB.replace("1", "2"))
    assert "destination" in await altered(running, permit, destination=running.site.spiffe_id("c"))
    assert "permit_sha256" in await altered(running, permit, permit_sha256="0" * 64)
    assert "role" in await altered(running, permit, role="destination")
    assert await running.records("migration.receipt") == []


async def test_a_receipt_from_before_the_permit_or_from_the_future_is_refused(running: Running) -> None:
    _, permit = await running.begin()
    now = datetime.now(UTC)
    early, late = rfc3339(now - timedelta(hours=1)), rfc3339(now + timedelta(hours=1))
    assert "before the migration was permitted" in await altered(running, permit, started=early, ended=early)
    assert "did not end" in await altered(running, permit, ended=late)
    assert "RFC 3339" in await altered(running, permit, ended="yesterday")


@pytest.mark.parametrize(("channels", "digested"), [(MAX_CHANNELS, False), (MAX_DIGESTED_CHANNELS, True)])
async def test_the_longest_receipt_of_a_session_is_taken(running: Running, channels: int, digested: bool) -> None:
    _, permit = await running.begin()
    much = {"sent_bytes": 10**15, "received_bytes": 10**15, "sent_frames": 10**9, "received_frames": 10**9}
    counts = [{"channel": number, "port": "libvirt", **much} for number in range(channels)]
    content = document({number: ContentDigests.new() for number in range(channels)}, Role.SOURCE)
    more = {"channels": counts, "content_digests": content if digested else None}
    await deliver(running, "a", running.receipt("a", permit, "source", "completed", **more))


async def test_a_receipt_has_one_form(running: Running) -> None:
    _, permit = await running.begin()
    much = {"channel": 0, "port": "memory", "sent_bytes": 2**63 - 1, "received_bytes": 0}
    channels = [{**much, "channel": number, "sent_frames": 1, "received_frames": 1} for number in range(2)]
    assert "cannot be recorded" in await altered(running, permit, channels=channels)
    assert "not a receipt" in await altered(running, permit, extra="member")
    assert "not a receipt" in await altered(running, permit, outcome="splendid")
    good = running.receipt("a", permit, "source", "completed")
    loose = json.dumps(json.loads(good["receipt"]["body"]), indent=1).encode()
    answer = await running.client("a").post("/v1/receipts", json=running.sign("a", loose))
    assert "not canonical" in answer.json()["error"]["message"]


async def test_a_receipt_is_signed_by_the_host_that_reports_it(running: Running) -> None:
    _, permit = await running.begin()
    body = msgspec.json.decode(running.receipt("a", permit, "source", "completed")["receipt"]["body"])
    text = msgspec.json.encode(body, order="sorted")
    relay = running.client("a")
    by_b = await relay.post("/v1/receipts", json=running.sign("b", text))
    assert "another host" in by_b.json()["error"]["message"]
    unsigned = running.sign("a", text)
    unsigned["receipt"]["signature"] = running.sign("a", text + b" ")["receipt"]["signature"]
    assert "signature does not verify" in (await relay.post("/v1/receipts", json=unsigned)).json()["error"]["message"]
    no_chain = running.sign("a", text)
    no_chain["receipt"]["chain"] = [base64.b64encode(b"no certificate").decode()]
    assert "chain" in (await relay.post("/v1/receipts", json=no_chain)).json()["error"]["message"]
    assert await running.records("migration.receipt") == []


async def test_a_receipt_is_not_taken_while_the_log_cannot_hold_it(running: Running) -> None:
    _, permit = await running.begin()
    receipt = running.receipt("a", permit, "source", "failed")
    running.log.broken = True
    assert (await running.client("a").post("/v1/receipts", json=receipt)).status_code == 503
    running.log.broken = False
    running.gateway.committer._next_attempt = 0
    await deliver(running, "a", receipt)
    assert len(await running.records("migration.receipt")) == 1


async def test_the_requester_cancels_and_the_source_relay_is_told(running: Running) -> None:
    migration_id, _ = await running.begin()
    assert (await running.person("bob").post(f"/v1/migrations/{migration_id}/cancel")).status_code == 403
    assert (await running.person("alice").post(f"/v1/migrations/{migration_id}/cancel")).status_code == 202
    assert await running.poll("a") == [{"kind": "cancel", "migration_id": migration_id}]
    outcomes = [record["outcome"] for record in await running.records("migration.cancel_requested")]
    assert outcomes == ["denied", "allowed"]


async def test_what_no_relay_has_taken_is_cancelled_at_once(running: Running) -> None:
    await running.poll("a")
    alice = running.person("alice")
    migration_id = (await alice.post("/v1/migrations", json={"vm": "web", "destination": "b"})).json()["migration_id"]
    assert (await alice.post(f"/v1/migrations/{migration_id}/cancel")).status_code == 202
    assert (await alice.get(f"/v1/migrations/{migration_id}")).json()["state"] == "cancelled"
    assert await running.poll("a") == []
    again = await alice.post(f"/v1/migrations/{migration_id}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_ended")


async def test_a_host_that_is_out_fills_no_operators_log(running: Running) -> None:
    layout.issue_host(running.site.certs, "stranger", datetime.now(UTC))
    client, body = running.client("stranger"), {"wait_seconds": 0}
    relay = running.client("a")
    with capture_logs() as said:
        codes = {await refused(client, "/v1/relay/poll", body) for _ in range(60)}
        numbers = ("transferred_bytes", "remaining_bytes", "total_bytes", "rate_bytes_per_second", "pass")
        progress = {"migration_id": "of-others", "state": "running", **dict.fromkeys(numbers, 1)}
        for _ in range(60):
            await refused(relay, "/v1/relay/progress", progress)
    assert codes == {"relay_refused"}
    lines = [each for each in said if each["event"] in {"relay refused", "report on a migration of others"}]
    assert 20 <= len(lines) <= 60
    assert "stranger" in lines[0]["cause"]
