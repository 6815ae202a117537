"""Hosts come and go by the gateway's API: tokens, enrolment, renewal, revocation, and what relays are told of it."""

from __future__ import annotations

import sqlite3
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from certs.authority import Authority
from certs.crls import FORGOTTEN_AFTER
from certs.enrolment import EnrolmentToken, make_request
from certs.errors import Check, PeerRefused
from certs.files import read_certificates, write_private_key
from certs.identity import spiffe_id_of
from gateway.enrolment.errors import AuthorityFailed, EnrolmentRefused
from gateway.enrolment.register import Issued
from gateway.errors import LogUnavailable, Throttled
from gateway.recorded_refusals import STRANGERS
from gateway.relays import HostTrust
from gateway.starter import Site
from policy.identity.local import hash_password, person_table
from tests.gateway.cli.test_inventory import person
from tests.gateway.conftest import CHEAP, Running, given_up_once_recorded, running_gateway

pytestmark = pytest.mark.whole

OFFICER = "olga"  # of the group that may enrol and revoke hosts


@asynccontextmanager
async def enrolling(site: Site) -> AsyncIterator[Running]:
    config = site.directory / "gateway.toml"
    config.write_text(config.read_text() + '\n[enrolment]\nauthority = "certs"\ntoken_minutes = 60\n')
    officer = person_table(OFFICER, "Olga Officer", ("platform-team",), hash_password("not asked for", cost=CHEAP))
    site.people.write_text(site.people.read_text() + "\n" + officer)
    async with running_gateway(site) as running:
        yield running


def stranger(running: Running, site: Site) -> httpx.AsyncClient:
    """Somebody without certificate and token, who knows the CA."""
    context = ssl.create_default_context(cafile=str(site.certs / "ca.pem"))
    return httpx.AsyncClient(base_url=running.url, verify=context)


async def token_of(running: Running, host: str = "b") -> str:
    answer = await running.person(OFFICER).post("/v1/enrolment/tokens", json={"host": host})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def request_of(key: ec.EllipticCurvePrivateKey) -> str:
    return make_request(key).decode()


async def enrol(client: httpx.AsyncClient, token: str, key: ec.EllipticCurvePrivateKey) -> httpx.Response:
    return await client.post("/v1/enrolment", json={"token": token, "request": request_of(key)})


def as_host(running: Running, folder: Path, key: Any, certificate: str) -> httpx.AsyncClient:
    folder.mkdir()
    write_private_key(folder / "host.key", key)
    (folder / "host.pem").write_text(certificate)
    return running.client(credentials=(folder / "host.pem", folder / "host.key"))


async def test_a_host_enrols_with_its_token_renews_and_is_revoked(site: Site, tmp_path: Path) -> None:
    async with enrolling(site) as running, stranger(running, site) as client:
        token = await token_of(running)
        root = x509.load_pem_x509_certificate((await client.get("/v1/enrolment/root")).json()["root"].encode())
        assert EnrolmentToken.parse(token).is_of_root(root)
        key = new_key()
        answer = await enrol(client, token, key)
        assert answer.status_code == 200, answer.text
        given = answer.json()
        leaf = x509.load_pem_x509_certificate(given["certificate"].encode())
        assert str(spiffe_id_of(leaf)) == given["host"] == f"spiffe://{site.trust_domain}/host/b"
        assert given["address"] == "127.0.0.3:7443"
        assert given["permit_keys"]
        assert given["log_keys"]
        assert given["crls"]

        host = as_host(running, tmp_path / "b", key, given["certificate"])
        renewed = await host.post("/v1/relay/renewal", json={"request": request_of(key)})
        assert renewed.status_code == 200, renewed.text
        again = x509.load_pem_x509_certificate(renewed.json()["certificate"].encode())
        assert again.public_key() == key.public_key()
        assert again.serial_number != leaf.serial_number
        told = (await host.post("/v1/relay/trust", json={})).json()
        assert (await host.post("/v1/relay/trust", json={"known_version": told["version"]})).json() is None

        revoked = await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "stolen"})
        assert revoked.status_code == 200, revoked.text
        assert set(revoked.json()["serials"]) == {f"{leaf.serial_number:x}", f"{again.serial_number:x}"}
        refused = await host.post("/v1/relay/trust", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "relay_revoked")
        assert "has been revoked" in refused.json()["error"]["message"]
        other = running.client("a")
        news = (await other.post("/v1/relay/trust", json={"known_version": told["version"]})).json()
        crl = x509.load_pem_x509_crl(news["crls"][0].encode())
        assert crl.get_revoked_certificate_by_serial_number(again.serial_number) is not None
        poll = (await other.post("/v1/relay/poll", json={"wait_seconds": 0})).json()
        assert poll["trust_version"] == news["version"]

        for kind in ("host.token_issued", "host.enrolled", "host.renewed", "host.revoked"):
            (record,) = await running.records(kind)
            assert record["source"] == site.spiffe_id("b"), "an auditor asks `host:b`"
        assert token not in str(await running.entries())
        assert "BEGIN" not in str(await running.records("host.enrolled"))


async def test_a_token_is_for_one_key_once_and_a_newer_one_takes_its_place(site: Site) -> None:
    async with enrolling(site) as running, stranger(running, site) as client:
        old, token = await token_of(running), await token_of(running)
        key = new_key()
        assert (await enrol(client, old, key)).status_code == 403
        assert (await enrol(client, token, key)).status_code == 200
        assert (await enrol(client, token, key)).status_code == 200  # the answer was lost: the same key may ask again
        refused = await enrol(client, token, new_key())
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "enrolment_refused"
        because = [record["details"]["because"] for record in await running.records("host.enrolment_refused")]
        assert "newer one" in because[0]
        assert "another key" in because[1]
        assert all(word not in refused.text for word in ("another key", "newer"))


async def test_of_two_that_use_one_token_at_once_one_gets_a_certificate(site: Site) -> None:
    async with enrolling(site) as running, stranger(running, site) as client:
        token = await token_of(running)
        answers: list[int] = []

        async def race() -> None:
            answers.append((await enrol(client, token, new_key())).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(race)
        assert sorted(answers) == [200] + [403] * 5


async def test_who_may_not_enrol_or_revoke_is_refused_on_record(site: Site) -> None:
    async with enrolling(site) as running:
        alice = running.person("alice")
        assert (await alice.post("/v1/enrolment/tokens", json={"host": "b"})).status_code == 403
        assert (await alice.post("/v1/hosts/b/revocation", json={"reason": "x"})).status_code == 403
        assert [record["outcome"] for record in await running.records("host.token_issued")] == ["denied"]
        assert [record["outcome"] for record in await running.records("host.revoked")] == ["denied"]
        assert (await running.client("a").post("/v1/relay/poll", json={"wait_seconds": 0})).status_code == 200


async def test_a_host_that_was_revoked_comes_back_with_another_key_only(site: Site, tmp_path: Path) -> None:
    """Whoever has stolen the key would else be that host again, as soon as the new certificate is seen on the wire."""
    async with enrolling(site) as running, stranger(running, site) as client:
        key = new_key()
        assert (await enrol(client, await token_of(running), key)).status_code == 200
        await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "stolen"})
        token = await token_of(running)
        refused = await enrol(client, token, key)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (403, "key_revoked")
        assert "host.key" in error["next_step"]
        (record,) = await running.records("host.enrolment_refused")
        assert "revoked" in record["details"]["because"]
        other = new_key()
        answer = await enrol(client, token, other)
        assert answer.status_code == 200, "the token is not used up by that"
        host = as_host(running, tmp_path / "b", other, answer.json()["certificate"])
        renewed = await host.post("/v1/relay/renewal", json={"request": request_of(key)})
        assert (renewed.status_code, renewed.json()["error"]["code"]) == (403, "key_revoked"), "nor by a renewal"


async def test_a_host_that_renewed_as_often_as_it_may_for_weeks_is_revoked_all_the_same(site: Site) -> None:
    """One that was broken into renews on purpose: its revocation would be too long for a record."""
    async with enrolling(site) as running:
        office = running.gateway.desk.office
        assert office is not None
        ends = int(datetime.now(UTC).timestamp()) + 86_400
        serials = {f"{(1 << 158) + number:x}" for number in range(1500)}
        for serial in serials:
            office._register.know(Issued(serial, "b", ends, b"k" * 32))
        answer = await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "stolen"})
        assert answer.status_code == 200, answer.text
        assert set(answer.json()["serials"]) == serials
        on_crl = {each.serial_number for each in x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())}
        assert on_crl == {int(serial, 16) for serial in serials}
        recorded = [serial for each in await running.records("host.revoked") for serial in each["details"]["serials"]]
        assert sorted(recorded) == sorted(serials)


async def test_a_host_that_is_revoked_after_its_certificate_has_ended_does_not_come_back_with_that_key(
    site: Site,
) -> None:
    """It was stolen while it was off for days, say; and whoever restores it from a backup takes the old key along."""
    async with enrolling(site) as running, stranger(running, site) as client:
        key, office, officer = new_key(), running.gateway.desk.office, running.person(OFFICER)
        assert office is not None
        assert (await enrol(client, await token_of(running), key)).status_code == 200
        office._register._database.execute("UPDATE certificates SET not_after = 1")
        answer = await officer.post("/v1/hosts/b/revocation", json={"reason": "stolen"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_known")
        refused = await enrol(client, await token_of(running), key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_revoked")
        assert list(x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())) == []
        await office._crls._renew(datetime.now(UTC) + timedelta(days=4))
        assert list(x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())) == [], "it ended by itself"
        assert (await enrol(client, await token_of(running), new_key())).status_code == 200


async def test_a_host_that_came_back_by_another_gateway_or_by_hand_is_certified_on_after_restarts(site: Site) -> None:
    """This gateway has given it no newer token, and what it has certified since ends as it should."""
    async with enrolling(site) as running, stranger(running, site) as client:
        assert (await enrol(client, await token_of(running), new_key())).status_code == 200
        assert (await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "x"})).status_code == 200
        key = new_key()
        given = await running.client("b").post("/v1/relay/renewal", json={"request": request_of(key)})
        assert given.status_code == 200
    ends = int(time.time()) + 1
    with sqlite3.connect(site.directory / "state" / "hosts.sqlite") as register:
        register.execute("UPDATE certificates SET not_after = ? WHERE revoked IS NULL", (ends,))
    register.close()
    await trio.sleep(ends + 0.1 - time.time())
    async with running_gateway(site) as running:
        renewed = await running.client("b").post("/v1/relay/renewal", json={"request": request_of(key)})
        assert renewed.status_code == 200, renewed.text


@pytest.mark.parametrize("lost", ["DELETE FROM keys", "DELETE FROM keys; DELETE FROM certificates"])
async def test_keys_that_an_earlier_gateway_revoked_or_whose_register_was_lost_are_known_by_the_log(
    site: Site, tmp_path: Path, lost: str
) -> None:
    first, second = new_key(), new_key()
    async with enrolling(site) as running, stranger(running, site) as client:
        given = (await enrol(client, await token_of(running), first)).json()
        host = as_host(running, tmp_path / "b", first, given["certificate"])
        assert (await host.post("/v1/relay/renewal", json={"request": request_of(second)})).status_code == 200
        await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "stolen"})
        waiting = await token_of(running)
        other = await token_of(running, "c")
    with sqlite3.connect(site.directory / "state" / "hosts.sqlite") as register:
        register.executescript(lost)
    register.close()
    for _ in range(2):
        async with running_gateway(site) as running, stranger(running, site) as client:
            for key in (first, second):
                refused = await enrol(client, waiting, key)
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_revoked")
            assert (await running.person("alice").get("/v1/hosts")).json()["hosts"][1]["revoked"] is True
    async with running_gateway(site) as running, stranger(running, site) as client:
        assert (await enrol(client, waiting, new_key())).status_code == 200, "a token of then stays good"
        assert (await enrol(client, other, new_key())).status_code == 200


async def test_refused_renewals_are_on_record_once_an_hour_for_each_host_and_reason_and_counted(
    site: Site, tmp_path: Path
) -> None:
    (site.directory / "scrape").write_text("t" * 32)
    (site.directory / "scrape").chmod(0o600)
    with (site.directory / "gateway.toml").open("a") as config:
        config.write('\n[metrics]\ntoken_file = "scrape"\n')
    async with enrolling(site) as running, stranger(running, site) as client:
        stolen, own = new_key(), new_key()
        assert (await enrol(client, await token_of(running), stolen)).status_code == 200
        await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "stolen"})
        given = (await enrol(client, await token_of(running), own)).json()
        host = as_host(running, tmp_path / "b", own, given["certificate"])
        for _ in range(3):
            refused = await host.post("/v1/relay/renewal", json={"request": request_of(stolen)})
            assert refused.json()["error"]["code"] == "key_revoked"
        assert (await host.post("/v1/relay/renewal", json={"request": "no request"})).status_code == 400
        await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "once more"})
        for _ in range(30):
            refused = await host.post("/v1/relay/renewal", json={"request": request_of(own)})
            assert refused.json()["error"]["code"] == "relay_revoked"
        assert (await client.post("/v1/relay/renewal", json={"request": request_of(own)})).status_code == 403

        records = await running.records("host.renewal_refused")
        assert [record["details"]["code"] for record in records] == ["key_revoked", "bad_request", "relay_revoked"]
        serial = x509.load_pem_x509_certificate(given["certificate"].encode()).serial_number
        for record in records:
            assert (record["outcome"], record["source"]) == ("denied", site.spiffe_id("b")), "an auditor asks `host:b`"
            assert record["actor"]["id"] == site.spiffe_id("b")
            assert record["details"]["serial"] == f"{serial:x}"
            assert record["details"]["client_address"] == "127.0.0.1"
        scrape = await client.get("/metrics", headers={"authorization": "Bearer " + "t" * 32})
        counted = [line for line in scrape.text.splitlines() if line.startswith("sealane_renewals_refused_total")]
        assert 'sealane_renewals_refused_total{because="relay_revoked"} 30.0' in counted
        assert 'sealane_renewals_refused_total{because="relay_refused"} 1.0' in counted, "of nobody: no record"


async def test_a_host_that_is_out_is_shown_as_such_also_after_a_restart_and_if_it_was_never_heard(
    site: Site, tmp_path: Path
) -> None:
    async def out(running: Running) -> list[str]:
        hosts = (await running.person("alice").get("/v1/hosts")).json()["hosts"]
        alice = person(running, Path(mkdtemp(dir=tmp_path)))
        lines = (await alice.sealane("hosts")).stdout.splitlines()
        told = [host["name"] for host in hosts if host["revoked"]]
        assert [line.split()[0] for line in lines if " REVOKED " in line] == told
        return told

    async with enrolling(site) as running, stranger(running, site) as client:
        officer = running.person(OFFICER)
        for name in ("b", "c", "prod"):
            assert (await enrol(client, await token_of(running, name), new_key())).status_code == 200
        await running.poll("b")
        assert await out(running) == []
        for name in ("b", "c"):
            assert (await officer.post(f"/v1/hosts/{name}/revocation", json={"reason": "x"})).status_code == 200
        assert await out(running) == ["b", "c"]
        reporting, days_later = running.gateway.desk.reporting, datetime.now(UTC) + timedelta(days=400)
        assert reporting.seen.is_out(site.spiffe_id("b"), replace(reporting.trust), days_later), (
            "what it showed has ended"
        )
    async with running_gateway(site) as running, stranger(running, site) as client:
        assert await out(running) == ["b", "c"]
        await running.poll("a")
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "host_revoked")
        key = new_key()
        given = (await enrol(client, await token_of(running, "b"), key)).json()
        host = as_host(running, tmp_path / "b", key, given["certificate"])
        assert (await host.post("/v1/relay/poll", json={"wait_seconds": 0})).status_code == 200
        assert await out(running) == ["c"]
    async with running_gateway(site) as running:
        assert await out(running) == ["c"]


async def test_a_host_that_the_inventory_does_not_list_gets_no_token(site: Site) -> None:
    async with enrolling(site) as running:
        answer = await running.person(OFFICER).post("/v1/enrolment/tokens", json={"host": "unlisted"})
        assert answer.status_code == 404
        assert "inventory" in answer.json()["error"]["next_step"]


async def test_a_token_that_should_wait_longer_than_it_may_is_refused_and_not_cut(site: Site) -> None:
    async with enrolling(site) as running:
        officer = running.person(OFFICER)
        answer = await officer.post("/v1/enrolment/tokens", json={"host": "b", "minutes": 61})
        assert answer.status_code == 400
        assert "60 minutes at most" in answer.json()["error"]["message"]
        assert await running.records("host.token_issued") == []
        assert (await officer.post("/v1/enrolment/tokens", json={"host": "b", "minutes": 60})).status_code == 200


async def test_guesses_are_throttled_and_do_not_fill_the_log(site: Site) -> None:
    async with enrolling(site) as running, stranger(running, site) as client:
        codes = [(await enrol(client, f"slt1.b.{'A' * 43}.{'A' * 43}", new_key())).status_code for _ in range(14)]
        assert codes[:10] == [403] * 10
        assert codes[-1] == 429
        assert 10 <= len(await running.records("host.enrolment_refused")) <= 11


async def test_guesses_from_many_addresses_do_not_fill_the_log_either(site: Site) -> None:
    async with enrolling(site) as running:
        office = running.gateway.desk.office
        assert office is not None
        request = request_of(new_key()).encode()
        for number in range(60):
            with pytest.raises(EnrolmentRefused):
                await office.enrol(f"slt1.b.{'A' * 43}.{'A' * 43}", request, f"198.51.100.{number}")
        refused = [0, 0]
        for number in range(20):
            try:
                await office.enrol(f"slt1.b.{'A' * 43}.{'A' * 43}", request, f"2001:db8::{number:x}")
            except EnrolmentRefused:
                refused[0] += 1
            except Throttled:
                refused[1] += 1
        assert refused == [10, 10], "a network of IPv6 is one that guesses"
        recorded = len(await running.records("host.enrolment_refused"))
        assert 20 <= recorded <= 40
        office._refusals._throttle.bucket(STRANGERS).tokens = 20
        with pytest.raises(EnrolmentRefused):
            await office.enrol("slt1.b.x", request, "203.0.113.1")
        *_, last = await running.records("host.enrolment_refused")
        assert last["details"]["left_out_before"] == 70 - recorded


async def test_a_revocation_takes_the_waiting_token_with_it(site: Site) -> None:
    async with enrolling(site) as running, stranger(running, site) as client:
        token = await token_of(running)
        key = new_key()
        assert (await enrol(client, token, key)).status_code == 200
        await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "stolen"})
        assert (await enrol(client, token, key)).status_code == 403


async def test_an_enrolment_that_was_cut_off_before_its_record_is_taken_again_with_the_same_key(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key()
    async with enrolling(site) as running, stranger(running, site) as client:
        token = await token_of(running)
        with monkeypatch.context() as patch:
            patch.setattr(running.gateway.desk.gate.recorder, "append", no_log)
            assert (await enrol(client, token, key)).status_code == 503
    async with running_gateway(site) as running, stranger(running, site) as client:
        assert await running.records("host.enrolled") == []
        assert (await enrol(client, token, new_key())).status_code == 403, "the token is spent"
        assert (await enrol(client, token, key)).status_code == 200
        assert len(await running.records("host.enrolled")) == 1


async def test_one_token_gives_no_more_certificates_than_renewals_do(site: Site) -> None:
    """Each is a record and, when the host is revoked, a line of a CRL that everybody fetches."""
    async with enrolling(site) as running, stranger(running, site) as client:
        token, key = await token_of(running), new_key()
        answers = [(await enrol(client, token, key)).status_code for _ in range(8)]
        assert (answers[:2], answers[-1]) == ([200, 200], 429)
        assert len(await running.records("host.enrolled")) == answers.count(200) <= 6


async def test_a_revocation_that_is_on_record_is_done_though_who_asked_has_gone_or_the_gateway_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key()

    def serials_on_crl() -> set[int]:
        return {each.serial_number for each in x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())}

    async with enrolling(site) as running, stranger(running, site) as client:
        serials = []
        for host in ("b", "c"):
            given = (await enrol(client, await token_of(running, host), key)).json()
            serials.append(x509.load_pem_x509_certificate(given["certificate"].encode()).serial_number)
        desk = running.gateway.desk
        office, officer = desk.office, await desk.people.authenticate(running.token(OFFICER), desk.now(), "test")
        officer = await desk.people.resolve_groups(officer, desk.now(), "test")
        assert office is not None
        with given_up_once_recorded(desk.gate.recorder):
            await office.revoke(officer, "b", "stolen", "test")
        assert serials_on_crl() == {serials[0]}
        with monkeypatch.context() as patch:
            patch.setattr("gateway.rollover.authorities.Authorities.revoke_all", full_disk)
            with pytest.raises(AuthorityFailed):
                await office.revoke(officer, "c", "stolen", "test")
        assert serials_on_crl() == {serials[0]}
    async with running_gateway(site) as running, stranger(running, site) as client:
        assert serials_on_crl() == set(serials), "what is on record was done at the start"
        gate = running.gateway.desk.gate
        assert gate.minimum_crl_number == x509_number(site)
        assert (await enrol(client, await token_of(running, "c"), new_key())).status_code == 200
    async with running_gateway(site):
        assert serials_on_crl() == set(serials), "once"


async def test_a_revocation_that_failed_is_finished_by_itself_and_until_then_the_host_gets_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.enrolment.revoking.RETRY_SECONDS", 0.2)
    async with enrolling(site) as running, stranger(running, site) as client:
        await running.poll("b")
        key, officer = new_key(), running.person(OFFICER)
        given = (await enrol(client, await token_of(running), key)).json()
        serial = x509.load_pem_x509_certificate(given["certificate"].encode()).serial_number
        waiting = await token_of(running)
        with monkeypatch.context() as patch:
            patch.setattr("gateway.rollover.authorities.Authorities.revoke_all", full_disk)
            assert (await officer.post("/v1/hosts/b/revocation", json={"reason": "stolen"})).status_code == 503
            with capture_logs() as said, trio.fail_after(10):
                while not any("it is tried again" in each["event"] for each in said):
                    await trio.sleep(0.02)
            asked = await officer.post("/v1/enrolment/tokens", json={"host": "b"})
            assert (asked.status_code, asked.json()["error"]["code"]) == (403, "being_revoked")
            assert (await enrol(client, waiting, new_key())).status_code == 403
        with trio.fail_after(10):
            while (asked := await officer.post("/v1/enrolment/tokens", json={"host": "b"})).status_code != 200:
                await trio.sleep(0.05)
        crl = x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())
        assert crl.get_revoked_certificate_by_serial_number(serial) is not None
        gate = running.gateway.desk.gate
        assert gate.minimum_crl_number == x509_number(site), "in force here, too"
        assert (await enrol(client, waiting, new_key())).status_code == 403
        assert (await enrol(client, asked.json()["token"], new_key())).status_code == 200
        assert len(await running.records("host.revoked")) == 1


async def test_what_is_left_of_a_revocation_is_done_also_for_tokens_and_certificates_that_were_issued_by_hand(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with enrolling(site) as running:
        await running.poll("b")  # by a certificate that no register has
        tokens = [await token_of(running, "b"), await token_of(running, "c")]
        officer = running.person(OFFICER)
        with monkeypatch.context() as patch:
            patch.setattr("gateway.rollover.authorities.Authorities.revoke_all", full_disk)
            assert (await officer.post("/v1/hosts/b/revocation", json={"reason": "stolen"})).status_code == 503
            patch.setattr("gateway.enrolment.register.Register.revoke", no_register)
            assert (await officer.post("/v1/hosts/c/revocation", json={"reason": "stolen"})).status_code == 503
    by_hand = x509.load_pem_x509_certificate((site.host_folder("b") / "host.pem").read_bytes())
    async with running_gateway(site) as running, stranger(running, site) as client:
        crl = x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())
        assert crl.get_revoked_certificate_by_serial_number(by_hand.serial_number) is not None
        for token in tokens:
            assert (await enrol(client, token, new_key())).status_code == 403, "it went with its host"
        token = await token_of(running, "c")
    async with running_gateway(site) as running, stranger(running, site) as client:
        assert (await enrol(client, token, new_key())).status_code == 200, "it is newer than the revocation"


async def test_a_token_that_is_made_during_a_revocation_is_given_to_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with enrolling(site) as running:
        office = running.gateway.desk.office
        assert office is not None
        add_token = office._register.add_token

        def late(*args: Any) -> None:
            trio.from_thread.run(revoke)
            add_token(*args)

        async def revoke() -> None:
            office.revoking._times["b"] += 1

        monkeypatch.setattr(office._register, "add_token", late)
        answer = await running.person(OFFICER).post("/v1/enrolment/tokens", json={"host": "b"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "being_revoked")


async def test_crls_by_the_clock_forget_hosts_whose_certificates_ended_long_ago_until_that_clock_proves_wrong(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_crl() -> set[int]:
        return {each.serial_number for each in x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())}

    async with enrolling(site) as running, stranger(running, site) as client:
        given = (await enrol(client, await token_of(running), new_key())).json()
        leaf = x509.load_pem_x509_certificate(given["certificate"].encode())
        officer, office = running.person(OFFICER), running.gateway.desk.office
        assert office is not None
        assert (await officer.post("/v1/hosts/b/revocation", json={"reason": "stolen"})).status_code == 200
        Authority.load(site.certs).revoke(7, leaf.not_valid_after_utc)  # by hand: nobody knows when that one ends
        long_after = leaf.not_valid_after_utc + FORGOTTEN_AFTER + timedelta(days=1)
        for now, there in ((long_after, True), (long_after + timedelta(hours=1), True), (None, False)):
            await office._crls._renew(now or long_after + timedelta(days=4))
            assert on_crl() == ({leaf.serial_number, 7} if there else {7})
        # Somebody had steered the clock: meanwhile another host is revoked, by the right one.
        await office._crls.revoke([8], datetime.now(UTC))
        assert on_crl() == {leaf.serial_number, 7, 8}
        number = x509_number(site)
        await office._crls._renew(datetime.now(UTC))
        assert x509_number(site) == number
        number = x509_number(site)
        with monkeypatch.context() as broken:
            broken.setattr(office._register, "revoked", no_register)
            await office._crls.revoke([8], datetime.now(UTC))
        assert x509_number(site) == number + 1
        # And by hand, of which the gateway does not hear.
        await office._crls._renew(long_after + timedelta(days=8))
        await office._crls._renew(long_after + timedelta(days=12))
        assert on_crl() == {7, 8}
        Authority.load(site.certs).revoke(9, datetime.now(UTC))
        await office._crls._renew(datetime.now(UTC))
        assert on_crl() == {leaf.serial_number, 7, 8, 9}


async def test_a_crl_that_was_published_while_the_clock_was_ahead_is_replaced_once_the_clock_is_right(
    site: Site,
) -> None:
    async with enrolling(site) as running, stranger(running, site) as client:
        given = (await enrol(client, await token_of(running), new_key())).json()
        office = running.gateway.desk.office
        assert office is not None
        assert (await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "x"})).status_code == 200
        now = datetime.now(UTC)
        await office._crls._renew(now + timedelta(days=4))
        with pytest.raises((httpx.TransportError, AssertionError)):  # of every host, whose certificates are good
            await running.poll("a")
        number = x509_number(site)
        await office._crls._renew(now)
        assert x509_number(site) == number + 1
        assert await running.poll("a") == []
        (revoked,) = x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())
        assert revoked.serial_number == x509.load_pem_x509_certificate(given["certificate"].encode()).serial_number
        await office._crls._renew(now)
        assert x509_number(site) == number + 1


async def test_a_receipt_is_not_believed_by_a_certificate_of_which_crls_tell_no_more(site: Site) -> None:
    chain = read_certificates(site.host_folder("a") / "host.pem")
    trust = HostTrust.load((site.certs / "ca.pem",), (site.certs / "crl.pem",))
    leaf = chain[0]
    ended = leaf.not_valid_after_utc - timedelta(hours=1)
    assert trust.past_host_of(chain, ended, leaf.not_valid_after_utc + FORGOTTEN_AFTER).name == "a"
    with pytest.raises(PeerRefused) as refused:
        trust.past_host_of(chain, ended, leaf.not_valid_after_utc + FORGOTTEN_AFTER + timedelta(seconds=1))
    assert refused.value.check == Check.CRL_STALE


def no_register(*_: Any) -> None:
    raise sqlite3.OperationalError("disk I/O error")


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


async def no_log(*_: Any) -> None:
    raise LogUnavailable("the audit log failed")


def x509_number(site: Site) -> int:
    return (
        x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())
        .extensions.get_extension_for_class(x509.CRLNumber)
        .value.crl_number
    )


async def test_a_running_migration_of_a_revoked_host_is_ended_as_policies_say(site: Site) -> None:
    async with enrolling(site) as running:
        await running.poll("b")  # so that its certificate, made by hand, is known
        migration_id, _ = await running.begin()
        assert (
            await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "lost"})
        ).status_code == 200
        with trio.fail_after(30):
            while not (revoked := await running.records("migration.revoked")):
                await trio.sleep(0.05)
        assert revoked[0]["migration_id"] == migration_id
        assert "b" in str(revoked[0]["details"])


async def test_a_migration_of_a_host_that_was_revoked_just_before_a_restart_is_ended_too(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is heard no more, to show by which certificate; one that came back has shown another one by then."""

    async def sleeps(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("gateway.watch.Watch.look", sleeps)
    async with enrolling(site) as running, stranger(running, site) as client:
        with (site.directory / "gateway.toml").open("a") as config:
            config.write("\n[revocation]\ninterval_seconds = 1\nunknown_grace_seconds = 1\n")
        key, officer = new_key(), running.person(OFFICER)
        given = (await enrol(client, await token_of(running, "b"), key)).json()
        host = as_host(running, tmp_path / "b", key, given["certificate"])
        assert (await host.post("/v1/relay/poll", json={"wait_seconds": 0})).status_code == 200
        migration_id, _ = await running.begin()
        assert (await officer.post("/v1/hosts/b/revocation", json={"reason": "lost"})).status_code == 200
    monkeypatch.undo()
    async with running_gateway(site) as running:
        await running.poll("a")
        with trio.fail_after(30):
            while not (revoked := await running.records("migration.revoked")):
                await trio.sleep(0.05)
        assert revoked[0]["migration_id"] == migration_id
        assert "b was revoked" in revoked[0]["details"]["because"]


async def test_a_renewal_that_is_under_way_during_a_revocation_gives_nothing_that_outlives_it(
    site: Site, tmp_path: Path
) -> None:
    """A host that renews all the time while it is revoked would else get a serial that nobody collected."""
    async with enrolling(site) as running, stranger(running, site) as client:
        key = new_key()
        given = (await enrol(client, await token_of(running), key)).json()
        host = as_host(running, tmp_path / "b", key, given["certificate"])
        certificates: list[str] = []
        over = trio.Event()

        async def renew_all_the_time() -> None:
            while not over.is_set():
                answer = await host.post("/v1/relay/renewal", json={"request": request_of(key)})
                if answer.status_code == 200:
                    certificates.append(answer.json()["certificate"])
                elif answer.status_code == 403:
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(renew_all_the_time)
            revoked = await running.person(OFFICER).post("/v1/hosts/b/revocation", json={"reason": "stolen"})
            assert revoked.status_code == 200
            over.set()
        crl = x509.load_pem_x509_crl((site.certs / "crl.pem").read_bytes())
        for text in certificates:
            serial = x509.load_pem_x509_certificate(text.encode()).serial_number
            assert crl.get_revoked_certificate_by_serial_number(serial) is not None


async def test_a_gateway_without_the_table_enrols_nobody(running: Running) -> None:
    answer = await running.person("alice").post("/v1/enrolment/tokens", json={"host": "b"})
    assert answer.status_code == 404
    assert "[enrolment]" in answer.json()["error"]["next_step"]


async def test_nothing_is_permitted_from_or_to_a_host_that_was_revoked(site: Site) -> None:
    """Relays would refuse it; but a permit in the log for a host that is out tells an auditor something else."""
    async with enrolling(site) as running:
        for host in ("a", "b"):
            await running.poll(host)
        officer = running.person(OFFICER)
        assert (await officer.post("/v1/hosts/b/revocation", json={"reason": "stolen"})).status_code == 200
        alice = running.person("alice")
        answer = await alice.post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "host_revoked")
        drained = (await alice.post("/v1/drain/check", json={"host": "a", "to": ["b"]})).json()
        assert "revoked" in str(drained["prospects"])
        assert (await officer.post("/v1/hosts/a/revocation", json={"reason": "stolen, too"})).status_code == 200
        answer = await alice.post("/v1/migrations", json={"vm": "web", "destination": "c"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "host_revoked")
        records = await running.records("migration.decision")
        assert [(each["outcome"], each["details"]["permit"]) for each in records] == [("failed", None)] * 2
