"""`sealane whoami`: who one is to the gateway, by what, and what that allows."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.credentials import token_of
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.settings import resolve
from gateway.times import to_the_minute

if TYPE_CHECKING:
    from gateway.cli.replies import WhoamiReply

_QUESTIONS = {
    "CheckDecision": "ask whether a migration would be allowed",
    "ReadOwnMigrations": "follow one's own migrations",
    "CancelMigration": "cancel a migration",
    "ReadAudit": "read the audit log",
}


def whoami(
    gateway: GatewayOption = None, ca: CaOption = None, token_file: TokenFileOption = None, as_json: JsonOption = False
) -> None:
    """Show who you are to the gateway, how you were authenticated, your groups, and what that allows.

    Whether a migration is allowed depends on the VM and the hosts too: ask with `sealane migrate --check`.

    \b
    Examples:
      sealane whoami
      sealane whoami --json
    """
    from gateway.cli.client import GatewayClient

    settings = resolve(gateway, ca, token_file, Path.home())
    token = token_of(settings, int(time.time()))
    with GatewayClient(settings, token) as client:
        reply = client.whoami()
    if as_json:
        import msgspec

        print_json({"outcome": "known", "gateway": settings.gateway, **msgspec.to_builtins(reply)})
    else:
        _tell(reply, settings.gateway)


def _tell(reply: WhoamiReply, gateway: str) -> None:
    until = "" if reply.expires_at is None else f", until {to_the_minute(reply.expires_at)}"
    say(f"{reply.name} at {gateway}")
    say(f"  id             {reply.id}")
    say(f"  authenticated  by {reply.authenticated_by}, issuer {reply.issuer}{until}")
    if reply.actor is not None:
        say(f"  through        {reply.actor}, which acts for this person")
    if reply.groups is None:
        because = reply.groups_unknown_because or "the gateway does not say why"
        say(f"  groups         unknown, which denies: {because}")
    else:
        say(f"  groups         {len(reply.groups)}, from {reply.groups_from or 'where the gateway does not say'}")
        for group in reply.groups:
            say(f"                 {group}")
    for action, words in _QUESTIONS.items():
        if (answer := reply.permissions.get(action)) is not None:
            say(f"  {'may' if answer.allowed else 'may not':<14} {words}{_because(answer.denied_because)}")


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""
