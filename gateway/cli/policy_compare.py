"""`sealane policy explain`, `diff` and `replay`: decisions of made-up and of past requests."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, say
from gateway.cli.policy_workshop import EXIT_FAULTS, BundleArgument, read_bundle, refusing
from gateway.cli.progress import counted_on, progress_bar
from gateway.counted import counted

if TYPE_CHECKING:
    from policy.authoring.compare import Asked, Comparison

LogOption = Annotated[
    Path | None, typer.Option("--log", metavar="DIR", help="The folder of a gateway's log, or a copy of it.")
]
SinceOption = Annotated[
    str, typer.Option("--since", metavar="TIME", help="Records since then: 90d, 12h (ago), 2026-11-22.")
]


def explain(
    directory: BundleArgument,
    case: Annotated[str | None, typer.Option("--case", metavar="NAME", help="A case of the bundle's tests.")] = None,
    record: Annotated[
        int | None, typer.Option("--record", metavar="N", min=0, help="Entry of the log that holds a decision.")
    ] = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell of every policy whether it is satisfied by a request, not, or fails, and which facts make it so.

    The request is a case of the bundle's tests, or one of the past: then the bundle may be another than decided it.

    \b
    Examples:
      sealane policy explain bank/ --case "restricted VMs stay in their country"
      sealane policy explain bank/ --log /var/lib/sealane/log --record 17
    """
    if (case is None) == (record is None) or (record is not None and log is None):
        raise BadConfiguration("name --case, or --record and --log", REQUESTER, "see `sealane policy explain --help`")
    files = read_bundle(directory)
    from policy.authoring.compare import decide_under, rules_of
    from policy.authoring.explain import explain as explained
    from policy.authoring.pieces import Pieces

    with refusing():
        rules = rules_of(files)
        asked = _case(files, case) if case is not None else _record(log or Path(), record or 0)
        explanation = explained(Pieces(rules, files), decide_under(rules, asked))
    if as_json:
        import msgspec

        print_json({"outcome": "allowed" if explanation.allowed else "denied", **msgspec.to_builtins(explanation)})
        return
    for line in explanation.lines():
        say(line)


def _case(files: dict[str, str], name: str) -> Asked:
    from policy.authoring.compare import Asked
    from policy.cases import read_cases
    from policy.request import entities_of, request_of

    posed = read_cases({path: text for path, text in files.items() if path.startswith("tests/")})
    found = next((each for each in posed if each.case.name == name), None)
    if found is None:
        raise BadConfiguration(f"no case is called {name!a}", REQUESTER, "give its whole name, as tests/ has it")
    return Asked(f"{found.file}:{found.line}", request_of(found.question), entities_of(found.question))


def _record(log: Path, index: int) -> Asked:
    from gateway.cli.past_decisions import decision_in
    from gateway.cli.record_folder import FromFolder

    found = decision_in(index, FromFolder(log).entry(index).get("record"))
    if found is None:
        raise BadConfiguration(f"entry {index} holds no decision", REQUESTER, "`sealane audit query` finds decisions")
    return found


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A bundle.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    log: LogOption = None,
    since: SinceOption = "90d",
    as_json: JsonOption = False,
) -> None:
    """Find requests that two bundles decide differently: of the past (--log), and of a grid over the people, VMs and
    hosts of their tests.

    Where the answer stays but other policies give it, that is told, too. Exit code 0: every answer is the same; 1: some
    are not. What was left out of a grid too large is said.

    \b
    Examples:
      sealane policy diff bank-7/ bank-8/
      sealane policy diff bank-7/ bank-8/ --log /var/lib/sealane/log --since 30d --json
    """
    one, two = read_bundle(before), read_bundle(after)
    from gateway.cli.past_decisions import PastDecisions
    from policy.authoring.compare import compare, grid, rules_of

    with refusing():
        rules = rules_of(one), rules_of(two)
        asked, notes = grid(one, two)
        past = PastDecisions(log, since) if log is not None else None
        with progress_bar("deciding requests", quiet=as_json) as progress:
            of_past = past.decisions(progress) if past is not None else ()
            comparison = compare(*rules, chain(counted_on(asked, progress, len(asked)), of_past))
    _tell(comparison, [*notes, *(past.notes() if past is not None else ())], as_json=as_json)


def replay(
    directory: BundleArgument,
    log: Annotated[Path, typer.Option("--log", metavar="DIR", help="The folder of a gateway's log, or a copy of it.")],
    since: SinceOption = "90d",
    as_json: JsonOption = False,
) -> None:
    """Decide what a gateway decided, again, under this bundle, and tell where the answer is another one.

    Permits for evacuations are among them. Where the answer stays but other policies give it, that is told, too.
    Exit code 0: all answers are as recorded; 1: some are not. A log that does not go back so far says how far it goes.

    \b
    Example:
      sealane policy replay bank-8/ --log /var/lib/sealane/log --since 90d
    """
    files = read_bundle(directory)
    from gateway.cli.past_decisions import PastDecisions
    from policy.authoring.compare import compare, rules_of

    past = PastDecisions(log, since)
    with refusing(), progress_bar("deciding requests", quiet=as_json) as progress:
        comparison = compare(None, rules_of(files), past.decisions(progress))
    _tell(comparison, past.notes(), as_json=as_json)


def _tell(comparison: Comparison, notes: list[str], *, as_json: bool) -> None:
    failed = comparison.differing > 0
    if as_json:
        import msgspec

        print_json({"outcome": "differs" if failed else "same", **msgspec.to_builtins(comparison), "notes": notes})
    else:
        for each in comparison.differences:
            say(each.text())
            if each.after.because:
                say(f"    {each.after.because}")
        for shift in comparison.shifts:
            say(shift.text())
        for weight in comparison.weights:
            say(f"{weight.policy}: determines {weight.before} of them before, {weight.after} after")
        for note in notes if comparison.compared else (*notes, "there was nothing to compare: this says nothing"):
            say(f"note: {note}")
        counts = f"{comparison.differing} decided differently, {comparison.shifted} by other policies only"
        say(f"{counted(comparison.compared, 'request')} compared: {counts}")
    if failed:
        raise typer.Exit(EXIT_FAULTS)


COMMANDS: Final[dict[str, Callable[..., None]]] = {"explain": explain, "diff": diff, "replay": replay}
