"""What raw attributes of an entry say, and how names become filters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import AccountRefused, DirectoryUnavailable
from policy.identity.directory_account import (
    ACCOUNT_ATTRIBUTES,
    AccountAttribute,
    AccountName,
    decode_account,
    decode_state,
    from_claim,
    parse_name,
)
from policy.identity.sids import encode_sid

SID = "S-1-5-21-1-2-3-1103"
GROUP = "S-1-5-21-1-2-3-513"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
ENTRY: dict[str, list[bytes]] = {
    "objectGUID": [bytes(range(16))],
    "objectSid": [encode_sid(SID)],
    "userPrincipalName": ["josé@corp.example".encode()],
    "sAMAccountName": [b"jose"],
    "tokenGroups": [encode_sid(GROUP)],
    "userAccountControl": [b"512"],
    "accountExpires": [b"9223372036854775807"],
    "pwdLastSet": [b"134398634710634490"],
    "msDS-User-Account-Control-Computed": [b"0"],
}


def changed(**values: Any) -> dict[str, list[bytes]]:
    return {**ENTRY, **{name.replace("_", "-"): value for name, value in values.items()}}


def test_an_entry_becomes_an_account() -> None:
    account = decode_account(ENTRY)
    assert account.sid == SID
    assert account.groups == {GROUP}
    assert account.state.problem(NOW) is None


@pytest.mark.parametrize(
    "missing",
    [
        "objectGUID",
        "objectSid",
        "tokenGroups",
        "userAccountControl",
        "pwdLastSet",
        "msDS-User-Account-Control-Computed",
    ],
)
def test_what_may_not_be_read_is_unknown_and_never_guessed(missing: str) -> None:
    for entry in ({k: v for k, v in ENTRY.items() if k != missing}, {**ENTRY, missing: []}):
        with pytest.raises(DirectoryUnavailable, match=missing):
            decode_account(entry)


@pytest.mark.parametrize(
    "entry",
    [
        changed(tokenGroups=[encode_sid(GROUP)[:-1]]),
        changed(tokenGroups=[encode_sid(GROUP), b"junk"]),
        {**ENTRY, "tokenGroups;range=0-1499": [encode_sid(GROUP)]},
        {**{k: v for k, v in ENTRY.items() if k != "tokenGroups"}, "tokenGroups;Range=0-1499": [encode_sid(GROUP)]},
        changed(tokenGroups=[encode_sid(f"S-1-5-21-{number}") for number in range(2001)]),
        changed(objectSid=[encode_sid(SID), encode_sid(GROUP)]),
        changed(userAccountControl=[b"enabled"]),
        changed(msDS_User_Account_Control_Computed=[b""]),
        changed(userPrincipalName=[b"\xff"]),
    ],
)
def test_a_part_of_the_groups_or_a_broken_value_is_no_account(entry: dict[str, list[bytes]]) -> None:
    with pytest.raises(DirectoryUnavailable):
        decode_account(entry)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (changed(userAccountControl=[b"514"]), "disabled"),
        (changed(accountExpires=[b"116444736000000000"]), "expired"),
        (changed(accountExpires=[b"1"]), "expired"),
        (changed(msDS_User_Account_Control_Computed=[b"16"]), "locked"),
        (changed(msDS_User_Account_Control_Computed=[b"8388608"]), "password-expired"),
        (changed(msDS_User_Account_Control_Computed=[b"8388608"], pwdLastSet=[b"0"]), "must-change-password"),
        (changed(accountExpires=[b"0"]), None),
        (changed(accountExpires=[]), None),
        (changed(accountExpires=[b"9223372036854775806"]), None),
    ],
)
def test_states(entry: dict[str, list[bytes]], problem: str | None) -> None:
    assert decode_state(entry).problem(NOW) == problem


@given(st.sampled_from(ACCOUNT_ATTRIBUTES), st.text(max_size=300))
def test_whatever_the_value_the_filter_keeps_its_shape(attribute: AccountAttribute, value: str) -> None:
    try:
        text = AccountName(attribute, value).filter()
    except AccountRefused:
        return
    head = f"(&(objectCategory=person)(objectClass=user)({attribute}="
    assert text.startswith(head)
    assert text.endswith("))")
    assert not set("()*\x00") & set(text[len(head) : -2])


def test_another_account_than_the_one_asked_for_is_refused() -> None:
    """AD finds José for jose: whoever may register the one at the provider must not become the other."""
    AccountName("userPrincipalName", "JOSÉ@corp.example").check_match(ENTRY)
    for name in (
        AccountName("userPrincipalName", "jose@corp.example"),
        AccountName("objectSid", GROUP),
        AccountName("objectGUID", "00000000-0000-0000-0000-000000000000"),
    ):
        with pytest.raises(AccountRefused):
            name.check_match(ENTRY)


def test_names_as_an_administrator_writes_them() -> None:
    assert parse_name("CORP\\a", "corp") == AccountName("sAMAccountName", "a")
    assert parse_name("a@b", "corp") == AccountName("userPrincipalName", "a@b")
    assert parse_name(SID, "corp").attribute == "objectSid"
    assert parse_name("03020100-0504-0706-0809-0a0b0c0d0e0f", "corp").attribute == "objectGUID"
    for text in ("alice", "OTHER\\a", "", "a\n@b"):
        with pytest.raises(AccountRefused):
            parse_name(text, "corp")


def test_a_claim_is_read_as_the_attribute_that_the_operator_said() -> None:
    assert from_claim("userPrincipalName", SID, "corp").attribute == "userPrincipalName"
    assert from_claim("sAMAccountName", "CORP\\a", "corp").value == "a"
    with pytest.raises(AccountRefused):
        from_claim("objectSid", "a@b", "corp").filter()


def test_eight_thousand_groups_are_unknown_ones() -> None:
    groups = [encode_sid(f"S-1-5-21-1-2-3-{number}") for number in range(8000)]
    with pytest.raises(DirectoryUnavailable, match="more than 2000 groups"):
        decode_account(changed(tokenGroups=groups))
