"""Sealed people: signing in is an alarm, the file is the sealed one or nobody's, and nobody is two persons."""

from __future__ import annotations

import httpx
import pytest

import gateway.config as configuration
from gateway.errors import StartRefused
from gateway.service import serve
from gateway.starter import Site
from tests.gateway.break_glass.conftest import GLASS, PASSWORD, Emergency, person, write

pytestmark = pytest.mark.whole


async def sign_in(emergency: Emergency, who: str, password: str = PASSWORD) -> httpx.Response:
    body = {"username": who, "password": password, "sealed": True}
    return await emergency.running.client().post("/v1/token", json=body)


async def sealed(emergency: Emergency, who: str) -> httpx.AsyncClient:
    answer = await sign_in(emergency, who)
    assert answer.status_code == 200, answer.text
    client = emergency.running.client()
    client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
    return client


async def test_two_sealed_people_break_glass_and_every_use_of_the_file_is_on_record(emergency: Emergency) -> None:
    officer, manager = await sealed(emergency, "sealed-officer"), await sealed(emergency, "sealed-manager")
    asked = await officer.post("/v1/break-glass", json=GLASS)
    assert asked.status_code == 201, asked.text
    grant = asked.json()["id"]
    assert (await manager.post(f"/v1/break-glass/{grant}/approve", json={})).status_code == 200
    await emergency.running.poll("prod")
    body = {"vm": "ledger", "destination": "prod2", "reason": "INC-4711", "break_glass": grant}
    moved = await officer.post("/v1/migrations", json=body)
    assert moved.status_code == 201, moved.text
    assert (await officer.get(f"/v1/migrations/{moved.json()['migration_id']}")).status_code == 200
    signed_in = await emergency.records("sealed_sign_in")
    assert [record["actor"]["id"] for record in signed_in] == [
        "sealane-sealed#sealed-officer",
        "sealane-sealed#sealed-manager",
    ]
    assert {record["actor"]["authenticated_by"] for record in signed_in} == {"sealed"}


async def test_sealed_people_can_do_nothing_else(emergency: Emergency) -> None:
    manager = await sealed(emergency, "sealed-manager")
    for method, path in (("GET", "/v1/records"), ("GET", "/v1/records/0")):
        assert (await manager.request(method, path)).status_code == 403
    answer = await manager.post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert "Sealed people break glass" in answer.json()["decision"]["denied_because"]


async def test_a_wrong_password_is_an_alarm_and_throttled(emergency: Emergency) -> None:
    answers = [(await sign_in(emergency, "sealed-manager", "guess")).status_code for _ in range(7)]
    assert answers == [401] * 5 + [429] * 2
    assert await emergency.outcomes("sealed_sign_in") == ["denied"] * 5


async def test_a_flood_of_bad_tokens_hides_no_attempt_to_sign_in_as_a_sealed_person(emergency: Emergency) -> None:
    client = emergency.running.client()
    for _ in range(25):
        assert (await client.get("/v1/checkpoint", headers={"authorization": "Bearer x"})).status_code == 401
    assert (await sign_in(emergency, "sealed-manager", "guess")).status_code == 401
    assert await emergency.outcomes("sealed_sign_in") == ["denied"]


async def test_a_local_password_does_not_open_the_sealed_file_nor_the_other_way(emergency: Emergency) -> None:
    password = emergency.running.site.passwords["alice"]
    assert (await sign_in(emergency, "alice", password)).status_code == 401
    body = {"username": "sealed-manager", "password": PASSWORD}
    assert (await emergency.running.client().post("/v1/token", json=body)).status_code == 401


async def test_a_file_that_was_edited_while_the_gateway_runs_is_nobodys(emergency: Emergency) -> None:
    """An insider adds himself, and the tokens that were out already are worth nothing either."""
    officer = await sealed(emergency, "sealed-officer")
    file = emergency.running.site.directory / "sealed.toml"
    original = file.read_text(encoding="utf-8")
    write(file, original + person("insider", "Ivan Insider", ("duty-managers",)))
    await emergency.running.gateway.reload()
    for answer in (
        await sign_in(emergency, "insider"),
        await sign_in(emergency, "sealed-manager"),
        await officer.post("/v1/break-glass", json=GLASS),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "seal_broken")
    assert await emergency.outcomes("seal_broken") == ["denied"] * 3
    write(file, original)
    assert (await officer.post("/v1/break-glass", json=GLASS)).status_code == 201


async def test_a_file_that_others_may_read_is_refused(emergency: Emergency) -> None:
    (emergency.running.site.directory / "sealed.toml").chmod(0o640)
    assert (await sign_in(emergency, "sealed-manager")).status_code == 503
    (record,) = await emergency.records("seal_broken")
    assert "chmod 600" in record["details"]["detail"]


async def test_a_gateway_does_not_start_on_another_file_than_the_sealed_one(glass_site: Site) -> None:
    file = glass_site.directory / "sealed.toml"
    write(file, file.read_text(encoding="utf-8") + "\n")
    with pytest.raises(StartRefused, match="is not the file that was sealed"):
        await serve(configuration.load(glass_site.gateway_config))


async def test_the_digest_of_the_sealed_file_is_on_record_at_each_start(emergency: Emergency) -> None:
    (started,) = await emergency.running.records("gateway.started")
    config = configuration.load(emergency.running.site.gateway_config)
    assert config.break_glass is not None
    assert config.break_glass.sealed is not None
    assert started["details"]["sealed_people_sha256"] == config.break_glass.sealed.people_sha256


@pytest.mark.parametrize(
    ("requester", "approver"),
    [
        ("dirk", "sealed-dirk"),  # the file says that they are one
        ("dirk", "dirk"),
    ],
)
async def test_one_human_with_two_accounts_is_one_person(emergency: Emergency, requester: str, approver: str) -> None:
    grant = await emergency.asked(requester)
    if approver == requester:
        answer = await emergency.approve(grant, approver)
    else:
        client = await sealed(emergency, approver)
        answer = await client.post(f"/v1/break-glass/{grant}/approve", json={})
    assert answer.status_code == 403
    assert await emergency.state(grant) == "pending"
    (record,) = await emergency.records("approved")
    assert "never the requester" in record["details"]["decision"]["denied_because"] or approver == requester


async def test_the_same_name_of_two_issuers_is_taken_for_one_person(emergency: Emergency) -> None:
    """Dora of the sealed file asks; the local dora, whom somebody made a manager, is no second person."""
    client = await sealed(emergency, "dora")
    grant = (await client.post("/v1/break-glass", json=GLASS)).json()["id"]
    people = emergency.running.site.people
    text = people.read_text(encoding="utf-8")
    begin = text.index('[people."dora"]')
    changed = text[begin:].replace('["duty-officers"]', '["duty-managers"]', 1)
    write(people, text[:begin] + changed.replace("Dora Duty", "Somebody Else", 1))
    await emergency.running.gateway.reload()
    answer = await emergency.approve(grant, "dora")
    assert answer.status_code == 403
    assert "never the requester" in answer.json()["error"]["message"]
