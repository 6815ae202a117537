"""From a token to a running relay, its renewal, what it hears of revocations, and its way back: all of it real."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509

from certs.enrolment import EnrolmentToken
from certs.errors import CredentialError
from gateway.starter import Site
from tests.gateway.cli.invoking import invoke
from tests.gateway.conftest import Running
from tests.gateway.rolling_site import relay
from tests.gateway.test_enrolment import OFFICER, enrolling, token_of
from tests.transport.relay.conftest import until
from transport.relay.config import load_relay_config
from transport.relay.enrolling import Outcome, Plan, enrol
from transport.relay.first_contact import Unproven
from transport.relay.gateway_answers import GatewayRefuses
from transport.relay.gateway_link import GatewayLink
from transport.relay.host import open_host
from transport.relay.identity_keeping import IdentityKeeper

pytestmark = pytest.mark.whole


@pytest.fixture
def host_folder() -> Iterator[Path]:
    """Short: unix sockets live below it."""
    with tempfile.TemporaryDirectory(prefix="sl-") as folder:
        yield Path(folder)


async def enrolled(running: Running, folder: Path, token: str) -> Outcome:
    plan = Plan(running.url, folder / "relay.toml", folder / "state", "qmp")
    return await trio.to_thread.run_sync(enrol, plan, EnrolmentToken.parse(token), datetime.now(UTC))


async def revoke(running: Running, name: str) -> None:
    answer = await running.person(OFFICER).post(f"/v1/hosts/{name}/revocation", json={"reason": "lost"})
    assert answer.status_code == 200, answer.text


async def test_a_bare_host_is_in_the_address_book_and_hears_of_revocations_at_once(
    site: Site, host_folder: Path
) -> None:
    async with enrolling(site) as running:
        outcome = await enrolled(running, host_folder, await token_of(running))
        assert outcome.wrote_config
        assert load_relay_config(host_folder / "relay.toml").relay.listen == "127.0.0.3:7443"
        assert (host_folder / "state/identity/host.key").stat().st_mode & 0o077 == 0
        async with relay(host_folder / "relay.toml") as host:
            assert host.spiffe_id == outcome.host == site.spiffe_id("b")
            dispatch = running.gateway.desk.gate.dispatch
            await until(lambda: dispatch.is_reachable(host.spiffe_id, 5))
            await until(lambda: host.addresses.book.host("b") is not None)
            await running.client("a").post(
                "/v1/relay/poll", json={"wait_seconds": 0}
            )  # so that its certificate is known
            before, started = host.credentials.crl_number, time.monotonic()
            await revoke(running, "a")
            await until(lambda: host.credentials.crl_number > before)
            assert time.monotonic() - started < 10
            assert running.gateway.desk.gate.minimum_crl_number == host.credentials.crl_number


async def test_a_host_with_a_used_token_reads_what_to_do(site: Site, host_folder: Path) -> None:
    async with enrolling(site) as running:
        token = await token_of(running)
        await enrolled(running, host_folder, token)
        (file := host_folder / "token").write_text(token)
        file.chmod(0o600)
        other = ("--config", host_folder / "other.toml", "--state-dir", host_folder / "other")
        ended = await trio.to_thread.run_sync(
            lambda: invoke("relay", "enrol", running.url, "--token-file", file, *other)
        )
        assert ended.exit_code == 1
        assert ended.stderr == (
            f"sealane: {running.url} refuses: the token is not accepted: unknown, expired, withdrawn or used already; "
            "the operator must act; ask for a new token: sealane certs token HOST\n"
        )


async def test_a_relay_renews_without_restart_and_comes_back_by_a_new_token(site: Site, host_folder: Path) -> None:
    async with enrolling(site) as running:
        office = running.gateway.desk.office
        assert office is not None
        await enrolled(running, host_folder, await token_of(running))
        async with relay(host_folder / "relay.toml") as host:
            first = host.credentials.chain[0]
            office.terms = replace(office.terms, host_lifetime=timedelta(hours=48))
            link = GatewayLink(host)
            keeper = IdentityKeeper(host, link, chance=0.0)
            await keeper.look(first.not_valid_before_utc + timedelta(hours=15))
            assert host.credentials.chain[0] == first  # not due yet
            await keeper.look(first.not_valid_before_utc + timedelta(hours=17))
            second = host.credentials.chain[0]
            assert second != first
            assert second.public_key() == first.public_key()
            await link.ask("/v1/relay/poll", {"wait_seconds": 0})

            await revoke(running, "b")
            with pytest.raises(GatewayRefuses):
                await link.ask("/v1/relay/poll", {"wait_seconds": 0})
            token = await token_of(running)
            with pytest.raises(GatewayRefuses, match="somebody else may have it") as refused:
                await enrolled(running, host_folder, token)
            assert "host.key" in refused.value.next_step
            key = next(host_folder.rglob("identity/host.key"))
            key.rename(key.with_suffix(".revoked"))
            again = await enrolled(running, host_folder, token)
            assert not again.wrote_config
            await until(lambda: host.credentials.chain[0] not in {first, second}, seconds=20)
            await until(lambda: running.gateway.desk.gate.dispatch.is_reachable(host.spiffe_id, 1), seconds=20)
            await link.close()


async def test_while_the_gateway_is_away_the_certificate_stays_and_the_wait_grows(
    site: Site, host_folder: Path
) -> None:
    async with enrolling(site) as running:
        await enrolled(running, host_folder, await token_of(running))
    config = load_relay_config(host_folder / "relay.toml")
    host = open_host(config)
    link = GatewayLink(host)
    keeper = IdentityKeeper(host, link, chance=0.0)
    leaf = host.credentials.chain[0]
    for hours in (17, 19, 22, 30):  # the last when it has expired
        await keeper.look(leaf.not_valid_before_utc + timedelta(hours=hours))
    assert host.credentials.chain[0] == leaf
    await link.close()


async def test_a_gateway_presents_its_root_so_that_an_enrolment_is_one_call(
    site: Site, host_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(_: Unproven) -> x509.Certificate:
        raise AssertionError("the root was not among what the gateway presents")

    monkeypatch.setattr(Unproven, "_root_asked_for", asked)
    async with enrolling(site) as running:
        assert (await enrolled(running, host_folder, await token_of(running))).wrote_config


async def test_a_token_of_another_gateway_is_not_sent_to_this_one(site: Site, host_folder: Path) -> None:
    async with enrolling(site) as running:
        right = EnrolmentToken.parse(await token_of(running))
        wrong = EnrolmentToken(right.host, b"\0" * 32, right.secret)
        with pytest.raises(CredentialError, match="not the gateway"):
            await enrolled(running, host_folder, wrong.text())
        assert await running.records("host.enrolment_refused") == []
        assert (await enrolled(running, host_folder, right.text())).wrote_config
