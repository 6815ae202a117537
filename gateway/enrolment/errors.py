"""What the office refuses, and what it cannot do."""

from __future__ import annotations

from gateway.errors import OperatorError, RequesterError


class EnrolmentRefused(RequesterError):
    """One answer for every fault of a token: which one it is stands in the record."""

    code = "enrolment_refused"
    status = 403
    next_step = "ask for a new token: sealane certs token HOST"


class KeyRevoked(EnrolmentRefused):
    """Told as it is: the token was good, and stays so."""

    code = "key_revoked"
    next_step = "move host.key out of the folder `identity` of the relay's state and enrol again; a token stays good"


class AuthorityFailed(OperatorError):
    code = "authority_failed"
    next_step = "look at the folder of [enrolment] authority and at the gateway's log"
