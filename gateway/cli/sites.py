"""`sealane sites trust`: lay down what this site's gateway and relays pin and trust of another one."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.errors import OPERATOR, BadConfiguration, Unreachable
from gateway.cli.options import CaOption, JsonOption
from gateway.cli.output import print_json, say
from gateway.cli.settings import canonical_url, resolve

if TYPE_CHECKING:
    from gateway.sites.publishing import SiteDocument

app = typer.Typer(
    help="Other sites with which VMs are exchanged: docs/sites.md.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _sites() -> None:
    """Keeps `sites trust` two words with only one command below it."""


@app.command()
def trust(
    url: Annotated[str, typer.Argument(metavar="URL", help="The other site's gateway, https://HOST[:PORT].")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder for its bundle, CRLs and keys; made if missing."),
    ],
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch roots, CRLs, permit keys and log keys of another site, and show their digests to compare by telephone.

    The same folder serves [[sites]] of gateway.toml and of each relay.toml. Run again after that site has rolled a
    root or a key over; CRLs are then kept by the gateway.

    \b
    Example:
      sealane sites trust https://gateway.east.example:8443 --ca east-ca.pem --out /etc/sealane/sites/east
    """
    import msgspec

    from audit.errors import AuditError
    from certs.errors import UNREADABLE, CertificateError
    from gateway.cli.client import GatewayClient
    from gateway.sites.publishing import SiteDocument

    settings = resolve(canonical_url(url, "URL"), ca, None, Path.home())
    with GatewayClient(settings) as client:
        answer = client.site()
    try:
        document = msgspec.convert(answer, SiteDocument)
        digests = lay_down(document, out)
    except (CertificateError, AuditError, RecursionError, *UNREADABLE) as error:
        raise Unreachable(
            f"{url} says nothing of its site that can be used: {error}", OPERATOR, "check URL and version"
        ) from error
    except OSError as error:
        raise BadConfiguration(f"{out}: {error.strerror}", OPERATOR, "check the folder") from error
    told: dict[str, Any] = {"trust_domain": document.trust_domain, "folder": str(out), "sha256": digests}
    told["left_over"] = left = left_over(out, digests)
    if as_json:
        print_json(told)
        return
    say(f"{document.trust_domain}: written to {out}. Compare these with the operators of that site before you use it:")
    for name, digest in digests.items():
        say(f"  {name}  {digest}")
    for name in left:
        say(f"{name} is of before, and that site publishes it no more: take it out of [[sites]], then remove it.")
    for line in _tables(document, out):
        say(line)


def lay_down(document: SiteDocument, folder: Path) -> dict[str, str]:
    """Write the folder; SHA-256 of what is pinned, by file. Raises CertificateError, AuditError, OSError and
    UNREADABLE.
    """
    from audit.checkpoint import LogVerifier
    from certs.crl_folder import MAX_FOREIGN_BYTES, keep_crls
    from certs.federation import parse_bundle
    from certs.files import write_atomically
    from policy.permit import PermitKey

    bundle = json.dumps(document.bundle, indent=1, sort_keys=True).encode()
    roots = parse_bundle(bundle, document.trust_domain)
    for pem in document.permit_keys:
        PermitKey.from_pem(pem.encode())
    for vkey in document.log_keys:
        LogVerifier.parse(vkey)
    (folder / "crls").mkdir(parents=True, exist_ok=True)
    keep_crls(folder / "crls", document.crls, roots, MAX_FOREIGN_BYTES)
    write_atomically(folder / "bundle.json", bundle)
    digests = {f"root {number}": root_digest(root) for number, root in enumerate(roots, start=1)}
    for name, texts in (("permit-{}.pub", document.permit_keys), ("log-{}.vkey", document.log_keys)):
        for number, text in enumerate(texts, start=1):
            content = (text.strip() + "\n").encode()
            write_atomically(folder / name.format(number), content)
            digests[name.format(number)] = hashlib.sha256(content).hexdigest()
    return digests


def left_over(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Keys of before that are not among what was laid down: whoever pins them still believes a key that was retired."""
    found = {each.name for pattern in ("permit-*.pub", "log-*.vkey") for each in folder.glob(pattern)}
    return sorted(found - digests.keys())


def root_digest(root: Any) -> str:
    """As `openssl x509 -fingerprint -sha256` shows it, without colons."""
    from cryptography.hazmat.primitives import hashes

    return str(root.fingerprint(hashes.SHA256()).hex())


def _tables(document: SiteDocument, folder: Path) -> list[str]:
    permits = [str(folder / f"permit-{n}.pub") for n in range(1, len(document.permit_keys) + 1)]
    logs = [str(folder / f"log-{n}.vkey") for n in range(1, len(document.log_keys) + 1)]
    crls = str(folder / "crls")
    pins = [f"permit_keys = {json.dumps(permits)}", f"log_keys = {json.dumps(logs)}"]
    head = ["[[sites]]", f"trust_domain = {json.dumps(document.trust_domain)}"]
    head.append(f"bundle = {json.dumps(str(folder / 'bundle.json'))}")
    return [
        "",
        "# relay.toml",
        *(*head, f"crls = {json.dumps([crls])}", *pins),
        "",
        "# gateway.toml; add name, url and ca",
        *(*head, f"crls = {json.dumps(crls)}", *pins),
    ]
