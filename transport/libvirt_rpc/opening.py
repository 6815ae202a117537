"""The calls by which a client opens libvirt, asks what it can do, and leaves: answered by a front, for the destination.

A caller names its VM only in Prepare; until then nothing has been asked of the gateway and nothing is told to the
destination. So the front answers these itself, and the destination's own features are compared when it is asked.
"""

from __future__ import annotations

from typing import Final

from transport.libvirt_rpc.errors import CallRefused, RpcMalformed
from transport.libvirt_rpc.framing import ErrorCode, Packet
from transport.libvirt_rpc.procedures import FEATURES, Feature, Procedure
from transport.libvirt_rpc.xdr import XdrReader, XdrWriter

SYSTEM_URI: Final = "qemu:///system"
_LIBRARY_VERSION: Final = 9_000_000  # what a front says that it is: features are asked for one by one
_MAX_NAME: Final = 1024
_EMPTY: Final = frozenset({
    Procedure.CONNECT_CLOSE, Procedure.AUTH_LIST, Procedure.CONNECT_GET_URI, Procedure.CONNECT_GET_LIB_VERSION,
    Procedure.REGISTER_CLOSE_CALLBACK, Procedure.UNREGISTER_CLOSE_CALLBACK,
})  # fmt: skip


def opening_answer(call: Packet) -> Packet | None:
    """The answer to one of these calls; None for any other. `CallRefused`, `RpcMalformed`."""
    if call.procedure in _EMPTY:
        XdrReader(call.body).end()
    match call.procedure:
        case Procedure.AUTH_LIST:
            return call.answer(bytes(XdrWriter().unsigned(1).integer(0).data))  # one way: none
        case Procedure.CONNECT_OPEN:
            _check_open(call.body)
            return call.answer(b"")
        case Procedure.CONNECT_SUPPORTS_FEATURE:
            return call.answer(feature_answer(feature_asked(call.body) in FEATURES))
        case Procedure.CONNECT_GET_URI:
            return call.answer(bytes(XdrWriter().text(SYSTEM_URI).data))
        case Procedure.CONNECT_GET_LIB_VERSION:
            return call.answer(bytes(XdrWriter().unsigned_hyper(_LIBRARY_VERSION).data))
        case Procedure.CONNECT_CLOSE | Procedure.REGISTER_CLOSE_CALLBACK | Procedure.UNREGISTER_CLOSE_CALLBACK:
            return call.answer(b"")
        case _:
            return None


def feature_asked(body: bytes) -> int:
    reader = XdrReader(body)
    feature = reader.integer()
    reader.end()
    return feature


def feature_call(feature: Feature) -> bytes:
    return bytes(XdrWriter().integer(feature).data)


def feature_answer(is_supported: bool) -> bytes:
    return bytes(XdrWriter().integer(int(is_supported)).data)


def is_supported(body: bytes) -> bool:
    reader = XdrReader(body)
    supported = reader.integer()
    reader.end()
    return supported != 0


def _check_open(body: bytes) -> None:
    reader = XdrReader(body)
    name = reader.optional_text(_MAX_NAME)
    flags = reader.unsigned()
    reader.end()
    if name not in (None, "", SYSTEM_URI, "qemu:///"):
        raise CallRefused(f"Sealane leads to {SYSTEM_URI} only, not to {name!a}", ErrorCode.ACCESS_DENIED)
    if flags:
        raise RpcMalformed("flags of an open call, which has none for a migration")
