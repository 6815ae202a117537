"""What a person sees of a migration: the decision, the bar, the outcome. Text only, and all of it harmless."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from gateway.cli.output import note
from gateway.cli.replies import Decision, DecisionReply, MigrationReply, PreflightReply, receipt_bodies
from gateway.cli.replies import Progress as Numbers
from gateway.cli.terminal import harmless, plain
from gateway.cli.waiting import working

_STATES = {"assigned": "waits for its turn"}  # of the moves of its source host; longer than a moment where they queue
_STYLES = {"completed": "bold green", "cancelled": "bold yellow"}


def show_decision(out: Console, answer: DecisionReply, *, would: bool = False) -> None:
    """Allowed or denied, why, and each policy that took part with its reason."""
    decision = answer.decision
    word = "ALLOWED" if decision.allowed else "DENIED"
    line = Text.assemble(
        (("would be " if would else "") + word, "bold green" if decision.allowed else "bold red"),
        f"  record {answer.record_index}",
    )
    out.print(line)
    if decision.observed:
        out.print(
            Text("  OBSERVED: policy denies this; it is let through only while these zones are observed", "bold red")
        )
    if (decision.observed or not decision.allowed) and decision.denied_because:
        out.print(Text("  because ").append_text(plain(decision.denied_because)), soft_wrap=True)
    for policy in decision.policies:
        style = "green" if policy.effect == "permit" else "red"
        text = Text("  ").append_text(plain(policy.effect, style)).append(" by ").append_text(plain(policy.id, "bold"))
        if policy.reason:
            text.append(": ").append_text(plain(policy.reason))
        out.print(text, soft_wrap=True)
    for error in decision.errors:
        out.print(Text("  error: ", "red").append_text(plain(error)), soft_wrap=True)
    if would or not decision.allowed:
        _show_facts(out, decision)
    if decision.bundle_digest:
        out.print(Text("  policy bundle ").append_text(plain(decision.bundle_digest[:16])), style="dim")


def show_explanation(out: Console, answer: DecisionReply) -> None:
    """Each policy about the action, satisfied or not and why, as `sealane policy explain` tells it."""
    for line in answer.explanation[1:]:  # the first is the decision itself
        out.print(Text("  ").append_text(plain(line)), style="dim", soft_wrap=True)


def show_preflight(out: Console, preflight: PreflightReply) -> None:
    """Whether it can move, and what is in the way: "cannot" apart from "may not"."""
    word, style = ("CAN move", "bold green") if preflight.can_move else ("CANNOT move", "bold red")
    if preflight.can_move and any(finding.severity == "unknown" for finding in preflight.findings):
        word += ", for all that could be found out"
    out.print(Text(word, style))
    styles = {"cannot": "red", "attention": "yellow", "unknown": "dim"}
    for finding in preflight.findings:
        text = Text("  ").append_text(plain(finding.severity, styles.get(finding.severity, ""))).append("  ")
        text.append_text(plain(finding.message)).append("  [").append_text(plain(finding.who_must_act)).append("]")
        out.print(text, soft_wrap=True)


def preflight_document(preflight: PreflightReply) -> dict[str, Any]:
    """The same for `--json`."""
    document: dict[str, Any] = msgspec.to_builtins(preflight)
    return document


def _show_facts(out: Console, decision: Decision) -> None:
    """What the decision was built on, from which source, how old."""
    for fact in decision.facts:
        value = fact.value if isinstance(fact.value, str) else ", ".join(fact.value) or "none"
        text = f"{fact.of}: {fact.fact} {value}, from {fact.source}, {fact.age_seconds} s old"
        out.print(Text("  fact  ", "dim").append_text(plain(text)), soft_wrap=True)


def decision_document(answer: DecisionReply) -> dict[str, Any]:
    """The decision for `--json`."""
    return {
        "decision": msgspec.to_builtins(answer.decision),
        "record_index": answer.record_index,
        "migration_id": answer.migration_id,
    }


class Bar:
    """The progress bar at a terminal. Redrawn when there is news: no thread of its own."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._bar = Progress(
            TextColumn("{task.fields[state]}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[numbers]}", markup=False),
            console=out,
            auto_refresh=False,
            transient=True,
        )
        self._task: TaskID = self._bar.add_task("", total=1.0, state="assigned", numbers="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, reply: MigrationReply) -> None:
        """Draw the state of now."""
        numbers = reply.progress or Numbers()
        self._bar.update(
            self._task,
            completed=fraction(reply.state, numbers),
            state=_STATES.get(reply.state) or harmless(reply.state, limit=20),
            numbers=numbers_line(numbers),
            refresh=True,
        )

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._out.print(plain(text), soft_wrap=True)


class Lines:
    """The same as lines on stderr, for a pipe and beside `--json`."""

    def __init__(self) -> None:
        self._latest = "waits for its turn"
        self._telling = working("the migration is under way", lambda: self._latest)

    def __enter__(self) -> Lines:
        self._telling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._telling.__exit__(kind, error, trace)

    def show(self, reply: MigrationReply) -> None:
        """Keep the state of now for the next line."""
        self._latest = how_far(reply)

    def note(self, text: str) -> None:
        """A line on stderr."""
        note(text)


def how_far(reply: MigrationReply) -> str:
    """In one line."""
    if reply.state in _STATES:
        return _STATES[reply.state]
    return f"{harmless(reply.state, limit=20)}  {numbers_line(reply.progress or Numbers())}".rstrip()


def fraction(state: str, numbers: Numbers) -> float:
    """0 to 1: memory that is already at the destination. Falls back when the guest dirties it anew."""
    if state == "completed":
        return 1.0
    if numbers.total_bytes <= 0:
        return 0.0
    # Clamped: these numbers come from a host, and a bar of -3000 % helps nobody.
    return min(1.0, max(0.0, 1.0 - numbers.remaining_bytes / numbers.total_bytes))


def numbers_line(numbers: Numbers) -> str:
    """Rate, what remains and the pre-copy pass, as far as they are known."""
    parts = []
    if numbers.rate_bytes_per_second > 0:
        parts.append(f"{size(numbers.rate_bytes_per_second)}/s")
    if numbers.total_bytes > 0:
        parts.append(f"{size(numbers.remaining_bytes)} remaining")
    if numbers.pass_number > 0:
        parts.append(f"pass {numbers.pass_number}")
    return "  ".join(parts)


def size(count_bytes: int) -> str:
    """12 B, 3.4 MiB."""
    value = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count_bytes} B" if unit == "B" else f"{value:.1f} {unit}"


def summarise(answer: DecisionReply, reply: MigrationReply, seconds: float) -> dict[str, Any]:
    """The outcome as one object; what no receipt or progress tells is None."""
    bodies = receipt_bodies(reply)
    receipt: Mapping[str, Any] = bodies[0] if bodies else {}
    tls = receipt.get("tls")
    protection: Mapping[str, Any] = tls if isinstance(tls, Mapping) else {}
    numbers = reply.progress or Numbers()
    downtime = next((body["downtime_ms"] for body in bodies if type(body.get("downtime_ms")) is int), None)
    return {
        "outcome": reply.state,
        "message": reply.message or numbers.message,
        **({"revoked": msgspec.to_builtins(reply.revoked)} if reply.revoked is not None else {}),
        **decision_document(answer),
        "seconds": round(seconds, 3),
        "downtime_ms": numbers.downtime_ms if downtime is None else downtime,
        "bytes": _carried_bytes(receipt) or numbers.transferred_bytes,
        "tls_version": protection.get("version"),
        "key_exchange": protection.get("group"),
        "tls_cipher": protection.get("cipher"),
        "lane_cipher": receipt.get("lane_cipher"),
        "vm_binding": receipt.get("vm_binding"),
    }


def show_summary(out: Console, summary: Mapping[str, Any]) -> None:
    """The outcome in some lines."""
    outcome = harmless(summary["outcome"], limit=20)
    out.print(Text(outcome.upper(), _STYLES.get(outcome, "bold red")).append(f"  in {summary['seconds']:.1f} s"))
    if summary["message"]:
        out.print(Text("  ").append_text(plain(summary["message"])), soft_wrap=True)
    if (revoked := summary.get("revoked")) is not None:
        said = f"  REVOKED ({revoked['obligation']}): {revoked['because']}"
        out.print(plain(said, "bold red"), soft_wrap=True)
    if summary["downtime_ms"] is not None:
        out.print(f"  downtime    {summary['downtime_ms']} ms")
    if summary["bytes"] or summary["lane_cipher"]:  # else neither receipt nor progress has told
        out.print(f"  carried     {size(summary['bytes'])}")
    parts = [summary["tls_version"], summary["key_exchange"]]
    lanes = summary["lane_cipher"]
    words = [str(part) for part in parts if part] + ([f"lanes {lanes}"] if lanes else [])
    if words:
        out.print(Text("  protection  ").append_text(plain(", ".join(words))))
    out.print(Text(f"  record      {summary['record_index']}, migration ").append_text(plain(summary["migration_id"])))


def _carried_bytes(receipt: Mapping[str, Any]) -> int:
    channels = receipt.get("channels")
    if not isinstance(channels, list):
        return 0
    counts = [channel.get(name) for channel in channels if isinstance(channel, Mapping) for name in _COUNTS]
    return sum(count for count in counts if isinstance(count, int) and 0 <= count < 2**63)


_COUNTS = ("sent_bytes", "received_bytes")
