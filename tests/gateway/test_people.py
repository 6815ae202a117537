"""Signing in with a password, and the tokens that come of it."""

from __future__ import annotations

import ssl

import httpx
import pytest

from gateway.people import Throttles
from gateway.throttle import Throttle
from tests.gateway.conftest import Running


async def sign_in(running: Running, username: str, password: str) -> tuple[int, dict[str, object]]:
    answer = await running.client().post("/v1/token", json={"username": username, "password": password})
    return answer.status_code, answer.json()


async def test_a_password_gives_a_token_that_works(running: Running) -> None:
    status, document = await sign_in(running, "alice", running.site.passwords["alice"])
    assert status == 200
    assert document["expires_in"] == 900
    headers = {"authorization": f"Bearer {document['access_token']}"}
    assert (await running.client().get("/v1/checkpoint", headers=headers)).status_code == 200
    (record,) = await running.records("token.issued")
    assert record["actor"]["groups"] == ["sealane-local#operators"]
    assert str(document["access_token"]) not in str(await running.entries())


async def test_a_wrong_password_and_an_unknown_name_look_alike_and_are_recorded(running: Running) -> None:
    wrong = await sign_in(running, "alice", "guess")
    unknown = await sign_in(running, "mallory", "guess")
    assert wrong == unknown
    assert wrong[0] == 401
    refused = await running.records("token.refused")
    assert [record["actor"]["name"] for record in refused] == ["alice", "mallory"]
    assert "guess" not in str(refused)


async def test_guessing_is_throttled_by_name(running: Running) -> None:
    statuses = [(await sign_in(running, "alice", "guess"))[0] for _ in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    assert (await sign_in(running, "bob", running.site.passwords["bob"]))[0] == 200


async def test_a_token_that_cannot_be_recorded_is_not_handed_out(running: Running) -> None:
    running.log.broken = True
    status, document = await sign_in(running, "alice", running.site.passwords["alice"])
    assert status == 503
    assert "access_token" not in document


@pytest.mark.parametrize("token", ["x", "a.b.c", "Bearer", "🙂", "x" * 15_000])
async def test_garbage_is_no_token(running: Running, token: str) -> None:
    headers = {b"authorization": f"Bearer {token}".encode()}
    answer = await running.client().get("/v1/checkpoint", headers=headers)
    assert answer.status_code == 401, answer.text
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_somebody_without_any_right_cannot_fill_the_log(running: Running) -> None:
    client = running.client()
    for _ in range(40):
        answer = await client.get("/v1/checkpoint", headers={"authorization": "Bearer x"})
        assert answer.status_code == 401
    refused = await running.records("token.refused")
    assert 20 <= len(refused) <= 30


def test_a_throttle_gives_back_over_time_and_forgets_the_oldest() -> None:
    now = 0.0
    throttle = Throttle(2, 10, lambda: now, keys=2)
    assert [throttle.admits("a") for _ in range(3)] == [True, True, False]
    assert throttle.admits("b")
    now = 10.0
    assert [throttle.admits("a") for _ in range(2)] == [True, False]
    assert throttle.admits("c")  # b is forgotten
    now = 1000.0
    assert [throttle.admits("a") for _ in range(3)] == [True, True, False]


def test_whoever_guesses_does_not_lock_out_who_has_signed_in_from_elsewhere() -> None:
    now = 0.0
    throttles = Throttles(lambda: now)
    throttles.signed_in("alice", "192.0.2.7")
    guesses = [throttles.sign_in_admits("alice", f"198.51.100.{number}") for number in range(8)]
    assert guesses == [True] * 5 + [False] * 3
    own = [throttles.sign_in_admits("alice", "192.0.2.7") for _ in range(6)]
    assert own == [True] * 5 + [False], "whoever has that address gets no more guesses than another"
    assert throttles.sign_in_admits("bob", "192.0.2.7"), "it is of this name alone"


def test_addresses_of_one_network_of_ipv6_are_one_that_guesses() -> None:
    throttles = Throttles(lambda: 0.0)
    admitted = [throttles.sign_in_admits(f"person{number}", f"2001:db8::{number:x}") for number in range(1, 15)]
    assert admitted == [True] * 10 + [False] * 4


async def test_alice_signs_in_although_somebody_else_guesses_her_password(running: Running) -> None:
    password = running.site.passwords["alice"]
    assert (await sign_in(running, "alice", password))[0] == 200
    context = ssl.create_default_context(cafile=str(running.ca))
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.77", verify=context, trust_env=False)
    async with httpx.AsyncClient(base_url=running.url, transport=transport) as guesser:
        guess = {"username": "alice", "password": "guess"}
        statuses = [(await guesser.post("/v1/token", json=guess)).status_code for _ in range(8)]
        assert statuses[-1] == 429
    assert (await sign_in(running, "alice", password))[0] == 200
