"""One connection to one domain controller by ldap3: the only module that speaks LDAP. Blocking; for worker threads.

What ldap3 would do by default and must not: verify no certificate, follow referrals anywhere with the service
account's password, wait for ever. A call answers or raises DirectoryUnavailable; then the connection is dead.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final

import ldap3
from ldap3.core.exceptions import LDAPException, LDAPOperationResult
from ldap3.protocol.sasl.sasl import send_sasl_negotiation
from pyasn1.error import PyAsn1Error

from policy.errors import AccountRefused, DirectoryUnavailable
from policy.identity.directory_account import (
    NAME_ATTRIBUTES,
    STATE_ATTRIBUTES,
    Account,
    AccountName,
    AccountState,
    RawAttributes,
    decode_account,
    decode_state,
)
from policy.identity.directory_settings import Credentials, DirectorySettings, Endpoint
from policy.identity.directory_socket import BoundedSocket, ServerTls
from policy.identity.kerberos import Handshake, Tickets, authenticate, end_point_binding
from policy.identity.sids import encode_guid, encode_sid, filter_octets

_SUCCESS: Final = 0
_SIZE_LIMIT_EXCEEDED: Final = 4
_REFERRAL: Final = 10
_NO_SUCH_OBJECT: Final = 32
_STRONGER_AUTH_REQUIRED: Final = 8
_INVALID_CREDENTIALS: Final = 49
# Sub-codes of result 49, in the diagnostic message: "… data 533, v2580".
_BIND_REASONS: Final = {
    "525": "there is no such account",
    "52e": "wrong user name or password",
    "530": "not permitted at this hour",
    "531": "not permitted from this machine",
    "532": "its password has expired",
    "533": "the account is disabled",
    "701": "the account has expired",
    "773": "its password must be changed",
    "775": "the account is locked",
}
_SUB_CODE: Final = re.compile(r"\bdata ([0-9a-f]{3})\b")
_ANY_ENTRY: Final = "(objectClass=*)"
MAX_NAMED_GROUPS: Final = 500


class _ByTicket(ldap3.Connection):
    """SASL as we do it. ldap3's own asks DNS who the controller is, and misreads an offer of no security layer."""

    handshake: Handshake

    def do_sasl_bind(self, controls: Any) -> Any:
        send: Any = send_sasl_negotiation
        return authenticate(self.handshake, lambda token: send(self, controls, token))


class Session:
    """A bound connection. Not for two threads at once; `close` when done, or after any error."""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: DirectorySettings,
        credentials: Credentials,
        opened: float,
        tickets: Tickets | None = None,
    ) -> None:
        """Connects nothing yet. `opened`: monotonic seconds, for whoever keeps sessions. `tickets`: of make_tickets."""
        self.endpoint = endpoint
        self.opened = opened
        self._tickets = tickets
        self._settings = settings
        try:
            tls = ServerTls(endpoint.name, credentials.trusted_pem)
        except (ssl.SSLError, LDAPException) as error:
            raise DirectoryUnavailable("tls", f"the trust bundle cannot be used: {error}") from error
        server = ldap3.Server(
            endpoint.address or endpoint.name,
            endpoint.port,
            use_ssl=True,
            tls=tls,
            allowed_referral_hosts=[],
            get_info=ldap3.NONE,
            connect_timeout=settings.connect_seconds,
        )
        how: dict[str, Any] = {
            "client_strategy": ldap3.SAFE_SYNC,
            "auto_bind": ldap3.AUTO_BIND_NONE,
            "auto_referrals": False,
            "auto_range": False,
            "auto_escape": False,
            "check_names": False,
            "return_empty_attributes": False,
            "read_only": True,
            "raise_exceptions": False,
            "receive_timeout": settings.receive_seconds,
        }
        self._connection: Any
        if tickets is None:
            secret = (settings.bind_user, credentials.bind_password)
            self._connection = ldap3.Connection(server, *secret, authentication=ldap3.SIMPLE, **how)
        else:
            self._connection = _ByTicket(server, authentication=ldap3.SASL, sasl_mechanism=ldap3.GSSAPI, **how)

    def open(self) -> None:
        """Connect, TLS, ticket where one is wanted, bind. Raises DirectoryUnavailable."""
        self.connect()
        try:
            self.obtain_ticket()
            self.bind()
        except DirectoryUnavailable:
            self.close()
            raise

    def connect(self) -> None:
        """TCP and TLS. Raises DirectoryUnavailable: dns, connect, tls."""
        try:
            self._connection.open(read_server_info=False)
        except (LDAPException, OSError) as error:
            self.close()
            raise self._unavailable(*_why_not_open(error)) from error

    def obtain_ticket(self) -> str | None:
        """For this controller, over this connection; says which, for people. None where a password does.

        Raises DirectoryUnavailable: kerberos.
        """
        if self._tickets is None:
            return None
        try:
            binding = end_point_binding(self._connection.socket.getpeercert(True))
            handshake = self._tickets.begin(self.endpoint.name, binding, self._settings.receive_seconds)
        except DirectoryUnavailable as error:
            raise self._unavailable(error.check, error.detail) from error
        self._connection.handshake = handshake
        minutes = handshake.lifetime_seconds // 60
        return f"{self._tickets.service(self.endpoint.name)}, good for {minutes // 60} h {minutes % 60} min"

    def bind(self) -> None:
        """As the service account. Raises DirectoryUnavailable: bind, timeout, connect."""
        try:
            _, result, _, _ = self._call(self._connection.bind, read_server_info=False)
        except DirectoryUnavailable as error:
            if error.check == "bind":
                raise self._unavailable("bind", error.detail) from error
            raise
        if result["result"] == _STRONGER_AUTH_REQUIRED:
            raise self._unavailable("bind", f"it does not take this bind inside TLS: {result['message']}")
        if result["result"] != _SUCCESS:
            sub_code = _SUB_CODE.search(result["message"] or "")
            known = _BIND_REASONS.get(sub_code[1]) if sub_code else None
            reason = known or result["description"]
            if result["result"] == _INVALID_CREDENTIALS and known is None:
                reason = _BIND_REASONS["52e"]
            raise self._unavailable("bind", f"the service account {self._settings.bind_user} is refused: {reason}")

    def close(self) -> None:
        """Never raises, and waits for nobody: a hung controller gets no farewell."""
        open_socket = self._connection.socket
        try:
            self._connection.strategy.close()
            if open_socket is not None:
                open_socket.close()  # ldap3 forgets one on which the handshake failed
        except (LDAPException, OSError):
            pass

    def describe_tls(self) -> str:
        """Version and validity, for people."""
        tls = self._connection.socket
        return f"{tls.version()}, certificate for {self.endpoint.name} until {tls.getpeercert()['notAfter']}"

    def check_base(self) -> None:
        """Is there an entry at the search base? Raises DirectoryUnavailable."""
        if self._base_search(self._settings.base, ("objectClass",)) is None:
            raise self._unavailable("base", f"there is no {self._settings.base}")

    def find(self, name: AccountName) -> Account:
        """The one account of that name. Raises AccountRefused, DirectoryUnavailable."""
        entries = self._search(self._settings.base, name.filter(), ldap3.SUBTREE, NAME_ATTRIBUTES, size_limit=2)
        if not entries:
            raise AccountRefused("unknown", "the directory has no such account")
        if len(entries) > 1:
            raise AccountRefused("ambiguous", "the directory has several accounts of that name")
        try:
            name.check_match(entries[0])
            guid_dn = _guid_dn(entries[0]["objectGUID"][0])
        except (ValueError, KeyError, IndexError) as error:
            raise self._unavailable("answer", f"the account's ids cannot be read: {error}") from error
        # By GUID, which outlives renaming and moving; tokenGroups answers to a base search only.
        attributes = self._base_search(guid_dn, (*NAME_ATTRIBUTES, *STATE_ATTRIBUTES, "tokenGroups"))
        if attributes is None:
            raise AccountRefused("unknown", "the directory has no such account")
        return decode_account(attributes)

    def state_of(self, guid: str) -> AccountState:
        """The state as it is now. Raises AccountRefused when the account is gone, DirectoryUnavailable."""
        attributes = self._base_search(_guid_dn(encode_guid(guid)), STATE_ATTRIBUTES)
        if attributes is None:
            raise AccountRefused("unknown", "the directory has no such account")
        return decode_state(attributes)

    def names_of(self, sids: Sequence[str]) -> Mapping[str, str]:
        """Names of groups, for people to read; what has none (another domain's, say) is left out."""
        wanted = "".join(f"(objectSid={filter_octets(encode_sid(sid))})" for sid in sids[:MAX_NAMED_GROUPS])
        names: dict[str, str] = {}
        attributes = ("objectSid", "sAMAccountName")
        for entry in self._search(self._settings.base, f"(|{wanted})", ldap3.SUBTREE, attributes, MAX_NAMED_GROUPS):
            for sid in sids:
                if entry.get("objectSid") == [encode_sid(sid)] and entry.get("sAMAccountName"):
                    names[sid] = entry["sAMAccountName"][0].decode(errors="replace")
        return names

    def _base_search(self, dn: str, attributes: Sequence[str]) -> RawAttributes | None:
        entries = self._search(dn, _ANY_ENTRY, ldap3.BASE, attributes, size_limit=1)
        return entries[0] if entries else None

    def _search(
        self, base: str, wanted: str, scope: str, attributes: Sequence[str], size_limit: int
    ) -> list[RawAttributes]:
        _, result, response, _ = self._call(
            self._connection.search,
            base,
            wanted,
            scope,
            ldap3.DEREF_NEVER,
            attributes=list(attributes),
            size_limit=size_limit,
            # The server's own limit counts in whole seconds and is a backstop: ours ends first, and says "timeout".
            time_limit=self._settings.receive_seconds + 1,
        )
        # References to other servers (searchResRef) are dropped here, and never followed.
        entries = [each["raw_attributes"] for each in response or () if each["type"] == "searchResEntry"]
        code = result["result"]
        if code == _NO_SUCH_OBJECT:
            return []
        if code == _REFERRAL:
            raise self._unavailable("base", f"{base} belongs to another server, which is not asked: correct `base`")
        if code != _SUCCESS and not (code == _SIZE_LIMIT_EXCEEDED and len(entries) >= size_limit):
            raise self._unavailable("answer", f"a search ended with {result['description']}")
        return entries

    def _call(self, operation: Any, *arguments: Any, **named: Any) -> Any:
        open_socket = self._connection.socket
        if isinstance(open_socket, BoundedSocket):
            open_socket.allow(self._settings.receive_seconds)
        try:
            return operation(*arguments, **named)
        except LDAPOperationResult as error:
            raise self._unavailable("answer", str(error.description)) from error
        except (LDAPException, PyAsn1Error, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # ldap3's decoders raise all of these for bytes that are no LDAP.
            self.close()
            check = "timeout" if "timed out" in str(error) or "temporarily unavailable" in str(error) else "connect"
            detail = f"no answer within {self._settings.receive_seconds} s" if check == "timeout" else str(error)
            raise self._unavailable(check, detail) from error

    def _unavailable(self, check: Any, detail: str) -> DirectoryUnavailable:
        return DirectoryUnavailable(check, f"{self.endpoint}: {' '.join(detail.split())[:300]}")


def make_tickets(settings: DirectorySettings, credentials: Credentials) -> Tickets | None:
    """To share among the sessions that bind with a keytab; None for those that bind with a password."""
    if credentials.keytab is None:
        return None
    return Tickets(settings.bind_user, credentials.keytab, settings.connections)


def _guid_dn(guid: bytes) -> str:
    """The extended DN of [MS-ADTS] 3.1.1.3.1.2.4, from bytes of our own or of the directory."""
    if len(guid) != 16:
        raise ValueError("an objectGUID has 16 bytes")
    return f"<GUID={guid.hex()}>"


def _why_not_open(error: Exception) -> tuple[str, str]:
    """ldap3 folds what went wrong into texts; the classes of the causes are more reliable, where they are left."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        reason = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0].replace("\\", "")
        return "tls", f"its certificate is not accepted: {reason or text}"
    if "ssl wrapping" in text:
        timed_out = "timed out" in text
        return ("timeout", "no answer to the TLS handshake in time") if timed_out else ("tls", text)
    if isinstance(error, socket.gaierror) or "invalid server address" in text or "getaddrinfo" in text:
        return "dns", "its name cannot be resolved"
    if "timed out" in text:
        return "timeout", "no connection in time"
    return "connect", text
