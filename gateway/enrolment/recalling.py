"""Keys of revoked certificates that the register does not know, from the log: of a gateway that did not keep them yet,
or of a register that was lost. Records of enrolments and renewals say which key each serial had.

Of a certificate that was made by hand no record says it: that is noted, so that nobody looks for it at each start.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from audit.record import format_time
from gateway.enrolment.one_thread import OneThread
from gateway.enrolment.register import Issued, Register
from gateway.recording import History

REVOKED: Final = "host.revoked"
CERTIFIED: Final = ("host.enrolled", "host.renewed")
NO_KEY: Final = b""
_EVER: Final = format_time(datetime(1970, 1, 1, tzinfo=UTC))

log = structlog.get_logger("gateway.enrolment")


async def recall_keys(register: Register, thread: OneThread, history: History, longest: timedelta) -> None:
    """`longest`: that a certificate was valid. Errors: LogUnavailable, AuthorityFailed."""
    lacking: dict[str, dict[str, datetime]] = {}  # when it was revoked, by serial, by host
    for _, record in await history.records_since((REVOKED,), _EVER):
        if record.get("outcome") == "allowed":
            details, moment = record["details"], datetime.fromisoformat(record["time"])
            for serial in await thread.do(register.forgotten, details["serials"]):
                lacking.setdefault(details["host"], {}).setdefault(serial, moment)
    for host, moments in lacking.items():
        since = format_time(min(moments.values()) - longest)
        records = await history.records_since(CERTIFIED, since, who=host)
        told = {record["details"]["serial"]: record["details"] for _, record in records}
        for serial, moment in moments.items():
            issued = _issued(serial, host.rpartition("/")[2], told.get(serial))
            await thread.do(register.recall, issued, int(moment.timestamp()))
        log.info("revoked keys were recalled from the log", host=host, keys=len(moments.keys() & told.keys()))


def _issued(serial: str, host: str, details: dict[str, Any] | None) -> Issued:
    if details is None:
        return Issued(serial, host, 0, NO_KEY)
    ends = int(datetime.fromisoformat(details["not_after"]).timestamp())
    return Issued(serial, host, ends, bytes.fromhex(details["key_sha256"]))
