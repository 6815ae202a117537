"""`sealane certs`: the file CA of a site."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli.errors import OPERATOR, BadConfiguration
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, print_table, say
from gateway.cli.terminal import plain
from gateway.counted import counted
from gateway.times import rfc3339

if TYPE_CHECKING:
    from certs.layout import Fact

app = typer.Typer(
    help="The file CA: keys and certificates of gateway and hosts.", no_args_is_help=True, rich_markup_mode=None
)

MAX_SERIAL_BITS: Final = 159  # RFC 5280, 4.1.2.2: twenty bytes, positive

PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Where the passphrase of the CA's key is, mode 0600."),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--pkcs11", metavar="FILE", help="TOML naming the CA's key in a PKCS#11 token, instead of a new file."
    ),
]
DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The CA's folder.")]


@contextmanager
def said_plainly() -> Iterator[None]:
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


def passphrase_of(file: Path | None) -> bytes | None:
    from certs.files import read_passphrase

    return None if file is None else read_passphrase(file)


@app.command("init")
def init(  # noqa: PLR0913, PLR0917 - its options
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
    passphrase_file: PassphraseOption = None,
    pkcs11: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a CA, the gateway's TLS certificate and its permit and log keys. Run again, it changes nothing.

    \b
    Example:
      sealane certs init /etc/sealane/ca --trust-domain corp.example --dns gateway.corp.example
    """
    from certs import layout

    names = dns or ([] if ip else ["localhost"])
    addresses = ip or ([] if dns else ["127.0.0.1"])
    origin = log_origin or f"{trust_domain}/audit"
    with said_plainly():
        made = layout.init(
            directory, trust_domain, origin, names, addresses, datetime.now(UTC), passphrase_of(passphrase_file), pkcs11
        )
    if as_json:
        outcome = "created" if made else "exists"
        print_json(
            {"outcome": outcome, "directory": str(directory), "trust_domain": trust_domain, "log_origin": origin}
        )
    elif made:
        say(f"Made the CA of {trust_domain} in {directory}:")
        say("  ca.key, ca.pem, crl.pem  the root: every host trusts it, so its key belongs offline")
        say("  gateway/                 TLS, permit and log keys of the gateway; each can be replaced alone")
        say(f"Next: sealane certs init-issuing {directory} ISSUING, then [enrolment] in the gateway's configuration;")
        say(f"or certify hosts by hand: sealane certs issue {directory} HOST")
    else:
        say(f"The CA of {trust_domain} is in {directory} already; nothing was changed.")


@app.command("init-issuing")
def init_issuing(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The folder of the root CA.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder of the CA that issues hosts.")],
    root_passphrase_file: Annotated[
        Path | None,
        typer.Option("--root-passphrase-file", metavar="FILE", help="Where the passphrase of the root's key is."),
    ] = None,
    passphrase_file: PassphraseOption = None,
    pkcs11: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a CA below the root, which issues and revokes hosts; the root's key may then go offline.

    The root's CRL is published for 180 days: bring root-crl.pem anew before that (certs publish-crl).

    \b
    Example:
      sealane certs init-issuing /root/ca /var/lib/sealane-gateway/issuing
    """
    from certs import layout

    with said_plainly():
        own = passphrase_of(passphrase_file)
        made = layout.init_issuing(root, directory, datetime.now(UTC), passphrase_of(root_passphrase_file), own, pkcs11)
    if as_json:
        print_json({"outcome": "created" if made else "exists", "directory": str(directory), "root": str(root)})
    elif made:
        say(f"Made the issuing CA in {directory}. In the gateway's configuration:")
        say(f'  [tls]        client_trust_bundle = "{directory}/bundle.pem"')
        say(f'               crls = ["{directory}/crl.pem", "{directory}/root-crl.pem"]')
        say(f'  [enrolment]  authority = "{directory}"')
        say(f"Then take {root}/ca.key offline.")
    else:
        say(f"An issuing CA is in {directory} already; nothing was changed.")


@app.command("publish-crl")
def publish_crl(
    directory: DirectoryArgument,
    revoke: Annotated[
        list[str] | None,
        typer.Option("--revoke-serial", metavar="HEX", help="Revoke this certificate of the CA too; repeat it."),
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=366, help="For how long it is valid.")] = 7,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish the CA's next CRL, by its key on this machine: for a root, or for what was certified by hand.

    \b
    Example:
      sealane certs publish-crl /root/ca --days 180
    """
    from certs.authority import Authority

    serials = [_serial(text) for text in revoke or ()]
    with said_plainly():
        authority = Authority.load(directory, passphrase_of(passphrase_file))
        number = authority.revoke_all(serials, datetime.now(UTC), timedelta(days=days))
    names = _names_by_serial(directory) if serials else {}
    revoked = [(f"{serial:x}", names.get(f"{serial:x}")) for serial in serials]
    if as_json:
        told = [{"serial": serial, "name": name} for serial, name in revoked]
        print_json({"outcome": "published", "file": str(authority.crl_file), "crl_number": number, "revoked": told})
    else:
        say(f"Published {authority.crl_file}, number {number}, for {counted(days, 'day')}.")
        for serial, name in revoked:
            say(
                f"Revoked {name}, serial {serial}."
                if name is not None
                else f"Revoked serial {serial}, which no certificate in {directory} has: compare all of its digits."
            )
        say("Next: bring it to the gateway, under the name that its tls.crls has; it notices the file.")


def _names_by_serial(directory: Path) -> dict[str, str]:
    """Of what can be read: a CRL that is published is not called a failure for the sake of another file."""
    from certs import layout
    from certs.errors import CertificateError

    try:
        facts = layout.describe(directory, datetime.now(UTC))
    except (CertificateError, OSError, ValueError):
        return {}
    return {fact.serial: fact.name for fact in facts if fact.kind != "crl"}


def _serial(text: str) -> int:
    """As `certs show` and openssl write it."""
    digits = text.replace(":", "")
    if not re.fullmatch(r"[0-9A-Fa-f]{1,40}", digits) or not 0 < int(digits, 16) < 1 << MAX_SERIAL_BITS:
        raise BadConfiguration(f"{text!a:.80} is no serial", OPERATOR, "take it whole from sealane certs show")
    return int(digits, 16)


@app.command("issue")
def issue(
    directory: DirectoryArgument,
    name: Annotated[str, typer.Argument(metavar="HOST", help="The host's name: lower-case letters, digits, hyphens.")],
    hours: Annotated[int, typer.Option("--hours", min=1, max=24 * 398, help="Lifetime of the certificate.")] = 24,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a host's key and certificate, with its SPIFFE id, in DIR/hosts/HOST.

    \b
    Example:
      sealane certs issue /etc/sealane/ca host-a --hours 720
    """
    from certs import layout

    with said_plainly():
        layout.issue_host(directory, name, datetime.now(UTC), timedelta(hours=hours), passphrase_of(passphrase_file))
    made = directory / "hosts" / name
    if as_json:
        print_json({"outcome": "issued", "host": name, "directory": str(made), "lifetime_hours": hours})
    else:
        say(f"Issued {name} for {counted(hours, 'hour')}: {made}/host.pem and host.key.")
        say(f"Next: copy that folder, {directory}/ca.pem and crl.pem to the host, over a channel you trust.")


@app.command("issue-service")
def issue_service(
    directory: DirectoryArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The program's name: lower-case letters, digits, hyphens.")
    ],
    hours: Annotated[int, typer.Option("--hours", min=1, max=24 * 398, help="Lifetime of the certificate.")] = 24,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make key and certificate of a program that asks the gateway, in DIR/services/NAME; it can never pass for a host.

    \b
    Example:
      sealane certs issue-service /etc/sealane/ca nova --hours 720
    """
    from certs import layout
    from certs.identity import service_id_of

    with said_plainly():
        passphrase = passphrase_of(passphrase_file)
        leaf = layout.issue_service(directory, name, datetime.now(UTC), timedelta(hours=hours), passphrase)
        service = str(service_id_of(leaf))
    made = directory / "services" / name
    if as_json:
        print_json({"outcome": "issued", "service": service, "directory": str(made), "lifetime_hours": hours})
    else:
        say(f"Issued {service} for {counted(hours, 'hour')}: {made}/service.pem and service.key.")
        say(f'Next: add it to the gateway\'s configuration as [[identity.services]] spiffe_id = "{service}".')


@app.command("check")
def check(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Look at all keys, certificates and CRLs in a CA's folder, and say what to do. Exit code 1: something is wrong.

    Of a gateway's or a relay's own files: sealane doctor.

    \b
    Example:
      sealane certs check /var/lib/sealane-gateway/issuing
    """
    from gateway.doctor.credentials import OF_THE_CA, certificate_findings, crl_findings, key_finding
    from gateway.doctor.finding import worst
    from gateway.doctor.service_user import as_service_user
    from gateway.errors import StartRefused

    now = datetime.now(UTC)
    try:
        holds_ca = (directory / "ca.pem").exists()
    except OSError as error:
        raise BadConfiguration(f"{directory}: {error.strerror}", OPERATOR, "run as root, or as its owner") from error
    if not holds_ca:
        raise BadConfiguration(f"{directory} holds no CA", OPERATOR, "name the folder of `sealane certs init`")
    # Found by who asks, who may be root: another user may not see the folder, and nothing would be wrong in it then.
    keys = [path for path in sorted(directory.glob("**/*.key")) if not _is_elsewhere(path)]
    certificates = [path for path in sorted(directory.glob("**/*.pem")) if "crl" not in path.name]
    crls = sorted(directory.glob("*crl.pem"))
    try:
        with as_service_user(directory):
            found = [
                *(key_finding(path, OF_THE_CA) for path in keys),
                *(each for path in certificates for each in certificate_findings(path, now, OF_THE_CA)),
                *crl_findings(crls, now),
            ]
    except StartRefused as error:
        raise BadConfiguration(error.detail, OPERATOR, error.next_step) from error
    outcome = worst(found)
    if as_json:
        names = ("check", "status", "message", "remedy")
        print_json({"outcome": outcome, "findings": [{n: getattr(each, n) for n in names} for each in found]})
    else:
        for each in found:
            say(f"{each.status:<9}  {each.message}" + (f"; {each.remedy}" if each.remedy else ""))
    if outcome == "wrong":
        raise typer.Exit(1)


def _is_elsewhere(path: Path) -> bool:
    """With a passphrase, or in a token: whether it can be used is shown by using it. What cannot be read is here."""
    try:
        return not path.read_bytes().lstrip().startswith(b"-----BEGIN PRIVATE")
    except OSError:
        return False


@app.command("show")
def show(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Show what the CA has issued, until when it is valid, and what is expired, stale or revoked.

    \b
    Example:
      sealane certs show /etc/sealane/ca
    """
    from certs import layout

    with said_plainly():
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
        cells = (fact.kind, fact.name, fact.state, until, fact.serial, fact.file)
        table.add_row(*(plain(cell, style if cell is fact.state else "") for cell in cells))
    print_table(table)


def _document(fact: Fact) -> dict[str, str]:
    return {
        "kind": fact.kind,
        "name": fact.name,
        "file": fact.file,
        "serial": fact.serial,
        "valid_until": rfc3339(fact.valid_until),
        "state": fact.state,
        "sha256": fact.sha256,
    }
