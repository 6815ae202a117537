"""A bind to a domain controller with a keytab: GSSAPI (RFC 4752) inside LDAPS; no password is ever sent. Blocking.

Tickets are got with the keytab, kept in memory and renewed by libkrb5 when half of their life is over. It finds the
KDCs in its own configuration (krb5.conf, or DNS) and waits for them as long as it likes: so a thread asks, and we wait
no longer than we want. Which controller is meant comes from our settings, never from DNS.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from policy.errors import DirectoryUnavailable

_SASL_IN_PROGRESS: Final = 14
_SUCCESS: Final = 0
_NO_SECURITY_LAYER: Final = 1
# Tokens of the context (two, or three with another mechanism), then the security layers.
_MAX_ROUNDS: Final = 5
_NO_CACHE: Final = "No credentials cache found"
_CACHES: Final = itertools.count(1)


def is_installed() -> bool:
    """Has this environment the package `gssapi`, and with it libkrb5?"""
    try:
        import gssapi  # noqa: F401, PLC0415  # an extra: who binds with a password does without
    except ImportError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Handshake:
    """What proves the service account to one controller: a context that has begun, and its first token."""

    context: Any
    token: bytes
    lifetime_seconds: int  # of the account's ticket, when it was begun


class Tickets:
    """Of one service account. Thread-safe."""

    def __init__(self, principal: str, keytab: bytes, at_once: int) -> None:
        """`principal` as NAME@REALM; `keytab` is the file's content; `at_once`: how many threads may wait for a KDC."""
        self.principal = principal
        self._realm = principal.rpartition("@")[2]
        self._waiting = threading.Semaphore(at_once)
        # libkrb5 wants a path. This one leads to the bytes whose file was judged, whatever is put in its place later.
        self._keytab = os.memfd_create("keytab", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(self._keytab), "wb") as file:
            file.write(keytab)
        number = next(_CACHES)
        self._store = {"client_keytab": f"FILE:/proc/self/fd/{self._keytab}", "ccache": f"MEMORY:sealane-{number}"}

    def __repr__(self) -> str:
        return "Tickets(…)"

    def __del__(self) -> None:
        os.close(self._keytab)

    def service(self, host: str) -> str:
        """The Kerberos name of a controller, in the realm of the service account."""
        return f"ldap/{host}@{self._realm}"

    def begin(self, host: str, binding: bytes, seconds: float) -> Handshake:
        """With the controller `host`, over the TLS connection of `binding`. Raises DirectoryUnavailable: kerberos."""
        if not self._waiting.acquire(timeout=seconds):
            raise DirectoryUnavailable("kerberos", f"no KDC has answered for longer than {seconds} s")
        request = _Request(self, host, binding)
        threading.Thread(target=request.run, name="kdc", daemon=True).start()
        if not request.done.wait(seconds):
            raise DirectoryUnavailable("kerberos", f"no KDC answered within {seconds} s")
        if request.handshake is None:
            raise DirectoryUnavailable("kerberos", request.problem)
        return request.handshake

    def _handshake(self, host: str, binding: bytes) -> Handshake:
        """Asks a KDC unless the tickets are there. Raises GSSError."""
        import gssapi  # noqa: PLC0415  # see is_installed
        from gssapi.raw import ChannelBindings  # noqa: PLC0415

        kind = gssapi.NameType.kerberos_principal  # a host-based name would be looked up in DNS first
        credentials = gssapi.Credentials(name=gssapi.Name(self.principal, kind), usage="initiate", store=self._store)
        context = gssapi.SecurityContext(
            name=gssapi.Name(self.service(host), kind),
            creds=credentials,
            mech=gssapi.MechType.kerberos,
            flags=[gssapi.RequirementFlag.mutual_authentication, gssapi.RequirementFlag.integrity],
            channel_bindings=ChannelBindings(application_data=binding),
            usage="initiate",
        )
        context.__DEFER_STEP_ERRORS__ = False  # else a failed step looks like one that went well
        token = context.step() or b""
        return Handshake(context, token, int(credentials.lifetime))


@dataclass(slots=True)
class _Request:
    tickets: Tickets
    host: str
    binding: bytes
    done: threading.Event = field(default_factory=threading.Event)
    handshake: Handshake | None = None
    problem: str = ""

    def run(self) -> None:
        try:
            self.handshake = self.tickets._handshake(self.host, self.binding)
        except Exception as error:  # noqa: BLE001  # a thread that ends silently would look like a KDC that hangs
            self.problem = explain(error)
            if _NO_CACHE in self.problem:  # what libkrb5 says where it finds no key to fill one with
                self.problem = f"the keytab holds no key of {self.tickets.principal}"
        finally:
            self.tickets._waiting.release()
            self.done.set()


def authenticate(handshake: Handshake, send: Callable[[bytes], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The bind. `send` carries one token to the controller and returns its result, with `result` and `saslCreds`.

    Returns the last result. Raises DirectoryUnavailable: bind, where the controller does not prove who it is, or wants
    a security layer of SASL inside that of TLS.
    """
    context, token = handshake.context, handshake.token
    agreed = False
    for _ in range(_MAX_ROUNDS):
        answer = send(token)
        if answer["result"] != _SASL_IN_PROGRESS:
            if answer["result"] == _SUCCESS and not agreed:
                raise DirectoryUnavailable("bind", "it ended the bind before it had proved who it is")
            return answer
        theirs = bytes(answer.get("saslCreds") or b"")
        try:
            if not context.complete:
                token = context.step(theirs) or b""
            else:
                token = context.wrap(_without_layer(context.unwrap(theirs).message), False).message
                agreed = True
        except DirectoryUnavailable:
            raise
        except Exception as error:  # GSSError; a library in C decodes a controller's bytes here
            raise DirectoryUnavailable("bind", f"it does not prove who it is: {explain(error)}") from error
    raise DirectoryUnavailable("bind", "it does not come to an end")


def end_point_binding(certificate_der: bytes) -> bytes:
    """`tls-server-end-point` (RFC 5929, 4.1) of its certificate: the bind is good over this connection only."""
    algorithm = x509.load_der_x509_certificate(certificate_der).signature_hash_algorithm
    if algorithm is None or algorithm.name in {"md5", "sha1"}:
        algorithm = hashes.SHA256()
    digest = hashes.Hash(algorithm)
    digest.update(certificate_der)
    return b"tls-server-end-point:" + digest.finalize()


def explain(error: Exception) -> str:
    """What libkrb5 says, without the frame of GSSAPI around it; it never holds a key."""
    text = " ".join(str(error).split())
    _, found, minor = text.rpartition("Minor (")
    reason = minor.partition("): ")[2]
    return reason if found and reason not in {"", "Success"} else text or type(error).__name__


def _without_layer(offer: bytes) -> bytes:
    """RFC 4752, 3.1: |layers offered, 1 byte|largest message, 3 bytes|; we take none, because TLS is there."""
    if len(offer) != 4 or not offer[0] & _NO_SECURITY_LAYER:
        raise DirectoryUnavailable("bind", "it wants a security layer of SASL inside TLS, which we do not offer")
    return bytes((_NO_SECURITY_LAYER, 0, 0, 0))
