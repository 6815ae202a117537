"""Groups and state of accounts from a real Samba Active Directory, and what goes wrong with it."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import ldap3
import pytest
import trio

from policy.errors import AccountRefused, DirectoryUnavailable
from policy.facts import Person
from policy.identity.active_directory import ActiveDirectory, resolve
from policy.identity.directory_account import Account, AccountAttribute, AccountName, parse_name
from policy.identity.directory_session import Session
from policy.identity.directory_settings import Credentials
from tests.policy.identity import samba_ad
from tests.policy.identity.samba_ad import (
    BASE,
    REALM,
    USERS,
    Administrator,
    Controller,
    Domain,
    add_group,
    add_user,
    change,
    sid_of,
)

pytestmark = pytest.mark.real

ALICE = f"alice@{REALM}"
NUMBERS = itertools.count(1)
# What would change the meaning of a filter or a DN, were it not escaped.
INJECTIONS = (
    "*", "a*", "alice*)(objectClass=*", "alice)(|(cn=*", "*)(userAccountControl=512))(|(cn=*", "\\2a", "alice\\",
    "alice\x00", "alice\x00*", "(", ")", "&", "|(objectClass=*)", "alice,CN=Users", "\u202ealice", " alice", "alice ",
    "al\nice", "x" * 5000, "",
)  # fmt: skip


@dataclass
class FakeClock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def administrator(domain: Domain) -> Iterator[Administrator]:
    with domain.controllers[0].administrator() as connection:
        yield connection


@asynccontextmanager
async def directory(
    domain: Domain, *controllers: Controller, clock: Callable[[], float] = time.monotonic,
    credentials: Credentials | None = None, **changes: Any,
) -> AsyncIterator[ActiveDirectory]:  # fmt: skip
    it = ActiveDirectory(domain.settings(*controllers, **changes), credentials or domain.credentials, clock)
    try:
        yield it
    finally:
        it.close()


def upn(name: str) -> AccountName:
    return AccountName("userPrincipalName", f"{name}@{REALM}")


def new_name(stem: str) -> str:
    return f"{stem}-{next(NUMBERS)}"


async def groups_of(ad: ActiveDirectory, name: str, *, fresh: bool = False) -> frozenset[str]:
    return (await ad.look_up(upn(name), now(), fresh=fresh)).account.groups


async def problem_of(ad: ActiveDirectory, name: str) -> str | None:
    return (await ad.look_up(upn(name), now())).problem


# --- who ----------------------------------------------------------------------------------------------------------


async def test_a_person_is_found_by_each_of_their_names(domain: Domain, dc1: Controller) -> None:
    async with directory(domain) as ad:
        by_upn = await ad.look_up(parse_name(ALICE, "CORP"), now())
        account = by_upn.account
        assert by_upn.controller == f"{dc1.name}:636"
        for text in ("CORP\\alice", "corp\\ALICE", account.sid, account.guid, ALICE.upper()):
            assert (await ad.look_up(parse_name(text, "CORP"), now())).account == account
        with pytest.raises(AccountRefused, match="unknown"):
            await ad.look_up(parse_name("nobody@corp.example.test", "CORP"), now())
        with pytest.raises(AccountRefused, match="CORP"):
            parse_name("OTHER\\alice", "CORP")


@pytest.mark.parametrize("attribute", ["userPrincipalName", "sAMAccountName", "objectSid", "objectGUID"])
async def test_no_name_that_a_requester_controls_is_ldap_syntax(domain: Domain, attribute: AccountAttribute) -> None:
    person = Person("https://issuer#1", "https://issuer", "mallory", frozenset({"https://issuer#admins"}), "oidc")
    async with directory(domain) as ad:
        for text in INJECTIONS:
            resolved = await resolve(ad, _with_account(person, text), attribute, now())
            assert resolved.groups is None, text
            assert resolved.directory is not None
            assert "unknown" in str(resolved.directory.problem), text


def _with_account(person: Person, account: str | None) -> Person:
    return Person(person.id, person.issuer, person.name, person.groups, person.authenticated_by, account)


async def test_an_account_claim_is_never_read_as_another_kind_of_name(domain: Domain) -> None:
    """Whoever may choose their preferred_username must not become the account whose SID they write there."""
    async with directory(domain) as ad:
        sid = (await ad.look_up(upn("alice"), now())).account.sid
        person = Person("https://issuer#1", "https://issuer", "mallory", None, "oidc")
        for text in (sid, "CORP\\alice"):
            assert (await resolve(ad, _with_account(person, text), "userPrincipalName", now())).groups is None
        assert (await resolve(ad, _with_account(person, None), "userPrincipalName", now())).groups is None


async def test_computers_and_groups_are_no_people(domain: Domain) -> None:
    async with directory(domain) as ad:
        for name in ("DC1$", "Domain Users", "inner"):
            with pytest.raises(AccountRefused, match="unknown"):
                await ad.look_up(AccountName("sAMAccountName", name), now())


async def test_two_accounts_of_one_name_are_neither(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samba keeps names unique; Windows does not where accounts are restored or replicated."""
    real = Session._search

    def doubled(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        return [*found, *found] if named["size_limit"] == 2 else found

    monkeypatch.setattr(Session, "_search", doubled)
    async with directory(domain) as ad:
        with pytest.raises(AccountRefused, match="several"):
            await ad.look_up(upn("alice"), now())


# --- groups -------------------------------------------------------------------------------------------------------


async def test_groups_are_transitive_and_hold_the_primary_group_and_survive_cycles(
    domain: Domain, administrator: Administrator
) -> None:
    wanted = {sid_of(administrator, f"CN={name},{USERS}") for name in ("inner", "outer", "ring-1", "ring-2")}
    primary = sid_of(administrator, f"CN=Domain Users,{USERS}")
    async with directory(domain) as ad:
        groups = await groups_of(ad, "alice")
    assert wanted | {primary} <= groups
    administrator.search(BASE, f"(member:1.2.840.113556.1.4.1941:=CN=alice,{USERS})", attributes=["objectSid"])
    by_rule = {each["dn"] for each in administrator.response if each["type"] == "searchResEntry"}
    assert f"CN=Domain Users,{USERS}" not in by_rule  # why the matching rule is not what we use


async def test_a_renamed_group_stays_the_same_and_one_recreated_under_the_old_name_does_not(
    domain: Domain, administrator: Administrator
) -> None:
    user, group = new_name("renamed"), new_name("operators")
    user_dn = add_user(administrator, user)
    group_dn = add_group(administrator, group, [user_dn])
    sid = sid_of(administrator, group_dn)
    async with directory(domain) as ad:
        assert sid in await groups_of(ad, user)
        administrator.modify_dn(group_dn, f"CN={group}-new")
        change(administrator, f"CN={group}-new,{USERS}", sAMAccountName=f"{group}-new")
        assert sid in await groups_of(ad, user, fresh=True)
        impostor = sid_of(administrator, add_group(administrator, group, [user_dn]))
        administrator.delete(f"CN={group}-new,{USERS}")
        groups = await groups_of(ad, user, fresh=True)
        assert sid not in groups
        assert impostor in groups
        assert impostor != sid


async def test_a_group_of_1700_members_tells_each_of_them(domain: Domain, administrator: Administrator) -> None:
    names = [f"CN=m{number},{USERS}" for number in range(1699)]
    samba_ad.add_contacts(administrator, names)
    user = new_name("crowded")
    user_dn = add_user(administrator, user)
    group_dn = add_group(administrator, new_name("crowd"), [*names, user_dn])
    administrator.search(group_dn, "(objectClass=*)", ldap3.BASE, attributes=["member;range=0-1499"])
    (entry,) = administrator.response
    part = entry["raw_attributes"]["member;range=0-1499"]
    assert len(part) == 1500  # what Windows answers to a search for `member`: reading members would miss people
    async with directory(domain) as ad:
        assert sid_of(administrator, group_dn) in await groups_of(ad, user)


async def test_a_person_in_300_groups(domain: Domain, administrator: Administrator) -> None:
    user = new_name("joiner")
    user_dn = add_user(administrator, user)
    for number in range(300):
        add_group(administrator, f"{user}-g{number}", [user_dn])
    async with directory(domain) as ad:
        assert len(await groups_of(ad, user)) >= 302


# --- state --------------------------------------------------------------------------------------------------------


async def test_an_account_disabled_between_bind_and_decision_is_disabled_at_once(
    domain: Domain, administrator: Administrator
) -> None:
    user = new_name("leaver")
    dn = add_user(administrator, user)
    async with directory(domain) as ad:
        before = await ad.look_up(upn(user), now())
        assert before.problem is None
        change(administrator, dn, userAccountControl="514")
        after = await ad.look_up(upn(user), now())
        assert after.problem == "disabled"
        assert after.account.groups == before.account.groups  # cached, and on the same bound connection
        change(administrator, dn, userAccountControl="512")
        assert await problem_of(ad, user) is None
        administrator.delete(dn)
        for _ in range(2):
            with pytest.raises(AccountRefused, match="unknown"):
                await ad.look_up(upn(user), now())


async def test_expired_and_must_change(domain: Domain, administrator: Administrator) -> None:
    user = new_name("temporary")
    dn = add_user(administrator, user)
    async with directory(domain) as ad:
        assert await problem_of(ad, user) is None
        change(administrator, dn, accountExpires=filetime(now() + timedelta(hours=1)))
        assert await problem_of(ad, user) is None
        change(administrator, dn, accountExpires=filetime(now() - timedelta(hours=1)))
        assert await problem_of(ad, user) == "expired"
        for never in ("0", str(2**63 - 1)):
            change(administrator, dn, accountExpires=never)
            assert await problem_of(ad, user) is None
        change(administrator, dn, pwdLastSet="0")
        assert await problem_of(ad, user) == "must-change-password"


async def test_locked_after_wrong_passwords(domain: Domain, administrator: Administrator, dc1: Controller) -> None:
    user = new_name("guessed")
    dn = add_user(administrator, user)
    with domain_policy(administrator, lockoutThreshold="2", lockoutDuration="-18000000000"):
        for _ in range(3):
            guess = Credentials("wrong", domain.authority.pem.decode())
            settings = domain.settings(dc1, bind_user=f"{user}@{REALM}")
            with pytest.raises(DirectoryUnavailable):
                Session(settings.checked_controllers()[0], settings, guess, 0).open()
        async with directory(domain) as ad:
            assert await problem_of(ad, user) == "locked"
            change(administrator, dn, lockoutTime="0")
            assert await problem_of(ad, user) is None


def filetime(moment: datetime) -> str:
    return str((moment - datetime(1601, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 10)


@contextmanager
def domain_policy(administrator: Administrator, **values: str) -> Iterator[None]:
    """Change the domain's password policy for a while."""
    administrator.search(BASE, "(objectClass=*)", ldap3.BASE, attributes=list(values))
    before = {name: raw[0].decode() for name, raw in administrator.response[0]["raw_attributes"].items() if raw}
    change(administrator, BASE, **values)
    try:
        yield
    finally:
        change(administrator, BASE, **before)


# --- cache --------------------------------------------------------------------------------------------------------


async def test_groups_are_read_again_after_the_cache_time_and_at_once_for_privileged_actions(
    domain: Domain, administrator: Administrator
) -> None:
    user = new_name("mover")
    dn = add_user(administrator, user)
    group = add_group(administrator, new_name("late"), [dn])
    sid = sid_of(administrator, group)
    clock = FakeClock()
    async with directory(domain, clock=clock) as ad:
        assert sid in await groups_of(ad, user)
        change(administrator, group, member=[])
        clock.seconds += 59
        assert sid in await groups_of(ad, user)
        assert sid not in await groups_of(ad, user, fresh=True)
        change(administrator, group, member=[dn])
        clock.seconds += 61
        assert sid in await groups_of(ad, user)


async def test_a_cached_answer_is_not_used_when_the_directory_cannot_be_asked(domain: Domain, dc1: Controller) -> None:
    async with directory(domain, dc1, retry_seconds=1) as ad:
        await groups_of(ad, "alice")
        with dc1.hung(), pytest.raises(DirectoryUnavailable, match="timeout"):
            await groups_of(ad, "alice")
    person = Person("https://issuer#1", "https://issuer", "alice", None, "oidc", ALICE)
    async with directory(domain, dc1) as ad:
        with dc1.hung():
            resolved = await resolve(ad, person, "userPrincipalName", now())
    assert resolved.groups is None
    assert resolved.directory is not None
    assert resolved.directory.problem == "Active Directory is unavailable (timeout)"


async def test_many_who_ask_for_one_person_cost_one_look_up(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[AccountName] = []
    real = Session.find

    def find(session: Session, name: AccountName) -> Account:
        found.append(name)
        return real(session, name)

    monkeypatch.setattr(Session, "find", find)
    async with directory(domain) as ad, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(groups_of, ad, "alice")
    assert len(found) == 1


# --- controllers --------------------------------------------------------------------------------------------------


async def test_the_second_controller_answers_when_the_first_hangs(domain: Domain, dc1: Controller) -> None:
    clock, receive_seconds = FakeClock(), 3
    async with directory(domain, clock=clock, receive_seconds=receive_seconds, deadline_seconds=20) as ad:
        with dc1.hung():
            first = await ad.look_up(upn("alice"), now())
            assert first.controller == f"dc2.{REALM}:636"
            started = time.monotonic()
            assert (await ad.look_up(upn("alice"), now(), fresh=True)).controller == f"dc2.{REALM}:636"
            assert time.monotonic() - started < receive_seconds  # the hung one is not waited for again


async def test_a_controller_that_hangs_on_a_bound_connection_is_left(domain: Domain, dc1: Controller) -> None:
    async with directory(domain) as ad:
        await groups_of(ad, "alice")
        with dc1.hung():
            assert (await ad.look_up(upn("alice"), now(), fresh=True)).controller == f"dc2.{REALM}:636"


async def test_a_restarted_controller_is_connected_anew(domain: Domain) -> None:
    dc2 = domain.controllers[1]
    async with directory(domain, dc2) as ad:
        await groups_of(ad, "alice")
        dc2.restart()
        assert await groups_of(ad, "alice", fresh=True)


async def test_while_all_are_down_everybody_is_denied_at_once(domain: Domain, dc1: Controller) -> None:
    receive_seconds = 3
    async with directory(domain, dc1, clock=FakeClock(), receive_seconds=receive_seconds, deadline_seconds=20) as ad:
        with dc1.hung():
            with pytest.raises(DirectoryUnavailable):
                await groups_of(ad, "alice")
            started = time.monotonic()
            with pytest.raises(DirectoryUnavailable):
                await groups_of(ad, "alice")
            assert time.monotonic() - started < receive_seconds


async def test_a_hung_controller_denies_within_the_deadline_whoever_asks_and_however_many(
    domain: Domain, dc1: Controller
) -> None:
    outcomes: list[float] = []

    async def ask(ad: ActiveDirectory, number: int) -> None:
        started = time.monotonic()
        with pytest.raises((DirectoryUnavailable, AccountRefused)):
            await groups_of(ad, f"nobody-{number}")
        outcomes.append(time.monotonic() - started)

    receive_seconds = 8
    async with directory(domain, dc1, receive_seconds=receive_seconds, deadline_seconds=1, connections=1) as ad:
        with dc1.hung():
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(ask, ad, number)
    assert len(outcomes) == 10
    assert max(outcomes) < receive_seconds  # of each that waited for its turn, the more


async def test_a_cancelled_call_throws_its_connection_away(domain: Domain, dc1: Controller) -> None:
    async with directory(domain, dc1, connections=1, receive_seconds=3) as ad:
        await groups_of(ad, "alice")
        with dc1.hung(), trio.move_on_after(0.2):
            await groups_of(ad, "alice", fresh=True)
        # The late answer to the first question must not become the answer to this one.
        add = await ad.look_up(upn("svc-sealane"), now())
        assert add.account.name == f"svc-sealane@{REALM}"
        with trio.fail_after(5):
            while ad._limiter.borrowed_tokens:
                await trio.sleep(0.01)
        assert sum(len(idle) for idle in ad._pool._idle.values()) == 1


async def test_names_that_nobody_has_do_not_take_the_directory_from_the_others(domain: Domain, dc1: Controller) -> None:
    async with directory(domain, dc1) as ad:
        await groups_of(ad, "alice")
        (kept,) = ad._pool._idle[ad._pool._endpoints[0]]
        for number in range(5):
            with pytest.raises(AccountRefused):
                await groups_of(ad, f"nobody-{number}")
        assert ad._pool._idle[ad._pool._endpoints[0]] == [kept]
        assert await groups_of(ad, "alice", fresh=True)


# --- TLS and bind -------------------------------------------------------------------------------------------------


async def test_a_certificate_of_another_ca_is_refused(domain: Domain) -> None:
    other = Credentials(samba_ad.SERVICE_PASSWORD, samba_ad.TestAuthority().pem.decode())
    async with directory(domain, credentials=other) as ad:
        with pytest.raises(DirectoryUnavailable, match=r"\(tls\).*certificate is not accepted") as refused:
            await groups_of(ad, "alice")
    assert refused.value.check == "tls"


async def test_a_certificate_for_another_name_is_refused(domain: Domain, dc1: Controller) -> None:
    settings: dict[str, Any] = {"controllers": (f"dc9.{REALM}",), "addresses": {f"dc9.{REALM}": dc1.address}}
    async with directory(domain, **settings) as ad:
        with pytest.raises(DirectoryUnavailable, match="not valid for"):
            await groups_of(ad, "alice")


async def test_an_expired_certificate_is_refused(
    seeded: object, domain: Domain, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("expired") / "dc"
    expired = samba_ad.start(seeded, folder, domain.authority, f"dc1.{REALM}", expired=True)  # type: ignore[arg-type]
    try:
        async with directory(domain, expired) as ad:
            with pytest.raises(DirectoryUnavailable, match="expired"):
                await groups_of(ad, "alice")
    finally:
        expired.stop()


async def test_the_service_account_is_refused_with_a_reason(
    domain: Domain, administrator: Administrator, dc1: Controller
) -> None:
    wrong = Credentials("wrong", domain.authority.pem.decode())
    async with directory(domain, dc1, credentials=wrong) as ad:
        with pytest.raises(DirectoryUnavailable, match="wrong user name or password") as refused:
            await groups_of(ad, "alice")
    assert refused.value.check == "bind"
    user = new_name("svc")
    dn = add_user(administrator, user, samba_ad.SERVICE_PASSWORD)
    settings = domain.settings(dc1, bind_user=f"{user}@{REALM}")

    def refusal(password: str = samba_ad.SERVICE_PASSWORD) -> str:
        credentials = Credentials(password, domain.authority.pem.decode())
        with pytest.raises(DirectoryUnavailable) as refused:
            Session(settings.checked_controllers()[0], settings, credentials, 0).open()
        assert refused.value.check == "bind"
        return refused.value.detail

    change(administrator, dn, userAccountControl="514")
    assert "the account is disabled" in refusal()
    change(administrator, dn, userAccountControl="512", accountExpires=filetime(now() - timedelta(hours=1)))
    assert "the account has expired" in refusal()
    change(administrator, dn, accountExpires="0", pwdLastSet="0")
    assert "its password must be changed" in refusal()
    change(administrator, dn, pwdLastSet="-1")
    with domain_policy(administrator, lockoutThreshold="2", lockoutDuration="-18000000000"):
        refusal("wrong")
        refusal("wrong")
        assert "the account is locked" in refusal()


async def test_a_base_that_is_not_there_or_elsewhere_finds_nobody(domain: Domain) -> None:
    for base in ("DC=elsewhere,DC=test", f"OU=nowhere,{BASE}"):
        async with directory(domain, base=base) as ad:
            with pytest.raises((AccountRefused, DirectoryUnavailable)):
                await groups_of(ad, "alice")


async def test_references_to_other_servers_are_dropped(domain: Domain, dc1: Controller) -> None:
    settings = domain.settings(dc1)
    session = Session(settings.checked_controllers()[0], settings, domain.credentials, 0)
    session.open()
    answer = session._connection.search(BASE, "(sAMAccountName=alice)", attributes=["cn"])[2]
    assert "searchResRef" in {each["type"] for each in answer}  # Samba sends one with each search of the whole domain
    assert session.find(upn("alice")).name == ALICE
    session.close()
