"""What commands read: a gateway's and an issuer's answers, entries and receipts of a log, the person's own files."""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec

from audit.query.facets import UNREADABLE_KIND
from gateway.cli import connection, past_decisions, record_folder, stories
from gateway.cli.credentials import read_token
from gateway.cli.errors import CommandError
from gateway.cli.issuer_client import Endpoints, IssuerClient, OAuthError, TokenAnswer
from gateway.cli.replies import EnrolmentTokenReply, _body
from gateway.cli.saved_queries import read_queries
from gateway.cli.settings import read_client_file
from tests.audit.samples import entry
from tests.fuzz.targets.target import Target, scratch

_FOLDER: Final = scratch()


def error_reply(data: bytes) -> bool:
    """Always an error for the person; whether in the gateway's words."""
    connection._carries_decision(data)
    return connection._refusal(403, data, "https://g").code == "no"


def reply(data: bytes) -> None:
    connection.decode(data, EnrolmentTokenReply)


def issuers_answer(shape: type[Any]) -> Any:
    def run(data: bytes) -> None:
        IssuerClient._decode(cast(IssuerClient, _Issuer()), data, shape)

    return run


class _Issuer:
    def _no_sense(self, reason: str) -> CommandError:
        return CommandError(reason, "", "")


def shown_entry(data: bytes) -> bool:
    """Whatever is in the log can be shown. Whether it is a record."""
    return bool(record_folder._record(data)["kind"] != UNREADABLE_KIND)


def past_decision(data: bytes) -> bool:
    record = past_decisions._record_in(data)
    past_decisions.decision_in(3, record)
    return record is not None


def told_receipt(data: bytes) -> bool:
    return _body({"body": data.decode(errors="replace")}) is not None


def receipt_in_a_story(data: bytes) -> bool:
    return stories._body({"body": data.decode(errors="replace")}) != {}


def token_file(data: bytes) -> None:
    path = _FOLDER / "token"
    path.write_bytes(data)
    path.chmod(0o600)
    assert read_token(path, "https://g", 0).isprintable()


def queries_file(data: bytes) -> None:
    (_FOLDER / "queries.json").write_bytes(data)
    (_FOLDER / "queries.json").chmod(0o600)
    read_queries(_FOLDER / "queries.json")


def client_file(data: bytes) -> None:
    (_FOLDER / "client.toml").write_bytes(data)
    read_client_file(_FOLDER / "client.toml")


_J: Final = msgspec.json.encode
_ERROR: Final = {"error": {"code": "no", "message": "no", "who_must_act": "you", "next_step": "ask"}}
TARGETS: Final = (
    Target("error-reply", error_reply, (), (_J(_ERROR),)),
    Target("reply", reply, (CommandError,), (b'{"host":"a","token":"x","expires":1}',)),
    Target(
        "issuers-endpoints", issuers_answer(Endpoints), (CommandError,),
        (b'{"issuer":"i","token_endpoint":"t","device_authorization_endpoint":"d"}',),
    ),
    Target("issuers-token", issuers_answer(TokenAnswer), (CommandError,), (b'{"access_token":"x","token_type":"t"}',)),
    Target("issuers-error", issuers_answer(OAuthError), (CommandError,), (b'{"error":"x"}',)),
    Target("shown-entry", shown_entry, (), (entry(3),)),
    Target("past-decision", past_decision, (), (entry(3),)),
    Target("told-receipt", told_receipt, (), (b'{"role":"source"}',)),
    Target("receipt-in-a-story", receipt_in_a_story, (), (b'{"role":"source"}',)),
    Target("token-file", token_file, (CommandError,), (
        b"x.y.z", b'{"access_token":"x","expires_at":1,"gateway":"https://g"}',
    )),
    Target("queries-file", queries_file, (CommandError,), (b'{"a":"b"}',)),
    Target("client-file", client_file, (CommandError,), (b'gateway = "https://g"\n',)),
)  # fmt: skip
