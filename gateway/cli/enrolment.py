"""Hosts come and go: `sealane certs token`, `sealane relay enrol`, `sealane certs revoke`."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from gateway.cli.asking import signed_in
from gateway.cli.credentials import read_secret
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration, Refused, Unreachable
from gateway.cli.interruption import note_change_asked
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.settings import canonical_url
from gateway.cli.waiting import waiting_for
from gateway.counted import counted
from gateway.times import rfc3339, to_the_minute

_EXCHANGES = 4  # with the gateway: connect, handshake, its root, the certificate
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="The host's name in the inventory.")]


def token(  # noqa: PLR0913, PLR0917 - its options
    host: HostArgument,
    minutes: Annotated[
        int | None, typer.Option("--minutes", min=1, max=10_080, help="How long it may wait to be used.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there, mode 0600, and do not show it.")
    ] = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Get a one-time token with which HOST enrols; one that waits for the same host is withdrawn. Needs EnrolHost.

    \b
    Example:
      sealane certs token fra7 --out fra7.token
    """

    if out is not None and not (out.parent.is_dir() and os.access(out.parent, os.W_OK | os.X_OK) and not out.is_dir()):
        # Before it is issued: that withdraws the one before it.
        raise BadConfiguration(f"{out} cannot be written: no token was asked for", REQUESTER, "name another file")
    with signed_in(gateway, ca, token_file) as client:
        made, asked = client.enrolment_token(host, minutes), client.url
    if out is not None:
        _write_secret(out, made.token)
    until = to_the_minute(made.expires)
    if as_json:
        shown = {"token": made.token} if out is None else {"file": str(out)}
        print_json({"outcome": "issued", "host": made.host, "expires": made.expires, **shown})
        return
    if out is None:
        say(made.token)
        say(f"It is for {made.host}, once, until {until}.")
    else:
        say(f"The token of {made.host} is in {out}, until {until}.")
    say(f"Next, on the host: sealane relay enrol {asked} --token-file {out.name if out is not None else 'FILE'}")


def revoke(
    host: HostArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")],
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """End every certificate and token of HOST, everywhere within a minute, and its migrations. Needs RevokeHost.

    \b
    Example:
      sealane certs revoke fra7 --reason "INC-2217: disk stolen"
    """

    with signed_in(gateway, ca, token_file) as client:
        done = client.revoke_host(host, reason)
    if as_json:
        print_json({"outcome": "revoked", **done})
    else:
        say(f"Revoked {done['host']}: {counted(len(done['serials']), 'certificate')}, CRL {done['crl_number']}.")
        say(f"Relays have it once their poll returns. The host comes back with a new key: sealane certs token {host}")


def enrol(
    gateway: Annotated[str, typer.Argument(metavar="GATEWAY", help="The gateway, https://HOST[:PORT].")],
    token_file: Annotated[
        Path, typer.Option("--token-file", metavar="FILE", help="Where the token is, mode 0600; - for standard input.")
    ],
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="Configuration to write, unless it is there already.")
    ] = Path("/etc/sealane/relay.toml"),
    state_dir: Annotated[
        Path, typer.Option("--state-dir", metavar="DIR", help="The relay's state; the identity is in DIR/identity.")
    ] = Path("/var/lib/sealane"),
    hypervisor: Annotated[
        str, typer.Option("--hypervisor", metavar="KIND", help="libvirt or qmp, for a new configuration.")
    ] = "libvirt",
    as_json: JsonOption = False,
) -> None:
    """Make this host one of the gateway's site: a key that never leaves it, certificate, CRLs, pins, configuration.

    The token goes to nobody but a gateway proven under the CA that it names. Run it again if it failed half-way.

    \b
    Example:
      sealane relay enrol https://gateway.bank.example:8443 --token-file fra7.token
    """
    from certs.enrolment import EnrolmentToken
    from certs.errors import CertificateError, CredentialError
    from transport.errors import ConfigurationError
    from transport.relay.enrolling import Plan
    from transport.relay.enrolling import enrol as enrol_host
    from transport.relay.first_contact import SECONDS as FIRST_CONTACT_SECONDS
    from transport.relay.gateway_answers import GatewayAway, GatewayRefuses

    url = canonical_url(gateway, "GATEWAY")
    text = sys.stdin.readline() if str(token_file) == "-" else read_secret(token_file, "token file")
    try:
        plan = Plan(url, config, state_dir, _hypervisor(hypervisor))
        token_text = EnrolmentToken.parse(text.strip())
        note_change_asked("the gateway")
        with waiting_for(url, _EXCHANGES * FIRST_CONTACT_SECONDS):
            done = enrol_host(plan, token_text, datetime.now(UTC))
    except GatewayRefuses as error:
        raise Refused(str(error), OPERATOR, error.next_step) from error
    except GatewayAway as error:
        raise Unreachable(str(error), OPERATOR, "check the address and that the gateway runs") from error
    except CredentialError as error:
        what = f"{error.path or token_file}: {error.problem}"
        raise BadConfiguration(what, OPERATOR, error.remedy) from error
    except (CertificateError, ConfigurationError) as error:
        raise BadConfiguration(str(error), OPERATOR, "correct it and run the command again") from error
    except OSError as error:
        raise BadConfiguration(
            f"{error.filename or state_dir}: {error.strerror}",
            OPERATOR,
            "make the folder it lies in, or run this as who runs the relay (root)",
        ) from error
    if as_json:
        until = rfc3339(done.valid_until)
        print_json({"outcome": "enrolled", "host": done.host, "valid_until": until, "config": str(config)})
        return
    wrote = f"Wrote {config}." if done.wrote_config else f"{config} was there already and stays as it is."
    say(f"This host is {done.host}. {wrote}")
    say(f"Next: sealane doctor --config {config}, then systemctl enable --now sealane-relay")


def _hypervisor(kind: str) -> Literal["libvirt", "qmp"]:
    match kind:
        case "libvirt" | "qmp":
            return kind
        case _:
            raise BadConfiguration(f"--hypervisor {kind!r} is neither libvirt nor qmp", REQUESTER, "give one of them")


def _write_secret(path: Path, text: str) -> None:
    from certs.files import write_atomically

    try:
        write_atomically(path, f"{text}\n".encode(), mode=0o600)
    except OSError as error:
        raise BadConfiguration(
            f"{path} cannot be written: {error.strerror}",
            REQUESTER,
            "ask for another token: this one is lost, and one before it withdrawn",
        ) from error
