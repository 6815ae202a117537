"""`sealane certs`: the file CA of a site."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.errors import OPERATOR, BadConfiguration
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, print_table, say
from gateway.cli.terminal import plain

if TYPE_CHECKING:
    from certs.layout import Fact

app = typer.Typer(
    help="The file CA: keys and certificates of gateway and hosts.", no_args_is_help=True, rich_markup_mode=None
)

DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The CA's folder.")]


@contextmanager
def _said_plainly() -> Iterator[None]:
    from certs.errors import CertificateError, CredentialError, KeyFileError

    try:
        yield
    except (CredentialError, KeyFileError) as error:
        where = "" if error.path is None else f"{error.path}: "
        raise BadConfiguration(f"{where}{error.problem}", OPERATOR, error.remedy) from error
    except CertificateError as error:
        raise BadConfiguration(str(error), OPERATOR, "correct it and run the command again") from error
    except (OSError, ValueError) as error:
        raise BadConfiguration(f"{error}", OPERATOR, "check the folder and its permissions") from error


@app.command("init")
def init(
    directory: DirectoryArgument,
    trust_domain: Annotated[
        str, typer.Option("--trust-domain", metavar="NAME", help="Trust domain of the host ids, a lower-case DNS name.")
    ],
    log_origin: Annotated[
        str | None,
        typer.Option("--log-origin", metavar="NAME", help="Name of the audit log. Default: TRUST-DOMAIN/audit."),
    ] = None,
    dns: Annotated[
        list[str] | None,
        typer.Option("--dns", metavar="NAME", help="DNS name of the gateway; repeat it. Default: localhost."),
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option("--ip", metavar="ADDRESS", help="IP address of the gateway; repeat it. Default: 127.0.0.1."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a CA, the gateway's TLS certificate and its permit and log keys.

    \b
    Example:
      sealane certs init /etc/sealane/ca --trust-domain corp.example --dns gateway.corp.example
    """
    from certs import layout

    names = dns or ([] if ip else ["localhost"])
    addresses = ip or ([] if dns else ["127.0.0.1"])
    origin = log_origin or f"{trust_domain}/audit"
    with _said_plainly():
        layout.init(directory, trust_domain, origin, names, addresses, datetime.now(UTC))
    if as_json:
        print_json(
            {"outcome": "created", "directory": str(directory), "trust_domain": trust_domain, "log_origin": origin}
        )
    else:
        say(f"Made the CA of {trust_domain} in {directory}; keep {directory}/ca.key offline once hosts are issued.")
        say(f"Next: sealane certs issue {directory} HOST")


@app.command("issue")
def issue(
    directory: DirectoryArgument,
    name: Annotated[str, typer.Argument(metavar="HOST", help="The host's name: lower-case letters, digits, hyphens.")],
    hours: Annotated[int, typer.Option("--hours", min=1, max=24 * 398, help="Lifetime of the certificate.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Make a host's key and certificate, with its SPIFFE id, in DIR/hosts/HOST.

    \b
    Example:
      sealane certs issue /etc/sealane/ca host-a --hours 720
    """
    from certs import layout

    with _said_plainly():
        layout.issue_host(directory, name, datetime.now(UTC), timedelta(hours=hours))
    made = directory / "hosts" / name
    if as_json:
        print_json({"outcome": "issued", "host": name, "directory": str(made), "lifetime_hours": hours})
    else:
        say(f"Issued {name} for {hours} hours: {made}/host.pem and host.key.")
        say(f"Next: copy that folder, {directory}/ca.pem and crl.pem to the host, over a channel you trust.")


@app.command("issue-service")
def issue_service(
    directory: DirectoryArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The program's name: lower-case letters, digits, hyphens.")
    ],
    hours: Annotated[int, typer.Option("--hours", min=1, max=24 * 398, help="Lifetime of the certificate.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Make key and certificate of a program that asks the gateway, in DIR/services/NAME; it can never pass for a host.

    \b
    Example:
      sealane certs issue-service /etc/sealane/ca nova --hours 720
    """
    from certs import layout
    from certs.identity import service_id_of

    with _said_plainly():
        leaf = layout.issue_service(directory, name, datetime.now(UTC), timedelta(hours=hours))
        service = str(service_id_of(leaf))
    made = directory / "services" / name
    if as_json:
        print_json({"outcome": "issued", "service": service, "directory": str(made), "lifetime_hours": hours})
    else:
        say(f"Issued {service} for {hours} hours: {made}/service.pem and service.key.")
        say(f'Next: add it to the gateway\'s configuration as [[identity.services]] spiffe_id = "{service}".')


@app.command("show")
def show(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Show what the CA has issued, until when it is valid, and what is expired, stale or revoked.

    \b
    Example:
      sealane certs show /etc/sealane/ca
    """
    from certs import layout

    with _said_plainly():
        facts = layout.describe(directory, datetime.now(UTC))
    if as_json:
        print_json({"directory": str(directory), "files": [_document(fact) for fact in facts]})
        return
    from rich.table import Table

    table = Table(
        "kind", "name", "state", "until (UTC)", "serial", "file", box=None, pad_edge=False, header_style="bold"
    )
    table.columns[2].no_wrap = table.columns[3].no_wrap = True
    for fact in facts:
        until = f"{fact.valid_until:%Y-%m-%d %H:%M}"
        style = "green" if fact.state == "valid" else "bold red"
        cells = (fact.kind, fact.name, fact.state, until, fact.serial[:16], fact.file)
        table.add_row(*(plain(cell, style if cell is fact.state else "") for cell in cells))
    print_table(table)


def _document(fact: Fact) -> dict[str, str]:
    return {
        "kind": fact.kind,
        "name": fact.name,
        "file": fact.file,
        "serial": fact.serial,
        "valid_until": fact.valid_until.isoformat().replace("+00:00", "Z"),
        "state": fact.state,
        "sha256": fact.sha256,
    }
