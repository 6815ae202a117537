"""A site with duty officers and managers, at the gateway and in the sealed file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.recording import Clock
from gateway.starter import Site
from policy.identity.local import hash_password, person_table
from policy.identity.sealed import seal
from tests.gateway.conftest import CHEAP, Running, running_gateway

OFFICERS, MANAGERS = ("duty-officers",), ("duty-managers",)
PASSWORD = "correct horse battery"
GLASS = {"vm": "ledger", "destination": "prod2", "ticket": "INC-4711", "minutes": 30, "reason": "storage is on fire"}


@dataclass
class Hands:
    """A clock whose hands a test may turn: the wall clock both ways, the monotonic one forward only."""

    wall_offset: timedelta = timedelta()
    monotonic_offset: timedelta = timedelta()
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def clock(self) -> Clock:
        import time  # noqa: PLC0415

        return Clock(
            lambda: datetime.now(UTC) + self.wall_offset,
            lambda: time.monotonic_ns() + int(self.monotonic_offset.total_seconds() * 1e9),
        )

    def pass_by(self, minutes: float) -> None:
        """Time passes, on both."""
        self.wall_offset += timedelta(minutes=minutes)
        self.monotonic_offset += timedelta(minutes=minutes)


def person(username: str, name: str, groups: tuple[str, ...], same_as: tuple[str, ...] = ()) -> str:
    table = person_table(username, name, groups, _hash())
    return table + (f"same_as = {list(same_as)}\n" if same_as else "")


def _hash(known: list[str] = []) -> str:  # noqa: B006 - made once
    if not known:
        known.append(hash_password(PASSWORD, cost=CHEAP))
    return known[0]


LOCAL = (
    person("dora", "Dora Duty", OFFICERS)
    + person("dirk", "Dirk Duty", (*OFFICERS, *MANAGERS))
    + person("mona", "Mona Manager", MANAGERS)
    + person("marc", "Marc Manager", MANAGERS)
)
SEALED = (
    person("dora", "Dora Duty", OFFICERS)
    + person("sealed-officer", "Olaf Other", OFFICERS)
    + person("sealed-manager", "Mina Other", MANAGERS)
    + person("sealed-dirk", "D. D.", MANAGERS, ("sealane-local#dirk",))
)
CONFIG = """
[break_glass]
max_minutes = 60
answer_minutes = 30
max_pending = 4
max_pending_per_person = 2
ticket_pattern = "(INC|CHG)-[0-9]+"

[break_glass.sealed]
people = "sealed.toml"
people_sha256 = "{sha256}"
signing_key = "token.key"
"""


def with_break_glass(site: Site) -> Site:
    """Adds the people, the table, and a second host of production."""
    with site.people.open("a", encoding="utf-8") as file:
        file.write(LOCAL)
    sealed = site.directory / "sealed.toml"
    sealed.touch(0o600)
    sealed.write_text(SEALED, encoding="utf-8")
    config = site.gateway_config
    config.write_text(config.read_text(encoding="utf-8") + CONFIG.format(sha256=seal(sealed).sha256), encoding="utf-8")
    inventory = site.inventory.read_text(encoding="utf-8")
    second = inventory[inventory.index('name = "prod"') :].partition("[[")[0]
    second = second.replace("/host/prod", "/host/prod2").replace('"prod"', '"prod2"').replace("127.0.0.5", "127.0.0.6")
    site.inventory.write_text(inventory + "\n[[hosts]]\n" + second, encoding="utf-8")
    return site


@dataclass
class Emergency:
    """A running gateway, and what people do there."""

    running: Running
    hands: Hands

    async def call(self, who: str, method: str, path: str, body: Any = None) -> httpx.Response:
        client = self.running.client()
        now = datetime.now(UTC) + self.hands.wall_offset
        client.headers["authorization"] = f"Bearer {self.running.token(who, now)}"
        return await client.request(method, f"/v1/break-glass{path}", json=body)

    async def ask(self, who: str = "dora", **changes: Any) -> httpx.Response:
        return await self.call(who, "POST", "", {**GLASS, **changes})

    async def asked(self, who: str = "dora", **changes: Any) -> str:
        answer = await self.ask(who, **changes)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def approve(self, grant: str, who: str = "mona") -> httpx.Response:
        return await self.call(who, "POST", f"/{grant}/approve", {})

    async def approved(self, **changes: Any) -> str:
        grant = await self.asked(**changes)
        answer = await self.approve(grant)
        assert answer.status_code == 200, answer.text
        return grant

    async def end(self, grant: str, who: str = "dora") -> httpx.Response:
        return await self.call(who, "POST", f"/{grant}/end", {"reason": "it is over"})

    async def state(self, grant: str) -> str:
        answer = await self.call("mona", "GET", "")
        return str(next(each["state"] for each in answer.json()["break_glass"] if each["id"] == grant))

    async def move(self, grant: str, who: str = "dora", **changes: Any) -> httpx.Response:
        await self.running.poll("prod")
        body = {"vm": "ledger", "destination": "prod2", "reason": "INC-4711", "break_glass": grant, **changes}
        client = self.running.client()
        now = datetime.now(UTC) + self.hands.wall_offset
        client.headers["authorization"] = f"Bearer {self.running.token(who, now)}"
        return await client.post("/v1/migrations", json=body)

    async def records(self, kind: str) -> list[dict[str, Any]]:
        return await self.running.records(f"breakglass.{kind}")

    async def outcomes(self, kind: str) -> list[str]:
        return [record["outcome"] for record in await self.records(kind)]


@pytest.fixture
def glass_site(site: Site) -> Site:
    return with_break_glass(site)


@pytest.fixture
async def emergency(glass_site: Site) -> AsyncIterator[Emergency]:
    hands = Hands()
    async with running_gateway(glass_site, hands.clock()) as running:
        yield Emergency(running, hands)


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
