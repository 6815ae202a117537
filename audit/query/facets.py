"""What a record holds in each stored field: the only place that knows where in a record a field is found.

Works on the JSON of any entry, also a damaged one: what is not of the expected type is no value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from audit.query import fields as f
from audit.query.fields import Atom
from audit.query.text import fold, words

# TEXT: folded texts. WORDS: at most one text, of its words with a space between. The others: integers.
Value: TypeAlias = str | int
Facets: TypeAlias = Mapping[Atom, Sequence[Value]]

PERMIT_KIND = "sealane-permit"
UNREADABLE_KIND = "unreadable"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64 = range(-(2**63), 2**63)


def facets_of(index: int, document: Mapping[str, Any]) -> Facets:
    """The values of a record, or of a permit entry, as JSON; a field without a value has no key.

    `document` is what stands in `record` of a record entry, or a whole permit entry.
    """
    found: dict[Atom, Sequence[Value]] = {f.INDEX: (index,)}
    if document.get("kind") == PERMIT_KIND:
        _permit(found, _object(document, "claims"))
        return found
    details = _object(document, "details")
    vm, actor = _object(document, "vm"), _object(document, "actor")
    decision, permit, asked = _object(details, "decision"), _object(details, "permit"), _object(details, "asked")
    _text(found, f.KIND, document.get("kind"))
    _text(found, f.OUTCOME, document.get("outcome"))
    _text(found, f.BOOT, document.get("boot_id"))
    _text(found, f.MIGRATION, document.get("migration_id"))
    _time(found, document.get("time"))
    _text(found, f.VM_ID, vm.get("uuid"))
    _text(found, f.VM_NAME, vm.get("name"))
    _host(found, f.SOURCE_ID, f.SOURCE_NAME, document.get("source"))
    _host(found, f.DESTINATION_ID, f.DESTINATION_NAME, document.get("destination"))
    if f.DESTINATION_NAME not in found:  # nobody knows that host: what was asked for is what is looked for
        _text(found, f.DESTINATION_NAME, asked.get("destination"))
    _text(found, f.WHO_ID, actor.get("id"))
    _text(found, f.WHO_NAME, actor.get("name"))
    _text(found, f.LOGIN, actor.get("authenticated_by"))
    _text(found, f.ISSUER, actor.get("issuer"))
    _texts(found, f.GROUP, actor.get("groups"))
    _words(found, f.REASON, document.get("reason"))
    _words(found, f.WHY, decision.get("denied_because"))
    policies = decision.get("policies")
    if isinstance(policies, Sequence):
        _texts(found, f.POLICY, [one.get("id") for one in policies if isinstance(one, Mapping)])
    _text(found, f.BUNDLE, decision.get("bundle_digest") or details.get("bundle_digest"))
    _text(found, f.TICKET, asked.get("ticket") or details.get("ticket"))
    _text(found, f.CLIENT, details.get("client_address"))
    _text(found, f.PERMIT, permit.get("jti") or details.get("jti"))
    _receipt(found, details)
    return found


def _permit(found: dict[Atom, Sequence[Value]], claims: Mapping[str, Any]) -> None:
    found[f.KIND] = (PERMIT_KIND,)
    _text(found, f.MIGRATION, claims.get("migration_id"))
    _text(found, f.PERMIT, claims.get("jti"))
    _text(found, f.VM_ID, claims.get("vm"))
    _host(found, f.SOURCE_ID, f.SOURCE_NAME, claims.get("source"))
    _host(found, f.DESTINATION_ID, f.DESTINATION_NAME, claims.get("destination"))


def _receipt(found: dict[Atom, Sequence[Value]], details: Mapping[str, Any]) -> None:
    _text(found, f.ROLE, details.get("role"))
    _text(found, f.TLS, _object(details, "tls").get("group"))
    _number(found, f.DOWNTIME, details.get("downtime_ms"))
    carried = [_integer(details.get(name)) for name in ("sent_bytes", "received_bytes")]
    _number(found, f.BYTES, max((one for one in carried if one is not None), default=None))


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(found: dict[Atom, Sequence[Value]], atom: Atom, value: object) -> None:
    if isinstance(value, str) and value:
        found[atom] = (fold(value),)


def _texts(found: dict[Atom, Sequence[Value]], atom: Atom, values: object) -> None:
    if isinstance(values, Sequence) and not isinstance(values, str):
        texts = sorted({fold(value) for value in values if isinstance(value, str) and value})
        if texts:
            found[atom] = tuple(texts)


def _words(found: dict[Atom, Sequence[Value]], atom: Atom, value: object) -> None:
    if isinstance(value, str) and (all_words := words(value)):
        found[atom] = (" ".join(all_words),)


def _host(found: dict[Atom, Sequence[Value]], by_id: Atom, by_name: Atom, value: object) -> None:
    if isinstance(value, str) and value:
        found[by_id] = (fold(value),)
        _text(found, by_name, value.rpartition("/")[2])


def _number(found: dict[Atom, Sequence[Value]], atom: Atom, value: object) -> None:
    number = _integer(value)
    if number is not None:
        found[atom] = (number,)


def _integer(value: object) -> int | None:
    return value if type(value) is int and value in _INT64 else None


def _time(found: dict[Atom, Sequence[Value]], value: object) -> None:
    if isinstance(value, str) and (micros := microseconds(value)) is not None:
        found[f.TIME] = (micros,)


def microseconds(text: str) -> int | None:
    """A record's time as microseconds since 1970, or None if it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    since = moment - _EPOCH
    return (since.days * 86400 + since.seconds) * 10**6 + since.microseconds
