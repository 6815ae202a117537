"""What can go wrong in the gateway, split by who must act.

    GatewayError
    ├── RequesterError        the person who asked: Unauthenticated, NotAllowed, RequestRefused, NotKnown, …
    ├── RelayError            the host: RelayRefused, ReceiptRefused, RelayUnreachable, UpgradeNeeded
    └── OperatorError         whoever runs the gateway: ConfigRefused, StartRefused, LogUnavailable, Overloaded

Each carries `code` (a stable word of the API), `detail` (for the answer: nothing secret, nothing that helps a forger)
and what to do next. `api/answers.py` turns them into HTTP.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Root. `code` is stable, `detail` is one line, `next_step` says what the one who must act does."""

    code = "error"
    status = 500
    who_must_act = "operator"
    next_step = "look at the gateway's log"

    def __init__(self, detail: str, *, code: str | None = None, next_step: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.next_step = next_step or type(self).next_step


class RequesterError(GatewayError):
    who_must_act = "requester"
    status = 400


class Unauthenticated(RequesterError):
    """No bearer token, or one that was refused. `check` names the failed check for our log, never for the answer."""

    code = "unauthenticated"
    status = 401
    next_step = "sign in again (`sealane login`) and repeat the request"

    def __init__(self, detail: str, *, check: str = "missing", next_step: str | None = None) -> None:
        super().__init__(detail, next_step=next_step)
        self.check = check


class NotAllowed(RequesterError):
    """Policy says no to an action that is no migration: `what` is denied, `because`; on record as `record_index`."""

    code = "not_allowed"
    status = 403
    next_step = "ask the author of the policy for this action"

    def __init__(self, what: str, because: str, record_index: int | None = None) -> None:
        recorded = "" if record_index is None else f" (record {record_index})"
        naming = None if record_index is None else f"{type(self).next_step}, naming record {record_index}"
        super().__init__(f"{what}{recorded}: {because}", next_step=naming)


class RequestRefused(RequesterError):
    code = "bad_request"
    next_step = "correct the request"


class RequestTooLarge(RequestRefused):
    code = "too_large"
    status = 413
    next_step = "send a smaller request"


class RequestTooSlow(RequestRefused):
    code = "too_slow"
    status = 408
    next_step = "send the whole request at once"


class NotKnown(RequesterError):
    code = "not_known"
    status = 404
    next_step = "check the name or the number"


class NotSetUp(NotKnown):
    """What is asked for needs a `table` that the gateway's configuration has not: the requester cannot add it."""

    code = "not_set_up"

    def __init__(self, detail: str, table: str) -> None:
        super().__init__(detail, next_step=f"ask the operator: the gateway's configuration has no {table}")


class Conflict(RequesterError):
    code = "migration_in_progress"
    status = 409
    next_step = "wait for the running migration of this VM, or cancel it"


class CannotMove(RequesterError):
    """Allowed, but the hosts say that it would fail. `who_must_act`: of the first thing that is in the way."""

    code = "cannot_move"
    status = 409
    next_step = "correct what is named; `sealane migrate --check` shows everything that is in the way"

    def __init__(self, detail: str, *, who_must_act: str) -> None:
        super().__init__(detail)
        self.who_must_act = who_must_act


class Throttled(RequesterError):
    code = "too_many_attempts"
    status = 429
    next_step = "wait a minute and try again"


class TooManyRefusals(RequesterError):
    """Of this person: nothing was decided. They are heard again in `retry_after_seconds`."""

    code = "too_many_refusals"
    status = 429

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(
            "too many requests of yours were denied, have failed, or only asked; this one was not decided",
            next_step=f"wait {retry_after_seconds} s, and look why they are denied before repeating them",
        )
        self.retry_after_seconds = retry_after_seconds


class RelayError(GatewayError):
    who_must_act = "operator of the host"
    status = 403


class RelayRefused(RelayError):
    """No client certificate, not one of a known host, or a host that has no part in the migration."""

    code = "relay_refused"
    next_step = "give the relay a valid host certificate of this site and list the host in the inventory"


class RelayRevoked(RelayRefused):
    """Said on a connection whose handshake has proven the certificate's key, and by a CA of this site: no oracle."""

    code = "relay_revoked"
    next_step = "ask who revoked it; a host that is to come back enrols with a new key and a new token"

    def __init__(self) -> None:
        super().__init__("the certificate of this host, or of its CA, has been revoked")


class ReceiptRefused(RelayError):
    """`check` names what is wrong with the receipt."""

    code = "receipt_refused"
    status = 400
    next_step = "compare the versions of relay and gateway; keep the receipt"

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(detail)
        self.check = check


class RelayUnreachable(RelayError):
    code = "relay_unreachable"
    status = 503
    next_step = "start the relay on the source host, then repeat the request"


class UpgradeNeeded(RelayError):
    """A relay, or this gateway, is of a version that lacks what is asked for. 503: relays keep what they tell."""

    code = "upgrade_needed"
    status = 503
    next_step = "upgrade Sealane on that host and restart its relay, then repeat the request"


class OperatorError(GatewayError):
    status = 503


class ConfigRefused(OperatorError):
    """File and key of the first thing that is wrong with a configuration."""

    code = "configuration"

    def __init__(self, path: object, key: str, detail: str) -> None:
        super().__init__(f"{path}: {key}: {detail}" if key else f"{path}: {detail}")
        self.next_step = "correct this file and start again"


class StartRefused(OperatorError):
    code = "start"
    next_step = "correct what the message names and start again"


class LogUnavailable(OperatorError):
    """The audit log cannot take the record: nothing is permitted until it can."""

    code = "log_unavailable"
    next_step = "look at disk space and health of the log's directory; the gateway reopens the log by itself"


class SearchUnavailable(OperatorError):
    """The query index, or the files of the log that it is of, cannot be read: nothing is shown, nothing is lost."""

    code = "search_unavailable"
    status = 503
    next_step = "look at disk space and permissions of `gateway.state_dir`; `sealane audit index rebuild` makes it anew"


class NoCosignature(OperatorError):
    """The site requires witnesses, and they have not cosigned: the permit was decided, and is not given out."""

    code = "no_cosignature"
    status = 503
    next_step = "look at the witnesses (`witnesses` of GET /v1/health); ask again when they answer"


class TooLargeToRecord(OperatorError):
    """A decision whose facts exceed what one record holds: a person in very many groups, say."""

    code = "too_large_to_record"
    next_step = "let the identity provider send fewer groups, or shorten names in the inventory"


class Overloaded(OperatorError):
    code = "overloaded"
    next_step = "repeat the request in some seconds"
