"""TLS to a domain controller as ldap3 is to have it: its certificate proves its name, and an answer is bounded.

ldap3's own TLS switches the check of names in OpenSSL off, and its time-out counts anew with each byte that comes: a
controller that was broken into could hold a thread for ever, or fill the gateway's memory.
"""

from __future__ import annotations

import ssl
import time
from typing import Any, Final

import ldap3

MAX_ANSWER_BYTES: Final = 1024 * 1024  # an account in 2,000 groups takes some 60 KiB


class BoundedSocket(ssl.SSLSocket):
    """Gives no more than it was allowed last."""

    _until = 0.0
    _left = 0

    def allow(self, seconds: float) -> None:
        """From now on, so long and MAX_ANSWER_BYTES."""
        self._until, self._left = time.monotonic() + seconds, MAX_ANSWER_BYTES
        self.settimeout(seconds)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Raises OSError beyond what is allowed: TimeoutError, which says `timed out`, for its time."""
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        if self._left <= 0:
            raise OSError(f"its answer is over {MAX_ANSWER_BYTES} bytes")
        self.settimeout(seconds)
        data = super().recv(buflen, flags)
        self._left -= len(data)
        return data


class ServerTls(ldap3.Tls):
    """TLS 1.2 or newer; the certificate verified, and for `name` even where the connection goes to an address."""

    def __init__(self, name: str, trusted_pem: str) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED, ca_certs_data=trusted_pem, sni=name)
        self.server_name = name
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # CERT_REQUIRED and check_hostname from the start
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.sslsocket_class = BoundedSocket
        self.context.load_verify_locations(cadata=trusted_pem)

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        connection.socket = self.context.wrap_socket(
            connection.socket, server_hostname=self.server_name, do_handshake_on_connect=do_handshake
        )
