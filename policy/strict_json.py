"""JSON that every reader reads alike: the one home of what decoders let pass in silence.

msgspec, pydantic and `json` take the last of two members of one name, others the first: who checks and who acts could
be told two different things by one message. So whatever comes from outside is looked at here before it is given a
shape. Beside that: NaN and Infinity (also as 1e999), -0, lone surrogates, a byte order mark, other bytes than
UTF-8.

Not looked at here, with the reason: what a program wrote for itself alone (journals, spools, cursors: whoever can write
there needs no ambiguity); what is compared with its canonical spelling (records, receipts); answers with one author and
one reader, who could lie as well by one member (a gateway's to its relays and to `sealane`, a SIEM's to its delivery,
an issuer's to `sealane login`, QMP's): the permits and tokens within them are read strictly. The verifier of documents
(`audit.siem.verify_document`) and SPIFFE bundles (`certs.federation`) have the same rule of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec

MAX_DEPTH: Final = 16
T = TypeVar("T")


class NotStrict(msgspec.DecodeError):
    """Of msgspec's errors, so that whoever refuses what does not decode refuses this as well."""


def decode(data: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """The value. Raises NotStrict."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_members,
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
        )
    except NotStrict:
        raise
    except (ValueError, RecursionError) as error:  # ValueError also: an integer of more than 4,300 digits
        raise NotStrict("not strict JSON") from error
    _check_depth(value, max_depth)
    return value


def strictly(decode_shape: Callable[[bytes], T], max_depth: int = MAX_DEPTH) -> Callable[[bytes], T]:
    """`decode_shape`, which may raise NotStrict, too."""

    def look_and_decode(data: bytes) -> T:
        decode(data, max_depth)
        return decode_shape(data)

    return look_and_decode


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotStrict("duplicate JSON members")
    return members


def _refuse_constant(_name: str) -> None:
    raise NotStrict("NaN or Infinity in JSON")


def _whole(text: str) -> int:
    if text == "-0":
        raise NotStrict("-0 in JSON")  # zero to one reader, a fraction or no number at all to another
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotStrict("NaN or Infinity in JSON")
    return value


def _check_depth(value: Any, max_depth: int) -> None:
    """Level by level, so that deep nesting costs no recursion; looks at every string on the way."""
    level: list[Any] = [[value]]
    for _ in range(max_depth + 1):
        inner: list[Any] = []
        for item in level:
            children: Iterable[Any] = (*item, *item.values()) if isinstance(item, dict) else item
            for child in children:
                if isinstance(child, (dict, list)):
                    inner.append(child)
                elif isinstance(child, str) and not child.isascii() and _has_surrogate(child):
                    raise NotStrict("a lone surrogate in JSON")
        if not inner:
            return
        level = inner
    raise NotStrict(f"JSON of more than {max_depth} levels")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
