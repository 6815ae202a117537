"""`sealane gateway practice`: a gateway on an author's desk, with made-up hosts, VMs and people."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, say
from gateway.cli.serve import needs_gateway_extra
from transport.errors import ConfigurationError
from transport.relay.config import split_address

PEOPLE = {"olga": ("Olga Operator", "operators"), "paula": ("Paula Publisher", "policy-authors"),
          "petra": ("Petra Platform", "platform-team")}  # fmt: skip
HOSTS = {"lab1": ("test", "fra", "DE"), "lab2": ("test", "fra", "DE"), "fra1": ("production", "fra", "DE"),
         "zrh1": ("production", "zrh", "CH")}  # fmt: skip
VMS = {"cards": ("lab1", "confidential", ("pci",)), "sandbox": ("lab1", "internal", ()),
       "ledger": ("fra1", "restricted", ())}  # fmt: skip


def practice(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that does not exist yet.")],
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where it will listen.")
    ] = "127.0.0.1:8443",
    as_json: JsonOption = False,
) -> None:
    """Lay out a gateway to practise on: keys, the example bundle, made-up hosts, VMs and people. No VM moves.

    olga asks for moves, paula publishes policies, petra enrols and revokes hosts.

    Nothing in it is secret or for real hosts: passwords lie beside it. Start it by `sealane gateway serve`.

    \b
    Example:
      sealane gateway practice gateway && sealane gateway serve --config gateway/gateway.toml
    """
    with needs_gateway_extra():
        from gateway.starter import HostPlan, PersonPlan, VmPlan, lay_out_site
    if directory.exists():
        raise BadConfiguration(f"{directory} exists", REQUESTER, "name a directory that does not exist yet")
    _require_loopback(listen)
    hosts = [HostPlan(name, f"192.0.2.{number}:7443", *where) for number, (name, where) in enumerate(HOSTS.items(), 1)]
    vms = [
        VmPlan(name, f"5ea1a9e0-0000-4000-8000-{number:012}", host, HOSTS[host][0], classification, tags)
        for number, (name, (host, classification, tags)) in enumerate(VMS.items(), 1)
    ]
    people = [PersonPlan(user, name, (group,)) for user, (name, group) in PEOPLE.items()]
    try:
        site = lay_out_site(
            directory, hosts=hosts, vms=vms, people=people, gateway_listen=listen, now=datetime.now(UTC), enrols=True
        )
        client = f'gateway = "https://{listen}"\nca = "{site.ca.resolve()}"\n'
        (directory / "client.toml").write_text(client, encoding="utf-8")
    except OSError as error:
        raise BadConfiguration(f"{error.filename}: {error.strerror}", REQUESTER, "check the path") from error
    if as_json:
        print_json({"outcome": "ok", "directory": str(directory), "config": str(site.gateway_config)})
        return
    say(f"{directory}: people {', '.join(PEOPLE)} (passwords/), hosts {', '.join(HOSTS)}, VMs {', '.join(VMS)}")
    say(f"Start it: sealane gateway serve --config {site.gateway_config}")
    say(f"Talk to it: cp {directory}/client.toml ~/.config/sealane/, then sealane login --user olga")
    say("Enrol a host: as petra, sealane certs token lab1 --out lab1.token; docs/certificates.md, To practise it")


def _require_loopback(listen: str) -> None:
    """Its certificate is for this machine alone, and its passwords lie beside it."""
    try:
        host, port = split_address(listen, "--listen")
    except ConfigurationError as error:
        raise BadConfiguration(str(error), REQUESTER, "give 127.0.0.1:PORT") from error
    if host not in {"127.0.0.1", "::1", "localhost"} or port == 0:
        raise BadConfiguration(
            f"--listen: {listen} is not one port of this machine's loopback", REQUESTER, "give 127.0.0.1:PORT"
        )
