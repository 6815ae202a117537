"""What `sealane audit prove` and the verification of a proof bundle do: gather, write, check, tell what is proven."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from audit.errors import AuditError
from audit.export import MAX_ENTRIES, AskedQuery, Sealed, export_entries, export_range
from audit.tile_tree import FolderTiles, TileTree, split
from audit.tiles import TILE_WIDTH, number_path, unframe
from audit.verify_bundle import BundleCheck, BundleVerdict, ProvenEntry
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration, Refused
from gateway.cli.log_folder import read_checkpoint
from gateway.cli.record_question import Question
from gateway.cli.terminal import harmless, plain
from gateway.counted import counted
from gateway.times import to_the_second

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient

_SHOWN = 200


class GatewayTiles:
    """The tiles that a gateway serves to auditors (C2SP tlog-tiles over HTTPS)."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client

    def tile(self, level: int, number: int, width: int) -> Sequence[bytes]:
        """See TileSource."""
        return split(self._client.tile(f"{level}/{_name(number, width)}"))

    def bundle(self, number: int, width: int) -> list[bytes]:
        """See TileSource."""
        return unframe(self._client.tile(f"entries/{_name(number, width)}"))[0]


def sealed_folder(directory: Path) -> Sealed:
    """The log in a folder, as its checkpoint has it. Raises BadConfiguration."""
    return _sealed(read_checkpoint(directory), FolderTiles(directory))


def sealed_gateway(client: GatewayClient) -> Sealed:
    """The log of a gateway, as its published checkpoint has it."""
    return _sealed(client.checkpoint(), GatewayTiles(client))


def write_bundle(out: Path, lines: Iterator[str]) -> None:
    """Write a bundle to a new file (0600: it holds records); an existing one is refused. Raises CommandError."""
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadConfiguration(f"{out} cannot be written: {error.strerror}", REQUESTER, "name a new file") from error
    try:
        with os.fdopen(descriptor, "w", encoding="ascii", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        out.unlink(missing_ok=True)
        if isinstance(error, AuditError | OSError | IndexError | UnicodeDecodeError):
            raise Refused(f"the proof cannot be made: {error}", OPERATOR, "run `sealane audit verify`") from error
        raise


def lines_of(
    sealed: Sealed, indices: Sequence[int], bounds: tuple[int, int | None] | None, question: Question, *, hide: bool
) -> Iterator[str]:
    """The lines of the bundle that is asked for. Raises BadConfiguration."""
    if bounds is None:
        if wrong := [index for index in indices if index >= sealed.tree.size]:
            raise BadConfiguration(
                f"there is no entry {wrong[0]}: the log has {sealed.tree.size}", REQUESTER, "check the number"
            )
        return export_entries(sealed, indices)
    start, end = bounds[0], bounds[1] if bounds[1] is not None else sealed.tree.size
    if not 0 <= start < end <= sealed.tree.size or end - start > MAX_ENTRIES:
        raise BadConfiguration(
            f"entries {start} to {end - 1} are no range of up to {MAX_ENTRIES} of a log of {sealed.tree.size}",
            REQUESTER,
            "give --from and --to",
        )
    now = datetime.now(UTC)
    fits = _fits(question, now) if question.text else None
    asked = AskedQuery(question.text, now.isoformat(), question.timezone) if question.text else None
    return export_range(sealed, start, end, query=asked, shown=fits if hide else None)


def proof_of_one(sealed: Sealed, index: int, shown: Mapping[str, Any], keys: Sequence[str]) -> str:
    """In words: that what was shown of an entry is in the log. By a bundle, made and verified here. Raises Refused."""
    if index >= sealed.tree.size:
        raise Refused(f"entry {index} is not under the log's published state yet", REQUESTER, "ask again in a moment")
    with audit_errors():
        lines = "".join(export_entries(sealed, [index])).encode("ascii")
    check = BundleCheck(io.BytesIO(lines), keys)
    proven = [plain_json(one.document) for one in check.entries()]
    problems = [one.what for one in check.verdict.problems]
    if not problems and proven != [plain_json(shown)]:
        problems = ["the log has something else there than what was shown"]
    if problems:
        raise Refused(f"entry {index} is NOT PROVEN: {problems[0]}", OPERATOR, "run `sealane audit verify`")
    line = json.loads(lines.splitlines()[-1])
    entry = json.loads(line["entry"])
    how = "a permit, which its decision's record stands for"
    if "record" in entry:
        how = "signed by itself"
        if "group" in entry:
            how = f"signed together with {counted(entry['group']['size'] - 1, 'other')}"
    hashes, size = counted(len(line["path"]), "hash"), counted(check.verdict.size, "entry")
    return f"verified: {how}; led by {hashes} to the signed state of {sealed.origin} at {size}"


def plain_json(value: object) -> str:
    """So that what only looks equal (1 and true) is not."""
    return json.dumps(value, sort_keys=True)


def check_bundle(
    path: Path, keys: Sequence[str], witnesses: Sequence[str], authorities: bytes, seen: Sequence[Path]
) -> tuple[BundleVerdict, list[ProvenEntry], bool | None]:
    """Verify a bundle; its matching entries; whether the query itself was asked again (None: there is none).

    Raises BadConfiguration.
    """
    if seen:
        raise BadConfiguration("--seen is for a whole log", REQUESTER, "leave it out for a proof")
    found: list[ProvenEntry] = []
    try:
        with path.open("rb") as file:
            check = BundleCheck(file, keys, witnesses=witnesses, authorities=authorities)
            fits: Callable[[int, Mapping[str, Any]], bool] | None = None
            asked_again: bool | None = None
            for one in check.entries():
                if check.verdict.query is not None and asked_again is None:
                    fits = _fits_again(check.verdict.query)
                    asked_again = fits is not None
                if fits is None or fits(one.index, one.document):
                    found.append(one)
    except OSError as error:
        raise BadConfiguration(f"{path} cannot be read: {error.strerror}", REQUESTER, "check the path") from error
    except ValueError as error:
        raise BadConfiguration(
            f"a --key, --ca or --witness cannot be used: {error}", REQUESTER, "get it anew from where you trust it"
        ) from error
    return check.verdict, found, asked_again


def bundle_document(
    path: Path, verdict: BundleVerdict, found: Sequence[ProvenEntry], asked_again: bool | None
) -> dict[str, Any]:
    """The verdict as the object that `--json` prints."""
    return {
        "outcome": "verified" if verdict.ok else "not_verified",
        "file": str(path),
        "origin": verdict.origin,
        "size": verdict.size,
        "entries": verdict.entries,
        "hidden": verdict.hidden,
        "range": None if verdict.range is None else {"from": verdict.range[0], "to": verdict.range[1]},
        "query": None if verdict.query is None else dict(verdict.query),
        "query_asked_again": asked_again,
        "complete": verdict.ok and verdict.range is not None and not verdict.hidden and asked_again is not False,
        "matching": [one.index for one in found] if verdict.ok else [],
        "proven": proven(verdict, found, asked_again) if verdict.ok else [],
        "cosignatures": [{"witness": name, "time": time} for name, time in verdict.cosignatures],
        "policy_bundle": None
        if verdict.policy_digest is None
        else {
            "digest": verdict.policy_digest,
            "decided": verdict.decided_by_it,
            "decided_otherwise": verdict.decided_by_others,
        },
        "problems": [{"index": one.index, "what": one.what} for one in verdict.problems],
    }


def proven(verdict: BundleVerdict, found: Sequence[ProvenEntry], asked_again: bool | None) -> list[str]:
    """What the bundle proves, and what it does not, in sentences."""
    told = [f"the log {verdict.origin} had {counted(verdict.size, 'entry')}, and its key vouches for them"]
    told += [f"{harmless(name)} cosigned that state at {to_the_second(time)}" for name, time in verdict.cosignatures]
    if verdict.policy_digest is not None:
        others = f"; {len(verdict.decided_by_others)} name another one" if verdict.decided_by_others else ""
        told.append(f"of its decisions {len(verdict.decided_by_it)} name the policy bundle that came along{others}")
    if verdict.range is None:
        told.append(
            f"{counted(verdict.entries, 'entry')} of it, unaltered; whether there are others like them is not said"
        )
        return told
    start, end = verdict.range
    told.append(
        f"entries {start} to {end - 1} are all here, in their order; nothing is said of entries outside of them"
    )
    if verdict.hidden:
        told.append(
            f"{verdict.hidden} of them are hidden: that none of those matches the query is the word of the exporter"
        )
    if verdict.query is not None and asked_again:
        text = harmless(verdict.query["text"], limit=500)
        of_what = "of those shown" if verdict.hidden else "of them"
        told.append(f"{len(found)} {of_what} match: {text} (asked again here, as of {verdict.query['asked_at']})")
    elif verdict.query is not None:
        told.append("its query was not asked again: install sealane[gateway], which has the language")
    return told


def show_bundle(out: Console, document: Mapping[str, Any], found: Sequence[ProvenEntry]) -> None:
    """The verdict in words; of a sound bundle also the records."""
    from gateway.cli.record_view import show_records

    for one in document["problems"]:
        where = "bundle" if one["index"] is None else f"entry {one['index']}"
        out.print(Text(f"  {where}: ", "red").append_text(plain(one["what"], limit=1000)), soft_wrap=True)
    if document["outcome"] != "verified":
        out.print(
            Text("NOT VERIFIED", "bold red").append(
                f"  {counted(len(document['problems']), 'problem')}; it proves nothing"
            )
        )
        return
    if found:
        show_records([(one.index, one.document) for one in found[:_SHOWN]])
    if len(found) > _SHOWN:
        out.print(plain(f"… and {len(found) - _SHOWN} more"))
    out.print(Text("VERIFIED", "bold green"))
    for line in document["proven"]:
        out.print(plain(f"  {line}", limit=2000), soft_wrap=True)


@contextmanager
def audit_errors() -> Iterator[None]:
    """Around what reads tiles: their errors in our words."""
    try:
        yield
    except (AuditError, OSError) as error:
        raise Refused(f"the log cannot be read: {error}", OPERATOR, "run `sealane audit verify`") from error


def _sealed(text: str, source: FolderTiles | GatewayTiles) -> Sealed:
    lines = text.split("\n", 3)
    if len(lines) < 4 or not lines[1].isascii() or not lines[1].isdigit() or len(lines[1]) > 18 or lines[1] == "0":
        raise BadConfiguration("the log's checkpoint is none, or of an empty log", OPERATOR, "look at the log")
    return Sealed(TileTree(source, int(lines[1])), lines[0], text)


def _name(number: int, width: int) -> str:
    return f"{number_path(number)}" + ("" if width == TILE_WIDTH else f".p/{width}")


def _fits(question: Question, now: datetime) -> Callable[[int, bytes], bool]:
    from audit.index_digest import document_of
    from audit.query import facets_of, matches
    from gateway.cli.record_folder import where_of

    where = where_of(question, now)
    return lambda index, entry: matches(where, facets_of(index, document_of(entry)))


def _fits_again(query: Mapping[str, Any]) -> Callable[[int, Mapping[str, Any]], bool] | None:
    """The query of a bundle as a test; None where this host lacks the language. Raises BadConfiguration."""
    from audit.query import facets_of, matches
    from gateway.cli.record_folder import where_of

    zone = query["timezone"]
    try:
        asked = datetime.fromisoformat(str(query["asked_at"]))
        where = where_of(Question({}, str(query["text"]), None if zone is None else str(zone)), asked)
    except BadConfiguration as error:
        if error.code == "extra_missing":
            return None
        raise
    except (ValueError, TypeError) as error:
        raise BadConfiguration("the query of the proof is malformed", REQUESTER, "ask for another proof") from error
    return lambda index, document: matches(where, facets_of(index, document))
