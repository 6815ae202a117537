"""What the gateway's API can be asked: a method for each call, with the shape of its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from gateway.cli.connection import ITS_OWN, Connection, decode
from gateway.cli.errors import Refused
from gateway.cli.record_replies import (
    CheckpointReply,
    HistogramReply,
    PruneReply,
    QuarantineReply,
    RecordedReply,
    RecordsReply,
    SiemJob,
    SinkReply,
    SinksReply,
)
from gateway.cli.replies import (
    DecisionReply,
    DrainReply,
    EnrolmentTokenReply,
    GrantReply,
    GrantsReply,
    HostsReply,
    IdentityReply,
    InventoryReply,
    MigrationReply,
    NamedReply,
    RolloverReply,
    RolloversReply,
    TokenReply,
    VmsReply,
    WhoamiReply,
)


class GatewayClient(Connection):
    """Of the gateway's API."""

    def identity(self) -> IdentityReply:
        """Where people sign in."""
        return decode(self.ask("GET", "/v1/identity"), IdentityReply)

    def site(self) -> dict[str, Any]:
        """What other sites pin and trust of the gateway's."""
        return decode(self.ask("GET", "/v1/site"), dict[str, Any])

    def whoami(self) -> WhoamiReply:
        """Who the token's holder is to the gateway."""
        return decode(self.ask("GET", "/v1/whoami"), WhoamiReply)

    def login(self, username: str, password: str, *, sealed: bool = False) -> TokenReply:
        """A token of the gateway's local issuer, or of the issuer of its sealed people."""
        body: dict[str, Any] = {"username": username, "password": password}
        if sealed:
            body["sealed"] = True
        return decode(self.ask("POST", "/v1/token", body=body), TokenReply)

    def request_migration(self, body: Mapping[str, Any]) -> DecisionReply:
        """Ask to move a VM. A denial is an answer, not an error: look at `.decision.allowed`."""
        reply = decode(self.ask("POST", "/v1/migrations", body=body, denial_is_answer=True), DecisionReply)
        if reply.migration_id is not None:
            self._known_by[reply.migration_id] = self._asked
        return reply

    def check(self, body: Mapping[str, Any]) -> DecisionReply:
        """The decision alone: no permit, nothing moves, but the question is recorded."""
        return decode(self.ask("POST", "/v1/decisions", body=body), DecisionReply)

    def check_drain(self, body: Mapping[str, Any]) -> DrainReply:
        """Which VMs of a host may go where; nothing moves."""
        return decode(self.ask("POST", "/v1/drain/check", body=body), DrainReply)

    def migration(self, migration_id: str) -> MigrationReply:
        """State, progress and receipts."""
        self._known_by.setdefault(migration_id, self._current)
        path = f"/v1/migrations/{quote(migration_id, safe='')}"
        return decode(self.ask("GET", path, about=migration_id), MigrationReply)

    def cancel(self, migration_id: str) -> None:
        """Ask the gateway to cancel; the outcome shows in `migration`."""
        self._known_by.setdefault(migration_id, self._current)
        self.ask("POST", f"/v1/migrations/{quote(migration_id, safe='')}/cancel", about=migration_id)

    def hosts(self, prefix: str, limit: int) -> HostsReply:
        """The hosts whose names begin so, and what their relays report."""
        return decode(self.ask("GET", "/v1/hosts", parameters={"prefix": prefix, "limit": limit}), HostsReply)

    def vms(self, prefix: str, limit: int) -> VmsReply:
        """The VMs whose names begin so, and where each runs."""
        return decode(self.ask("GET", "/v1/vms", parameters={"prefix": prefix, "limit": limit}), VmsReply)

    def inventory(self) -> InventoryReply:
        """The sources of the inventory and what is wrong in them."""
        return decode(self.ask("GET", "/v1/inventory"), InventoryReply)

    def named(self, name: str) -> NamedReply:
        """What is known of a VM or host."""
        return decode(self.ask("GET", "/v1/inventory/named", parameters={"name": name}), NamedReply)

    def enrolment_token(self, host: str, minutes: int | None) -> EnrolmentTokenReply:
        """Shown this once."""
        body: dict[str, Any] = {"host": host} if minutes is None else {"host": host, "minutes": minutes}
        return decode(self.ask("POST", "/v1/enrolment/tokens", body=body), EnrolmentTokenReply)

    def revoke_host(self, host: str, reason: str) -> dict[str, Any]:
        """In force at the gateway once it returns."""
        path = f"/v1/hosts/{quote(host, safe='')}/revocation"
        return decode(self.ask("POST", path, body={"reason": reason}), dict[str, Any])

    def rollovers(self) -> list[RolloverReply]:
        """Of each key that this gateway can roll over."""
        return decode(self.ask("GET", "/v1/rollovers"), RolloversReply).rollovers

    def roll_over(self, what: str, step: str, reason: str, force: bool) -> RolloverReply:
        """In force at the gateway once it returns."""
        path = f"/v1/rollovers/{quote(what, safe='')}/{quote(step, safe='')}"
        return decode(self.ask("POST", path, body={"reason": reason, "force": force}), RolloverReply)

    def ask_to_break_glass(self, body: Mapping[str, Any]) -> GrantReply:
        """Recorded, and waiting for a second person."""
        return decode(self.ask("POST", "/v1/break-glass", body=body), GrantReply)

    def break_glass(self) -> tuple[GrantReply, ...]:
        """What one may see of it, newest first."""
        return decode(self.ask("GET", "/v1/break-glass"), GrantsReply).break_glass

    def approve_break_glass(self, grant_id: str, reason: str | None) -> GrantReply:
        """The second person's yes; in force once this returns."""
        return self._step_of_break_glass(grant_id, "approve", reason)

    def end_break_glass(self, grant_id: str, reason: str | None) -> GrantReply:
        """End, refuse or take back."""
        return self._step_of_break_glass(grant_id, "end", reason)

    def _step_of_break_glass(self, grant_id: str, step: str, reason: str | None) -> GrantReply:
        body = {} if reason is None else {"reason": reason}
        path = f"/v1/break-glass/{quote(grant_id, safe='')}/{step}"
        return decode(self.ask("POST", path, body=body), GrantReply)

    def records(self, parameters: Mapping[str, str | int]) -> RecordsReply:
        """One page of records."""
        return decode(self.ask("GET", "/v1/records", parameters=parameters, about=ITS_OWN), RecordsReply)

    def histogram(self, parameters: Mapping[str, str | int]) -> HistogramReply:
        """How many records there are, by time and outcome."""
        return decode(self.ask("GET", "/v1/records/histogram", parameters=parameters, about=ITS_OWN), HistogramReply)

    def sinks(self) -> SinksReply:
        """Every sink of the log."""
        return decode(self.ask("GET", "/v1/siem", about=ITS_OWN), SinksReply)

    def sink(self, name: str) -> SinkReply:
        """One sink, and what is under way there."""
        return decode(self.ask("GET", f"/v1/siem/{quote(name, safe='')}", about=ITS_OWN), SinkReply)

    def begin_siem(self, name: str, what: str, body: Mapping[str, Any]) -> SiemJob:
        """Begin `reconcile` or `resend`; its state shows in `sink`."""
        return decode(self.ask("POST", f"/v1/siem/{quote(name, safe='')}/{what}", body=body, about=ITS_OWN), SiemJob)

    def record_file_findings(self, name: str, found: Mapping[str, Any]) -> int:
        """Put into the log what the receiver's files were found to hold; the record's index."""
        path = f"/v1/siem/{quote(name, safe='')}/file-findings"
        return decode(self.ask("POST", path, body=found, about=ITS_OWN), RecordedReply).index

    def quarantine(self, name: str, after: int) -> QuarantineReply:
        """What the sink's receiver refuses for ever."""
        path = f"/v1/siem/{quote(name, safe='')}/quarantine"
        return decode(self.ask("GET", path, parameters={"after": after}, about=ITS_OWN), QuarantineReply)

    def record(self, index: int) -> dict[str, Any]:
        """The answer about one record, whole."""
        return decode(self.ask("GET", f"/v1/records/{index}", about=ITS_OWN), dict[str, Any])

    def begin_pruning(self, *, check: bool) -> PruneReply:
        """Have the gateway prune its log, or say what it would; it goes on in the background."""
        return decode(self.ask("POST", "/v1/log/prune", body={"check": check}, about=ITS_OWN), PruneReply)

    def pruning(self) -> PruneReply | None:
        """What the latest pruning did, so far; None: there was none since the gateway's start."""
        return decode(self.ask("GET", "/v1/log/prune", about=ITS_OWN), PruneReply | None)  # type: ignore[arg-type]

    def reconcile_hosts(self, since: str) -> dict[str, Any]:
        """What the receipts of both hosts say of each migration since then; the gateway records it."""
        return decode(self.ask("POST", "/v1/reconcile/hosts", body={"since": since}), dict[str, Any])

    def reconcile_sites(self, site: str, since: str) -> dict[str, Any]:
        """What this gateway's log and another site's say of the migrations between both; recorded."""
        return decode(self.ask("POST", "/v1/reconcile/sites", body={"site": site, "since": since}), dict[str, Any])

    def prepare_evacuation(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Decided, logged, and held by the host's relay once it returns."""
        return decode(self.ask("POST", "/v1/evacuations", body=body), dict[str, Any])

    def withdraw_evacuation(self, evacuation_id: str, host: str) -> dict[str, Any]:
        """Recorded, and on its way to the host."""
        path = f"/v1/evacuations/{quote(evacuation_id, safe='')}/withdraw"
        return decode(self.ask("POST", path, body={"host": host}), dict[str, Any])

    def policy(self) -> dict[str, Any]:
        """The policy in force, earlier versions, and the candidate that is tried."""
        return decode(self.ask("GET", "/v1/policy"), dict[str, Any])

    def policy_version(self, version: int) -> bytes:
        """A publication that was in force."""
        return self.ask("GET", f"/v1/policy/versions/{version}")

    def publish_policy(self, publication: bytes) -> dict[str, Any]:
        """In force once this returns."""
        return decode(self.ask("POST", "/v1/policy/publications", content=publication), dict[str, Any])

    def begin_policy_shadow(self, publication: bytes) -> dict[str, Any]:
        """Tried from now on."""
        return decode(self.ask("POST", "/v1/policy/shadow", content=publication), dict[str, Any])

    def end_policy_shadow(self) -> dict[str, Any]:
        """What was counted."""
        return decode(self.ask("DELETE", "/v1/policy/shadow"), dict[str, Any])

    def checkpoint(self) -> str:
        """The signed note of the log: the published one, with cosignatures, where there is one."""
        return self.ask("GET", "/v1/log/checkpoint", about=ITS_OWN).decode()

    def log_keys(self) -> bytes:
        """What joins the log's former keys to its key; nothing where the gateway is too old to say it."""
        try:
            return self.ask("GET", "/v1/log/keys", about=ITS_OWN)
        except Refused as error:
            if error.code != "not_known":
                raise
            return b""

    def tile(self, path: str) -> bytes:
        """A tile or entry bundle of the log, by its C2SP path without `tile/`."""
        return self.ask("GET", f"/v1/log/tile/{path}", about=ITS_OWN)

    def log_size(self) -> int:
        """How many entries the log has, by its newest checkpoint (a signed note: origin, size, root)."""
        note = decode(self.ask("GET", "/v1/checkpoint", about=ITS_OWN), CheckpointReply).checkpoint
        lines = note.split("\n", 3)
        if len(lines) < 3 or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
            raise self.no_sense("its checkpoint is none")
        return int(lines[1])
