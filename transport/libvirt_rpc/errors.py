"""What can be wrong with an RPC.

RpcMalformed    whoever sent it: bytes that are not libvirt's RPC; the connection ends, nothing of it is used
CallRefused     the caller: a call that does not pass, answered by a libvirt error that says why
RpcFailed       the operator of this host: our own call to the local libvirtd failed (code and message are libvirt's)
LibvirtAway     the operator of this host: the local libvirtd does not answer; LibvirtHangs if it is there
"""

from __future__ import annotations

from transport.errors import LocalBroken, TransportError, quoted


class RpcMalformed(TransportError):
    """Bytes that are not libvirt's RPC, or not within its bounds. `rule` names what was broken."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"not libvirt's RPC: {rule}")
        self.rule = rule


class CallRefused(TransportError):
    """A call that must not pass. `message` is for the caller's eyes, `code` one of `ErrorCode`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class RpcFailed(LocalBroken):
    """The local libvirtd answered a call of ours with an error."""

    def __init__(self, what: str, code: int, message: str) -> None:
        super().__init__(f"libvirt cannot {what}: {quoted(message)} (error {code})")
        self.code = code


class LibvirtAway(LocalBroken):
    """The local libvirtd cannot be reached, or does not answer in time."""


class LibvirtHangs(LibvirtAway):
    """It is there, and does not answer in time."""
