"""Accounts of Active Directory: how one is named in a filter, and what an entry's raw attributes say; pure.

Nothing is believed that is not there: an account without `tokenGroups` has unknown groups, not none, and one whose
state may not be read is not taken for enabled. Sources: [MS-ADTS] 2.2.16 (userAccountControl), 3.1.1.4.5.17
(msDS-User-Account-Control-Computed), 3.1.1.4.5.19 (tokenGroups).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, get_args

from ldap3.utils.conv import escape_filter_chars

from policy.errors import AccountCheck, AccountRefused, DirectoryUnavailable
from policy.facts import MAX_GROUPS
from policy.identity.sids import decode_guid, decode_sid, encode_guid, encode_sid, filter_octets

AccountAttribute = Literal["userPrincipalName", "sAMAccountName", "objectSid", "objectGUID"]
ACCOUNT_ATTRIBUTES: Final[tuple[str, ...]] = get_args(AccountAttribute)
STATE_ATTRIBUTES: Final = ("userAccountControl", "accountExpires", "pwdLastSet", "msDS-User-Account-Control-Computed")
NAME_ATTRIBUTES: Final = ("objectGUID", "objectSid", "userPrincipalName", "sAMAccountName")
MAX_NAME: Final = 255

DISABLED: Final = 0x2
LOCKED: Final = 0x10
PASSWORD_EXPIRED: Final = 0x800000
NEVER: Final = (0, 2**63 - 1)  # accountExpires, both are written
_EPOCH: Final = datetime(1601, 1, 1, tzinfo=UTC)
_LATEST_TICKS: Final = (datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1) * 10

RawAttributes = Mapping[str, Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class AccountName:
    """How an account is looked up: the value of one attribute. `domain`, if given, must be the directory's own."""

    attribute: AccountAttribute
    value: str

    def filter(self) -> str:
        """An LDAP filter in which the value cannot be syntax. Raises AccountRefused if it cannot be such a value."""
        return f"(&(objectCategory=person)(objectClass=user)({self.attribute}={self._escaped()}))"

    def _escaped(self) -> str:
        check_name(self.value)
        try:
            if self.attribute == "objectSid":
                return filter_octets(encode_sid(self.value))
            if self.attribute == "objectGUID":
                return filter_octets(encode_guid(self.value))
        except ValueError as error:
            raise AccountRefused("unknown", f"the account's name is {error}") from error
        return str(escape_filter_chars(self.value))

    def check_match(self, attributes: RawAttributes) -> None:
        """AD compares text loosely (jose finds José): only an equal name, but for case, is the same account."""
        if self.attribute == "objectSid":
            same = decode_sid(_one(attributes, "objectSid")) == self.value
        elif self.attribute == "objectGUID":
            same = decode_guid(_one(attributes, "objectGUID")) == self.value.lower()
        else:
            same = _one(attributes, self.attribute).decode().lower() == self.value.lower()
        if not same:
            raise AccountRefused("unknown", "the directory answered with another account than the one asked for")


def parse_name(text: str, domain: str) -> AccountName:
    r"""A SID, a GUID, `DOMAIN\user` or a UPN, as an administrator writes it. Raises AccountRefused.

    Never for a name out of a token: there the operator has said which attribute it is, so that nobody can choose.
    """
    check_name(text)
    if text.startswith("S-1-"):
        return AccountName("objectSid", text)
    prefix, backslash, user = text.partition("\\")
    if backslash:
        if prefix.lower() != domain.lower():
            raise AccountRefused("unknown", f"not an account of the domain {domain}")
        return AccountName("sAMAccountName", user)
    if "@" in text:
        return AccountName("userPrincipalName", text)
    try:
        encode_guid(text)
    except ValueError:
        raise AccountRefused("unknown", f"write user@domain, {domain}\\user, a SID or a GUID") from None
    return AccountName("objectGUID", text)


def from_claim(attribute: AccountAttribute, value: str, domain: str) -> AccountName:
    r"""The account that a verified token names. `sAMAccountName` also takes `DOMAIN\user`. Raises AccountRefused."""
    if attribute == "sAMAccountName" and "\\" in value:
        return parse_name(value, domain)
    check_name(value)
    return AccountName(attribute, value)


def check_name(text: str) -> None:
    """Raises AccountRefused for what no name of an account is."""
    if not text or len(text) > MAX_NAME or not text.isprintable() or text != text.strip():
        raise AccountRefused("unknown", "the account's name is empty, too long or holds characters that do not print")


@dataclass(frozen=True, slots=True)
class AccountState:
    """As the directory holds it. `expires`: None is never."""

    disabled: bool
    locked: bool
    password_expired: bool
    must_change_password: bool
    expires: datetime | None

    def problem(self, now: datetime) -> AccountCheck | None:
        """Why the account may do nothing now; None if it may."""
        if self.disabled:
            return "disabled"
        if self.expires is not None and self.expires <= now:
            return "expired"
        if self.locked:
            return "locked"
        if self.must_change_password:
            return "must-change-password"
        return "password-expired" if self.password_expired else None


@dataclass(frozen=True, slots=True)
class Account:
    """One account. `groups`: SIDs, transitive, the primary group included; never empty. `name` is for people."""

    guid: str
    sid: str
    name: str
    groups: frozenset[str]
    state: AccountState


def decode_account(attributes: RawAttributes) -> Account:
    """From the raw attributes of a base search. Raises DirectoryUnavailable: what is missing is not guessed."""
    try:
        guid, sid = decode_guid(_one(attributes, "objectGUID")), decode_sid(_one(attributes, "objectSid"))
        groups = decode_groups(attributes)
        name = _text(attributes, "userPrincipalName") or _text(attributes, "sAMAccountName") or sid
    except ValueError as error:
        raise DirectoryUnavailable("answer", f"an account cannot be read: {error}") from error
    return Account(guid, sid, name, groups, decode_state(attributes))


def decode_groups(attributes: RawAttributes) -> frozenset[str]:
    """The SIDs of `tokenGroups`. Raises ValueError if they are not all there."""
    for name in attributes:
        if name.lower().startswith("tokengroups;range="):
            raise ValueError("its groups came in part only")
    values = attributes.get("tokenGroups", ())
    if not values:
        # Each account has a primary group: nothing means that the service account may not read the attribute.
        raise ValueError("tokenGroups is missing: let the service account read it (Pre-Windows 2000 Compatible Access)")
    if len(values) > MAX_GROUPS:
        raise ValueError(f"it is in more than {MAX_GROUPS} groups")
    return frozenset(decode_sid(value) for value in values)


def decode_state(attributes: RawAttributes) -> AccountState:
    """Raises DirectoryUnavailable where an attribute is missing or no number."""
    try:
        control = _number(attributes, "userAccountControl")
        computed = _number(attributes, "msDS-User-Account-Control-Computed")
        expires = _number(attributes, "accountExpires", NEVER[0])
        last_set = _number(attributes, "pwdLastSet")
    except ValueError as error:
        raise DirectoryUnavailable("answer", f"an account's state cannot be read: {error}") from error
    expired = bool(computed & PASSWORD_EXPIRED)
    return AccountState(
        disabled=bool(control & DISABLED),
        locked=bool(computed & LOCKED),
        password_expired=expired,
        must_change_password=expired and last_set == 0,
        expires=_moment(expires),
    )


def _moment(ticks: int) -> datetime | None:
    """A FILETIME: 100 ns since 1601."""
    if ticks in NEVER or ticks > _LATEST_TICKS:
        return None
    return _EPOCH + timedelta(microseconds=max(ticks, 1) // 10)


def _one(attributes: RawAttributes, name: str) -> bytes:
    values = attributes.get(name, ())
    if len(values) != 1:
        raise ValueError(f"{name} is missing or not single: let the service account read it")
    return values[0]


def _number(attributes: RawAttributes, name: str, absent: int | None = None) -> int:
    if absent is not None and not attributes.get(name):
        return absent
    return int(_one(attributes, name))


def _text(attributes: RawAttributes, name: str) -> str | None:
    values = attributes.get(name, ())
    return values[0].decode() if len(values) == 1 else None
