"""One Ed25519 signature by a key in a PKCS#11 token, in a process of its own: `pkcs11-tool` takes no more than 1 KiB.

    stdin   JSON: module, token (label), id (hex), pin, data (hex)        stdout   the signature, hex

The vendor's module is loaded here and nowhere else, and ends with the process. Run by `certs.pkcs11` alone.
PKCS#11 v3.0; numbers are those of its headers.
"""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import Structure, byref, c_char, c_ubyte, c_ulong, c_void_p, sizeof
from typing import Any, Final

CKF_SERIAL_SESSION: Final = 4
CKU_USER: Final = 1
CKO_PRIVATE_KEY: Final = 3
CKA_CLASS: Final = 0x0
CKA_ID: Final = 0x102
CKM_EDDSA: Final = 0x1057
CKR_ALREADY_LOGGED_IN: Final = 0x100
MAX_SLOTS: Final = 256
SIGNATURE_BYTES: Final = 64


class TokenInfo(Structure):
    _fields_ = (
        ("label", c_char * 32),
        ("manufacturer", c_char * 32),
        ("model", c_char * 16),
        ("serial", c_char * 16),
        ("flags", c_ulong),
        ("numbers", c_ulong * 10),
        ("versions", c_ubyte * 4),
        ("time", c_char * 16),
    )


class Attribute(Structure):
    _fields_ = (("type", c_ulong), ("value", c_void_p), ("size", c_ulong))


class Mechanism(Structure):
    _fields_ = (("mechanism", c_ulong), ("parameter", c_void_p), ("size", c_ulong))


class Failed(Exception):
    """A call of the module; its number and what it answered."""


class Module:
    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)

    def call(self, name: str, *arguments: Any, allowed: tuple[int, ...] = ()) -> None:
        function = getattr(self._library, name)
        function.restype = c_ulong
        answer = function(*arguments)
        if answer not in {0, *allowed}:
            raise Failed(f"{name} answers {answer:#x}")


def sign(module: Module, token: str, key_id: bytes, pin: bytes, data: bytes) -> bytes:
    """Raises Failed."""
    module.call("C_Initialize", None)
    session = c_ulong()
    flags = c_ulong(CKF_SERIAL_SESSION)
    module.call("C_OpenSession", c_ulong(_slot(module, token)), flags, None, None, byref(session))
    module.call("C_Login", session, c_ulong(CKU_USER), pin, c_ulong(len(pin)), allowed=(CKR_ALREADY_LOGGED_IN,))
    mechanism = Mechanism(CKM_EDDSA, None, 0)
    module.call("C_SignInit", session, byref(mechanism), c_ulong(_private_key(module, session, key_id)))
    signature, size = (c_ubyte * SIGNATURE_BYTES)(), c_ulong(SIGNATURE_BYTES)
    module.call("C_Sign", session, data, c_ulong(len(data)), signature, byref(size))
    return bytes(signature)[: size.value]


def _slot(module: Module, token: str) -> int:
    """The one whose token has this label."""
    slots, count = (c_ulong * MAX_SLOTS)(), c_ulong(MAX_SLOTS)
    module.call("C_GetSlotList", c_ubyte(1), slots, byref(count))
    for slot in slots[: count.value]:
        info = TokenInfo()
        module.call("C_GetTokenInfo", c_ulong(slot), byref(info))
        if bytes(info.label).decode("utf-8", "replace").rstrip() == token:
            return int(slot)
    raise Failed("no such token")


def _private_key(module: Module, session: c_ulong, key_id: bytes) -> int:
    kind, name = c_ulong(CKO_PRIVATE_KEY), (c_ubyte * len(key_id))(*key_id)
    wanted = (Attribute * 2)(
        Attribute(CKA_CLASS, ctypes.cast(byref(kind), c_void_p), sizeof(kind)),
        Attribute(CKA_ID, ctypes.cast(name, c_void_p), len(key_id)),
    )
    module.call("C_FindObjectsInit", session, wanted, c_ulong(2))
    found, count = (c_ulong * 2)(), c_ulong()
    module.call("C_FindObjects", session, found, c_ulong(2), byref(count))
    module.call("C_FindObjectsFinal", session)
    if count.value != 1:
        raise Failed(f"{count.value} private keys of this id")
    return int(found[0])


def main() -> int:
    asked = json.load(sys.stdin)
    try:
        module = Module(asked["module"])
        data, key_id = bytes.fromhex(asked["data"]), bytes.fromhex(asked["id"])
        made = sign(module, asked["token"], key_id, asked["pin"].encode(), data)
    except (Failed, OSError, AttributeError) as error:
        print(error, file=sys.stderr)
        return 1
    print(made.hex())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
