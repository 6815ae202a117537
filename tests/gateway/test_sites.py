"""Two gateways, two policies, two logs: a VM leaves one site for another only if both say so, and both can prove it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from certs.authority import Authority
from certs.crls import crl_number_of
from certs.files import read_crl, read_private_key, write_atomically
from gateway.api import site_calls
from gateway.cli.sites import lay_down, left_over
from gateway.doctor.relay_host import relay_host_findings
from gateway.host_receipts import UNCOUNTED
from gateway.sites import publishing
from gateway.sites.peer import decode_records
from gateway.sites.reconcile import compare_sites, shared_with
from gateway.sites.request import HostQuestion, Request, SiteRefused, open_request, sign_request
from gateway.starter import HostPlan, VmPlan
from policy.jws import key_id_of, sign
from policy.permit import PermitKey
from tests.gateway.conftest import Running, free_address
from tests.gateway.sites_pair import EAST, WEST, TwoSites, document_of, lay_out
from tests.gateway.test_observing import observing
from tests.gateway.test_watch import edit
from transport.errors import UNDECODABLE

pytestmark = pytest.mark.whole

UUID = "11111111-2222-4333-8444-555555555555"
LEDGER = "99999999-2222-4333-8444-555555555555"
THERE = f"spiffe://{EAST}/host/b"


@pytest.fixture
def two(tmp_path: Path) -> TwoSites:
    vms = (VmPlan("web", UUID, "a"), VmPlan("ledger", LEDGER, "a", zone="production"))
    hosts = HostPlan("a", "127.0.0.2:7443"), HostPlan("b", "127.0.0.3:7443", site="muc", jurisdiction="AT")
    return lay_out(tmp_path, hosts[:1], hosts[1:], vms, (free_address("127.0.0.1"), free_address("127.0.0.1")))


async def ask(west: Running, vm: str = "web", who: str = "alice", to: str = THERE) -> httpx.Response:
    await west.poll("a")
    return await west.person(who).post("/v1/migrations", json={"vm": vm, "destination": to, "reason": "CHG-7"})


async def test_both_gateways_permit_it_and_the_source_relay_gets_both_permits(two: TwoSites) -> None:
    async with two.running() as (west, east):
        answer = await ask(west)
        assert answer.status_code == 201, answer.text
        (assignment,) = await west.poll("a")
        ours, theirs = west.open_permit(assignment["permit"]), east.open_permit(assignment["other_permit"])
        assert assignment["destination_address"] == "127.0.0.3:7443"
        assert ours.claims.migration_id == theirs.claims.migration_id == answer.json()["migration_id"]
        for claims in (ours.claims, theirs.claims):
            assert (claims.vm, claims.destination) == (UUID, THERE)
            assert claims.source == f"spiffe://{WEST}/host/a"
        (decided,), (arrived,) = [await each.records("migration.decision") for each in (west, east)]
        assert arrived["actor"]["id"].startswith(f"spiffe://{WEST}#sealane-local#")
        assert arrived["actor"]["authenticated_by"] == "site"
        assert decided["details"]["site"]["role"] == "source"
        (noted,) = await west.records("migration.other_site")
        assert noted["outcome"] == "allowed"
        assert noted["details"]["other_jti"] == theirs.claims.jti
        assert arrived["details"]["site"]["other_jti"] == ours.claims.jti


@pytest.mark.parametrize(
    ("vm", "who"),
    [("web", "bob"), ("ledger", "alice")],
    ids=["a person whom the source's policy refuses", "a VM that the source's policy keeps"],
)
async def test_what_the_source_denies_the_destination_is_not_asked(two: TwoSites, vm: str, who: str) -> None:
    async with two.running() as (west, east):
        answer = await ask(west, vm, who)
        assert answer.status_code == 403, answer.text
        assert await east.records("migration.decision") == []
        assert await west.poll("a") == []


async def test_what_the_destination_denies_does_not_move(two: TwoSites) -> None:
    edit(two.east.bundle / "policies" / "arrivals.cedar", lambda text: text.replace('== "test"', '== "dmz"'))
    async with two.running() as (west, east):
        answer = await ask(west)
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert error["code"] == "refused_by_other_site"
        assert "site east refuses it" in error["message"]
        assert await west.poll("a") == [], "no permit, not even ours, is handed out"
        (decision,), (noted,) = [await west.records(kind) for kind in ("migration.decision", "migration.other_site")]
        assert decision["outcome"] == "allowed"
        assert noted["outcome"] == "denied"
        (theirs,) = await east.records("migration.decision")
        assert theirs["outcome"] == "denied"
        shown = await west.person("carol").get(f"/v1/migrations/{answer.json()['migration_id']}")
        assert shown.json()["state"] == "failed"
        assert (await ask(west)).status_code == 403, "the VM is not kept by the attempt"


@pytest.mark.parametrize("observed", ["west", "east"])
async def test_nothing_is_observed_where_another_site_takes_part(two: TwoSites, observed: str) -> None:
    """Zones of its VMs and hosts are its own word: it would say what lets its VMs in, or ours out."""
    observing(getattr(two, observed), zones='["test", "dmz"]')
    edit(two.east.bundle / "policies" / "arrivals.cedar", lambda text: text.replace('== "test"', '== "dmz"'))
    async with two.running() as (west, east):
        answer = await ask(west, who="bob" if observed == "west" else "alice")
        assert answer.status_code == 403, answer.text
        (record,) = await (west if observed == "west" else east).records("migration.decision")
        assert record["outcome"] == "denied"


async def test_a_vm_still_leaves_after_the_key_of_our_permits_was_rolled_over(two: TwoSites) -> None:
    fresh = ec.generate_private_key(ec.SECP256R1())
    pem = fresh.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    edit(two.east.directory / "sites" / "west" / "permit-1.pub", lambda text: text + pem)
    async with two.running() as (west, _):
        gate = west.gateway.desk.gate
        gate.terms = replace(gate.terms, private_key=fresh, key_id=key_id_of(fresh.public_key()))
        answer = await ask(west)
        assert answer.status_code == 201, answer.text
        (noted,) = await west.records("migration.other_site")
        assert noted["outcome"] == "allowed"


async def test_nobody_has_the_gateway_read_more_records_than_it_may_hold(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two.running() as (west, _):
        assert (await ask(west)).status_code == 201
        span = {"since": "2026-01-01T00:00:00.000000Z"}
        monkeypatch.setattr("gateway.reading.MAX_ASKED", 0)
        refused = await west.person("carol").post("/v1/reconcile/hosts", json=span)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["next_step"] == "ask for a shorter time"
        for_another = await west.person("carol").post("/v1/reconcile/sites", json={**span, "site": "east"})
        assert "answers 400" in for_another.json()["error"]["message"], "nor for another site's gateway"


async def test_an_unknown_host_and_a_gateway_that_is_away_deny(two: TwoSites) -> None:
    async with two.running() as (west, east):
        answer = await ask(west, to=f"spiffe://{EAST}/host/nobody")
        assert answer.status_code == 403
        assert "Site east knows no host" in answer.json()["decision"]["denied_because"]
        east.gateway.stop()
        await until_nobody_listens(east.url.rpartition(":")[2])
        answer = await ask(west)
        assert answer.status_code == 403
        assert "cannot be asked" in answer.json()["decision"]["denied_because"]
        assert await west.poll("a") == []


async def until_nobody_listens(port: str) -> None:
    with trio.fail_after(60):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", int(port))).aclose()
            except OSError:
                return
            await trio.sleep(0.02)


async def test_a_stranger_gets_nothing_of_a_site(two: TwoSites) -> None:
    """Every request that is not signed, fresh, by the pinned key, for this very site, is refused alike."""
    async with two.running() as (west, east):
        client = east.client()
        now = int(time.time())
        good: dict[str, Any] = {"iss": WEST, "aud": EAST, "iat": now, "exp": now + 60, "host": THERE}
        key = read_private_key(two.west.certs / "gateway" / "permit.key")
        assert isinstance(key, ec.EllipticCurvePrivateKey)

        def signed(by: ec.EllipticCurvePrivateKey, **changes: Any) -> str:
            return sign_request(HostQuestion(**{**good, **changes}), by, key_id_of(by.public_key()))

        assert (await client.post("/v1/sites/ask", json={"request": signed(key)})).json()["zone"] == "test"
        stranger = ec.generate_private_key(ec.SECP256R1())
        payload = msgspec.json.encode(HostQuestion(**good), order="sorted")
        permit_like = sign(payload, key, key_id=key_id_of(key.public_key()), token_type="sealane-permit+jwt")
        for token in (
            signed(stranger),
            signed(key, iss="third.example"),
            signed(key, aud=WEST),
            signed(key, iat=now - 600, exp=now - 540),
            signed(key, exp=now + 86_400),
            permit_like,
            "x.y.z",
        ):
            answer = await client.post("/v1/sites/ask", json={"request": token})
            assert answer.status_code == 403, answer.text
            assert answer.json()["error"]["code"] == "site_refused"
        # What the west signed for the east is for nobody else, the west itself among them.
        assert (await west.client().post("/v1/sites/ask", json={"request": signed(key)})).status_code == 403


async def test_the_same_request_again_permits_nothing_again(two: TwoSites) -> None:
    async with two.running() as (west, east):
        seen: list[dict[str, Any]] = []
        assert west.gateway.desk.gate.sites is not None
        site = west.gateway.desk.gate.sites.by_domain[EAST]
        send = site.client.send

        async def watch(request: httpx.Request, **how: Any) -> httpx.Response:
            seen.append(msgspec.json.decode(request.content))
            return await send(request, **how)

        site.client.send = watch  # type: ignore[method-assign]
        assert (await ask(west)).status_code == 201
        admission = next(body for body in seen if "permit" in body)
        again = await east.client().post("/v1/sites/ask", json=admission)
        assert again.json()["kind"] == "denied"
        assert len([r for r in await east.records("migration.decision") if r["outcome"] == "allowed"]) == 1
        other = next(body for body in seen if "permit" not in body)
        mixed = await east.client().post("/v1/sites/ask", json={**admission, "request": other["request"]})
        assert mixed.status_code == 200, "a question about a host stays one, whatever lies beside it"
        assert "permit" not in mixed.json()
    async with two.running() as (west, east):
        # The refusal, which is the last word on record under this id, hides nothing of what is under way.
        (first, _) = await east.records("migration.decision")
        known = await east.gateway.desk.reading.migration(first["migration_id"], int(time.time()))
        assert known is not None
        assert known.jti == first["details"]["permit"]["jti"]
        assert not known.is_final


async def test_of_two_requests_at_once_the_refused_one_hides_nothing(two: TwoSites) -> None:
    async with two.running() as (west, east):
        sites = west.gateway.desk.gate.sites
        assert sites is not None
        site = sites.by_domain[EAST]
        send = site.client.send

        async def twice(request: httpx.Request, **how: Any) -> httpx.Response:
            again = site.client.build_request(
                "POST", str(request.url), content=request.content, headers=request.headers
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, again)
                return await send(request, **how)

        site.client.send = twice  # type: ignore[method-assign]
        await ask(west)
        first, second = await east.records("migration.decision")
        assert {first["outcome"], second["outcome"]} == {"allowed", "failed"}
        known = east.gateway.desk.gate.migrations.heard(first["migration_id"])
        assert known is not None
        assert known.jti is not None


async def test_receipts_end_it_in_both_logs_and_both_logs_agree(two: TwoSites, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two.running() as (west, east):
        migration_id = (await ask(west)).json()["migration_id"]
        (assignment,) = await west.poll("a")
        ours, theirs = west.open_permit(assignment["permit"]), east.open_permit(assignment["other_permit"])
        source, destination = (hashlib.sha256(each.token.encode()).hexdigest() for each in (ours, theirs))
        counts = [{"channel": 0, "port": "memory", "sent_bytes": 10, "received_bytes": 1000,
                   "sent_frames": 1, "received_frames": 2}]  # fmt: skip
        left = west.receipt("a", ours, "source", "completed", other_permit_sha256=destination)
        came = east.receipt("b", theirs, "destination", "running", other_permit_sha256=source, channels=counts)
        for running, host, receipt in ((west, "a", left), (east, "b", came)):
            taken = await running.client(host).post("/v1/receipts", json=receipt)
            assert taken.status_code == 200, taken.text
        # The VM is not where it was, for all that the west knows; and its own halves are no finding there.
        assert (await ask(west)).status_code in {403, 409}
        hosts = await west.person("carol").post("/v1/reconcile/hosts", json={"since": "2020-01-01T00:00:00.000000Z"})
        assert hosts.json()["findings"] == []
        span = {"site": "east", "since": "2020-01-01T00:00:00.000000Z"}
        answer = await west.person("carol").post("/v1/reconcile/sites", json=span)
        assert answer.status_code == 200, answer.text
        assert answer.json()["counts"]["matched"] == 1
        assert answer.json()["findings"] == []
        (record,) = [r for r in await west.records("audit.reconciled") if r["details"]["what"] == "sites"]
        assert record["outcome"] == "completed"
        (read,) = await east.records("site.records_read")
        assert read["details"]["site"] == "west"
        assert (await west.person("alice").post("/v1/reconcile/sites", json=span)).status_code == 403

        # What either log lacks or tells otherwise is found.
        since = "2020-01-01T00:00:00.000000Z"
        kinds = ("migration.decision", "migration.other_site", "migration.receipt")
        mine = shared_with(EAST, await west.gateway.desk.reading.records_since(kinds, since))
        others = shared_with(WEST, await east.gateway.desk.reading.records_since(kinds, since))
        assert shared_with(EAST, mine) == mine, "what was cut already is not cut further"
        now = int(time.time())
        assert compare_sites(others, mine, now).findings == ()
        later = now + 10 * 86_400
        for ours_, theirs_, what in (
            (mine, [], "missing_there"),
            ([], others, "missing_here"),
            (mine, others[:-1], "one"),
            (mine, changed(others, "destination", f"spiffe://{EAST}/host/z"), "differ"),
        ):
            (finding,) = compare_sites(ours_, theirs_, later).findings
            assert (finding.what, finding.migration_id) == (what, migration_id)
        forged = [(index, msgspec.json.decode(msgspec.json.encode(record))) for index, record in others]
        forged[0][1]["details"]["site"]["other_jti"] = "x" * 32
        (finding,) = compare_sites(mine, forged, later).findings
        assert "shown another permit" in finding.why[0]
        restarted = [(index, msgspec.json.decode(msgspec.json.encode(record))) for index, record in others]
        body = msgspec.json.decode(restarted[-1][1]["details"]["body"]) | {"channels": [], "lacks_counts": True}
        restarted[-1][1]["details"]["body"] = msgspec.json.encode(body, order="sorted").decode()
        (finding,) = compare_sites(mine, restarted, later).findings
        assert (finding.what, finding.why) == ("uncounted", (UNCOUNTED["destination"],))

        # Whatever the other gateway says, it is compared or refused as a whole; and a finding stays short.
        told = msgspec.to_builtins(others)
        refused = compared = 0
        for odd in spoilt(told):
            try:
                shared = decode_records(msgspec.json.encode({"log": "x", "records": odd}))
            except UNDECODABLE:
                refused += 1
                continue
            for finding in compare_sites(mine, shared.records, later).findings:
                assert len(finding.migration_id) <= 64
            compared += 1
        assert refused > 100
        assert compared > 100
        site = next(iter(west.gateway.desk.gate.sites.by_domain.values()))  # type: ignore[union-attr]
        monkeypatch.setattr(site_calls, "shared_with", lambda *_: [(0, {"kind": "migration.decision"})])
        answer = await west.person("carol").post("/v1/reconcile/sites", json=span)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "site_unreachable"), answer.text
        assert f"site {site.name} gives an answer that is none" in answer.json()["error"]["message"]


def spoilt(told: Any) -> Iterator[Any]:
    """The same with one value changed, at every place; in the bodies of receipts, too."""
    odd: tuple[Any, ...] = (None, [], {}, "x", -5, 7, "x" * 2000, [[]], {"role": []})
    for at in places(told):
        for value in odd:
            yield put(told, at, value)
    for number, (_, record) in enumerate(told):
        if record["kind"] == "migration.receipt":
            body = msgspec.json.decode(record["details"]["body"])
            for at in places(body):
                for value in odd:
                    text = msgspec.json.encode(put(body, at, value)).decode()
                    yield put(told, (number, 1, "details", "body"), text)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, each in members:
        yield from places(each, (*at, name))


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    copy = msgspec.json.decode(msgspec.json.encode(value))
    target = copy
    for name in at[:-1]:
        target = target[name]
    target[at[-1]] = new
    return copy


def changed(records: list[tuple[int, dict[str, Any]]], name: str, value: str) -> list[tuple[int, dict[str, Any]]]:
    return [(index, {**record, name: value}) for index, record in records]


async def test_relays_get_the_other_sites_crls_from_their_own_gateway(two: TwoSites) -> None:
    async with two.running() as (west, _):
        told = (await west.client("a").post("/v1/relay/trust", json={})).json()
        assert list(told["foreign_crls"]) == [EAST]
        assert told["foreign_crls"][EAST][0].startswith("-----BEGIN X509 CRL-----")


async def test_what_a_gateway_publishes_is_what_others_lay_down(two: TwoSites, tmp_path: Path) -> None:
    async with two.running() as (_, east):
        published = (await east.client().get("/v1/site")).json()
        digests = lay_down(msgspec.convert(published, type(document_of(two.east))), tmp_path / "again")
        assert digests == lay_down(document_of(two.east), tmp_path / "once")
        assert {"root 1", "permit-1.pub", "log-1.vkey"} == set(digests)


def test_a_key_that_the_other_site_publishes_no_more_is_told_when_its_folder_is_laid_down_again(
    two: TwoSites, tmp_path: Path
) -> None:
    now = document_of(two.east)
    fresh = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = fresh.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    switched = msgspec.structs.replace(now, permit_keys=[pem, *now.permit_keys])
    assert left_over(tmp_path / "again", lay_down(switched, tmp_path / "again")) == []
    retired = msgspec.structs.replace(now, permit_keys=[pem])
    assert left_over(tmp_path / "again", lay_down(retired, tmp_path / "again")) == ["permit-2.pub"]
    (tmp_path / "again" / "permit-2.pub").unlink()
    assert left_over(tmp_path / "again", lay_down(retired, tmp_path / "again")) == []


def test_the_doctor_looks_at_what_is_trusted_of_other_sites(two: TwoSites, tmp_path: Path) -> None:
    def found(now: datetime) -> dict[str, str]:
        findings = relay_host_findings(two.west.relay_config("a"), tmp_path, now)
        return {each.message.partition(" ")[0].rstrip(":"): each.status for each in findings if each.check == "site"}

    assert found(datetime.now(UTC)) == {EAST: "ok"}
    assert found(datetime.now(UTC) + timedelta(days=365 * 40)) == {EAST: "wrong"}
    (two.west.directory / "sites" / "east" / "bundle.json").write_text("{}")
    assert found(datetime.now(UTC)) == {EAST: "wrong"}


def test_a_request_for_another_site_does_not_open(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pinned = PermitKey.from_public_key(key.public_key())
    request: Request = HostQuestion(iss=WEST, aud=EAST, iat=1000, exp=1060, host=THERE)
    token = sign_request(request, key, pinned.key_id)
    assert open_request(token, {WEST: [pinned]}, EAST, 1010) == request
    for keys, own, now in (
        ({EAST: [pinned]}, EAST, 1010),
        ({}, EAST, 1010),
        ({WEST: [pinned]}, WEST, 1010),
        ({WEST: [pinned]}, EAST, 2000),
        ({WEST: [pinned]}, EAST, 900),
    ):
        with pytest.raises(SiteRefused):
            open_request(token, keys, own, now)
    header, payload, signature = token.split(".")
    with pytest.raises(SiteRefused):
        open_request(f"{header}.{payload[:-4]}AAAA.{signature}", {WEST: [pinned]}, EAST, 1010)


async def test_what_knows_its_own_site_only_says_so_of_another_sites_host_and_what_to_do(two: TwoSites) -> None:
    edit(two.west.people, lambda text: text.replace('["operators"]', '["operators", "production-operators"]'))
    edit(two.west.gateway_config, lambda text: text + "\n[evacuation]\n[break_glass]\n")
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/decisions", {"vm": "web", "destination": THERE, "preflight": True, "explain": True}),
        ("/v1/drain/check", {"host": "a", "to": [THERE]}),
        ("/v1/drain/check", {"host": THERE}),
        ("/v1/evacuations", {"host": "a", "to": [THERE], "hours": 1, "reason": "CHG-7"}),
        (
            "/v1/break-glass",
            {"vm": "web", "destination": THERE, "ticket": "INC-7", "minutes": 30, "reason": "it burns"},
        ),
    ]
    async with two.running() as (west, east):
        await west.poll("a")
        for path, body in asked:
            answer = await west.person("alice").post(path, json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "other_site"), (path, answer.text)
            assert f"{THERE} is a host of site east, and" in error["message"]
            assert f"sealane migrate VM --to {THERE}" in error["next_step"]
        front = {"vm": UUID, "destination": THERE, "ports": ["libvirt", "memory"], "reason": "x"}
        told = (await west.client("a").post("/v1/relay/admission", json=front)).json()
        assert told["kind"] == "denied"
        assert "the front of libvirt leads to the hosts of this site only" in told["message"]
        whole = await west.person("alice").post(
            "/v1/migrations", json={"vm": "web", "destination": THERE, "reason": "CHG-7", "break_glass": "0" * 32}
        )
        assert "its own duty officers break it there" in whole.json()["error"]["message"]
        assert await east.records("migration.decision") == []


async def test_a_domain_of_libvirt_is_not_permitted_to_leave_for_another_site(two: TwoSites) -> None:
    async with two.running() as (west, east):
        await west.poll("a")
        wish = {"vm": "web", "destination": THERE, "reason": "CHG-7", "ports": ["libvirt", "memory"]}
        answer = await west.person("alice").post("/v1/migrations", json=wish)
        assert answer.status_code == 409, answer.text
        assert "do not cross to another site yet" in answer.json()["error"]["message"]
        assert await west.poll("a") == []
        assert await east.records("migration.decision") == []


async def test_a_newer_crl_of_another_site_does_no_harm_while_our_own_certificate_is_half_replaced(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "FETCH_SECONDS", 0.05)
    (held,) = (two.west.directory / "sites" / "east" / "crls").glob("*.pem")

    async def told() -> list[str]:
        answer = await west.client("a").post("/v1/relay/trust", json={})
        return answer.json()["foreign_crls"][EAST]  # type: ignore[no-any-return]

    async with two.running() as (west, east):
        write_atomically(two.west.certs / "gateway" / "tls.pem", b"half")
        number = Authority.load(two.east.certs).publish_crl(datetime.now(UTC))
        await east.gateway.reload()
        with trio.fail_after(10):
            while crl_number_of(read_crl(held)) != number:
                await trio.sleep(0.05)
        with trio.fail_after(10):
            while held.read_text() not in await told():
                await trio.sleep(0.05)


async def test_what_another_site_publishes_is_looked_at_beside_the_loop_and_only_if_it_is_short(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "FETCH_SECONDS", 0.05)
    looked: list[bool] = []
    asked: list[None] = []
    decode = publishing.decode_site

    def immense(*_: object) -> object:
        asked.append(None)
        return {"bundle": {"keys": [{}] * 1_000_000}}

    def noting(data: bytes) -> publishing.SiteDocument:
        looked.append(threading.current_thread() is threading.main_thread())
        return decode(data)

    monkeypatch.setattr(publishing, "decode_site", noting)
    async with two.running():
        with trio.fail_after(10):
            while len(looked) < 2:
                await trio.sleep(0.05)
        assert not any(looked)
        monkeypatch.setattr(site_calls, "site_document", immense)
        with capture_logs() as logs, trio.fail_after(20):
            while sum("too long" in str(line.get("cause")) for line in logs) < 2:  # each of the other
                await trio.sleep(0.05)
            looked.clear()  # what was on its way when it grew has been looked at
            before = len(asked)
            while len(asked) < before + 4:
                await trio.sleep(0.05)
        assert looked == []
