"""`sealane policy publish`, `status`, `shadow` and `rollback`: what is in force at the gateways, and what is tried."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gateway.cli.asking import signed_in
from gateway.cli.errors import REQUESTER, BadConfiguration, CommandError
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.policy_files import AUTHOR, PublicationArgument, read_publication, said_plainly, write_new_folder
from gateway.cli.settings import resolve
from gateway.counted import counted


def publish(
    publication_file: PublicationArgument,
    gateway: Annotated[
        list[str] | None,
        typer.Option("--gateway", metavar="URL", help="A gateway; repeat it for each. Default: all of client.toml."),
    ] = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a signed and approved bundle in force, at every gateway of the site, without a restart.

    Exit code 1 or 3 if any of them did not take it: those that did have it in force. Run it again with the others.
    A login at one gateway of client.toml (`gateway` and `others`) is good at all of them.

    \b
    Example:
      sealane policy publish bank-8.json --gateway https://gw-1:8443 --gateway https://gw-2:8443
    """
    with said_plainly():
        publication, _ = read_publication(publication_file)
    results: list[dict[str, Any]] = []
    told: list[str] = []
    worst: CommandError | None = None
    first = resolve(None if not gateway else gateway[0], ca, token_file, Path.home())
    urls = gateway or [*dict.fromkeys((first.gateway, *first.others))]
    for url in urls:
        settings = resolve(url, ca, token_file, Path.home())
        try:
            with signed_in(url, ca, token_file) as client:
                done = client.publish_policy(publication.encode())
            results.append({"gateway": settings.gateway, "outcome": "in_force", **done})
            told.append(f"{settings.gateway}: version {done['version']} is in force (record {done['record_index']})")
        except CommandError as error:
            worst = error
            results.append({"gateway": settings.gateway, "outcome": "refused", "because": error.what})
            if len(urls) > 1:
                told.append(f"{settings.gateway}: {error.what}")
    if not as_json:
        for line in told:  # once it is done everywhere: who stops reading leaves no gateway behind the others
            say(line)
    else:
        print_json({"outcome": "published" if worst is None else "failed", "gateways": results})
        if worst is not None:
            raise typer.Exit(worst.exit_code)
    if worst is not None:
        raise worst


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
    with signed_in(gateway, ca, token_file) as client:
        state = client.policy()
    if as_json:
        print_json(state)
        return
    live, shadow = state["in_force"], state["shadow"]
    say(f"in force: {live['name']} version {live['version']}, {counted(live['policies'], 'policy')}, {live['digest']}")
    versions = ", ".join(map(str, state["published_versions"])) or "none: the directory's bundle is in force"
    say(f"published: {versions}")
    if shadow is None:
        say("candidate: none is being tried")
        return
    say(f"candidate: version {shadow['version']} since {shadow['since']}, {shadow['digest']}")
    told = f"{counted(shadow['compared'], 'decision')}: it would allow {shadow['would_allow']} that were denied,"
    say(f"  {told} deny {shadow['would_deny']} that were allowed, and failed at {shadow['failed']}")


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

    The trial ends with the gateway's process, or when the candidate itself is published. No field of the query language
    is for what it found: let grep look, as below.

    \b
    Examples:
      sealane policy shadow policies/
      sealane policy status
      sealane audit query 'since:7d' --format jsonl | grep '"shadow":'
      sealane policy shadow --stop
    """
    if stop == (candidate is not None):
        raise BadConfiguration("name a candidate, or --stop", REQUESTER, "see `sealane policy shadow --help`")
    with said_plainly():
        body = b"" if candidate is None else _candidate(candidate)
    with signed_in(gateway, ca, token_file) as client:
        done = client.end_policy_shadow() if stop else client.begin_policy_shadow(body)
    if as_json:
        print_json(done)
    elif stop:
        say(
            f"Ended after {counted(done['compared'], 'decision')}: {done['would_allow']} it would allow, "
            f"{done['would_deny']} deny, {done['failed']} failed."
        )
    else:
        say(f"Version {done['version']} is tried beside the one in force (record {done['record_index']}).")


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

        with signed_in(gateway, ca, token_file) as client:
            live = int(client.policy()["in_force"]["version"])
            files = dict(decode_publication(client.policy_version(version)).files)
        files["bundle.toml"] = _renumbered(files["bundle.toml"], live + 1)
        write_new_folder(files, directory)
    if as_json:
        print_json({"version": live + 1, "content_of": version, "directory": str(directory)})
    else:
        say(f"{directory}: the content of version {version} as version {live + 1}. Next: `sealane policy sign`.")


def _renumbered(manifest: str, version: int) -> str:
    changed, count = re.subn(r"(?m)^(\s*version\s*=\s*)\d+", rf"\g<1>{version}", manifest)
    if count != 1:
        raise BadConfiguration("its bundle.toml has no one line `version = N`", AUTHOR, "unpack it and set it yourself")
    return changed


def _candidate(path: Path) -> bytes:
    from policy.bundle_files import read_bundle_files
    from policy.publication import unsigned

    return unsigned(read_bundle_files(path)).encode() if path.is_dir() else read_publication(path)[0].encode()


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "publish": publish,
    "status": status,
    "shadow": shadow,
    "rollback": rollback,
}
