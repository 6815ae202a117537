"""`sealane policy check`, `fmt` …: what an author does with a bundle before it is signed; no gateway is needed."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from gateway.cli.errors import REQUESTER, BadConfiguration, Refused
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, say
from gateway.cli.serve import needs_gateway_extra
from gateway.cli.waiting import working
from gateway.counted import counted

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

    with working("checking the policies"):
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
        say(
            f"{counted(count, 'policy file')}: {counted(errors, 'error')}, {counted(len(findings) - errors, 'warning')}"
        )
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


def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that does not exist yet.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The bundle's name, for records.")] = "starter",
    as_json: JsonOption = False,
) -> None:
    """Begin a bundle: zones, classification, four eyes, change freeze, data residency, break-glass, unknown requester.

    It passes check, fmt --check and test. Then put your groups' ids in the place of its made-up ones.

    \b
    Example:
      sealane policy new policies --name bank
    """
    with needs_gateway_extra():
        from policy.authoring.beginning import begin
        from policy.errors import BundleRefused

    try:
        files = begin(name)
    except BundleRefused as error:
        raise BadConfiguration(f"--name: {error.detail.removeprefix('name: ')}", REQUESTER, "give another") from error
    try:
        directory.mkdir()
        for path, text in files.items():
            (directory / path).parent.mkdir(exist_ok=True)
            (directory / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadConfiguration(
            f"{directory}: {error.strerror}", REQUESTER, "name a directory that does not exist yet"
        ) from error
    if as_json:
        print_json({"outcome": "ok", "directory": str(directory), "files": sorted(files)})
    else:
        for path in sorted(files):
            say(f"wrote {directory / path}")
        say(f"Next: sealane policy test {directory}")


def run_cases(
    directory: BundleArgument,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the results there, too, as JUnit XML.")
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Exit code 1 also if the cases leave a policy or condition unshown.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the bundle's own cases, all of them; say why each failed one failed, and what no case shows.

    \b
    Examples:
      sealane policy test bank/
      sealane policy test bank/ --complete --junit results.xml
    """
    files = read_bundle(directory)
    from policy.authoring.testing import run_tests

    with refusing(), working("running the cases"):
        report = run_tests(files)
    if junit is not None:
        _write(junit.parent, {junit.name: report.junit()})
    failed = report.failed > 0 or (complete and bool(report.gaps))
    if as_json:
        import msgspec

        outcome = {"outcome": "failed" if failed else "ok", "failed": report.failed}
        print_json({**msgspec.to_builtins(report), **outcome})
    else:
        for case in report.cases:
            if case.failure:
                say(f"FAIL  {case.file}:{case.line}: {case.failure}")
                for line in case.why:
                    say(f"      {line}")
        for gap in report.gaps:
            say(f"gap   {gap.text()}")
        shown = f"{report.covered} of {report.coverable} outcomes shown"
        say(f"{counted(len(report.cases), 'case')}, {report.failed} failed; {shown}")
    if failed:
        raise typer.Exit(EXIT_FAULTS)


COMMANDS: Final[dict[str, Callable[..., None]]] = {"new": new, "check": check, "fmt": fmt, "test": run_cases}
