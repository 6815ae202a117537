"""`sealane policy`: bundles from their author to the gateways. The offline workshop has modules of its own."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.credentials import token_of
from gateway.cli.errors import REQUESTER, BadConfiguration, CommandError
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.serve import needs_gateway_extra
from gateway.cli.settings import resolve

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from policy.bundle import Bundle
    from policy.publication import Publication, Role

AUTHOR = "policy author"

app = typer.Typer(
    help="""Policies: write, check, test, explain and compare; sign, approve, publish, try and roll back.

Exit codes: 0 done, nothing to correct; 1 something is, or it was refused; 2 usage; 3 unreachable. docs/policy-guide.md.
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PublicationArgument = Annotated[
    Path, typer.Argument(metavar="PUBLICATION", help="The file that `sealane policy sign` wrote.")
]
SignerOption = Annotated[str, typer.Option("--as", metavar="NAME", help="Your name in the gateway's file of signers.")]
KeyOption = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="Your private key, mode 0600: from `sealane policy key`.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask whether you mean it.")]


@contextmanager
def said_plainly() -> Iterator[None]:
    """What is wrong with a bundle or a key, as one line with who must act."""
    with needs_gateway_extra():
        from certs.errors import KeyFileError
        from policy.errors import BundleRefused
    try:
        yield
    except BundleRefused as error:
        raise BadConfiguration(str(error), AUTHOR, "correct it and run the command again", "bundle_refused") from error
    except KeyFileError as error:
        raise BadConfiguration(f"{error.path}: {error.problem}", REQUESTER, error.remedy) from error
    except OSError as error:
        raise BadConfiguration(f"{error.filename}: {error.strerror}", REQUESTER, "check the path") from error


@app.command("key")
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will sign with it: alice.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the private key (0600).")],
    role: Annotated[
        list[str] | None, typer.Option("--role", metavar="ROLE", help="author or approver; repeat it. Default: both.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key to sign policies with, and print what the gateway's operator adds to the file of signers.

    \b
    Example:
      sealane policy key alice --out ~/.config/sealane/policy.key
    """
    with said_plainly():
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from certs.files import write_private_key
        from policy.publication import Signers, public_text

        made = Ed25519PrivateKey.generate()
        public = public_text(made.public_key())
        roles = ", ".join(f'"{each}"' for each in (role or ("author", "approver")))
        table = f'[[signer]]\nname = "{name}"\nkey = "{public}"\nroles = [{roles}]\n'
        try:
            Signers.parse(table)
        except ValueError as error:
            raise BadConfiguration(
                f"the gateway would not take this signer: {error}", REQUESTER, "use letters, digits and . _ @ -"
            ) from error
        write_private_key(out, made)
    if as_json:
        print_json({"name": name, "key": public, "file": str(out)})
    else:
        for line in table.splitlines():
            say(line)


@app.command("sign")
def sign(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The bundle's directory.")],
    signer: SignerOption,
    key_file: KeyOption,
    out: Annotated[Path, typer.Option("--out", metavar="PUBLICATION", help="The file to write.")],
    as_json: JsonOption = False,
) -> None:
    """Check a bundle, run its tests, and sign all of it as its author. Then have others approve the file.

    \b
    Example:
      sealane policy sign policies/ --as alice --key ~/.config/sealane/policy.key --out bank-8.json
    """
    with said_plainly():
        from policy.bundle import Bundle
        from policy.bundle_files import read_bundle_files
        from policy.publication import unsigned

        files = read_bundle_files(directory)
        bundle = Bundle.from_files(files)
        publication = _with_signature(unsigned(files), bundle, "author", signer, key_file)
        _write(out, publication)
    _tell(bundle, publication, out, as_json=as_json)


@app.command("approve")
def approve(
    publication_file: PublicationArgument,
    signer: SignerOption,
    key_file: KeyOption,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Approve what somebody else signed: see what it is, run its tests, add your signature to the file.

    Look at the policies first: `sealane policy unpack` writes them into a directory.

    \b
    Example:
      sealane policy approve bank-8.json --as bob --key ~/.config/sealane/policy.key
    """
    with said_plainly():
        publication, bundle = _read(publication_file)
        if not as_json:
            _describe(bundle, publication)
        if not yes and not typer.confirm("Approve this?", err=True):
            raise typer.Exit(1)
        approved = _with_signature(publication, bundle, "approver", signer, key_file)
        _write(publication_file, approved)
    _tell(bundle, approved, publication_file, as_json=as_json)


@app.command("unpack")
def unpack(
    publication_file: PublicationArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that does not exist yet.")],
    as_json: JsonOption = False,
) -> None:
    """Write the files of a publication into a directory, to read or to change them.

    \b
    Example:
      sealane policy unpack bank-8.json /tmp/bank-8 && git diff --no-index policies/ /tmp/bank-8
    """
    with said_plainly():
        publication, bundle = _read(publication_file)
        _unpack(publication.files, directory)
    _tell(bundle, publication, directory, as_json=as_json)


@app.command("publish")
def publish(
    publication_file: PublicationArgument,
    gateway: Annotated[
        list[str] | None,
        typer.Option("--gateway", metavar="URL", help="A gateway; repeat it for each. Default: that of client.toml."),
    ] = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a signed and approved bundle in force, at every gateway that is named, without a restart.

    Exit code 1 or 3 if any of them did not take it: those that did have it in force. Run it again with the others.

    \b
    Example:
      sealane policy publish bank-8.json --gateway https://gw-1:8443 --gateway https://gw-2:8443
    """
    with said_plainly():
        publication, _ = _read(publication_file)
    results: list[dict[str, Any]] = []
    worst: CommandError | None = None
    urls: list[str | None] = [*gateway] if gateway else [None]
    for url in urls:
        settings = resolve(url, ca, token_file, Path.home())
        try:
            with _client(url, ca, token_file) as client:
                done = client.publish_policy(publication.encode())
            results.append({"gateway": settings.gateway, "outcome": "in_force", **done})
            if not as_json:
                say(f"{settings.gateway}: version {done['version']} is in force (record {done['record_index']})")
        except CommandError as error:
            worst = error
            results.append({"gateway": settings.gateway, "outcome": "refused", "because": error.what})
            if not as_json and len(urls) > 1:
                say(f"{settings.gateway}: {error.what}")
    if as_json:
        print_json({"outcome": "published" if worst is None else "failed", "gateways": results})
        if worst is not None:
            raise typer.Exit(worst.exit_code)
    if worst is not None:
        raise worst


@app.command("status")
def status(
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the policy in force, the versions before it, and the candidate that is being tried.

    \b
    Example:
      sealane policy status --json
    """
    with _client(gateway, ca, token_file) as client:
        state = client.policy()
    if as_json:
        print_json(state)
        return
    live, shadow = state["in_force"], state["shadow"]
    say(f"in force: {live['name']} version {live['version']}, {live['policies']} policies, {live['digest']}")
    versions = ", ".join(map(str, state["published_versions"])) or "none: the directory's bundle is in force"
    say(f"published: {versions}")
    if shadow is None:
        say("candidate: none is being tried")
        return
    say(f"candidate: version {shadow['version']} since {shadow['since']}, {shadow['digest']}")
    counted = f"{shadow['compared']} decisions: it would allow {shadow['would_allow']} that were denied,"
    say(f"  {counted} deny {shadow['would_deny']} that were allowed, and failed at {shadow['failed']}")


@app.command("shadow")
def shadow(
    candidate: Annotated[
        Path | None, typer.Argument(metavar="[DIR|PUBLICATION]", help="The candidate: a bundle's directory, or a file.")
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the trial and show what was counted.")] = False,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try a bundle beside the one in force: it decides nothing; where it differs, the decision's record says so.

    Find the differences by `sealane audit query 'details.shadow.digest:*'`. The trial ends with the gateway's process.

    \b
    Examples:
      sealane policy shadow policies/
      sealane policy status
      sealane policy shadow --stop
    """
    if stop == (candidate is not None):
        raise BadConfiguration("name a candidate, or --stop", REQUESTER, "see `sealane policy shadow --help`")
    with said_plainly():
        body = b"" if candidate is None else _candidate(candidate)
    with _client(gateway, ca, token_file) as client:
        done = client.end_policy_shadow() if stop else client.begin_policy_shadow(body)
    if as_json:
        print_json(done)
    elif stop:
        say(
            f"Ended after {done['compared']} decisions: {done['would_allow']} it would allow, "
            f"{done['would_deny']} deny, {done['failed']} failed."
        )
    else:
        say(f"Version {done['version']} is tried beside the one in force (record {done['record_index']}).")


@app.command("rollback")
def rollback(
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The published version to go back to.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it; must not exist yet.")],
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an earlier version's content as a new version, ready to be signed, approved and published like any other.

    \b
    Example:
      sealane policy rollback 6 back-to-6/ && sealane policy sign back-to-6/ --as alice --key … --out bank-9.json
    """
    with said_plainly():
        from policy.publication import decode_publication

        with _client(gateway, ca, token_file) as client:
            live = int(client.policy()["in_force"]["version"])
            files = dict(decode_publication(client.policy_version(version)).files)
        files["bundle.toml"] = _renumbered(files["bundle.toml"], live + 1)
        _unpack(files, directory)
    if as_json:
        print_json({"version": live + 1, "content_of": version, "directory": str(directory)})
    else:
        say(f"{directory}: the content of version {version} as version {live + 1}. Next: `sealane policy sign`.")


def _renumbered(manifest: str, version: int) -> str:
    changed, count = re.subn(r"(?m)^(\s*version\s*=\s*)\d+", rf"\g<1>{version}", manifest)
    if count != 1:
        raise BadConfiguration("its bundle.toml has no one line `version = N`", AUTHOR, "unpack it and set it yourself")
    return changed


def _client(gateway: str | None, ca: Path | None, token_file: Path | None) -> Any:
    from gateway.cli.client import GatewayClient

    settings = resolve(gateway, ca, token_file, Path.home())
    return GatewayClient(settings, token_of(settings, int(time.time())))


def _read(path: Path) -> tuple[Publication, Bundle]:
    """A publication and its bundle, its tests run. Raises BundleRefused, OSError."""
    from policy.bundle import Bundle
    from policy.publication import MAX_PUBLICATION_BYTES, decode_publication

    with path.open("rb") as file:
        publication = decode_publication(file.read(MAX_PUBLICATION_BYTES + 1))
    return publication, Bundle.from_files(publication.files)


def _candidate(path: Path) -> bytes:
    from policy.bundle_files import read_bundle_files
    from policy.publication import unsigned

    return unsigned(read_bundle_files(path)).encode() if path.is_dir() else _read(path)[0].encode()


def _with_signature(publication: Publication, bundle: Bundle, role: Role, signer: str, key_file: Path) -> Publication:
    from policy.publication import BundleName, sign_publication

    about = BundleName(bundle.name, bundle.version, bundle.digest)
    return sign_publication(publication, about, role, signer, _private_key(key_file), datetime.now(UTC))


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from certs.files import read_private_key

    found = read_private_key(path)
    if not isinstance(found, Ed25519PrivateKey):
        raise BadConfiguration(f"{path}: is no Ed25519 key", REQUESTER, "make one by `sealane policy key`")
    return found


def _write(path: Path, publication: Publication) -> None:
    from certs.files import write_atomically

    write_atomically(path, publication.encode(), 0o644)


def _unpack(files: dict[str, str], directory: Path) -> None:
    """Into a new directory: nothing there is overwritten. The names were checked when the publication was read."""
    directory.mkdir()
    for path, text in files.items():
        target = directory / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)


def _describe(bundle: Bundle, publication: Publication) -> None:
    say(f"{bundle.name} version {bundle.version}, {len(bundle.policies)} policies, {bundle.tests_passed} tests passed")
    say(f"digest {bundle.digest}")
    for signature in publication.signatures:
        say(f"  {signature.role} {signature.signer}, {signature.time} by their own clock (not checked here)")


def _tell(bundle: Bundle, publication: Publication, out: Path, *, as_json: bool) -> None:
    if not as_json:
        _describe(bundle, publication)
        say(f"wrote {out}")
        return
    print_json(
        {
            "name": bundle.name,
            "version": bundle.version,
            "digest": bundle.digest,
            "policies": len(bundle.policies),
            "tests_passed": bundle.tests_passed,
            "signatures": [{"role": each.role, "signer": each.signer} for each in publication.signatures],
            "file": str(out),
        }
    )
