"""What ends a command, split by exit code.

CommandError
├── Refused            1  denied or failed: the answer is no
├── BadConfiguration   2  usage or configuration, here or at the gateway, which is not set up for it: nothing was done
└── Unreachable        3  a gateway (or, behind it, a relay) did not answer
"""

from __future__ import annotations

from gateway.cli.terminal import harmless

REQUESTER = "requester"
OPERATOR = "operator"
DEVELOPERS = "Sealane's developers"
_LOGIN_ENDED = frozenset({"unauthenticated", "not_authenticated"})  # the gateway's word, and ours where it has none


class CommandError(Exception):
    """One line for a person: what happened; who must act; next step. Fields may come from a server."""

    exit_code = 1
    default_code = "failed"

    def __init__(self, what: str, who_must_act: str, next_step: str, code: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.who_must_act = who_must_act
        self.next_step = next_step
        self.code = code or self.default_code

    def line(self) -> str:
        """The line as it goes to stderr: no control character of whoever wrote its parts survives."""
        return harmless(
            f"sealane: {self.what.removesuffix('.')}; the {self.who_must_act} must act; {self.next_step}", limit=1200
        )

    def document(self) -> dict[str, object]:
        """The same as the JSON object that `--json` prints."""
        return {
            "outcome": "error",
            "error": {
                "code": self.code,
                "message": self.what,
                "who_must_act": self.who_must_act,
                "next_step": self.next_step,
            },
        }


class Refused(CommandError):
    """Denied, or tried and failed."""

    exit_code = 1
    default_code = "refused"


class BadConfiguration(CommandError):
    """A file, option or extra that must be put right before anything can be asked."""

    exit_code = 2
    default_code = "bad_configuration"


class Unreachable(CommandError):
    """No answer, or none that can be trusted."""

    exit_code = 3
    default_code = "unreachable"


def login_has_ended(error: CommandError) -> bool:
    """The gateway takes the token no more: what it was asked for was not done, and may be asked for after a login."""
    return error.code in _LOGIN_ENDED
