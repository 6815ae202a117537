"""`sealane policy check`, `fmt` …: what an author does with a bundle before it is signed; no gateway is needed."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from gateway.cli.errors import REQUESTER, BadConfiguration, Refused
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, say
from gateway.cli.serve import needs_gateway_extra

EXIT_FAULTS = 1
AUTHOR = "policy author"

BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The bundle: bundle.toml, policies/, tests/ …")]


def read_bundle(directory: Path) -> dict[str, str]:
    """The files of a bundle. Raises BadConfiguration if there is none, or if it holds what does not belong."""
    with needs_gateway_extra():
        from policy.bundle_files import read_bundle_files
        from policy.errors import BundleRefused
    try:
        return read_bundle_files(directory)
    except BundleRefused as error:
        detail = f"{error.file}: {error.detail}" if error.file else error.detail
        raise BadConfiguration(f"no bundle: {detail}", REQUESTER, "name the folder of a bundle") from error


@contextmanager
def refusing() -> Iterator[None]:
    """A bundle that cannot be used further is the author's to correct."""
    from policy.errors import BundleRefused

    try:
        yield
    except BundleRefused as error:
        detail = f"{error.file}: {error.detail}" if error.file else error.detail
        raise Refused(detail, AUTHOR, "sealane policy check tells all faults with their places") from error


def check(
    directory: BundleArgument,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings, too, give exit code 1.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read all policies, hold them against the schema, and point at what their author can hardly have meant.

    Each finding as FILE:LINE:COLUMN: severity[rule]: what; and a hint. Exit code 0: no error; 1: at least one.

    \b
    Examples:
      sealane policy check bank/
      sealane policy check bank/ --strict --json
    """
    files = read_bundle(directory)
    from policy.authoring.check import check_bundle

    findings = check_bundle(files)
    errors = sum(each.severity == "error" for each in findings)
    failed = errors > 0 or (strict and bool(findings))
    if as_json:
        import msgspec

        document = {"findings": msgspec.to_builtins(findings), "errors": errors, "warnings": len(findings) - errors}
        print_json({"outcome": "failed" if failed else "ok", **document})
    else:
        for each in findings:
            for line in each.text().splitlines():
                say(line)
        count = sum(path.startswith("policies/") for path in files)
        say(f"{count} policy files: {errors} errors, {len(findings) - errors} warnings")
    if failed:
        raise typer.Exit(EXIT_FAULTS)


def fmt(
    directory: BundleArgument,
    only_check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if a file would change.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Lay the policies out as Cedar's own formatter does, comments kept.

    \b
    Examples:
      sealane policy fmt bank/
      sealane policy fmt bank/ --check
    """
    files = read_bundle(directory)
    from policy.authoring.format import format_bundle

    with refusing():
        changed = format_bundle(files)
    if not only_check:
        _write(directory, changed)
    if as_json:
        print_json({"outcome": "failed" if only_check and changed else "ok", "changed": sorted(changed)})
    else:
        for path in sorted(changed):
            say(f"{'would change' if only_check else 'changed'}: {path}")
        if not changed:
            say("nothing to change")
    if only_check and changed:
        raise typer.Exit(EXIT_FAULTS)


def _write(directory: Path, files: Mapping[str, str]) -> None:
    from certs.files import write_atomically

    for path, text in files.items():
        try:
            write_atomically(directory / path, text.encode(), mode=0o644)
        except OSError as error:
            raise BadConfiguration(f"{path}: {error.strerror}", REQUESTER, "make the folder writable") from error


COMMANDS: Final = {"check": check, "fmt": fmt}
