"""What S says of an offer that D has refused: what happened, and who can do what about it.

D tells a code, and for most codes no more: what exactly failed would help a forger, and stands in D's own log. So the
words are made here, of the code and of what was asked for. D's own are shown for the codes by which it says more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from transport.errors import RefusalCode, quoted
from transport.wire.messages import Purpose, Refusal

_C = RefusalCode
_TELLING: Final = frozenset({_C.BUSY, _C.HYPERVISOR})  # D says why, to whoever has shown a good permit
_LOG: Final = "; the log of the relay there says more"
_DIFFERS: Final = (
    "the permit passes this relay's check, and not that of the relay there: its operator should compare both relays' "
    "versions and [gateway] sections" + _LOG
)
_GONE: Final = (
    "the relay there does not know this session any more: it was restarted, or has ended it, and its log says why. A "
    "guest that was not handed over yet stays here: ask again"
)
_WORDS: Final[Mapping[RefusalCode, str]] = {
    _C.PROTOCOL: "the relay there cannot use what this one offers: if one of them is older, its operator should "
    "upgrade it" + _LOG,
    _C.PERMIT_SIZE: _DIFFERS,
    _C.PERMIT_FORMAT: _DIFFERS,
    _C.PERMIT_AUDIENCE: _DIFFERS,
    _C.PERMIT_VM: _DIFFERS,
    _C.PERMIT_SIGNATURE: "the relay there does not trust the key that signed the permit: its operator should see that "
    "its gateway.permit_keys are this gateway's" + _LOG,
    _C.PERMIT_PROOF: "to the relay there the permit is not proven to be in the gateway's log: its operator should see "
    "that its gateway.log_keys and witness_keys are this gateway's" + _LOG,
    _C.PERMIT_TIMES: "by the clock of the relay there the permit is over, or not valid yet: see that both hosts' "
    "clocks are right, then ask again" + _LOG,
    _C.PERMIT_PARTIES: "the relay there takes nothing from this host by this permit: if the hosts are of two sites, "
    "its operator should see that its [[sites]] has this one" + _LOG,
    _C.PERMIT_PORTS: "the relay there does not carry a port of this permit: its operator should compare "
    "hypervisor.kind and [ports] of both hosts" + _LOG,
    _C.PERMIT_REQUIREMENTS: "the relay there cannot do what the permit requires, and its log says what: a newer CRL "
    "comes by itself, so ask again in a minute; anything else its operator can configure, or policy not require",
    _C.PERMIT_REPLAYED: "this permit was used before, if in vain, and none serves twice: ask again" + _LOG,
    _C.SESSION_KNOWN: "a session of this name is there already: ask again",
    _C.SESSION_UNKNOWN: _GONE,
    _C.INTERNAL: "the relay there cannot keep a session, and its log says why (a full disk, say): its operator should "
    "see to it, then ask again",
}
_UNKNOWN: Final[Mapping[Purpose, str]] = {
    "settle": "the relay there knows of no such session: its operator should see that it has the relay.state_dir that "
    "it had; where that is lost, docs/failures.md says what to do (When an operator must decide)",
    "recover": "no guest there waits for the rest of its memory under this permit: its operator should see whether its "
    "QEMU still runs" + _LOG,
}


def words_of(refusal: Refusal, purpose: Purpose) -> str:
    """Harmless to logs and terminals. `purpose`: what was offered."""
    if refusal.code in _TELLING:
        return quoted(refusal.message)
    if refusal.code is RefusalCode.SESSION_UNKNOWN:
        return _UNKNOWN.get(purpose, _GONE)
    return _WORDS[refusal.code]
