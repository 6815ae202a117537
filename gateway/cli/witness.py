"""`sealane audit witness`: run a witness of logs, and lay one out."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration
from gateway.cli.options import JsonOption, ServeConfigOption
from gateway.cli.output import print_json, say
from gateway.cli.serve import needs_gateway_extra

ANYWHERE = "0.0.0.0:9443"

app = typer.Typer(
    help="A witness: cosigns the checkpoints of logs, and only one history of each.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("serve")
def serve(config: ServeConfigOption) -> None:
    """Run a witness in the foreground until SIGTERM or Ctrl-C (C2SP tlog-witness over HTTPS).

    Prints {"ready": true, "listen": "HOST:PORT"} on stdout once it answers. Run it where those who run the gateway
    cannot reach its state: at the SIEM, at another site, at a peer's.

    \b
    Example:
      sealane audit witness serve --config /etc/sealane/witness.toml
    """
    with needs_gateway_extra():
        from gateway.witness_service import run_witness
    raise typer.Exit(run_witness(config))


@app.command("init")
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for its keys, state and file.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Its name, like a URL without https://.")],
    key: Annotated[
        list[str],
        typer.Option("--key", metavar="FILE|VKEY", help="The verifier key of a log to witness. Repeat it."),
    ],
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where it will listen.")] = ANYWHERE,
    as_json: JsonOption = False,
) -> None:
    """Make the keys of a witness and a configuration to start from; prints the verifier keys to pin at gateways.

    \b
    Example:
      sealane audit witness init /etc/sealane/witness --name witness.bank.example/w1 --key log.vkey
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

    from audit.checkpoint import LogVerifier
    from audit.cosignature import Cosigner
    from audit.errors import CheckpointError
    from certs.files import write_atomically, write_private_key
    from gateway.cli.verification import read_keys
    from gateway.config import parse_address

    try:
        parse_address(listen)
    except ValueError as error:
        raise BadConfiguration(f"--listen: {error}", REQUESTER, "correct it") from error
    try:
        origins: dict[str, list[str]] = {}
        for vkey in read_keys(key):
            origins.setdefault(LogVerifier.parse(vkey).origin, []).append(vkey)
        cosigners = [Cosigner(name, Ed25519PrivateKey.generate()), Cosigner(name, MLDSA44PrivateKey.generate())]
    except CheckpointError as error:
        raise BadConfiguration(str(error), REQUESTER, "correct --name or --key") from error
    try:
        directory.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise BadConfiguration(
            f"cannot make {directory}: {error.strerror}", OPERATOR, "name a folder that does not exist"
        ) from error
    for file, cosigner in zip(("ed25519.key", "ml-dsa-44.key"), cosigners, strict=True):
        write_private_key(directory / file, cosigner.private_key)
    vkeys = [one.key.vkey for one in cosigners]
    write_atomically(directory / "witness.vkey", ("\n".join(vkeys) + "\n").encode())
    write_atomically(directory / "witness.toml", _toml(name, listen, origins).encode())
    if as_json:
        print_json({"directory": str(directory), "name": name, "logs": sorted(origins), "keys": vkeys})
        return
    say(f"made {directory}/witness.toml. Next:")
    say("  put the certificate of its host at tls.pem, and its key (mode 0600) at tls.key")
    say("  pin witness.vkey at the gateways ([[witnesses]]), and at relays that shall require it")
    say(f"  sealane audit witness serve --config {directory}/witness.toml")


def _toml(name: str, listen: str, origins: dict[str, list[str]]) -> str:
    text = f"""\
[witness]
listen = {json.dumps(listen)}
name = {json.dumps(name)}
state_dir = "state"
keys = ["ed25519.key", "ml-dsa-44.key"]

[tls]
certificate = "tls.pem"
private_key = "tls.key"
"""
    return text + "".join(f"\n[[logs]]\nkeys = {json.dumps(vkeys)}\n" for vkeys in origins.values())
