"""How the demo speaks: step by step in colour for a person; for a program, one JSON object at the end."""

import json
import sys
from dataclasses import asdict, dataclass, fields

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Findings:
    """What the demo saw. `holds` says whether that is all that Sealane promises."""

    outcome: str
    guest_alive: bool
    memory_intact: bool
    one_guest_only: bool
    bytes: int
    seconds: float
    downtime_ms: int
    tls_version: str
    key_exchange: str
    tls_cipher: str
    lane_cipher: str
    denied_recorded: bool
    log_verified: bool
    tampering_found: bool
    log_size: int
    guest_counted_to: int
    migration_id: str

    @property
    def holds(self) -> bool:
        """Whether each promise was kept, and each protection is the one that Sealane stands for."""
        kept = (self.guest_alive, self.memory_intact, self.one_guest_only, self.denied_recorded, self.log_verified)
        protection = (self.tls_version, self.key_exchange, self.lane_cipher)
        return (
            self.outcome == "completed"
            and all(kept)
            and self.tampering_found
            and protection == ("TLSv1.3", "X25519MLKEM768", "AES-256-GCM")
            and self.bytes > 0
            and self.log_size > 0
        )


class Teller:
    """Tells each step as it happens: on stdout for a person, on stderr where stdout is a program's."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = Console(file=sys.stderr if as_json else sys.stdout, markup=False, emoji=False, highlight=False)
        self._step = 0

    def step(self, title: str) -> None:
        """A new step begins."""
        self._step += 1
        self._out.print()
        self._out.print(Text(f"{self._step}  {title}", "bold cyan"))

    def say(self, text: str) -> None:
        """Something that happened in this step."""
        self._out.print(Text(f"   {text}"), soft_wrap=True)

    def command(self, *words: str) -> None:
        """A command that a person could have typed."""
        self._out.print(Text("   $ ", "dim").append("sealane " + " ".join(words), "bold"), soft_wrap=True)

    def check(self, passed: bool, text: str) -> bool:
        """Something that was checked, and whether it is as it should be."""
        mark = Text("   ✔ ", "bold green") if passed else Text("   ✘ ", "bold red")
        self._out.print(mark.append(text), soft_wrap=True)
        return passed

    def result(self, findings: Findings) -> None:
        """The end: all findings, and the verdict."""
        if self._as_json:
            self._print_object(asdict(findings))
            return
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 3))
        for field in fields(findings):
            value = getattr(findings, field.name)
            style = "" if not isinstance(value, bool) else "green" if value else "bold red"
            shown = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
            table.add_row(field.name.replace("_", " "), Text(shown, style))
        self._out.print()
        self._out.print(table)
        good = findings.holds
        words = "Everything that Sealane promises held." if good else "NOT everything that Sealane promises held."
        self._out.print(Text(f"\n{words}", "bold green" if good else "bold red"))

    def failure(self, what: str, who_must_act: str, next_step: str, tails: dict[str, str]) -> None:
        """The demo could not be brought to its end; `tails` are the last lines of what its processes said."""
        for name, tail in tails.items():
            self._out.print(Text(f"\n-- {name}", "dim"))
            self._out.print(Text(tail), soft_wrap=True)
        self._out.print(Text(f"\n{what}", "bold red"), soft_wrap=True)
        self._out.print(Text(next_step), soft_wrap=True)
        if self._as_json:
            error = {"message": what, "who_must_act": who_must_act, "next_step": next_step}
            self._print_object({"outcome": "failed", "error": error})

    @staticmethod
    def _print_object(document: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(document, separators=(",", ":")) + "\n")
        sys.stdout.flush()
