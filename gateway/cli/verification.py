"""What `sealane audit verify` does: read the pinned keys, run the independent verifier, tell the verdict."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration, Refused
from gateway.cli.progress import progress_bar
from gateway.cli.terminal import harmless, plain
from gateway.counted import counted
from gateway.times import to_the_second

if TYPE_CHECKING:
    from audit.verify import Options

_MAX_KEY_FILE_BYTES = 64 * 1024


def read_keys(given: Sequence[str], option: str = "--key") -> list[str]:
    """The verifier keys that `option` names: each argument is a key itself, or a file that holds one on each line."""
    keys: list[str] = []
    for one in given:
        path = Path(one)
        try:
            with path.open("rb") as file:
                lines = file.read(_MAX_KEY_FILE_BYTES).decode().splitlines()
        except (OSError, ValueError):
            # A verifier key holds base64 with `/`, so what is no file is taken for a key if it looks like one.
            if one.count("+") < 2:
                raise BadConfiguration(
                    f"{option} {one!r} is neither a readable file nor a verifier key",
                    REQUESTER,
                    "name a file such as log.vkey, or give its line: NAME+KEYID+BASE64",
                ) from None
            lines = [one]
        found = [line.strip() for line in lines if line.strip()]
        # Told without what stands there: it may be a private key, or anything else that was named by mistake.
        if not found or not all(line.count("+") >= 2 for line in found):
            raise BadConfiguration(f"{path} holds no verifier key", REQUESTER, "name a file such as log.vkey")
        keys += found
    return keys


def check_log(
    directory: Path, keys: Sequence[str], seen: Sequence[Path], options: Options, *, quiet: bool
) -> dict[str, Any]:
    """Run the verifier; the verdict as the object that `--json` prints. `seen`: files of checkpoints."""
    from audit.verify import verify_log

    try:
        notes = [path.read_text() for path in seen]
        with progress_bar("verifying the log", quiet=quiet) as progress:
            verdict = verify_log(directory, keys, progress, seen=notes, options=options)
    except BrokenExecutor as error:
        what = "nothing was verified: a process that read the log was ended from outside"
        raise Refused(what, OPERATOR, "see whether memory ran out; --workers 1 needs least") from error
    except OSError as error:
        raise BadConfiguration(
            f"{error.filename or directory} cannot be read: {error.strerror}", REQUESTER, "check the path"
        ) from error
    except ValueError as error:
        raise BadConfiguration(
            f"a --key, --seen, --ca or --witness cannot be used: {error}",
            REQUESTER,
            "get it anew from where you trust it",
        ) from error
    return {
        "outcome": "verified" if verdict.ok else "not_verified",
        "directory": str(directory),
        "origin": verdict.origin,
        "size": verdict.size,
        "root": base64.b64encode(verdict.root).decode(),
        "records": verdict.records,
        "permits": verdict.permits,
        "receipts": verdict.receipts,
        "signatures": verdict.signatures,
        "pruned": verdict.pruned,
        "cosignatures": [{"witness": name, "time": time} for name, time in verdict.cosignatures],
        "problems": [{"index": one.index, "what": one.what} for one in verdict.problems],
        "warnings": [{"index": one.index, "what": one.what} for one in verdict.warnings],
    }


def show_verdict(out: Console, document: Mapping[str, Any]) -> None:
    """The verdict in words, problems first."""
    for style, kind in (("red", "problems"), ("yellow", "warnings")):
        for one in document[kind]:
            where = "log" if one["index"] is None else f"entry {one['index']}"
            out.print(Text(f"  {where}: ", style).append_text(plain(one["what"], limit=1000)), soft_wrap=True)
    if document["outcome"] == "verified":
        text = Text("VERIFIED", "bold green")
        kinds = f"{counted(document['records'], 'record')}, {counted(document['permits'], 'permit')}"
        text.append(f"  {counted(document['size'], 'entry')} ({kinds})")
        text.append(" complete and unaltered")
        if document["signatures"] < document["records"]:
            text.append(f"; of record signatures {document['signatures']} were checked, drawn by lot")
        if document["pruned"]:
            text.append(f"; {document['pruned']} of them were pruned, so only their hashes are checked (--archive DIR)")
        for one in document["cosignatures"]:
            text.append(f"; cosigned by {harmless(one['witness'])} at {to_the_second(one['time'])}")
    else:
        text = Text("NOT VERIFIED", "bold red").append(f"  {counted(len(document['problems']), 'problem')}")
    if document["warnings"]:
        text.append(f"; {counted(len(document['warnings']), 'warning')} to judge")
    if document["origin"]:
        text.append(f"\n  log {harmless(document['origin'])}")
    if document["outcome"] == "verified":
        text.append(f"  root {document['root']}")
    out.print(text, soft_wrap=True)
