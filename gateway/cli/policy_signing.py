"""`sealane policy key`, `sign`, `approve` and `unpack`: a bundle on its way from its author to whoever publishes it."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, say
from gateway.cli.policy_files import PublicationArgument, read_publication, said_plainly, write_new_folder
from gateway.counted import counted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from policy.bundle import Bundle
    from policy.publication import Publication, Role

SignerOption = Annotated[str, typer.Option("--as", metavar="NAME", help="Your name in the gateway's file of signers.")]
KeyOption = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="Your private key, mode 0600: from `sealane policy key`.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask whether you mean it.")]


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
        publication, bundle = read_publication(publication_file)
        if not as_json:
            _describe(bundle, publication)
        if not yes and not typer.confirm("Approve this?", err=True):
            raise typer.Exit(1)
        approved = _with_signature(publication, bundle, "approver", signer, key_file)
        _write(publication_file, approved)
    _tell(bundle, approved, publication_file, as_json=as_json)


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
        publication, bundle = read_publication(publication_file)
        write_new_folder(publication.files, directory)
    _tell(bundle, publication, directory, as_json=as_json)


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


def _describe(bundle: Bundle, publication: Publication) -> None:
    holds = f"{counted(len(bundle.policies), 'policy')}, {counted(bundle.tests_passed, 'test')} passed"
    say(f"{bundle.name} version {bundle.version}, {holds}")
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


COMMANDS: Final[dict[str, Callable[..., None]]] = {"key": key, "sign": sign, "approve": approve, "unpack": unpack}
